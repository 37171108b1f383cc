// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata"
)

const clearScreen = "\x1b[H\x1b[2J"

// play is a cluster that a test plays, and the terminal or pipe it is watched through.
type play struct {
	mu    sync.Mutex
	nodes map[string]cluster.Node
	err   error
	hang  bool
	looks int
	live  bool // an edge, of which each look has a heartbeat

	// What prune did.
	removed []string
	events  []cluster.Event
	docs    []cluster.AMSNode
	fail    error

	out      locked.Buffer
	env      testEnv
	terminal bool
	json     bool
	columns  int
	rows     int // 0 is 24
}

func (p *play) set(f func(*play)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// node writes a record with a heartbeat of this moment.
func (p *play) node(id, ip string, change ...func(*cluster.Node)) {
	p.set(func(p *play) {
		if p.nodes == nil {
			p.nodes = map[string]cluster.Node{}
		}
		n := cluster.Node{ID: id, IP: ip, Role: "origin", State: cluster.StateActive, Heartbeat: cluster.Heartbeat{Seq: p.nodes[id].Seq + 1}, Interval: seconds.Duration(5 * time.Second), UpdatedAt: time.Now()}
		for _, f := range change {
			f(&n)
		}
		p.nodes[id] = n
	})
}

func (p *play) Look(ctx context.Context) (cluster.Look, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	if p.hang {
		p.mu.Unlock()
		<-ctx.Done()
		p.mu.Lock()
		return cluster.Look{}, &cluster.Error{Kind: cluster.KindTimeout, Op: "looking", Host: "10.0.2.4:27017", Err: ctx.Err()}
	}
	if p.err != nil {
		return cluster.Look{}, p.err
	}
	l := cluster.Look{ServerTime: time.Now(), At: time.Now(), AMS: p.docs}
	for _, id := range []string{"i-1", "i-2", "i-3", "i-4", "i-5"} {
		if n, ok := p.nodes[id]; ok {
			l.Nodes = append(l.Nodes, n)
		}
	}
	if p.live {
		l.Nodes = append(l.Nodes, cluster.Node{ID: "live", IP: "10.0.0.99", Role: "edge", State: cluster.StateActive, Interval: seconds.Duration(5 * time.Second), UpdatedAt: time.Now()})
	}
	return l, nil
}

func (p *play) globals() *globals {
	env := p.env.env()
	env.Stdout = &p.out
	env.Now = time.Now
	env.IsTerminal = func(stream any) bool { return p.terminal && stream == any(&p.out) }
	env.Size = func(any) (int, int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		rows := p.rows
		if rows == 0 {
			rows = 24
		}
		return p.columns, rows
	}
	g := globalsOf(env)
	form := "text"
	if p.json {
		form = "json"
	}
	g.out.SetForm(form, "auto", 0)
	return g
}

// watch runs `nodes --watch` while do plays.
func (p *play) watch(t *testing.T, opts nodesOptions, do func()) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	g := p.globals()
	go func() { done <- watchNodes(ctx, opts, g, p) }()
	do()
	cancel()
	return <-done
}

// inBubble runs a subtest in a bubble of synctest with a cluster of its own.
func inBubble(t *testing.T, name string, test func(*testing.T, *play)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, &play{}) })
	})
}

func (p *play) lines() []string {
	var out []string
	for line := range strings.Lines(p.out.String()) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ") // the time
		out = append(out, rest)
	}
	return out
}

func TestWatchLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{live: true}
		p.node("i-1", "10.0.0.1")
		p.node("i-2", "10.0.0.2")
		err := p.watch(t, nodesOptions{Query: board.Query{Roles: []string{"origin"}}}, func() {
			passes(4 * time.Second)
			p.node("i-1", "10.0.0.1")
			p.node("i-3", "10.0.0.3", func(n *cluster.Node) { n.State = cluster.StateJoining })
			passes(3 * time.Second)
			p.node("i-1", "10.0.0.1", func(n *cluster.Node) { n.State = cluster.StateDraining })
			p.node("i-3", "10.0.0.3", func(n *cluster.Node) { n.State = cluster.StateLeft })
			passes(5 * time.Second)
			p.node("i-1", "10.0.0.1", func(n *cluster.Node) { n.State = cluster.StateDraining })
			passes(time.Second)
		})
		var quiet *quietError
		if !errors.As(err, &quiet) || quiet.code != exitInterrupted {
			t.Errorf("%v", err)
		}
		want := []string{
			"2 nodes: 2 ams-stale; 2 origins",
			"i-1 10.0.0.1 active ams-stale",
			"i-2 10.0.0.2 active ams-stale",
			"i-3 10.0.0.3 joining ams-stale (new)",
			"i-1 10.0.0.1 active -> draining",
			"i-3 10.0.0.3 ams-stale -> removed", // left, and those are not shown
			"i-2 10.0.0.2 ams-stale -> gone",
		}
		must.NoDiff(t, "lines", p.lines(), want)
		must.Equal(t, "stderr", p.env.stderr.String(), "")
	})
}

