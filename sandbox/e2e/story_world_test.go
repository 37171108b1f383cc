// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/netns"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// Addresses of the services in the nodes' network.
const (
	storyMongo    = "10.77.0.4"
	storyServices = "10.77.0.5" // packages, and the vault with the secret
	storyBalancer = "10.77.0.6"
	storyPassword = "0123456789abcdef0123456789abcdef0123456789abcdef"
	storyURI      = "mongodb://amsagent:" + storyPassword + "@" + storyMongo + ":27017/admin"
)

// storyPorts are those of the templates: 80 leads to origins, 5080 to edges.
var storyPorts = map[string]string{"origin": "80", "edge": "5080"}

// storyWorld is a network of its own with a bridge in it, on which the nodes' cables end, a MongoDB that wants a password, a
// load balancer, and a web server. All of it ends with the shell that holds it.
type storyWorld struct {
	pid   int // of the shell
	dir   string
	mongo *mongo.Client
}

// DialContext connects inside that network.
func (w *storyWorld) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return netns.Dial(ctx, w.pid, network, address)
}

// newStoryWorld starts it. The balancer has each node's address from the beginning, also while no machine has it, as a cloud's
// target group.
func newStoryWorld(t *testing.T, nodes ...*storyNode) *storyWorld {
	t.Helper()
	giveUp := t.Skipf
	if os.Getenv("REQUIRE_SYSTEMD") != "" {
		giveUp = t.Fatalf
	}
	if os.Geteuid() != 0 {
		giveUp("a network of its own needs root: run it as root, or with sudo")
	}
	balancer := packageTool(t, "haproxy")
	realmongo.Require(t)
	w := &storyWorld{dir: t.TempDir()}
	w.configure(t, nodes)
	const script = `ip link set lo up
ip link add br0 address 02:00:00:00:00:fe type bridge || exit 77
for a in $1; do ip addr add "$a/24" dev br0; done
ip link set br0 up || exit 77
"$2" mongo --listen ` + storyMongo + `:27017 --control "" --user amsagent:` + storyPassword + ` --die-with-parent >"$4/mongo.log" 2>&1 &
"$3" -db -f "$4/haproxy.cfg" >"$4/haproxy.log" 2>&1 &
echo made
read -r _
kill $(jobs -p)
wait`
	cmd := exec.Command("unshare", "--net", "bash", "-c", script, "bash",
		strings.Join([]string{storyMongo, storyServices, storyBalancer}, " "), bins.sandbox, balancer, w.dir)
	shell, err := hold(t, cmd)
	must.OK(t, err)
	w.pid = cmd.Process.Pid
	defer func() {
		if t.Failed() {
			t.Log(w.tells())
		}
	}()
	t.Cleanup(func() { _ = shell.end() })
	if shell.line() != "made\n" {
		_ = shell.end()
		giveUp("no network with a bridge can be had here: %s", shell.said)
	}
	if w.mongo, err = mongo.Connect(options.Client().ApplyURI(storyURI + "?directConnection=true&serverSelectionTimeoutMS=3000").SetDialer(w)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.mongo.Disconnect(context.Background()) })
	must.Until(t, "the database", func() bool { return w.mongo.Ping(t.Context(), nil) == nil })
	must.Until(t, "the load balancer", func() bool { return len(w.servers()) == len(nodes) })
	return w
}

// configure writes the balancer's configuration. It checks the agents every 500 ms to keep the test short; the templates do so every
// 10 s. http-server-close: Ant Media Server never closes idle connections, and an agent that counts viewers by connections would
// wait for each. abortonclose: the stand-in sends no data by which HAProxy would notice that a viewer has left.
func (w *storyWorld) configure(t *testing.T, nodes []*storyNode) {
	t.Helper()
	var b strings.Builder
	b.WriteString(`global
	stats socket ipv4@` + storyBalancer + `:9999 level admin
defaults
	mode http
	timeout connect 5s
	timeout client 10m
	timeout server 10m
	timeout check 2s
	option http-server-close
	option abortonclose
	option httpchk GET /readyz
	default-server check port 9771 inter 500ms fall 3 rise 1
`)
	for role, port := range storyPorts {
		fmt.Fprintf(&b, "frontend %s\n\tbind %s:%s\n\tdefault_backend %[1]ss\nbackend %[1]ss\n\thttp-response set-header X-Node %%s\n", role, storyBalancer, port)
		for _, n := range nodes {
			if n.role == role {
				fmt.Fprintf(&b, "\tserver %s %s:5080\n", n.name, n.address)
			}
		}
	}
	must.OK(t, os.WriteFile(filepath.Join(w.dir, "haproxy.cfg"), []byte(b.String()), 0o600))
}

