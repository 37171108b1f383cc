// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// stored returns a record that a daemon wrote two seconds before noon.
func stored(change func(*record)) *record {
	r := &record{
		Node: Node{
			ID: "i-1", IP: "10.0.0.3", BootID: "boot-1", Role: "edge", Interval: seconds.Duration(5 * time.Second), Port: 5080,
			State: StateActive, Reason: "run", UpdatedAt: noon.Add(-2 * time.Second), StateSince: noon.Add(-time.Hour),
		},
		Rev: "r1",
	}
	r.Heartbeat = Heartbeat{Seq: 7}
	if change != nil {
		change(r)
	}
	return r
}

func self(change func(*Node)) Node {
	n := Node{ID: "i-1", IP: "10.0.0.3", BootID: "boot-1", Role: "origin", State: StateJoining, Reason: "join"}
	if change != nil {
		change(&n)
	}
	return n
}

// TestRegisterRecord: which records a registration replaces.
func TestRegisterRecord(t *testing.T) {
	copied := func(n *Node) { n.IP, n.BootID = "10.0.0.77", "boot-of-the-copy" }
	moved := func(n *Node) { n.IP = "10.0.0.9" }
	rebooted := func(n *Node) { n.BootID = "boot-2" }
	ago := func(d time.Duration) func(*record) { return func(r *record) { r.UpdatedAt = noon.Add(-d) } }
	active := func(n *Node) { n.State = StateActive }
	drains := func(by string) func(*record) {
		return func(r *record) { r.State, r.LeftBy, r.StopFailed = StateDraining, by, true }
	}
	for name, tt := range map[string]struct {
		was     *record
		self    Node
		options RegisterOptions
		want    string // role, state, reason, heartbeat; or the other machine
	}{
		"none":                     {nil, self(nil), RegisterOptions{}, "origin joining join new"},
		"the same instance":        {stored(nil), self(nil), RegisterOptions{}, "origin active run 7"},
		"neither boot nor address": {stored(func(r *record) { r.IP, r.BootID = "", "" }), Node{ID: "i-1", Role: "origin", State: StateJoining}, RegisterOptions{}, "origin active run 7"},
		"the same state":           {stored(nil), self(func(n *Node) { n.State = StateActive }), RegisterOptions{}, "origin active join 7"},
		"a record that is bad":     {&record{Node: Node{ID: "i-1"}, bad: &BadRecordError{}}, self(nil), RegisterOptions{}, "origin joining join new"},
		"a state of the future":    {stored(func(r *record) { r.State = "dancing" }), self(nil), RegisterOptions{}, "origin joining join new"},
		"it left":                  {stored(func(r *record) { r.State = StateLeft }), self(nil), RegisterOptions{}, "origin joining join new"},
		"another machine":          {stored(nil), self(copied), RegisterOptions{}, "10.0.0.3 2s"},
		"replacing it":             {stored(nil), self(copied), RegisterOptions{Replace: true}, "origin joining join new"},
		"it is silent":             {stored(ago(11 * time.Second)), self(copied), RegisterOptions{}, "origin joining join new"},
		"nearly silent":            {stored(ago(10 * time.Second)), self(copied), RegisterOptions{}, "10.0.0.3 10s"},
		"another boot":             {stored(nil), self(rebooted), RegisterOptions{Waits: true}, "10.0.0.3 2s"},
		"another boot, silent":     {stored(ago(11 * time.Second)), self(rebooted), RegisterOptions{Waits: true}, "origin joining join new"},
		"another boot, left":       {stored(func(r *record) { r.State = StateLeft }), self(rebooted), RegisterOptions{Waits: true}, "origin joining join new"},
		"another machine, left":    {stored(func(r *record) { r.State = StateLeft }), self(copied), RegisterOptions{}, "origin joining join new"},
		"another machine, failed":  {stored(func(r *record) { r.State = StateFailed }), self(copied), RegisterOptions{}, "origin joining join new"},
		"another boot, a command":  {stored(nil), self(rebooted), RegisterOptions{}, "origin joining join new"},
		"without a boot":           {stored(nil), self(func(n *Node) { n.BootID = "" }), RegisterOptions{Waits: true}, "10.0.0.3 2s"},
		"no heartbeat ever":        {stored(func(r *record) { r.Seq, r.Interval = 0, 0 }), self(copied), RegisterOptions{}, "origin joining join new"},
		"another address":          {stored(nil), self(moved), RegisterOptions{}, "origin joining join new"},
		"a drain":                  {stored(drains(LeftByDrain)), self(active), RegisterOptions{}, "origin draining run 7"},
		"a drain that is over":     {stored(drains(LeftByDrain)), self(active), RegisterOptions{DrainOver: true}, "origin active join 7"},
		"not proved yet":           {stored(drains(LeftByDrain)), self(nil), RegisterOptions{DrainOver: true}, "origin draining run 7"},
		"a leave that failed":      {stored(drains(LeftByLeave)), self(active), RegisterOptions{}, "origin active join 7"},
		"one that it was moved to": {stored(nil), self(moved), RegisterOptions{GiveWay: true}, "10.0.0.3 2s"},
	} {
		is, err := register(tt.was, tt.self, tt.options, noon)
		got := ""
		if other, ok := errors.AsType[*OtherMachineError](err); ok {
			got = other.Node.IP + " " + other.Age.String()
		} else {
			must.OK(t, err)
			beat, begins := "new", true
			if tt.was.readable() { // others are inserted
				begins = writes(t, is, tt.was, "$currentDate", "state_since")
				if !writes(t, is, tt.was, "$unset", heartbeatKey) {
					beat = "7"
				}
			}
			got = strings.Join([]string{is.Role, string(is.State), is.Reason, beat}, " ")
			must.Equal(t, name+": the state begins", !tt.was.readable() || tt.was.State != is.State || beat == "new", begins)
			if is.State == StateActive && (is.StopFailed || is.LeftBy != "") {
				t.Errorf("%s: %+v", name, is)
			}
		}
		must.Equal(t, name, got, tt.want)
	}
	// Values that only the daemon knows are kept.
	if is, _ := register(stored(nil), self(nil), RegisterOptions{}, noon); is.Interval != seconds.Duration(5*time.Second) || is.Port != 5080 {
		t.Errorf("interval %d, port %d", is.Interval, is.Port)
	}
	// A node that has left and joins again has no heartbeat yet: readers wait for its first one.
	left := stored(func(r *record) { r.State, r.LeftBy, r.Cut = StateLeft, LeftByDrain, new(int) })
	if is, _ := register(left, self(nil), RegisterOptions{}, noon); is.Interval != 0 || is.LeftBy != "" || is.Cut != nil {
		t.Errorf("after a leave: %+v", is)
	}
	asked := stored(func(r *record) { r.DrainRequest, r.Cut = &DrainRequest{ID: "d"}, new(int) })
	if is, _ := register(asked, self(nil), RegisterOptions{}, noon); is.DrainRequest == nil || is.Cut == nil {
		t.Errorf("a registration of the same instance removes a request or a count: %+v", is)
	}
	if is, _ := register(asked, self(moved), RegisterOptions{}, noon); is.DrainRequest != nil || is.Cut != nil {
		t.Errorf("the next instance has the request or the count of the one before: %+v", is)
	}
}