// A server that does not serve is shown with the reason, although its agent and its document are fresh.
func TestWatchServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{}
		set := func(s *cluster.Serving) {
			p.doc("x", "10.0.0.1")
			p.node("i-1", "10.0.0.1", func(n *cluster.Node) { n.Serving = s })
		}
		set(nil) // an older agent
		_ = p.watch(t, nodesOptions{}, func() {
			for _, s := range []*cluster.Serving{{Up: true}, {Why: "LiveApp fails"}, {Why: "LiveApp and live fail"}, {Up: true}} {
				passes(3 * time.Second)
				set(s)
			}
			passes(3 * time.Second)
		})
		want := []string{
			"1 node: 1 healthy; 1 origin",
			"i-1 10.0.0.1 active healthy",
			"i-1 10.0.0.1 healthy -> not-serving (LiveApp fails)",
			"i-1 10.0.0.1 not-serving -> healthy",
		}
		must.NoDiff(t, "lines", p.lines(), want)
	})
}

// A killed node is reported after two heartbeat intervals and a second, and hardly later.
func TestWatchIsInTime(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 5 * time.Second} {
		for _, opts := range []nodesOptions{{}, {interval: 500 * time.Millisecond}} {
			opts.Roles = []string{"origin"}
			synctest.Test(t, func(t *testing.T) {
				p := &play{live: true}
				beat := func() {
					p.node("i-1", "10.0.0.1", func(n *cluster.Node) { n.Interval = seconds.Duration(interval) })
				}
				beat()
				_ = p.watch(t, opts, func() {
					for range 20 {
						passes(interval)
						beat()
					}
					if got := p.lines(); len(got) != 2 {
						t.Errorf("%q", got)
					}
					looks := 0
					p.set(func(p *play) { looks = p.looks })
					if most := int(20*interval/pollLeast) + 30; looks > most {
						t.Errorf("%d looks", looks)
					}
					limit := 2*interval + time.Second
					passes(limit + pollMost + time.Millisecond)
					if got := p.lines(); len(got) != 3 || got[2] != "i-1 10.0.0.1 ams-stale -> gone" {
						t.Errorf("%s after the last heartbeat: %q", limit, got)
					}
				})
			})
		}
	}
}

func TestWatchJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{json: true, terminal: true, live: true}
		p.node("i-1", "10.0.0.1")
		_ = p.watch(t, nodesOptions{Query: board.Query{Roles: []string{"origin"}}}, func() { passes(15 * time.Second) })
		var got []string
		for line := range strings.Lines(p.out.String()) {
			var c struct {
				SchemaVersion int `json:"schema_version"`
				Kind, Change  string
				At            time.Time
				Before        string `json:"health_before"`
				Member        struct {
					Node   cluster.Node
					Health cluster.Health
				}
			}
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			got = append(got, fmt.Sprintf("%d %s %s %s>%s %s %t", c.SchemaVersion, c.Kind, c.Change, c.Before, c.Member.Health, c.Member.Node.ID, c.At.IsZero()))
		}
		must.NoDiff(t, "lines", got, []string{"1 node first >ams-stale i-1 false", "1 node changed ams-stale>gone i-1 false"})
	})
}

