// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata"
)

// quick heartbeats make a node gone after five seconds.
func quick(n *cluster.Node) { n.Interval = seconds.Duration(2 * time.Second) }

func serving(s cluster.Serving) func(*cluster.Node) { return func(n *cluster.Node) { n.Serving = &s } }

// watches begins a watch of the origins.
func (m *fakeMachine) watches(e *testEnv, args ...string) *command {
	return m.runWith(e, append([]string{"nodes", "--watch", "--interval", "100ms", "--role", "origin"}, args...)...)
}

// stop ends a watch as an operator does.
func (c *command) stop() {
	c.t.Helper()
	c.sig <- syscall.SIGINT
	c.ends(codeInterrupted)
}

func TestWatchLines(t *testing.T) {
	t.Parallel()
	m := withMongo(t)
	m.live()
	m.document("d1", "10.0.0.1", 0)
	m.node("i-1", "10.0.0.1", 0)
	m.node("i-2", "10.0.0.2", 0)
	const id = "m-bce15aa9449b48d5a7ee27d83cc6dd98" // of a machine outside a cloud: its name is shown, too
	c := m.watches(&testEnv{})
	c.says("i-2 10.0.0.2 active ams-stale\n")
	m.node("i-2", "10.0.0.2", 0, inState(cluster.StateDraining))
	c.says("-> draining\n")
	m.node("i-2", "10.0.0.2", 0, inState(cluster.StateLeft))
	c.says("-> removed\n") // left, and those are not shown
	m.node(id, "10.0.0.3", 0, inState(cluster.StateJoining), func(n *cluster.Node) { n.Hostname = "edge-7\x1b[2J" })
	c.says("(new)\n")
	m.document("d1", "10.0.0.1", 0)
	m.node("i-1", "10.0.0.1", 0, serving(cluster.Serving{Why: "LiveApp\x1b[2J fails"}))
	c.says(" fails)\n")
	m.document("d1", "10.0.0.1", 0)
	m.node("i-1", "10.0.0.1", 0, quick, serving(cluster.Serving{Why: "LiveApp and live fail"})) // no news
	m.registry.Remove(documents, "d1")
	c.says("-> ams-stale")
	c.says("-> gone\n")
	c.stop()
	must.NoDiff(t, "lines", strings.ReplaceAll(c.stdout.String(), "08:00:00 ", ""), `2 nodes: 1 healthy, 1 ams-stale; 2 origins
i-1 10.0.0.1 active healthy
i-2 10.0.0.2 active ams-stale
i-2 10.0.0.2 active -> draining
i-2 10.0.0.2 ams-stale -> removed
edge-7\u001b[2J (`+id+`) 10.0.0.3 joining ams-stale (new)
i-1 10.0.0.1 healthy -> not-serving (LiveApp\u001b[2J fails)
i-1 10.0.0.1 not-serving -> ams-stale
i-1 10.0.0.1 ams-stale -> gone
`)
	must.Equal(t, "stderr", c.stderr.String(), "")
}

// With -o json each line is an object, also on a terminal.
func TestWatchJSON(t *testing.T) {
	t.Parallel()
	m := withMongo(t)
	m.live()
	m.node("i-1", "10.0.0.1", 0, quick)
	e := &testEnv{}
	e.columns.Store(80)
	c := m.watches(e, "-o", "json")
	c.says(`"gone"`)
	c.stop()
	var got []string
	for line := range strings.Lines(c.stdout.String()) {
		var l struct {
			SchemaVersion int `json:"schema_version"`
			Kind, Change  string
			At            time.Time
			Before        string `json:"health_before"`
			Member        cluster.Member
		}
		must.OK(t, json.Unmarshal([]byte(line), &l))
		got = append(got, fmt.Sprintf("%d %s %s %s>%s %s %t", l.SchemaVersion, l.Kind, l.Change, l.Before, l.Member.Health, l.Member.ID(), l.At.IsZero()))
	}
	must.NoDiff(t, "lines", got, []string{"1 node first >ams-stale i-1 false", "1 node changed ams-stale>gone i-1 false"})
}

