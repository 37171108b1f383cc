// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/realams"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// realWorld has real Ant Media Servers in namespaces of this machine, and a real mongod.
type realWorld struct {
	d         *demo
	world     *realams.World
	forwarder net.Listener // here, for what MongoDB listens to there
	// forwarded are listeners there, by the port of the fake cloud that they are for.
	forwarded map[string]net.Listener
}

// ErrNotRoot is what a real server in a namespace of its own needs.
var ErrNotRoot = errors.New("a demo on real servers needs root: it puts each into a network namespace of its own")

func newRealWorld(d *demo) *realWorld {
	w := &realWorld{d: d, world: realams.New(d, realams.Options{}), forwarded: map[string]net.Listener{}}
	var err error
	w.forwarder, err = (&net.ListenConfig{}).Listen(d.ctx, "tcp", "127.0.0.1:0")
	must.OK(d, err)
	d.forward(w.forwarder, func() (net.Conn, error) { return w.world.Dial(d.ctx, "tcp", w.mongo()) })
	return w
}

func (w *realWorld) intro() []string {
	return []string{
		"Real: the agent; Ant Media Server " + realams.Newest + ", Community Edition, twice, each in namespaces of its",
		"own; MongoDB; a stream made by ffmpeg. Cluster mode belongs to the Enterprise Edition: three",
		"classes of the tests replace it, write the same into MongoDB, and forward no stream from node to",
		"node. Two claims of `make demo` need the stand-in and are left out: AMS's own count of cut viewers",
		"(the viewer is asked instead), and a machine whose firmware names the cloud (it is set). Each start",
		"of AMS takes 10 s, or minutes on a busy computer. Emulated: the cloud:",
	}
}

func (w *realWorld) mongo() string        { return w.world.Mongo.Addrs() }
func (w *realWorld) dialed() string       { return w.forwarder.Addr().String() }
func (w *realWorld) addresses() [2]string { return [2]string{"10.77.0.1", "10.77.0.2"} }
func (w *realWorld) fed() bool            { return true }
func (w *realWorld) restored() string     { return "except what AMS saved itself" }
func (w *realWorld) stopMongo()           { must.OK(w.d, w.world.Mongo.Member(0).Stop()) }
func (w *realWorld) startMongo()          { must.OK(w.d, w.world.Mongo.Member(0).Start(w.d.ctx)) }

// realServer is the real server on a machine.
type realServer struct {
	*realams.Node
	w *realWorld
	// stream is another one on each machine: all share one MongoDB.
	stream    string
	publisher *realams.Process
	said      int // bytes that it had said when its stream could be played
	// settings are the application's settings that the server may save itself, before a join, by path.
	settings map[string]string
}

// agentPath is where the agent lies on a real machine.
const agentPath = "/usr/local/bin/amsagent"

func (w *realWorld) machine(m fakecloud.Machine, environ []string) *node {
	s := &realServer{Node: w.world.Node(w.d, realams.Newest), w: w, stream: stream + "-at-" + m.Name, settings: map[string]string{}}
	if s.Address != m.Address {
		w.d.Fatalf("the machine %s has the address %s, not %s", m.Name, s.Address, m.Address)
	}
	// The cloud listens here, on loopback, which is another one there.
	environ = w.reachable(environ)
	b, err := os.ReadFile(w.d.agent)
	must.OK(w.d, err)
	must.OK(w.d, os.WriteFile(s.Path(agentPath), b, 0o755))
	s.AllowAgent(w.d)
	s.MustRun(w.d, realams.Service, "start")
	// On a real machine the firmware says which cloud it is; that of this machine is another.
	environ = append(environ, "AMSAGENT_PROVIDER="+w.d.o.Cloud, "AMSAGENT_SERVICE_COMMAND="+realams.Service, "AMSAGENT_METRICS_ADDRESS=127.0.0.1:0")
	return &node{
		Node: &rig.Node{Machine: s.Node, T: w.d, Agent: agentPath, Env: environ}, server: s,
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: s.Dial, DisableKeepAlives: true}},
	}
}

var loopback = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// reachable replaces the addresses of fakes by those at which machines reach them.
func (w *realWorld) reachable(environ []string) []string {
	out := make([]string, 0, len(environ))
	for _, e := range environ {
		out = append(out, loopback.ReplaceAllStringFunc(e, func(here string) string {
			l, ok := w.forwarded[here]
			if !ok {
				var err error
				l, err = w.world.Listen(w.d.ctx)
				must.OK(w.d, err)
				w.forwarded[here] = l
				w.d.forward(l, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(w.d.ctx, "tcp", here) })
			}
			return l.Addr().String()
		}))
	}
	return out
}