func TestWatchWithoutMongoDB(t *testing.T) {
	away := &cluster.Error{Kind: cluster.KindRefused, Op: "looking", Host: "10.0.2.4:27017", Err: syscall.ECONNREFUSED}
	inBubble(t, "from the start", func(t *testing.T, p *play) {
		p.err = away
		g := p.globals()
		err := watchNodes(t.Context(), nodesOptions{}, g, p)
		if code := report(t.Context(), g, err); code != exitFailed || p.out.String() != "" || !strings.Contains(p.env.stderr.String(), "AMS-MONGO-REFUSED") {
			t.Errorf("exit %d, %s", code, p.env.stderr.String())
		}
	})
	inBubble(t, "lines", func(t *testing.T, p *play) {
		p.node("i-1", "10.0.0.1")
		_ = p.watch(t, nodesOptions{}, func() {
			passes(3 * time.Second)
			p.set(func(p *play) { p.err = away })
			passes(time.Minute)
			p.set(func(p *play) { p.err = nil })
			passes(3 * time.Second)
			p.node("i-1", "10.0.0.1")
			passes(3 * time.Second)
		})
		// No agent could write meanwhile, so no node is gone.
		must.NoDiff(t, "lines", p.lines(), []string{"1 node: 1 ams-stale; 1 origin", "i-1 10.0.0.1 active ams-stale"})
		stderr := p.env.stderr.String()
		if strings.Count(stderr, "MongoDB is away") != 1 || strings.Count(stderr, "MongoDB is back") != 1 {
			t.Errorf("stderr:\n%s", stderr)
		}
	})
	inBubble(t, "screen", func(t *testing.T, p *play) {
		p.terminal, p.columns = true, 80
		p.doc("x", "10.0.0.1")
		p.node("i-1", "10.0.0.1", func(n *cluster.Node) { n.Serving = &cluster.Serving{Why: "LiveApp fails"} })
		p.node("i-2", "10.0.0.2", func(n *cluster.Node) { n.State = cluster.StateLeft })
		_ = p.watch(t, nodesOptions{}, func() {
			passes(2500 * time.Millisecond)
			lines := strings.Split(withoutColor(p.frame()), "\n")
			if !strings.HasSuffix(lines[0], ", every 1 s; Ctrl-C ends") || !slices.Equal(lines[6:8], []string{"1 left: shown with --all", "10.0.0.1 does not serve viewers: LiveApp fails"}) {
				t.Errorf("%q", lines)
			}
			p.set(func(p *play) { p.err = away })
			passes(9*time.Second + time.Millisecond)
			must.Contain(t, "frame", p.frame(), "\x1b[31mMongoDB at 10.0.2.4:27017 refused the connection; this is from 9 s ago\x1b[0m")
			p.set(func(p *play) { p.err, p.hang = nil, true })
			passes(mongoTimeout + 2*time.Second)
			must.Contain(t, "frame", p.frame(), "MongoDB at 10.0.2.4:27017 did not answer in time")
			p.set(func(p *play) { p.hang, p.docs = false, nil })
			passes(mongoTimeout) // for the look that hangs
			p.node("i-1", "10.0.0.1")
			passes(4 * time.Second)
			if got := p.frame(); strings.Contains(got, "ago") || !strings.Contains(got, ", every 1 s") || !strings.Contains(got, "\x1b[33mams-stale") {
				t.Errorf("%q", got)
			}
		})
	})
}

// frame is the latest screen.
func (p *play) frame() string {
	s := p.out.String()
	return s[max(0, strings.LastIndex(s, clearScreen)):]
}

func TestWatchScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{terminal: true, columns: 60}
		for i := range 5 {
			p.node(fmt.Sprintf("i-%d", i+1), fmt.Sprintf("10.0.0.%d", i+1))
		}
		for _, ip := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5"} {
			p.doc(ip, ip)
		}
		err := p.watch(t, nodesOptions{}, func() {
			passes(900 * time.Millisecond)
			if out := p.out.String(); !strings.HasPrefix(out, clearScreen) || strings.Count(out, clearScreen) != 1 || strings.Count(out, "\n") != 9 {
				t.Errorf("%q", out)
			}
			p.set(func(p *play) { p.columns, p.rows = 20, 7 })
			passes(2 * time.Second)
			lines := strings.Split(strings.TrimPrefix(p.frame(), clearScreen), "\n")
			if len(lines) != 7 || !strings.HasPrefix(lines[4], "i-4") || withoutColor(lines[5]) != "... 4 more lines" {
				t.Errorf("%q", lines)
			}
		})
		var quiet *quietError
		if !errors.As(err, &quiet) || quiet.code != exitInterrupted {
			t.Errorf("%v", err)
		}
	})
}