func TestWatchWithoutMongoDB(t *testing.T) {
	t.Parallel()
	m := withMongo(t)
	m.node("i-1", "10.0.0.1", 0)
	lines, e := m.watches(&testEnv{}), &testEnv{}
	e.columns.Store(80)
	screen := m.watches(e)
	lines.says("ams-stale")
	screen.says("ams-stale")
	m.registry.SetFault(func(string, string) fakemongo.Fate { return fakemongo.Fails })
	age := regexp.MustCompile(`\x1b\[31mMongoDB at 127\.0\.0\.1:\d+ answered with an error; this is from ([4-9]|\d\d+) s ago\x1b\[0m\n`)
	must.Until(t, "the screen shows how old it is", func() bool { return age.MatchString(screen.frame()) })
	m.node("i-1", "10.0.0.1", 0)
	m.registry.SetFault(nil)
	lines.says("MongoDB is back")
	lines.stop()
	must.Equal(t, "lines", strings.Count(lines.stdout.String(), "\n"), 2)
	isNew := func() bool { return !strings.Contains(screen.frame(), "ago") }
	must.Until(t, "the screen is new", isNew)
	// One that hangs is away, too.
	hangs := make(chan struct{})
	m.registry.SetFault(func(string, string) fakemongo.Fate { <-hangs; return fakemongo.Done })
	screen.says(" did not answer in time; this is from ")
	m.node("i-1", "10.0.0.1", 0)
	m.registry.SetFault(nil)
	close(hangs)
	must.Until(t, "the screen is new again", isNew)
	screen.stop()
	said := lines.stderr.String()
	if strings.Count(said, "MongoDB is away") != 1 || strings.Count(said, "MongoDB is back") != 1 {
		t.Error(said)
	}
	must.Contain(t, "frame", screen.frame(), "every 100 ms; Ctrl-C ends")
}

const clearScreen = "\x1b[H\x1b[2J"

// frame is the latest screen.
func (c *command) frame() string {
	out := c.stdout.String()
	return out[strings.LastIndex(out, clearScreen)+len(clearScreen):]
}

func TestWatchScreen(t *testing.T) {
	t.Parallel()
	m := withMongo(t)
	for i := range 5 {
		ip := fmt.Sprintf("10.0.0.%d", i+1)
		m.node(fmt.Sprintf("i-%d", i+1), ip, 0)
		if i != 3 {
			m.document(ip, ip, 0)
		}
	}
	m.node("i-5", "10.0.0.5", 0, serving(cluster.Serving{Why: "LiveApp fails"}))
	m.node("i-6", "10.0.0.6", 0, inState(cluster.StateLeft))
	e := &testEnv{}
	e.columns.Store(60)
	e.rows.Store(24)
	c := m.watches(e)
	c.says("LiveApp fails\n")
	if out := c.stdout.String(); !strings.HasPrefix(out, clearScreen) {
		t.Errorf("%q", out)
	}
	must.Contain(t, "frame", c.frame(), ", every 100 ms; Ctrl-C ends", "\x1b[33mams-stale", "1 left: shown with --all\n10.0.0.5 does not serve viewers: LiveApp fails\n")
	// The terminal becomes smaller: what is wrong stays on it.
	e.rows.Store(7)
	c.says("more lines")
	c.stop()
	lines := strings.Split(c.frame(), "\n")
	if len(lines) != 7 || !strings.HasPrefix(lines[4], "i-4") || !strings.Contains(lines[5], "... 7 more lines") {
		t.Errorf("%q", lines)
	}
}

// A closed terminal ends a watch.
func TestWatchTerminalGone(t *testing.T) {
	m := withMongo(t)
	m.node("i-1", "10.0.0.1", 0)
	e := &testEnv{vars: m.vars}
	env := e.env()
	env.Stdout, env.IsTerminal = failingWriter{syscall.EIO}, func(any) bool { return true }
	must.Equal(t, "exit", Main([]string{"nodes", "--watch"}, env), codeFailed)
	must.Contain(t, "stderr", e.stderr.String(), "[AGENT-OUTPUT]")
}

// A killed node is reported after two heartbeat intervals and a second, and hardly later.
func TestWatchIsInTime(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 5 * time.Second} {
		for _, opts := range []nodesOptions{{}, {interval: 500 * time.Millisecond}} {
			opts.Roles = []string{"origin"}
			synctest.Test(t, func(t *testing.T) {
				m, c := inBubble(t)
				m.live()
				beat := func() {
					m.node("i-1", "10.0.0.1", 0, func(n *cluster.Node) { n.Interval = seconds.Duration(interval) })
				}
				beat()
				looks, fate := atomic.Int32{}, atomic.Int32{}
				m.registry.SetFault(func(_, coll string) fakemongo.Fate {
					if coll == nodeRecords {
						looks.Add(1)
					}
					return fakemongo.Fate(fate.Load())
				})
				e := &testEnv{}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- watchNodes(ctx, opts, plainGlobals(e), c) }()
				for range 20 {
					passes(interval)
					beat()
				}
				must.Equal(t, "lines while it lives", strings.Count(e.stdout.String(), "\n"), 2)
				if n := looks.Load(); n > int32(20*interval/pollLeast)+30 {
					t.Errorf("%d looks", n)
				}
				// While MongoDB is away, it cannot write.
				passes(2 * interval)
				fate.Store(int32(fakemongo.Fails))
				passes(interval)
				fate.Store(int32(fakemongo.Done))
				passes(pollMost + time.Millisecond)
				must.Equal(t, "lines after MongoDB was away", strings.Count(e.stdout.String(), "\n"), 2)
				beat()
				poll := pollMost
				if opts.interval > 0 || interval == time.Second {
					poll = pollLeast
				}
				passes(2*interval + time.Second + poll + time.Millisecond)
				must.Contain(t, "lines after its death", e.stdout.String(), "i-1 10.0.0.1 ams-stale -> gone\n")
				cancel()
				<-done
			})
		}
	}
}