// TestRegisterStates: a registration keeps the state of its own instance, unless that is over; another instance's goes.
func TestRegisterStates(t *testing.T) {
	for from, wants := range map[State]string{
		StateJoining:  "joining active joining left failed",
		StateActive:   "active active draining left active",
		StateDraining: "draining draining draining left draining",
		StateLeft:     "joining active left left left",
		StateFailed:   "joining active failed left failed",
	} {
		was := stored(func(r *record) { r.State = from })
		was.doc = raw(t, bson.M{"left_at": noon})
		for i, as := range States() {
			name, want := fmt.Sprintf("%s as %s", from, as), State(strings.Fields(wants)[i])
			is, err := register(was, self(func(n *Node) { n.State = as }), RegisterOptions{}, noon)
			must.OK(t, err)
			must.Equal(t, name, is.State, want)
			must.Equal(t, name+": the reason is new", is.Reason == "join", want == as)
			must.Equal(t, name+": the state begins", writes(t, is, was, "$currentDate", "state_since"), want != from)
			must.Equal(t, name+": left_at is set", writes(t, is, was, "$currentDate", "left_at"), want == StateLeft && from != StateLeft)
			must.Equal(t, name+": left_at is removed", writes(t, is, was, "$unset", "left_at"), want != StateLeft)
			must.Equal(t, name+": the heartbeat is removed", writes(t, is, was, "$unset", heartbeatKey), from == StateLeft && want != StateLeft)

			next, err := register(was, self(func(n *Node) { n.State, n.BootID = as, "boot-2" }), RegisterOptions{}, noon)
			must.OK(t, err)
			must.Equal(t, name+", another boot", next.State, as)
			must.Equal(t, name+", another boot: the state begins", writes(t, next, was, "$currentDate", "state_since"), true)
			must.Equal(t, name+", another boot: the heartbeat is removed", writes(t, next, was, "$unset", heartbeatKey), true)
		}
	}
}

