// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// joins runs amsagent join.
func (a *agent) joins() *bootstrap.JoinResult {
	a.t.Helper()
	res, err := a.machine.Join(a.t.Context(), bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: "edge", Identify: a.o.Identify})
	must.OK(a.t, err)
	return res
}

// joinedAt sets when the last join ended.
func (a *agent) joinedAt(at time.Time) {
	a.t.Helper()
	a.edits(func(s *bootstrap.State) { s.Since = at })
}

// edits edits the state file.
func (a *agent) edits(edit func(*bootstrap.State)) {
	a.t.Helper()
	s, err := a.machine.StateFile()
	must.OK(a.t, err)
	edit(s)
	text, err := json.Marshal(s)
	must.OK(a.t, err)
	must.OK(a.t, os.WriteFile(filepath.Join(a.root, bootstrap.StateDir, "state.json"), text, 0o600))
}

// drainAt writes the drain's local record at a step, and the state into the registry.
func (a *agent) drainAt(step lifecycle.Step, state cluster.State) {
	a.t.Helper()
	record, err := a.client.Node(a.t.Context(), nodeID)
	if err == nil {
		err = a.client.SetOwnState(a.t.Context(), record, state, "drain", cluster.Details{})
	}
	must.OK(a.t, err)
	text := `{"version":2,"step":"` + string(step) + `"}`
	must.OK(a.t, os.WriteFile(filepath.Join(a.root, lifecycle.RecordPath), []byte(text), 0o600))
}

func (a *agent) state() cluster.State {
	a.t.Helper()
	record, err := a.client.Node(a.t.Context(), nodeID)
	must.OK(a.t, err)
	return record.State
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// While a join waits for the applications, without the lock, the daemon may write a new release after an upgrade. The join
// completes; after any other change it fails.
func TestJoinWhileTheDaemonNotes(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	base := ams.NewHTTPClient(nil).Transport
	var mu sync.Mutex // requests to the applications are concurrent
	var notes func()
	asked := false
	a.machine.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		if !asked { // a join does not wait for an application that serves
			asked = true
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody}, nil
		}
		notes()
		return base.RoundTrip(r)
	})}
	join := func() (*bootstrap.JoinResult, error) {
		asked = false
		return a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: "edge", Identify: a.o.Identify})
	}
	a.edits(func(s *bootstrap.State) { s.Release = "2.10.0" })

	notes = func() { a.edits(func(s *bootstrap.State) { s.Release = "3.0.3" }) }
	if res, err := join(); err != nil || res.Outcome != bootstrap.OutcomeUnchanged || res.Evidence == nil {
		t.Errorf("the release: %+v, %v", res, err)
	}

	const changed = "another command, or the daemon, changed this machine meanwhile"
	notes = func() { a.edits(func(s *bootstrap.State) { s.Role = "origin" }) }
	if _, err := join(); err == nil || !strings.Contains(err.Error(), changed) {
		t.Errorf("another join: %v", err)
	}
	notes = func() { _ = os.Remove(filepath.Join(a.root, bootstrap.StateDir, "state.json")) }
	if _, err := join(); err == nil || !strings.Contains(err.Error(), changed) {
		t.Errorf("a leave: %v", err)
	}
}

// A join refuses a clock by which the nodes take each other for dead, and doctor says it beside its other checks of MongoDB.
func TestJoinWithAWrongClock(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	for _, off := range []time.Duration{-cluster.GoneLimit - 4*time.Second, cluster.GoneLimit - time.Second, 0} {
		a.machine.Connect = func(ctx context.Context, to cluster.Target) (*cluster.Client, error) {
			return cluster.Connect(ctx, to, cluster.Options{Timeout: time.Minute, Now: func() time.Time { return time.Now().Add(off) }})
		}
		req := bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: "edge", Identify: a.o.Identify}
		res, err := a.machine.Join(t.Context(), req)
		pre, refused := errors.AsType[*bootstrap.PreflightError](err)
		verdict := doctor.Good
		switch {
		case off < 0:
			verdict = doctor.Bad
			if !refused || len(pre.Findings) != 1 || pre.Findings[0].ID != bootstrap.IDClock {
				t.Errorf("%s: %v", off, err)
			}
		case off > 0:
			verdict = doctor.Warning
			if err != nil || !slices.ContainsFunc(res.Warnings, func(f bootstrap.Finding) bool { return f.ID == bootstrap.IDClock }) {
				t.Errorf("%s: %v, %v", off, res, err)
			}
		default:
			must.OK(t, err)
		}
		for _, r := range doctor.Run(t.Context(), doctor.Options{Machine: a.machine, Join: req}) {
			if want := map[string]doctor.Verdict{bootstrap.IDClock: verdict, bootstrap.IDMongo: doctor.Good, bootstrap.IDMongoAuth: doctor.Good}[r.ID]; want != "" && r.Verdict != want {
				t.Errorf("%s: %+v", off, r)
			}
		}
	}
}

