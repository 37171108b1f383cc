// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/realams"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// realWorld has real Ant Media Servers in namespaces of this machine, and a real
// mongod.
type realWorld struct {
	h         *harness
	agent     string
	world     *realams.World
	forwarder net.Listener // here, for what MongoDB listens to there
	// forwarded are listeners there, by the port of the fake cloud that they are for.
	forwarded map[string]net.Listener
}

// ErrNotRoot is what a real server in a namespace of its own needs.
var ErrNotRoot = errors.New("a demo on real servers needs root: it puts each into a network namespace of its own")

func newRealWorld(ctx context.Context, agent string) (_ *realWorld, err error) {
	w := &realWorld{h: newHarness(ctx), agent: agent, forwarded: map[string]net.Listener{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(ctx))
		}
	}()
	if err := w.h.do(func() { w.world = realams.New(w.h, realams.Options{}) }); err != nil {
		return nil, err
	}
	if w.forwarder, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	go forward(w.forwarder, func() (net.Conn, error) { return w.world.Dial(ctx, "tcp", w.mongo()) })
	return w, nil
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

func (w *realWorld) mongo() string           { return w.world.Mongo.Addrs() }
func (w *realWorld) dialed() string          { return w.forwarder.Addr().String() }
func (w *realWorld) stopMongo() error        { return w.world.Mongo.Member(0).Stop() }
func (w *realWorld) addresses() [2]string    { return [2]string{"10.77.0.1", "10.77.0.2"} }
func (w *realWorld) fed() bool               { return true }
func (w *realWorld) restored() string        { return "except what AMS saved itself" }
func (w *realWorld) patience() time.Duration { return 3 * time.Minute }

func (w *realWorld) startMongo(ctx context.Context) error { return w.world.Mongo.Member(0).Start(ctx) }

func (w *realWorld) close(context.Context) error {
	var errs []error
	for _, l := range append(slices.Collect(maps.Values(w.forwarded)), w.forwarder) {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(append(errs, w.h.close())...)
}

// realMachine is a node with a real server and the agent in it.
type realMachine struct {
	*realams.Node
	w       *realWorld
	environ []string
	local   *http.Client

	// stream is another one on each machine: all share one MongoDB.
	stream    string
	publisher *realams.Process
	said      int // bytes that it had said when its stream could be played
	// settings are the application's settings that the server may save itself, before
	// a join, by path.
	settings map[string]string
}

// agentPath is where the agent lies on a real machine.
const agentPath = "/usr/local/bin/amsagent"

func (w *realWorld) machine(ctx context.Context, m fakecloud.Machine, meta *fakecloud.Metadata) (machine, error) {
	n := &realMachine{w: w, stream: stream + "-at-" + m.Name, settings: map[string]string{}}
	if err := w.h.do(func() { n.Node = w.world.Node(w.h, realams.Newest) }); err != nil {
		return nil, err
	}
	if n.Address != m.Address {
		return nil, fmt.Errorf("the machine %s has the address %s, not %s", m.Name, n.Address, m.Address)
	}
	// The cloud listens here, on loopback, which is another one there.
	environ, err := w.reachable(ctx, meta.Environ)
	if err != nil {
		return nil, err
	}
	n.environ = append(environ, "AMSAGENT_PROVIDER="+providerOf(environ), "AMSAGENT_SERVICE_COMMAND="+realams.Service, "AMSAGENT_METRICS_ADDRESS=127.0.0.1:0")
	n.local = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}}
	if err := install(w.agent, n.Path(agentPath)); err != nil {
		return nil, err
	}
	return n, w.h.do(func() {
		n.AllowAgent(w.h)
		n.MustRun(w.h, realams.Service, "start")
	})
}

// providerOf is the cloud whose endpoint is set. On a real machine the firmware says
// which one it is; that of this machine is another.
func providerOf(environ []string) string {
	for _, name := range fakecloud.Names() {
		if slices.ContainsFunc(environ, func(e string) bool { return strings.HasPrefix(e, "AMSAGENT_"+strings.ToUpper(name)+"_") }) {
			return name
		}
	}
	return "auto"
}