// A closed terminal ends it.
func TestWatchTerminalGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{terminal: true, columns: 80}
		p.node("i-1", "10.0.0.1")
		env := p.globals().env
		env.Stdout, env.IsTerminal = failingWriter{syscall.EIO}, func(any) bool { return true }
		g := globalsOf(env)
		g.out.SetForm("text", "auto", 0)
		var oe *output.Error
		if err := watchNodes(t.Context(), nodesOptions{}, g, p); !errors.As(err, &oe) {
			t.Errorf("%v", err)
		}
	})
}

// If no node has a fresh heartbeat, MongoDB may have been away until now: no node is gone.
func TestNodesAfterFailover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state cluster.State
		live  bool // another node
		want  string
	}{
		{"all silent", cluster.StateActive, false, "1 node: 1 unknown; 1 origin"},
		{"one of two", cluster.StateActive, true, "2 nodes: 1 ams-stale, 1 gone; 1 origin, 1 edge"},
		{"left", cluster.StateLeft, false, "1 node; 1 left; 1 origin"},
	} {
		inBubble(t, tt.name, func(t *testing.T, p *play) {
			p.live = tt.live
			p.node("i-1", "10.0.0.1", func(n *cluster.Node) { n.State = tt.state })
			passes(12200 * time.Millisecond)
			must.OK(t, showNodes(t.Context(), nodesOptions{Query: board.Query{All: true, Sort: "address"}}, p.globals(), p))
			got := p.out.String()
			if first, _, _ := strings.Cut(got, "\n"); first != tt.want {
				t.Errorf("%q, want %q", first, tt.want)
			}
			must.Equal(t, "all are unknown in "+got, strings.Contains(got, board.AllSilent), strings.Contains(tt.want, "unknown"))
		})
	}
}

func TestNodesUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"--state activ", `--state: "activ" is not one of joining, active`},
		{"--sort cpuu", `--sort: "cpuu" is not one of address`},
		{"--sort -x", `--sort: "-x" is not one of address`},
		{"--watch --interval 1ms", "--interval: 1ms is outside 100ms to 1h"},
		{"--interval 1s", "--interval is for --watch"},
		{"10.0.2.4", `takes no argument: "10.0.2.4"`},
		{"pruen", "did you mean `amsagent nodes prune`?"},
		{"prune --older-than 5s", "--older-than: 5s is less than 20s"},
		{"prune now", "takes no argument"},
		{"", "AMS-MONGO-MISSING"},
		{"prune", "AMS-MONGO-MISSING"},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"nodes"}, strings.Fields(tt.args)...)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit %d, %q\n%s", tt.args, code, stdout, stderr)
		}
	}
	code, _, stderr := run(t, nil, "nodes", "--mongo", "127.0.0.1:1")
	if code != exitFailed || !strings.Contains(stderr, "cannot look at the cluster: MongoDB at 127.0.0.1:1 refused") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

func (p *play) RemoveNode(_ context.Context, n cluster.Node) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return false, p.fail
	}
	if now, ok := p.nodes[n.ID]; ok && !now.UpdatedAt.Equal(n.UpdatedAt) {
		return false, nil
	}
	delete(p.nodes, n.ID)
	p.removed = append(p.removed, n.ID)
	return true, nil
}

func (p *play) DeleteAMSNodes(_ context.Context, address, _ string, before time.Time) (gone, stay []cluster.AMSNode, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.docs {
		if d.IP == address && !d.LastUpdate.After(before) {
			gone = append(gone, d)
		} else {
			stay = append(stay, d)
		}
	}
	p.docs = stay
	return gone, stay, nil
}

func (p *play) AddEvent(_ context.Context, e cluster.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
	return nil
}

func (p *play) doc(id, ip string) {
	p.set(func(p *play) { p.docs = append(p.docs, cluster.AMSNode{ID: id, IP: ip, LastUpdate: time.Now()}) })
}

// aGraveyard has one of each kind of what prune may meet.
func (p *play) aGraveyard() {
	p.live = true
	p.doc("d1", "10.0.0.1")
	p.node("i-1", "10.0.0.1")
	p.node("i-4", "10.0.0.4", func(n *cluster.Node) { n.State = cluster.StateLeft })
	passes(2 * time.Hour)
	p.node("i-2", "10.0.0.2")
	passes(5 * time.Minute)
	p.node("i-3", "10.0.0.3")
	passes(time.Second)
}

