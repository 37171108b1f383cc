// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
)

// playedNode is the node i-1, to which happens what a story says, such as "10s accepts, 1m leaves". Each second its agent
// sends a heartbeat.
type playedNode struct {
	*fakeMachine
	c      *cluster.Client
	silent bool
	lost   map[string]any
}

func (n *playedNode) set(key string, value any) {
	n.registry.Edit(nodeRecords, "i-1", func(row map[string]any) {
		if row[key] = value; value == nil {
			delete(row, key)
		}
	})
}

func (n *playedNode) happens(ctx context.Context, word string) {
	switch word {
	case "accepts":
		r, err := n.c.Node(ctx, "i-1")
		must.OK(n.t, err)
		if r.DrainRequest == nil || !strings.HasPrefix(r.DrainRequest.Who, "ann, amsagent drain on ") {
			n.t.Errorf("asked %+v", r.DrainRequest)
		}
		n.set("drain_request", nil)
		n.set("state", "draining")
		n.set("heartbeat", map[string]any{"seq": 8, "sessions": map[string]any{"publishers": 0, "viewers": 3}})
	case "refuses":
		r, err := n.c.Node(ctx, "i-1")
		must.OK(n.t, err)
		_, err = n.c.RefuseDrainRequest(ctx, "i-1", r.DrainRequest.ID, "agent", cluster.RefusedRemoteDrain)
		must.OK(n.t, err)
	case "refused-before":
		n.set("drain_refused", map[string]any{"id": "r0", "reason": cluster.RefusedRemoteDrain})
	case "forgets":
		n.set("drain_request", nil)
	case "reboots":
		n.set("boot_id", "another")
	case "active", "draining", "left":
		n.set("state", word)
		n.set("cut", 0)
	case "hangs":
		n.set("stop_failed", true)
	case "silent":
		n.silent = true
	case "lost":
		n.lost = n.registry.Get(nodeRecords, "i-1")
		n.registry.Remove(nodeRecords, "i-1")
	case "found":
		n.registry.Put(nodeRecords, n.lost)
	case "away":
		n.registry.SetFault(func(string, string) fakemongo.Fate { return fakemongo.Fails })
	case "back":
		n.registry.SetFault(nil)
	default:
		n.t.Errorf("it cannot %q", word)
	}
}

func (n *playedNode) play(ctx context.Context, story string) {
	begin, next := time.Now(), 0
	steps := strings.Split(story, ", ")
	for sleep.For(ctx, time.Second/2); ctx.Err() == nil; sleep.For(ctx, time.Second) { // between two looks
		for ; story != "" && next < len(steps); next++ {
			at, word, _ := strings.Cut(steps[next], " ")
			after, err := time.ParseDuration(at)
			must.OK(n.t, err)
			if time.Since(begin) < after-time.Second/2 {
				break
			}
			n.happens(ctx, word)
		}
		if !n.silent {
			n.set("updated_at", time.Now())
		}
	}
}