// A role that no other node has is a warning of join and doctor.
func TestJoinWithALoneRole(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	warns := func(role string) bool {
		req := bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: role, Identify: a.o.Identify, DryRun: true}
		res, err := a.machine.Join(t.Context(), req)
		must.OK(t, err)
		return slices.ContainsFunc(res.Warnings, func(f bootstrap.Finding) bool { return f.ID == bootstrap.IDRole })
	}
	if warns("egde") {
		t.Error("no other node has a role")
	}
	for _, role := range []string{"origin", "player"} {
		_, err := a.client.Register(t.Context(), cluster.Node{ID: role, IP: "10.0.0.41", Role: role, State: cluster.StateActive}, cluster.RegisterOptions{})
		must.OK(t, err)
	}
	if !warns("egde") || warns("player") {
		t.Error("egde has a warning, and player has none")
	}
	results := doctor.Run(t.Context(), doctor.Options{Machine: a.machine, Join: bootstrap.JoinRequest{Mongo: *a.target.Load(), Identify: a.o.Identify}})
	if !slices.ContainsFunc(results, func(r doctor.Result) bool { return r.ID == bootstrap.IDRole && r.Verdict == doctor.Warning }) {
		t.Errorf("%+v", results)
	}
}

// cloudAway is a cloud whose API fails until it is back.
type cloudAway struct{ back atomic.Bool }

func (c *cloudAway) Pending(context.Context, bool) ([]lifecycle.Hook, error) {
	if c.back.Load() {
		return nil, nil
	}
	return nil, errors.New("503")
}

func (*cloudAway) Extend(_ context.Context, h lifecycle.Hook) (time.Duration, error) {
	return time.Duration(h.Timeout), nil
}
func (*cloudAway) Complete(context.Context, lifecycle.Hook) error { return nil }

// notices are what the test's cloud has in force.
type notices chan cloud.Notice

func (n notices) Watch(ctx context.Context, report cloud.Report) {
	var current []cloud.Notice
	for {
		select {
		case <-ctx.Done():
			return
		case notice := <-n:
			current = append(current, notice)
			report("test", current)
		}
	}
}

// While the completion of a drain cannot reach the cloud, an operator starts the server and joins. The node serves again once
// the cloud has the completion.
func TestJoinWhileCloudIsAway(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.joinedAt(time.Now().Add(-time.Hour).Truncate(time.Second))
	away, source := &cloudAway{}, make(notices)
	a.o.Lifecycle.Hooks, a.o.Lifecycle.Watcher = away, source
	a.start()
	source <- cloud.Notice{ID: "test/t", Kind: cloud.Terminate, At: time.Now()}
	completing := func() bool {
		l := a.view().Lifecycle
		return l != nil && l.Step == lifecycle.StepCompleting && l.RegistryTold
	}
	must.Until(t, "the node has left, and the completion is pending", completing)
	<-time.After(time.Second) // the state file has whole seconds
	must.OK(t, a.svc.Start(t.Context()))
	if res := a.joins(); res.Outcome != bootstrap.OutcomeUnchanged || res.Restarted {
		t.Errorf("%s, restarted %v", res.Outcome, res.Restarted)
	}
	if got := a.state(); got != cluster.StateActive || !completing() {
		t.Errorf("after the join the state is %s: %+v", got, a.view().Lifecycle)
	}
	away.back.Store(true)
	must.Until(t, "the drain has ended", func() bool { l := a.view().Lifecycle; return l == nil || l.Step != lifecycle.StepCompleting })
	if l := a.view().Lifecycle; l != nil && !l.Ready {
		t.Fatalf("the node is not ready: %+v", l)
	}
	a.serves()
	// From now on, a registration ends no drain that an operator wrote into the registry.
	must.Until(t, "the forgotten drain is settled with the registry", func() bool {
		var drain struct{ Forgotten bool }
		text, err := os.ReadFile(filepath.Join(a.root, lifecycle.RecordPath)) // the cloud still reports its notice
		return err == nil && json.Unmarshal(text, &drain) == nil && !drain.Forgotten
	})
}