func (p *play) prune(t *testing.T, opts pruneOptions) (code int) {
	t.Helper()
	if opts.olderThan == 0 {
		opts.olderThan = 10 * time.Minute
	}
	p.out.Reset()
	g := p.globals()
	if err := prune(t.Context(), opts, g, p); err != nil {
		return report(t.Context(), g, err)
	}
	return 0
}

func TestPrune(t *testing.T) {
	inBubble(t, "dry", func(t *testing.T, p *play) {
		p.aGraveyard()
		begin := time.Now()
		code := p.prune(t, pruneOptions{})
		want := "1 machine would be removed; nothing was touched\n" +
			"  i-1  10.0.0.1  active  agent silent for 2 h, Ant Media Server for 2 h; 1 document of Ant Media Server\n" +
			"\nGone and kept\n" +
			"  i-2  10.0.0.2  active  the agent is silent for only 5 min\n" +
			"  i-4  10.0.0.4  left    has left; --left removes it\n" +
			"\nto remove them: the same command with --yes\n"
		if diff := cmp.Diff(want, p.out.String()); diff != "" || code != 0 {
			t.Errorf("exit %d, -want +got:\n%s", code, diff)
		}
		must.Equal(t, "it took", time.Since(begin), pruneWait)
		p.json = true
		code = p.prune(t, pruneOptions{})
		var got struct {
			Kind          string
			DryRun        bool `json:"dry_run"`
			Removed, Kept []pruneItem
		}
		if err := json.Unmarshal([]byte(p.out.String()), &got); err != nil || code != 0 || got.Kind != "prune" || !got.DryRun || len(got.Removed) != 1 || len(got.Kept) != 3 {
			t.Errorf("exit %d, %v: %+v", code, err, got)
		}
		if len(p.removed)+len(p.events) > 0 || len(p.docs) != 1 || len(p.nodes) != 4 {
			t.Error("it did something")
		}
	})
	inBubble(t, "for real", func(t *testing.T, p *play) {
		p.aGraveyard()
		if code := p.prune(t, pruneOptions{yes: true, left: true}); code != 0 {
			t.Errorf("exit %d: %s", code, p.env.stderr.String())
		}
		must.NoDiff(t, "removed", p.removed, []string{"i-1", "i-4"})
		if len(p.docs) != 0 || len(p.events) != 2 || p.events[0].Kind != "prune" || p.events[0].Node != "i-1" ||
			p.events[0].Details["documents"] != "d1" || p.events[0].Details["address"] != "10.0.0.1" {
			t.Errorf("%+v, %+v", p.docs, p.events)
		}
		if !strings.HasPrefix(p.out.String(), "2 machines removed\n") {
			t.Error(p.out.String())
		}
		// A second run finds nothing and does not wait.
		looks := p.looks
		if code := p.prune(t, pruneOptions{yes: true}); code != 0 || p.looks != looks+1 || !strings.HasPrefix(p.out.String(), "nothing to do: ") {
			t.Errorf("exit %d: %s", code, p.out.String())
		}
	})
	inBubble(t, "written between the looks", func(t *testing.T, p *play) {
		p.aGraveyard()
		go func() {
			passes(3 * time.Second)
			p.node("i-1", "10.0.0.1")
		}()
		if code := p.prune(t, pruneOptions{yes: true}); code != 0 || len(p.removed) > 0 || len(p.docs) != 1 {
			t.Errorf("exit %d, removed %v, documents %v\n%s", code, p.removed, p.docs, p.out.String())
		}
	})
	inBubble(t, "no record", func(t *testing.T, p *play) {
		p.live = true
		p.doc("d9", "10.0.0.9")
		passes(time.Hour)
		p.node("i-1", "10.0.0.1")
		if code := p.prune(t, pruneOptions{yes: true}); code != 0 || !strings.Contains(p.out.String(), "(no record)  10.0.0.9  -  has no record; --ams-only removes it; 1 document") {
			t.Errorf("exit %d: %s", code, p.out.String())
		}
		if code := p.prune(t, pruneOptions{yes: true, amsOnly: true}); code != 0 || len(p.docs) != 0 || len(p.events) != 1 || p.events[0].Node != "d9" {
			t.Errorf("exit %d: %s", code, p.out.String())
		}
	})
	inBubble(t, "all silent", func(t *testing.T, p *play) {
		p.node("i-1", "10.0.0.1")
		p.node("i-2", "10.0.0.2")
		passes(time.Hour)
		code := p.prune(t, pruneOptions{yes: true})
		if code != exitFailed || len(p.removed) > 0 || !strings.Contains(p.env.stderr.String(), board.AllSilent) {
			t.Errorf("exit %d, removed %v: %s", code, p.removed, p.env.stderr.String())
		}
	})
	inBubble(t, "MongoDB fails", func(t *testing.T, p *play) {
		p.fail = &cluster.Error{Kind: cluster.KindForbidden, Op: "removing node i-1", Host: "h:1", Err: errors.New("not authorized")}
		p.aGraveyard()
		code := p.prune(t, pruneOptions{yes: true})
		stderr := p.env.stderr.String()
		if code != exitFailed || !strings.Contains(stderr, "amsagent: 0 of 1 were removed") || !strings.Contains(stderr, "AMS-MONGO-FORBIDDEN") ||
			!strings.HasPrefix(p.out.String(), "nothing was removed") || len(p.docs) != 1 {
			t.Errorf("exit %d:\n%s%s", code, p.out.String(), stderr)
		}
	})
}