func TestDrainNode(t *testing.T) {
	// Only of a node that has left.
	const next = "next     on that machine amsagent join, or a reboot, brings it back; amsagent leave makes it standalone\n"
	const noAnswer = "[AMS-MONGO]\namsagent: cause: UnknownError: a fault of the test\n"
	left := []string{"left: the node is out of the cluster", "node     i-1"}
	for name, tt := range map[string]struct {
		state     cluster.State // "" is active
		opts      drainOptions
		fates     []fakemongo.Fate // of the first write and what follows it; then all is done
		story     string
		meanwhile string // between its look and its request
		signal    time.Duration
		code      int
		said      []string // on either stream
	}{
		"asked, and no answer": {fates: []fakemongo.Fate{fakemongo.Lost, fakemongo.Fails}, code: codeFailed, said: []string{
			"cannot drain 10.0.1.5", noAnswer, "the request was withdrawn; nothing was changed",
		}},
		"perhaps asked": {fates: []fakemongo.Fate{fakemongo.Fails}, code: codeUnknown, said: []string{
			"cannot drain 10.0.1.5", noAnswer, "the request may have arrived: the node may drain",
		}},
		"perhaps asked, and MongoDB goes": {fates: []fakemongo.Fate{fakemongo.Lost, fakemongo.Fails, fakemongo.Fails}, code: codeUnknown, said: []string{
			"cannot drain 10.0.1.5", noAnswer, "the request could not be withdrawn: the node may drain",
		}},
		"not allowed":     {fates: []fakemongo.Fate{fakemongo.Forbidden}, code: codeFailed, said: []string{"cannot drain 10.0.1.5", "[AMS-MONGO-FORBIDDEN]", "nothing was changed"}},
		"not to be asked": {meanwhile: "reboots", code: codeFailed, said: []string{"cannot drain 10.0.1.5", "cause: asking node i-1 to drain: the record of this node is another one now", "nothing was changed"}},
		"it leaves":       {story: "10s accepts, 1m left", said: append(left, "asked; waiting up to 45 s for the node's agent", "i-1 drains: 0 publishers, 3 viewers left")},
		"it has left":     {state: cluster.StateLeft, said: left},
		"it failed":       {state: cluster.StateFailed, code: codeFailed, said: []string{"its state is failed: there is nothing to drain"}},
		"detached":        {opts: drainOptions{followOptions: followOptions{detach: true}}, story: "10s accepts", said: []string{"draining: `amsagent nodes --watch` shows the progress"}},
		"too long":        {opts: drainOptions{followOptions: followOptions{timeout: 20 * time.Second}}, story: "10s accepts", code: codeUnknown, said: []string{"it is not over after 20 s", "amsagent: the drain continues"}},
		"too long before": {opts: drainOptions{followOptions: followOptions{timeout: 5 * time.Second}}, code: codeUnknown, said: []string{
			"[AGENT-TIMEOUT]", "cause: not done within 5s (--timeout)", "the request was withdrawn; nothing was changed",
		}},
		"no agent accepts it":               {code: codeFailed, said: []string{"its agent did not accept the request within 45 s", "the request was withdrawn; nothing was changed"}},
		"interrupted before":                {signal: 5 * time.Second, code: codeInterrupted, said: []string{"signal: terminated", "the request was withdrawn"}},
		"interrupted after":                 {story: "10s accepts", signal: 30 * time.Second, code: codeInterrupted, said: []string{"stopped following; nothing else was stopped", "amsagent: the drain continues"}},
		"refused":                           {story: "10s forgets", code: codeFailed, said: []string{"its record, and its state is active", "amsagent events i-1"}},
		"refused by a setting":              {story: "10s refuses", code: codeFailed, said: []string{"[AGENT-REMOTE-DRAIN]", "nothing was changed"}},
		"an earlier one was refused":        {story: "0s refused-before, 10s accepts, 1m left", said: left},
		"cancelled":                         {story: "10s accepts, 30s active", code: codeFailed, said: []string{"by an undrain on that node", "the node is active"}},
		"its server does not end":           {story: "10s accepts, 30s hangs", code: codeFailed, said: []string{"that node cannot leave", "its daemon stops it again until it ends"}},
		"its record is lost":                {story: "10s accepts, 30s lost", code: codeUnknown, said: []string{"it is not known whether it left", "its record has been missing for 35 s"}},
		"its record is lost before":         {story: "5s lost", code: codeUnknown, said: []string{"it is not known whether it left", "its record has been missing for 35 s"}},
		"its agent writes the record again": {story: "10s accepts, 20s lost, 50s found, 1m left", said: left},
		"its agent registers, and drains":   {story: "10s accepts, 20s lost, 28s away, 29s found, 29s active, 30s back, 40s draining, 1m left", said: left},
		"it is started again":               {story: "10s accepts, 30s reboots, 30s active", code: codeFailed, said: []string{"that node has not left", "the machine was started again, which ends the drain; its state is active", "amsagent drain i-1"}},
		"it is started again before":        {story: "5s reboots", code: codeFailed, said: []string{"that node has not left", "its state is active"}},
		"it leaves and is started again":    {story: "10s accepts, 30s reboots, 30s left", said: left},
		"MongoDB goes":                      {story: "10s accepts, 20s away", code: codeUnknown, said: []string{"lost sight of it", "the node's record has not been read for 1 min: ", "amsagent: the drain continues\n", "nodes --watch"}},
		"MongoDB goes twice":                {story: "10s accepts, 20s away, 46s back, 47s away, 80s back, 82s left", said: append(left, "the node's record is back after 26 s")},
		"its agent is silent":               {story: "10s accepts, 15s silent, 4m left", said: append(left, "source=\"the node's agent\" silence=")},
		"its machine dies":                  {story: "10s accepts, 15s silent", code: codeUnknown, said: []string{"silent for 4 min 31 s", "lost sight of it", "the node's agent has been silent for 5 min 1 s: no heartbeat", "the drain continues when the node's agent is back"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := inBubble(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				written, reads := false, 0
				n := &playedNode{fakeMachine: m, c: c}
				m.node("i-1", "10.0.1.5", 0, inState(cmp.Or(tt.state, cluster.StateActive)), func(n *cluster.Node) { n.BootID, n.Seq = "b", 7 })
				m.registry.SetFault(func(command, coll string) fakemongo.Fate {
					if coll == nodeRecords && command == "find" {
						reads++
					}
					if reads == 2 && tt.meanwhile != "" {
						n.happens(ctx, tt.meanwhile)
					}
					if fates := tt.fates; len(fates) > 0 && (written || command == "findAndModify") {
						written, tt.fates = true, fates[1:]
						return fates[0]
					}
					return fakemongo.Done
				})
				e := &testEnv{vars: map[string]string{"USER": "ann"}}
				g := plainGlobals(e)
				// It ends the test where the command does not.
				time.AfterFunc(cmp.Or(tt.signal, time.Hour), func() { cancel(&interruptedError{syscall.SIGTERM}) })
				begin := time.Now()
				go n.play(ctx, tt.story)
				code := codeOK
				if err := drainNode(ctx, g, tt.opts, "10.0.1.5", c); err != nil {
					code = report(ctx, g, err)
				}
				said := e.stdout.String() + e.stderr.String()
				if took := time.Since(begin); tt.opts.timeout > 0 && took > tt.opts.timeout+time.Second {
					t.Errorf("took %s with a timeout of %s", took, tt.opts.timeout)
				}
				must.Equal(t, "exit with\n"+said, code, tt.code)
				must.Contain(t, "output", said, tt.said...)
				must.Equal(t, "what is next is in\n"+said, strings.Contains(said, next), strings.Contains(said, "left: "))
				if asked := len(m.registry.Sent("findAndModify")) > 0; asked != (tt.state == "" && tt.meanwhile == "") {
					t.Errorf("asked: %v", asked)
				}
			})
		})
	}
}