// forward proxies each connection of a listener to a connection of dial, until the demo ends.
func (d *demo) forward(l net.Listener, dial func() (net.Conn, error)) {
	d.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer a.Close()
				b, err := dial()
				if err != nil {
					return
				}
				defer b.Close()
				go func() {
					_, _ = io.Copy(b, a) // a side that has ended ends the other
					_ = b.Close()
				}()
				_, _ = io.Copy(a, b)
			}()
		}
	}()
}

// files are those that a join may change, and the folders that they are in: programs
// and data of the server are left out.
func (s *realServer) files() []string {
	s.WaitServed(s.w.d, applications()...)
	var all []string
	folders := []string{"/etc", home + "/conf"}
	for _, app := range append(applications(), "root") {
		folders = append(folders, filepath.Dir(settingsOf(app)))
	}
	for _, folder := range folders {
		lines, err := tree.Snapshot(s.Path(folder), "lib", "classes")
		must.OK(s.w.d, err)
		for _, l := range lines {
			fields := strings.SplitN(l, " ", 4)
			fields[3] = filepath.Join(folder, fields[3])
			all = append(all, strings.Join(fields, " "))
		}
	}
	if len(s.settings) == 0 {
		for _, app := range applications() {
			s.settings[settingsOf(app)] = s.Read(s.w.d, settingsOf(app))
		}
	}
	return all
}

// applications are those that serve viewers.
func applications() []string { return []string{"LiveApp", "WebRTCApp", "live"} }

// givenBack wants every file as it was, besides the settings that the server saved
// itself while it was a node: in those every former key has its former value.
func (s *realServer) givenBack(was, is []string) []string {
	pathOf := func(line string) string { return strings.SplitN(line, " ", 4)[3] }
	same, saved := 0, 0
	for _, l := range is {
		path := pathOf(l)
		if slices.Contains(was, l) {
			same++
		} else if _, ok := s.settings[path]; ok {
			saved++
		} else {
			s.w.d.Fatalf("after leaving: %s is not what it was", path)
		}
	}
	if same+saved != len(was) {
		s.w.d.Fatalf("after leaving: there were %d files and folders, and there are %d", len(was), same+saved)
	}
	keys := 0
	for path, text := range s.settings {
		before, err := conf.ParseProperties([]byte(text))
		must.OK(s.w.d, err)
		after, err := conf.ParseProperties([]byte(s.Read(s.w.d, path)))
		must.OK(s.w.d, err)
		for _, key := range before.Keys() {
			want, _ := before.Get(key)
			if got, _ := after.Get(key); got != want {
				s.w.d.Fatalf("after leaving: %s: %s is %q, and it was %q", path, key, got, want)
			}
			keys++
		}
	}
	return []string{
		fmt.Sprintf("%d of %d files and folders are as in step 1: bytes, mode and owner. The other %d are settings of", same, len(was), saved),
		fmt.Sprintf("applications, which AMS saved itself while it was a node; their %d keys have their former values", keys),
	}
}

func (s *realServer) running() string {
	pid := s.Server()
	if pid == 0 {
		return ""
	}
	return strconv.Itoa(pid) + " " + strings.Join(s.Asked(), " ")
}

func (s *realServer) publish() {
	s.publisher = s.w.world.Publish(s.w.d, s.Node, app, s.stream)
	s.playable()
}

// playable waits until a player would find the stream.
func (s *realServer) playable() {
	client := s.w.world.HTTP(2 * time.Second)
	s.w.d.until("the stream can be played", func() string {
		if status := realams.Status(client, realams.PlaylistURL(s.Node, app, s.stream)); status != http.StatusOK {
			return fmt.Sprintf("%d; the publisher says: %s", status, s.publisher.Output())
		}
		return ""
	})
	s.said = len(s.publisher.Output())
}

func (s *realServer) endStream() {
	_, err := s.publisher.Stop(20 * time.Second)
	must.OK(s.w.d, err)
}

// stillPublished goes by the publisher: one that is cut off says so and connects again.
func (s *realServer) stillPublished() error {
	if text := s.publisher.Output()[s.said:]; text != "" {
		return fmt.Errorf("the publisher says: %s", text)
	}
	return nil
}

func (s *realServer) leftAlone() error { return nil }

// player is a viewer by HLS.
type player struct {
	*realams.Player
	cancel context.CancelFunc
	ended  chan struct{} // closed when it watches no more
}

func (s *realServer) watch() viewer {
	s.playable()
	ctx, cancel := context.WithCancel(s.w.d.ctx)
	p := player{&realams.Player{Client: s.w.world.HTTP(5 * time.Second), Playlist: realams.PlaylistURL(s.Node, app, s.stream)}, cancel, make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.Run(ctx)
	}()
	return p
}

func (p player) served() bool {
	met := p.Met()
	return met.Segments > 0 && met.Failed == 0
}

func (p player) leave() {
	p.cancel()
	<-p.ended
	p.Client.CloseIdleConnections()
}