func install(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("installing the agent: %w", err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		return fmt.Errorf("installing the agent: %w", err)
	}
	return nil
}

var loopback = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// reachable replaces the addresses of fakes by those at which machines reach them.
func (w *realWorld) reachable(ctx context.Context, environ []string) ([]string, error) {
	var errs []error
	out := make([]string, 0, len(environ))
	for _, e := range environ {
		out = append(out, loopback.ReplaceAllStringFunc(e, func(here string) string {
			l, ok := w.forwarded[here]
			if !ok {
				var err error
				if l, err = w.world.Listen(ctx); err != nil {
					errs = append(errs, err)
					return here
				}
				w.forwarded[here] = l
				go forward(l, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", here) })
			}
			return l.Addr().String()
		}))
	}
	return out, errors.Join(errs...)
}

// forward proxies each connection of a listener to a connection of dial, until the listener is closed.
func forward(l net.Listener, dial func() (net.Conn, error)) {
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
}

func (n *realMachine) file(name string) string { return n.Path(name) }

func (n *realMachine) client() *http.Client { return n.local }

func (n *realMachine) command(args ...string) *exec.Cmd {
	cmd := n.Command(append([]string{agentPath}, args...)...)
	cmd.Env = append(cmd.Env, n.environ...)
	return cmd
}

// files are those that a join may change, and the folders that they are in: programs
// and data of the server are left out.
func (n *realMachine) files() ([]string, error) {
	if err := n.w.h.do(func() { n.WaitServed(n.w.h, applications()...) }); err != nil {
		return nil, err
	}
	var all []string
	folders := []string{"/etc", home + "/conf"}
	for _, app := range append(applications(), "root") {
		folders = append(folders, filepath.Dir(settingsOf(app)))
	}
	for _, folder := range folders {
		lines, err := tree.Snapshot(n.Path(folder), "lib", "classes")
		if err != nil {
			return nil, err
		}
		for _, l := range lines {
			fields := strings.SplitN(l, " ", 4)
			fields[3] = filepath.Join(folder, fields[3])
			all = append(all, strings.Join(fields, " "))
		}
	}
	if len(n.settings) == 0 {
		for _, app := range applications() {
			b, err := os.ReadFile(n.Path(settingsOf(app)))
			if err != nil {
				return nil, err
			}
			n.settings[settingsOf(app)] = string(b)
		}
	}
	return all, nil
}

// applications are those that serve viewers.
func applications() []string { return []string{"LiveApp", "WebRTCApp", "live"} }

// givenBack wants every file as it was, besides the settings that the server saved
// itself while it was a node: in those every former key has its former value.
func (n *realMachine) givenBack(was, is []string) ([]string, error) {
	pathOf := func(line string) string { return strings.SplitN(line, " ", 4)[3] }
	same, saved := 0, 0
	for _, l := range is {
		path := pathOf(l)
		if slices.Contains(was, l) {
			same++
		} else if _, ok := n.settings[path]; ok {
			saved++
		} else {
			return nil, fmt.Errorf("%s is not what it was", path)
		}
	}
	if same+saved != len(was) {
		return nil, fmt.Errorf("there were %d files and folders, and there are %d", len(was), same+saved)
	}
	keys := 0
	for path, text := range n.settings {
		before, err := conf.ParseProperties([]byte(text))
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(n.Path(path))
		if err != nil {
			return nil, err
		}
		after, err := conf.ParseProperties(b)
		if err != nil {
			return nil, err
		}
		for _, key := range before.Keys() {
			want, _ := before.Get(key)
			if got, _ := after.Get(key); got != want {
				return nil, fmt.Errorf("%s: %s is %q, and it was %q", path, key, got, want)
			}
			keys++
		}
	}
	return []string{
		fmt.Sprintf("%d of %d files and folders are as in step 1: bytes, mode and owner. The other %d are settings of", same, len(was), saved),
		fmt.Sprintf("applications, which AMS saved itself while it was a node; their %d keys have their former values", keys),
	}, nil
}

func (n *realMachine) running() (string, error) {
	pid := n.Server()
	if pid == 0 {
		return "", nil
	}
	return strconv.Itoa(pid) + " " + strings.Join(n.Asked(), " "), nil
}

func (n *realMachine) publish(ctx context.Context) error {
	if err := n.w.h.do(func() { n.publisher = n.w.world.Publish(n.w.h, n.Node, app, n.stream) }); err != nil {
		return err
	}
	return n.playable(ctx)
}

// playable waits until a player would find the stream.
func (n *realMachine) playable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.w.patience())
	defer cancel()
	client, tick := n.w.world.HTTP(2*time.Second), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for {
		status := realams.Status(client, realams.PlaylistURL(n.Node, app, n.stream))
		if status == http.StatusOK {
			n.said = len(n.publisher.Output())
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: the playlist is answered with %d; the publisher says: %s", n.Address, status, n.publisher.Output())
		}
	}
}