// No agent can write while MongoDB is away: after that, an old record is no silent one. The daemon of a copy waits until it
// saw no change for two intervals and a second, without a gap between its looks.
func TestOutageIsNoSilence(t *testing.T) {
	var silence Silence
	was := stored(nil)
	looks := func(every time.Duration, times int) (taken bool) {
		for range times {
			noon := was.UpdatedAt.Add(time.Minute)
			if !silence.last.IsZero() {
				noon = silence.last.Add(every)
			}
			copied := self(func(n *Node) {
				n.IP, n.BootID, n.Interval = "10.0.0.77", "boot-of-the-copy", seconds.Duration(5*time.Second)
			})
			_, err := register(was, copied, RegisterOptions{Waits: true, Silence: &silence}, noon)
			taken = err == nil
		}
		return taken
	}
	if looks(5*time.Second, 3) {
		t.Error("after 10 s")
	}
	if looks(time.Minute, 1) || looks(5*time.Second, 2) {
		t.Error("the looks have a gap: MongoDB was away")
	}
	was.UpdatedAt = was.UpdatedAt.Add(time.Second)
	if looks(5*time.Second, 3) {
		t.Error("the owner wrote meanwhile")
	}
	if !looks(5*time.Second, 1) {
		t.Error("silent for 15 s, and not taken")
	}
	moved := self(func(n *Node) { n.BootID = "boot-2" })
	if _, err := register(stored(func(r *record) { r.UpdatedAt = noon.Add(-time.Minute) }), moved, RegisterOptions{Waits: true, Silence: new(Silence)}, noon); err != nil {
		t.Errorf("the next boot at the same address: %v", err)
	}
}