// A join that restarts the server sets the state to active if the drain is done and no daemon runs.
func TestJoinAfterDrainWithoutDaemon(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.drainAt(lifecycle.StepDone, cluster.StateDraining)
	must.OK(t, a.svc.Stop(t.Context()))
	if res := a.joins(); res.Outcome != bootstrap.OutcomeJoined || !res.Restarted {
		t.Errorf("%s, restarted %v", res.Outcome, res.Restarted)
	}
	must.Equal(t, "state", a.state(), cluster.StateActive)
	if _, err := os.Stat(filepath.Join(a.root, lifecycle.RecordPath)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record of the drain: %v", err)
	}
	a.start()
}

// lives starts the daemon with a lifecycle that has one source.
func (a *agent) lives() notices {
	a.t.Helper()
	source := make(notices)
	a.o.Lifecycle.Watcher = source
	a.start()
	return source
}

// An undrain corrects a record in the state draining although the node does not drain: the drain's local record was lost on a
// full disk, or an operator edited the registry.
func TestUndrainOfTheRecord(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.lives()
	record, err := a.client.Node(t.Context(), nodeID)
	if err == nil {
		err = a.client.SetOwnState(t.Context(), record, cluster.StateDraining, "operator", cluster.Details{})
	}
	must.OK(t, err)
	must.Until(t, "the daemon reports the state of the record", func() bool { return a.view().State == cluster.StateDraining })
	a.control(http.MethodPost, daemon.PathUndrain, `{"asked_by":"uid 0"}`, new(lifecycle.View))
	must.Until(t, "the record is active", func() bool { return a.state() == cluster.StateActive })
	a.serves()

	_, err = a.door.nodes().DeleteOne(t.Context(), bson.M{"_id": nodeID})
	must.OK(t, err)
	must.Until(t, "the removed record is back", func() bool {
		n, err := a.door.nodes().CountDocuments(t.Context(), bson.M{"_id": nodeID, "state": cluster.StateActive})
		return err == nil && n == 1
	})
}

// A record that an operator removed during a drain is registered again in the state draining, even if the answer to the
// registration comes too late.
func TestRecordRemovedDuringADrain(t *testing.T) {
	t.Parallel()
	for name, spoilt := range map[string]mongod.Fault{
		"well": {Mode: mongod.None},
		// The first two are those of the refused heartbeat, and of the registration before it writes.
		"late": {Mode: mongod.Delay, Delay: 3 * time.Second, Commands: []string{"find"}, Database: "amsagent", After: 2, Times: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(t)
			a.o.Periods.Document = time.Minute // it also sends find commands
			source := a.lives()
			a.eyes.see(0, 1) // a viewer that stays
			source <- cloud.Notice{ID: "test/t", Kind: cloud.Terminate, At: time.Now().Add(time.Hour)}
			must.Until(t, "the record drains", func() bool { return a.state() == cluster.StateDraining })
			<-time.After(5 * time.Second) // from now on, the drain does not change the record
			// After the fault, the test itself must not send find commands.
			fault(t, a.mongo, spoilt)
			_, err := a.door.nodes().DeleteOne(t.Context(), bson.M{"_id": nodeID})
			must.OK(t, err)
			var back time.Time
			has := func(want bson.M) bool {
				n, err := a.door.nodes().CountDocuments(t.Context(), want)
				return err == nil && n == 1
			}
			must.Until(t, "the record is back, and draining", func() bool {
				drains := has(bson.M{"_id": nodeID, "state": cluster.StateDraining})
				if back.IsZero() && (drains || has(bson.M{"_id": nodeID})) {
					back = time.Now()
				}
				return drains
			})
			if late := time.Since(back); late > 15*time.Second { // the daemon writes it every 30 s in any case
				t.Errorf("for %s the record was not draining", late)
			}
		})
	}
}