func (n *realMachine) endStream(context.Context) error {
	_, err := n.publisher.Stop(20 * time.Second)
	return err
}

// stillPublished goes by the publisher: one that is cut off says so and connects again.
func (n *realMachine) stillPublished(context.Context) error {
	if text := n.publisher.Output()[n.said:]; text != "" {
		return fmt.Errorf("the publisher says: %s", text)
	}
	return nil
}

func (n *realMachine) leftAlone() error { return nil }

// stop is left to the end of the namespaces.
func (n *realMachine) balanced() (serves, check string) { return "", "" }

func (n *realMachine) stop(context.Context) error { return nil }

// player is a viewer by HLS.
type player struct {
	*realams.Player
	cancel context.CancelFunc
	ended  chan struct{} // closed when it watches no more
}

func (n *realMachine) watch(ctx context.Context) (viewer, error) {
	if err := n.playable(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := player{&realams.Player{Client: n.w.world.HTTP(5 * time.Second), Playlist: realams.PlaylistURL(n.Node, app, n.stream)}, cancel, make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.Run(ctx)
	}()
	return p, nil
}

func (p player) served() bool {
	met := p.Met()
	return met.Segments > 0 && met.Failed == 0
}

func (p player) leave() error {
	p.cancel()
	<-p.ended
	p.Client.CloseIdleConnections()
	return nil
}

// harness is the testing.TB for realams. It has only the methods that realams calls.
type harness struct {
	testing.TB
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	failure  error
	cleanups []func()
}

func newHarness(ctx context.Context) *harness {
	h := &harness{}
	h.ctx, h.cancel = context.WithCancel(ctx)
	return h
}

// do calls what may end its goroutine, as a test does that fails or is skipped.
func (h *harness) do(f func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	return h.err()
}

func (h *harness) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failure
}

func (h *harness) close() error {
	h.cancel()
	err := h.err()
	_ = h.do(func() {
		for _, f := range slices.Backward(h.cleanups) {
			f()
		}
	})
	if err == nil { // a failure before is known
		err = h.err()
	}
	return err
}

func (h *harness) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failure = errors.Join(h.failure, err)
}

func (h *harness) Helper()                           {}
func (h *harness) Context() context.Context          { return h.ctx }
func (h *harness) Failed() bool                      { return h.err() != nil }
func (h *harness) Logf(format string, args ...any)   { h.fail(fmt.Errorf(format, args...)) }
func (h *harness) Error(args ...any)                 { h.fail(errors.New(fmt.Sprint(args...))) }
func (h *harness) Errorf(format string, args ...any) { h.fail(fmt.Errorf(format, args...)) }
func (h *harness) Fatal(args ...any)                 { h.Error(args...); runtime.Goexit() }
func (h *harness) Fatalf(format string, args ...any) { h.Errorf(format, args...); runtime.Goexit() }
func (h *harness) Skip(args ...any)                  { h.Fatal(args...) }

func (h *harness) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}