// inBubble returns a machine and a client of its MongoDB for a bubble of synctest, which no connection leaves.
func inBubble(t *testing.T) (*fakeMachine, *cluster.Client) {
	m := &fakeMachine{t: t, registry: fakemongo.NewMemory()}
	t.Cleanup(m.registry.Close)
	target, err := cluster.ParseTarget("mongodb://memory")
	must.OK(t, err)
	c, err := cluster.Connect(t.Context(), target, cluster.Options{Dialer: m.registry, Timeout: mongoTimeout})
	must.OK(t, err)
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return m, c
}

// passes lets time pass in a bubble of synctest.
func passes(d time.Duration) { <-time.After(d) }

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
		m := withMongo(t)
		if tt.live {
			m.live()
		}
		m.node("i-1", "10.0.0.1", 12200*time.Millisecond, inState(tt.state))
		c := m.run("nodes", "--all")
		c.ends(codeOK)
		out := c.stdout.String()
		first, _, _ := strings.Cut(out, "\n")
		must.Equal(t, tt.name, first, tt.want)
		must.Equal(t, "all are unknown in "+out, strings.Contains(out, board.AllSilent), strings.Contains(tt.want, "unknown"))
	}
}

// What prune prints, and which records, documents and events are there after it.
func TestPrune(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	t.Cleanup(func() { _ = l.Close() })
	onPort := func(n *cluster.Node) { n.Port = l.Addr().(*net.TCPAddr).Port }
	port := regexp.MustCompile(`port \d+`)
	dead := func(m *fakeMachine) {
		m.node("i-1", "10.0.0.1", 2*time.Hour)
		m.document("d1", "10.0.0.1", 2*time.Hour)
	}
	for name, tt := range map[string]struct {
		silent  bool // no other node has a fresh heartbeat
		there   func(m *fakeMachine)
		fault   fakemongo.Fate // of each removal
		between func(m *fakeMachine)
		late    bool // its record is written just before it is removed
		args    string
		code    int
		out     string
		said    string // on standard error
		left    string // which records and documents stay
		events  int
	}{
		"the dead alone": {
			there: func(m *fakeMachine) {
				dead(m)
				m.node("i-2", "10.0.0.2", 5*time.Minute)
				m.node("i-3", "10.0.0.3", 0)
				m.node("i-4", "10.0.0.4", 2*time.Hour, inState(cluster.StateLeft))
				m.document("d9", "10.0.0.9", 2*time.Hour)
			},
			out: `1 machine would be removed; nothing was touched
  i-1  10.0.0.1  active  agent silent for 2 h, Ant Media Server for 2 h; 1 document of Ant Media Server

Gone and kept
  i-2          10.0.0.2  active  the agent is silent for only 5 min
  i-4          10.0.0.4  left    has left; --left removes it
  (no record)  10.0.0.9  -       has no record; --ams-only removes it; 1 document of Ant Media Server

to remove them: the same command with --yes
`,
			left: "i-1 i-2 i-3 i-4 d1 d9",
		},
		"as JSON": {there: dead, args: "-o json", out: `{
  "schema_version": 1,
  "kind": "prune",
  "dry_run": true,
  "older_than_seconds": 600,
  "removed": [
    {
      "id": "i-1",
      "address": "10.0.0.1",
      "state": "active",
      "role": "origin",
      "reason": "agent silent for 2 h, Ant Media Server for 2 h",
      "documents": [
        "d1"
      ]
    }
  ],
  "kept": []
}
`, left: "i-1 d1"},
		"for real": {
			there: func(m *fakeMachine) {
				dead(m)
				m.node("i-4", "10.0.0.4", 2*time.Hour, inState(cluster.StateLeft))
				m.document("d9", "10.0.0.9", 2*time.Hour)
			},
			args: "--yes --left --ams-only",
			out: `3 machines removed
  i-1          10.0.0.1  active  agent silent for 2 h, Ant Media Server for 2 h; 1 document of Ant Media Server
  i-4          10.0.0.4  left    left 2 h ago
  (no record)  10.0.0.9  -       no agent, Ant Media Server for 2 h; 1 document of Ant Media Server
`,
			events: 3,
		},
		"nothing to do, and no wait": {there: func(*fakeMachine) {}, args: "--yes", out: "nothing to do: no machine that may be removed has been gone for 10m\n"},
		"written between the looks": {
			there: dead, between: func(m *fakeMachine) { m.node("i-1", "10.0.0.1", 0) }, args: "--yes",
			out: "nothing to do: no machine that may be removed has been gone for 10m\n", left: "i-1 d1",
		},
		"written after them": {
			there: dead, late: true, args: "--yes", left: "i-1 d1",
			out: "nothing to do: no machine that may be removed has been gone for 10m\n\nGone and kept\n  i-1  10.0.0.1  active  the record was written just now; 1 document of Ant Media Server\n",
		},
		"all silent": {silent: true, there: dead, args: "--yes", code: codeFailed, said: board.AllSilent, left: "i-1 d1"},
		"MongoDB fails": {
			there: dead, fault: fakemongo.Fails, args: "--yes", code: codeFailed, out: "nothing was removed\n\nGone and kept\n  i-1  10.0.0.1  active  not done; 1 document of Ant Media Server\n",
			said: "amsagent: 0 of 1 were removed\n", left: "i-1 d1",
		},
		// Its server writes nothing, and lives (issue #7045 of Ant-Media-Server).
		"a program listens": {
			there: func(m *fakeMachine) { m.node("i-7", "127.0.0.1", 2*time.Hour, onPort) }, args: "--yes", left: "i-7",
			out: "nothing to do: no machine that may be removed has been gone for 10m\n\nGone and kept\n  i-7  127.0.0.1  active  a program listens on port N of 127.0.0.1\n",
		},
		"one listens that has the address now": {
			there: func(m *fakeMachine) {
				m.node("i-7", "127.0.0.1", 2*time.Hour, onPort)
				m.node("i-8", "127.0.0.1", 0)
			},
			args: "--yes", out: "1 machine removed\n  i-7  127.0.0.1  active  agent silent for 2 h, Ant Media Server has no document\n", left: "i-8", events: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := withMongo(t)
			if tt.there(m); !tt.silent {
				m.live()
			}
			m.registry.SetFault(func(command, _ string) fakemongo.Fate {
				if command == "delete" && tt.late {
					m.node("i-1", "10.0.0.1", 0)
				}
				if command == "delete" {
					return tt.fault
				}
				return fakemongo.Done
			})
			c := m.run(append([]string{"nodes", "prune"}, strings.Fields(tt.args)...)...)
			if tt.between != nil {
				c.says("looking again in 6 s, in case one of them writes")
				tt.between(m)
			}
			c.ends(tt.code)
			must.NoDiff(t, "stdout", port.ReplaceAllString(c.stdout.String(), "port N"), tt.out)
			c.said(tt.said)
			if again := strings.Contains(c.stderr.String(), "looking again in 6 s"); again == (name == "nothing to do, and no wait" || tt.silent) {
				t.Errorf("it looks again: %v", again)
			}
			var left []string
			for i := range 10 {
				if id := fmt.Sprint("i-", i); m.registry.Get(nodeRecords, id) != nil {
					left = append(left, id)
				}
			}
			for _, id := range []string{"d1", "d9"} {
				if m.registry.Get(documents, id) != nil {
					left = append(left, id)
				}
			}
			must.Equal(t, "left", strings.Join(left, " "), tt.left)
			history := m.run("events")
			history.ends(codeOK)
			must.Equal(t, "events in\n"+history.stdout.String(), strings.Count(history.stdout.String(), "  prune  amsagent  "), tt.events)
			if tt.events == 3 {
				must.Contain(t, "events", history.stdout.String(), "  agent silent for 2 h, Ant Media Server for 2 h; address 10.0.0.1; documents d1; role origin; state active\n")
			}
		})
	}
}

// Outside a cloud a node's id is made of the machine id: texts have the host name, too.
func TestTextsHaveTheHostName(t *testing.T) {
	const id = "m-bce15aa9449b48d5a7ee27d83cc6dd98"
	named := cluster.Node{ID: id, Hostname: "edge-7\x1b[2J"}
	joined := &output.Text{}
	joinText(joined, &bootstrap.JoinResult{Outcome: bootstrap.OutcomeJoined, Instance: metadata.Instance{ID: id, Hostname: named.Hostname}}, "", cluster.Target{})
	lines := []string{joined.String()}
	for _, c := range []bootstrap.Convergence{{}, {Standalone: true}, {Repairs: []bootstrap.Finding{{ID: bootstrap.IDDrift}}}} {
		w := &output.Text{}
		c.Phase, c.Node = bootstrap.PhaseJoined, named
		convergeText(w, &c)
		lines = append(lines, w.String())
	}
	for _, line := range lines {
		must.Contain(t, "line", line, `edge-7\u001b[2J (`+id+")")
	}
}