// TestTransitionRecord: a change of state keeps and removes the right fields, and is idempotent.
func TestTransitionRecord(t *testing.T) {
	cut := 3
	was := stored(func(r *record) { r.DrainRequest, r.Cut = &DrainRequest{ID: "d"}, &cut })
	is, err := transition(was, self(nil), StateDraining, "scale-in", Details{LeftBy: LeftByDrain, StopFailed: true}, noon)
	must.OK(t, err)
	if is.State != StateDraining || is.Reason != "scale-in" || is.LeftBy != LeftByDrain || !is.StopFailed || is.Cut != nil || writes(t, is, was, "$unset", heartbeatKey) || is.DrainRequest == nil {
		t.Errorf("%+v", is)
	}
	left, err := transition(is, self(nil), StateLeft, "scale-in", Details{LeftBy: LeftByDrain, Cut: &cut}, noon)
	must.OK(t, err)
	if !writes(t, left, is, "$unset", heartbeatKey) || left.DrainRequest != nil || *left.Cut != 3 || left.StopFailed || was.State != StateActive {
		t.Errorf("%+v, from %+v", left, was)
	}
	again, err := transition(left, self(nil), StateLeft, "scale-in", Details{}, noon)
	must.OK(t, err)
	must.NoDiff(t, "made again", again, left, cmp.AllowUnexported(record{}))
	for _, from := range States() {
		for _, to := range States() {
			name, was := fmt.Sprintf("%s to %s", from, to), stored(func(r *record) { r.State = from })
			is, err := transition(was, self(nil), to, "because", Details{}, noon)
			if refused, ok := errors.AsType[*TransitionError](err); ok || !from.CanTransition(to) {
				must.Equal(t, name, *refused, TransitionError{ID: "i-1", From: from, To: to})
				continue
			}
			must.OK(t, err)
			must.Equal(t, name, string(is.State)+is.Reason, string(to)+"because")
			must.Equal(t, name+": the state begins", writes(t, is, was, "$currentDate", "state_since"), from != to)
			must.Equal(t, name+": left_at is set", writes(t, is, was, "$currentDate", "left_at"), to == StateLeft && from != to)
			must.Equal(t, name+": the heartbeat is removed", writes(t, is, was, "$unset", heartbeatKey), to == StateLeft)
		}
	}
	for name, tt := range map[string]struct {
		was  *record
		self Node
		is   func(error) bool
	}{
		"none":            {nil, self(nil), func(err error) bool { return errors.Is(err, ErrNoNode) }},
		"a bad one":       {&record{bad: &BadRecordError{ID: "i-1"}}, self(nil), isA[*BadRecordError]},
		"another machine": {stored(nil), self(func(n *Node) { n.IP, n.BootID = "10.0.0.77", "b" }), isA[*OtherMachineError]},
		"another boot":    {stored(nil), self(func(n *Node) { n.BootID = "b" }), isA[*OtherMachineError]},
		"silent for long": {stored(func(r *record) { r.UpdatedAt = noon.Add(-time.Hour) }), self(func(n *Node) { n.IP, n.BootID = "10.0.0.77", "b" }), isA[*OtherMachineError]},
		"an unknown one":  {stored(nil), Node{ID: "i-1"}, isA[*OtherMachineError]},
		"without a boot":  {stored(nil), Node{ID: "i-1", IP: "10.0.0.3"}, isA[*OtherMachineError]},
		"not allowed":     {stored(func(r *record) { r.State = StateFailed }), self(nil), isA[*TransitionError]},
	} {
		_, err := transition(tt.was, tt.self, StateActive, "", Details{}, noon)
		if !tt.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The next boot of a machine that crashed.
	silent := stored(func(r *record) { r.UpdatedAt = noon.Add(-11 * time.Second) })
	if _, err := transition(silent, self(func(n *Node) { n.BootID = "b" }), StateDraining, "", Details{}, noon); err != nil {
		t.Errorf("another boot over a silent record: %v", err)
	}
}

// writes reports whether the update from was to is has a key of an operator.
func writes(t *testing.T, is, was *record, operator, key string) bool {
	t.Helper()
	update, err := is.update(was, true)
	must.OK(t, err)
	_, err = raw(t, update).LookupErr(operator, key)
	return err == nil
}

const rows = "amsagent.nodes"

// remembered connects to a registry in memory with the row of stored.
func remembered(t *testing.T, more bson.M) (*fakemongo.Memory, *Client) {
	t.Helper()
	m := fakemongo.NewMemory()
	t.Cleanup(m.Close)
	m.Now = func() time.Time { return noon }
	row := bson.M{"_id": "i-1", "rev": "r1", "ip": "10.0.0.3", "boot_id": "boot-1", "role": "edge", "state": "active", "updated_at": noon}
	maps.Copy(row, more)
	m.Put(rows, row)
	return m, connect(t, "mongodb://memory/", Options{Timeout: 20 * time.Second, Dialer: m})
}

// strike gives the first write its fate. Before the next read, another client writes what since says, if it is not nil.
func strike(m *fakemongo.Memory, fate fakemongo.Fate, since func(row map[string]any)) {
	struck := false
	m.SetFault(func(command, _ string) fakemongo.Fate {
		switch {
		case command == "findAndModify" && !struck:
			struck = true
			return fate
		case command == "find" && struck && since != nil:
			m.Edit(rows, "i-1", func(row map[string]any) {
				row["rev"] = "another's"
				since(row)
			})
			since = nil
		}
		return fakemongo.Done
	})
}

// TestLostReplies: the answer to a write is lost, and the write was done, or not, or another client wrote since. Each call
// returns the truth, and no write is lost.
func TestLostReplies(t *testing.T) {
	theirs := func(row map[string]any) { row["drift"] = "theirs" }
	for name, call := range map[string]struct {
		do   func(t *testing.T, c *Client) error
		want map[string]any
	}{
		"register": {func(t *testing.T, c *Client) error {
			_, err := c.Register(t.Context(), self(func(n *Node) { n.State = StateActive }), RegisterOptions{})
			return err
		}, bson.M{"role": "origin", "state": "active"}},
		"set a state": {func(t *testing.T, c *Client) error {
			return c.SetOwnState(t.Context(), self(nil), StateDraining, "scale-in", Details{})
		}, bson.M{"role": "edge", "state": "draining"}},
		"ask": {func(t *testing.T, c *Client) error {
			id, err := c.AskDrain(t.Context(), stored(nil).Node, DrainRequest{Now: true})
			if id == "" {
				t.Error("no id")
			}
			return err
		}, bson.M{"state": "active"}},
		"take": {func(t *testing.T, c *Client) error {
			taken, err := c.TakeDrainRequest(t.Context(), "i-1", "d", "me")
			must.Equal(t, "taken", taken, true)
			return err
		}, bson.M{"drain_request": nil}},
	} {
		for what, fate := range map[string]fakemongo.Fate{
			"nothing is lost": fakemongo.Done, "done": fakemongo.Lost, "not done": fakemongo.Cut, "done and overwritten since": fakemongo.Lost,
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				m, c := remembered(t, bson.M{"drain_request": bson.M{"id": "d", "at": noon}})
				overwritten := strings.Contains(what, "since")
				if strike(m, fate, nil); overwritten {
					strike(m, fate, theirs)
				}
				must.OK(t, call.do(t, c))
				row, writes := m.Get(rows, "i-1"), len(m.Sent("findAndModify"))
				for k, v := range call.want {
					must.Equal(t, k, row[k], v)
				}
				if overwritten && (name != "register" || writes == 1) {
					must.Equal[any](t, "the other's write", row["drift"], "theirs")
				}
				if what == "done" {
					must.Equal(t, "writes", writes, 1)
				}
			})
		}
	}
}

