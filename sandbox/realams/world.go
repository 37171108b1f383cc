// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/netns"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// HubAddress is where MongoDB, publishers and viewers are.
const HubAddress = "10.77.0.254"

const mongoPort = 27311

// Options says what a world has.
type Options struct {
	// Users of MongoDB (name to password); nil is a MongoDB without users.
	Users map[string]string
	// Members makes a replica set of so many; 0 is one server without a set.
	Members int
	// Election is how long the set waits for its primary before it elects another one; 0 is short.
	Election time.Duration
	// Mongod is added to the command line of each mongod.
	Mongod []string
}

// World is a network of test machines with a MongoDB.
type World struct {
	Mongo *realmongo.Set

	hub   *box
	users map[string]string

	mu    sync.Mutex
	nodes int
}

// New makes a world; it ends with the test. It skips the test where a real server
// cannot be run.
func New(t testing.TB, o Options) *World {
	t.Helper()
	Require(t)
	w := &World{users: o.Users}
	// A bridge without an address of its own takes the lowest of its ports' and changes it
	// with the next port: to nodes that know the former one MongoDB is silent then.
	w.hub = newBox(t, "hub", `hostname hub
ip link add br0 address 02:00:00:00:00:fe type bridge forward_delay 0
ip addr add `+HubAddress+`/24 dev br0
ip link set br0 up`)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var err error
	w.Mongo, err = realmongo.Start(ctx, realmongo.Options{
		Binary: realmongo.Require(t), Members: o.Members, ElectionTimeout: o.Election, Users: o.Users,
		Host: HubAddress, Port: mongoPort, Prefix: w.hub.netPrefix(), Dial: w.Dial, Args: o.Mongod,
	})
	must.OK(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range w.Mongo.Members() {
				t.Log(m.Story())
			}
		}
		if err := w.Mongo.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// URI is the argument of `amsagent join --mongo`. With a user it has ':' and '=', which java.util.Properties escapes.
func (w *World) URI() string {
	if len(w.users) == 0 {
		return w.Mongo.URI()
	}
	return w.URIOf(slices.Min(slices.Collect(maps.Keys(w.users))))
}

// URIOf is the same as a certain user.
func (w *World) URIOf(user string) string {
	q := url.Values{"authSource": {"admin"}}
	if len(w.Mongo.Members()) > 1 {
		q.Set("replicaSet", realmongo.SetName)
	}
	return "mongodb://" + url.UserPassword(user, w.users[user]).String() + "@" + w.Mongo.Addrs() + "/?" + q.Encode()
}

// Network is a process in the network of the bridge br0, for a machine that is not a
// Node. Its address is one of 10.77.0.100 to 10.77.0.199.
func (w *World) Network() int { return w.hub.pid }

// Dial connects from where viewers are.
func (w *World) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return w.hub.dial(ctx, network, address)
}

// Listen listens at a free port of the address that nodes know MongoDB by.
func (w *World) Listen(ctx context.Context) (net.Listener, error) {
	return netns.Listen(ctx, w.hub.pid, "tcp", net.JoinHostPort(HubAddress, "0"))
}

// HTTP returns a client that asks from where viewers are, as a browser does: with a
// connection that it keeps, and with cookies.
func (w *World) HTTP(timeout time.Duration) *http.Client {
	jar, _ := cookiejar.New(nil) // never fails without options
	return &http.Client{
		Timeout: timeout, Jar: jar, Transport: &http.Transport{DialContext: w.Dial},
		// A redirect is an answer, too.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Start begins to run a program where viewers are. It is killed at the end of the
// test.
func (w *World) Start(t testing.TB, args ...string) *Process {
	t.Helper()
	cmd := w.hub.command(args...)
	return startProcess(t, cmd)
}

// Publish sends a small live stream to a node until the test ends or the process is
// ended; an attempt that is refused is repeated.
func (w *World) Publish(t testing.TB, n *Node, app, stream string) *Process {
	t.Helper()
	return w.Start(t, "bash", "-c", `trap 'kill $!; exit' TERM
while :; do
ffmpeg -nostdin -loglevel error -re -f lavfi -i testsrc=size=160x120:rate=5 -f lavfi -i sine=sample_rate=22050 \
  -c:v libx264 -preset ultrafast -tune zerolatency -g 10 -threads 1 -pix_fmt yuv420p -c:a aac -b:a 32k -f flv "$1" &
wait $! || sleep 1
done`, "bash", "rtmp://"+n.Address+"/"+app+"/"+stream)
}

// Play watches a stream by HLS until the process is ended; it begins again where the
// playlist is refused or ends.
func (w *World) Play(t testing.TB, n *Node, app, stream string) *Process {
	t.Helper()
	return w.Start(t, "bash", "-c", `trap 'kill $!; exit' TERM
while :; do
ffmpeg -nostdin -loglevel error -i "$1" -c copy -f null - &
wait $! || sleep 1
done`, "bash", PlaylistURL(n, app, stream))
}

// PlaylistURL is what an HLS player asks for.
func PlaylistURL(n *Node, app, stream string) string {
	return "http://" + n.Address + ":5080/" + app + "/streams/" + stream + ".m3u8"
}
