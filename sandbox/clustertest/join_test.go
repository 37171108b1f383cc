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
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

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
		return a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
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

// A join without given settings, as the daemon makes it, keeps those of the former join; an empty set removes them. The address of
// the machine whose disk was copied is not kept.
func TestJoinKeepsWhatWasGiven(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	kept := &bootstrap.Given{Settings: map[string]string{"role": "edge"}}
	address := &bootstrap.Given{Settings: map[string]string{"address": own}, ForcedAddress: own}
	for name, tt := range map[string]struct {
		phase       bootstrap.Phase
		id          string
		given, want *bootstrap.Given
	}{
		"of a node":                     {bootstrap.PhaseJoined, nodeID, nil, kept},
		"after an interrupted":          {bootstrap.PhaseJoining, nodeID, nil, kept},
		"that is given none now":        {bootstrap.PhaseJoined, nodeID, &bootstrap.Given{}, nil},
		"of a copy, without an address": {bootstrap.PhaseJoined, "i-old", address, nil},
	} {
		a.edits(func(s *bootstrap.State) {
			s.Phase, s.InstanceID, s.Given, s.Hardware = tt.phase, tt.id, kept, "another"
			if tt.id != nodeID {
				s.Given = address
			}
		})
		_, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{
			Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify, Given: tt.given, AddressKept: true,
		})
		must.OK(t, err)
		s, err := a.machine.StateFile()
		must.OK(t, err)
		if s.Phase != bootstrap.PhaseJoined || s.Hardware == "another" || !reflect.DeepEqual(s.Given, tt.want) {
			t.Errorf("a join %s: %+v, given %+v", name, s, s.Given)
		}
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
		req := bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify}
		res, err := a.machine.Join(t.Context(), req)
		pre, refused := errors.AsType[*bootstrap.PreflightError](err)
		verdict := bootstrap.Good
		switch {
		case off < 0:
			verdict = bootstrap.Bad
			if !refused || len(pre.Findings) != 1 || pre.Findings[0].ID != bootstrap.IDClock {
				t.Errorf("%s: %v", off, err)
			}
		case off > 0:
			verdict = bootstrap.Warning
			if err != nil || !slices.ContainsFunc(res.Warnings, func(f bootstrap.Finding) bool { return f.ID == bootstrap.IDClock }) {
				t.Errorf("%s: %v, %v", off, res, err)
			}
		default:
			must.OK(t, err)
		}
		for _, r := range doctor.Run(t.Context(), doctor.Options{Machine: a.machine, Join: req}) {
			if want := map[string]bootstrap.Severity{bootstrap.IDClock: verdict, bootstrap.IDMongo: bootstrap.Good, bootstrap.IDMongoAuth: bootstrap.Good}[r.ID]; want != "" && r.Severity != want {
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
		req := bootstrap.JoinRequest{Mongo: a.client.Target(), Role: role, Identify: a.o.Identify, DryRun: true}
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
	results := doctor.Run(t.Context(), doctor.Options{Machine: a.machine, Join: bootstrap.JoinRequest{Mongo: a.client.Target(), Identify: a.o.Identify}})
	if !slices.ContainsFunc(results, func(r doctor.Result) bool { return r.ID == bootstrap.IDRole && r.Severity == bootstrap.Warning }) {
		t.Errorf("%+v", results)
	}
}

// A join that restarts the server sets the state to active if the drain is done and no daemon runs.
func TestJoinAfterDrainWithoutDaemon(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	record, err := a.client.Node(t.Context(), nodeID)
	must.OK(t, err)
	must.OK(t, a.client.SetOwnState(t.Context(), record, cluster.StateDraining, "drain", cluster.Details{}))
	must.OK(t, os.WriteFile(filepath.Join(a.root, lifecycle.RecordPath), []byte(`{"version":2,"step":"`+lifecycle.StepDone+`"}`), 0o600))
	must.OK(t, a.svc.Stop(t.Context()))
	res, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
	must.OK(t, err)
	if res.Outcome != bootstrap.OutcomeJoined || !res.Restarted {
		t.Errorf("%s, restarted %v", res.Outcome, res.Restarted)
	}
	must.Equal(t, "state", a.state(), cluster.StateActive)
	if _, err := os.Stat(filepath.Join(a.root, lifecycle.RecordPath)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record of the drain: %v", err)
	}
	a.start()
}

// TestStopWhileJoinLooks: a join that changes nothing and waits for the AMS document does not keep a drain from stopping the
// server, and ends then.
func TestStopWhileJoinLooks(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.svc.silent(true)
	_, err := a.door.ams().DeleteMany(t.Context(), bson.D{})
	must.OK(t, err)
	looked := func() int {
		return len(slices.DeleteFunc(a.mongo.Commands(), func(c mongod.Command) bool {
			return c.Name != "find" || c.Collection != "clusternode"
		}))
	}
	before, starts := looked(), a.svc.count()
	joined := make(chan error, 1)
	go func() {
		_, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
		joined <- err
	}()
	must.Until(t, "the join looks for the document", func() bool { return looked() >= before+3 })
	began := time.Now()
	_, err = a.machine.StopServer(t.Context())
	must.OK(t, err)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the stop took %s", took)
	}
	err = <-joined
	if _, unstable := errors.AsType[*ams.UnstableError](err); !unstable {
		t.Errorf("the join: %v", err)
	}
	if s, err := a.machine.StateFile(); err != nil || s == nil || s.Phase != bootstrap.PhaseJoined || a.svc.count() != starts {
		t.Errorf("the state: %+v, %v; started %d times, %d before", s, err, a.svc.count(), starts)
	}
}