// TestAskLostAndTaken: the answer to a request is lost, and the agent takes it before the record is read again: it is not made again.
func TestAskLostAndTaken(t *testing.T) {
	m, c := remembered(t, nil)
	strike(m, fakemongo.Lost, func(row map[string]any) {
		row["state"], row["drain_taken"] = "left", bson.M{"id": row["drain_request"].(bson.M)["id"], "by": "boot-1"}
		delete(row, "drain_request")
	})
	id, err := c.AskDrain(t.Context(), stored(nil).Node, DrainRequest{Now: true})
	must.OK(t, err)
	if writes := len(m.Sent("findAndModify")); id == "" || writes != 1 || m.Get(rows, "i-1")["drain_request"] != nil {
		t.Errorf("%q, %d writes, %v", id, writes, m.Get(rows, "i-1"))
	}
}

// TestHeartbeatSize: a heartbeat fits into 1 kB, and each GPU takes no more than 150 bytes.
func TestHeartbeatSize(t *testing.T) {
	n, rate := new(100), new(int64(1)<<40)
	ms := -1500 * time.Millisecond
	h := Heartbeat{
		Seq: 1 << 40, Clock: (*seconds.Duration)(&ms), Serving: &Serving{Why: strings.Repeat("x", maxWhy)},
		Load:     &Load{CPU: n, Mem: n, NetRx: rate, NetTx: rate, Disk: n, Score: n},
		Sessions: &Sessions{Publishers: new(1 << 30), Viewers: new(1 << 30), By: CountedByConnections},
		Drain:    &DrainLimit{Until: time.Now(), By: strings.Repeat("x", maxWhy)},
	}
	size := func() int {
		b, err := bson.Marshal(h)
		must.OK(t, err)
		return len(b)
	}
	without := size()
	for range 8 {
		h.Load.GPUs = append(h.Load.GPUs, GPULoad{Name: "NVIDIA RTX PRO 6000 Blackwell Server Edition", Util: n, Enc: n, Dec: n, Mem: n})
	}
	if each := (size() - without) / 8; without > 1000 || each > 150 {
		t.Errorf("%d bytes, and %d for each GPU", without, each)
	}
}

// TestDecode: an invalid record is reported with the reason, and never partially used.
func TestDecode(t *testing.T) {
	for _, ok := range []bson.M{
		{"_id": "i-1", "state": "active", "interval_ns": 5000.0, "unknown": bson.A{1}},
		{"_id": "i-1", "state": "active", "heartbeat": bson.M{"seq": int32(3), "load": bson.M{"cpu": int64(7)}}},
	} {
		if r := decode(raw(t, ok)); r.bad != nil || r.State != StateActive {
			t.Errorf("%v: %v", ok, r.bad)
		}
	}
	for name, bad := range map[string]bson.M{
		"a state":     {"_id": "i-1", "state": 3},
		"a port":      {"_id": "i-1", "port": 99999},
		"a load":      {"_id": "i-1", "heartbeat": bson.M{"load": bson.M{"cpu": "busy"}}},
		"a heartbeat": {"_id": "i-1", "heartbeat": true},
		"a large one": {"_id": "i-1", "role": strings.Repeat("x", maxRecord)},
		"a time":      {"_id": "i-1", "updated_at": "noon"},
		"a request":   {"_id": "i-1", "drain_request": "drain"},
		"its id":      {"_id": "i-1", "drain_request": bson.M{"id": 7}},
		"its options": {"_id": "i-1", "drain_request": bson.M{"id": "x", "now": "yes"}},
	} {
		r := decode(raw(t, bad))
		if r.bad == nil || r.bad.ID != "i-1" || len(r.bad.Error()) > 300 {
			t.Errorf("%s: %v", name, r.bad)
		}
		must.NoDiff(t, name+" is half read", r.Node, Node{ID: "i-1"}, cmpopts.EquateEmpty())
	}
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