// NODE is an id, an address or a host name.
func TestDrainableNode(t *testing.T) {
	named := func(name string) func(*cluster.Node) { return func(n *cluster.Node) { n.Hostname = name } }
	at := func(since time.Time) func(*cluster.Node) { return func(n *cluster.Node) { n.StateSince = since } }
	left, now := inState(cluster.StateLeft), time.Now()
	m := withMongo(t)
	for name, want := range map[string]string{
		"i-1": "asked i-1", "10.0.1.5": "asked i-1", "::ffff:10.0.1.5": "asked i-1", "one": "asked i-1", "i-3": "asked i-3",
		"i-4": "left i-4", "10.0.1.9": "left i-7", "old": "left i-7", "i-6": "left i-6",
		"i-2": "silent for 3 min", "twin": "several nodes: i-2, i-3", "i-5": "has not sent a heartbeat yet", "10.0.1.8": "no agent", "i-8": "no such node", "": "no such node",
	} {
		m.node("i-1", "10.0.1.5", 0, named("one"))
		m.node("i-2", "10.0.1.6", 3*time.Minute, named("twin"))
		m.node("i-3", "10.0.1.7", 0, named("twin"), inState(cluster.StateDraining))
		m.node("i-4", "10.0.1.5", 0, left)
		m.node("i-5", "", 0, func(n *cluster.Node) { n.Seq, n.Interval = 0, 0 })
		m.node("i-6", "10.0.1.9", 0, named("old"), left, at(now))
		m.node("i-7", "10.0.1.9", 0, named("old"), left, at(now.Add(time.Hour)))
		m.document("x", "10.0.1.8", 0)
		c := m.run("drain", name, "--timeout", "1ms")
		code := <-c.done
		id, asked := strings.CutPrefix(want, "asked ")
		if has, ok := strings.CutPrefix(want, "left "); ok {
			must.Equal(t, name, code, codeOK)
			must.Contain(t, name, c.stdout.String(), "node     "+has+"\n")
		} else if asked && m.registry.Get(nodeRecords, id)["drain_taken"] == nil || !asked && !strings.Contains(c.stderr.String(), want) {
			t.Errorf("%q: exit %d, want %s", name, code, want)
		}
	}
}