// balancer sends a command to the load balancer's socket and returns the answer.
func (w *storyWorld) balancer(command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := w.DialContext(ctx, "tcp", storyBalancer+":9999")
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, command+"\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

// servers returns the load balancer's statistics of each node: columns by name.
func (w *storyWorld) servers() map[string]map[string]string {
	out := map[string]map[string]string{}
	text, err := w.balancer("show stat")
	if err != nil {
		return out
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# ")))
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil || len(rows) == 0 {
		return out
	}
	for _, row := range rows[1:] {
		fields := map[string]string{}
		for i, name := range rows[0] {
			if i < len(row) {
				fields[name] = row[i]
			}
		}
		if name := fields["svname"]; name != "FRONTEND" && name != "BACKEND" {
			out[name] = fields
		}
	}
	return out
}

// sees waits until the load balancer reports a node UP or DOWN.
func (w *storyWorld) sees(t *testing.T, node, status string) {
	t.Helper()
	must.Until(t, "a load balancer that sees "+node+" "+status, func() bool { return w.servers()[node]["status"] == status })
}

// http is a client in that network.
func (w *storyWorld) http(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: w.DialContext, DisableKeepAlives: true}}
}

// get sends a request to the load balancer's port of a role, and returns which node answered.
func (w *storyWorld) get(role, path string) (node string, status int, body io.ReadCloser, err error) {
	resp, err := w.http(0).Get("http://" + net.JoinHostPort(storyBalancer, storyPorts[role]) + path)
	if err != nil {
		return "", 0, nil, err
	}
	return resp.Header.Get("X-Node"), resp.StatusCode, resp.Body, nil
}

// serves: a request to the role's port is answered by this node's server.
func (w *storyWorld) serves(t *testing.T, n *storyNode) {
	t.Helper()
	must.Until(t, "an answer of "+n.name+" at the port of "+n.role+"s", func() bool {
		node, status, body, err := w.get(n.role, "/rest/v2/liveness")
		if err != nil {
			return false
		}
		_ = body.Close()
		return node == n.name && status == http.StatusOK
	})
}

// storyViewer plays through the load balancer until it is closed.
type storyViewer struct {
	body io.ReadCloser
	over chan struct{}
}

// watch connects a viewer.
func (w *storyWorld) watch(t *testing.T, n *storyNode) *storyViewer {
	t.Helper()
	v := &storyViewer{over: make(chan struct{})}
	must.Until(t, "a viewer on "+n.name, func() bool {
		node, status, body, err := w.get(n.role, "/LiveApp/play/s1?kind=hls")
		if err != nil {
			return false
		}
		if node != n.name || status != http.StatusOK {
			_ = body.Close()
			return false
		}
		v.body = body
		return true
	})
	go func() {
		defer close(v.over)
		_, _ = io.Copy(io.Discard, v.body)
	}()
	t.Cleanup(v.leave)
	return v
}

// leave closes the viewer's connection.
func (v *storyViewer) leave() {
	_ = v.body.Close()
	<-v.over
}

// cut reports whether the stream has ended, and not by the viewer.
func (v *storyViewer) cut() bool {
	select {
	case <-v.over:
		return true
	default:
		return false
	}
}

// offer serves files, by name, in that network.
func (w *storyWorld) offer(t *testing.T, files map[string][]byte) {
	t.Helper()
	l, err := netns.Listen(t.Context(), w.pid, "tcp", storyServices+":80")
	must.OK(t, err)
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, ok := files[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(rw, r)
			return
		}
		_, _ = rw.Write(b)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// It returns the services' logs and the load balancer's view.
func (w *storyWorld) tells() string {
	var b strings.Builder
	for _, name := range []string{"mongo.log", "haproxy.log"} {
		text, _ := os.ReadFile(filepath.Join(w.dir, name))
		fmt.Fprintf(&b, "=== %s\n%s\n", name, text)
	}
	for name, s := range w.servers() {
		fmt.Fprintf(&b, "server %s: %s %s %s, %s\n", name, s["addr"], s["status"], s["check_desc"], s["last_chk"])
	}
	return b.String()
}