// A machine whose server listens is not gone, although it writes nothing (issue #7045 of Ant-Media-Server).
func TestPruneKeepsWhoListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	gone := func(i int, ip string) pruneItem {
		id := fmt.Sprint("i-", i)
		return pruneItem{ID: id, Address: ip, member: cluster.Member{Node: &cluster.Node{ID: id, IP: ip, Port: port, State: cluster.StateActive}, Health: cluster.Gone}}
	}
	d := pruneData{Remove: []pruneItem{gone(1, "127.0.0.1"), gone(2, "127.0.0.2")}}
	d.probe(t.Context(), nil)
	if len(d.Remove) != 1 || len(d.Kept) != 1 || d.Kept[0].Why != fmt.Sprintf("a program listens on port %d of 127.0.0.1", port) {
		t.Errorf("%+v", d)
	}
	// Another machine that has the address now may listen.
	d = pruneData{Remove: []pruneItem{gone(1, "127.0.0.1")}}
	d.probe(t.Context(), []cluster.Member{{Node: &cluster.Node{ID: "i-7", IP: "127.0.0.1", State: cluster.StateActive}, Agent: cluster.Signal{Known: true, Fresh: true}, Health: cluster.Healthy}})
	if len(d.Remove) != 1 || len(d.Kept) != 0 {
		t.Errorf("%+v", d)
	}
}

// passes lets time pass in a bubble of synctest.
func passes(d time.Duration) { <-time.After(d) }

func ptr[T any](v T) *T { return &v }

// Outside a cloud a node's id is made of the machine id: texts have the host name, too.
func TestTextsHaveTheHostName(t *testing.T) {
	const id = "m-bce15aa9449b48d5a7ee27d83cc6dd98"
	e, v := &testEnv{}, board.Node{Member: cluster.Member{Node: &cluster.Node{ID: id, Hostname: "edge-7\x1b[2J"}}}
	must.OK(t, (&watcher{g: plainGlobals(e)}).printChange("first", v, v))
	pruned, joined := &output.Text{}, &output.Text{}
	pruneText(pruned, pruneData{Remove: []pruneItem{{member: v.Member}}})
	joinText(joined, &bootstrap.JoinResult{Outcome: bootstrap.OutcomeJoined, Instance: metadata.Instance{ID: id, Hostname: v.Node.Hostname}}, "", cluster.Target{})
	drain := remoteDrain{node: *v.Node}
	lines := []string{e.stdout.String(), pruned.String(), joined.String(), drain.progress()}
	for _, c := range []bootstrap.Convergence{{}, {Standalone: true}, {Repairs: []bootstrap.Finding{{ID: bootstrap.IDDrift}}}} {
		w := &output.Text{}
		c.Phase, c.Node = bootstrap.PhaseJoined, *v.Node
		convergeText(w, &c)
		lines = append(lines, w.String())
	}
	for _, line := range lines {
		must.Contain(t, "line", line, `edge-7\u001b[2J (`+id+")")
	}
}

func withoutColor(s string) string {
	for {
		before, rest, ok := strings.Cut(s, "\x1b[")
		if !ok {
			return s
		}
		_, after, _ := strings.Cut(rest, "m")
		s = before + after
	}
}
