// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/metadata"
)

// StatusRequest is what a look at this machine needs.
type StatusRequest struct {
	// Mongo is zero where nobody told; then the row is not looked at.
	Mongo cluster.Target
	Valve Valve
	// Identify is asked where the state file does not know who we are.
	Identify func(context.Context) (metadata.Instance, error)
}

// Status is this machine seen from three sides, and where they disagree. A side
// that could not be looked at says so in its Err; it is not taken for empty.
type Status struct {
	// Member tells whether this machine is a cluster node, or on its way to
	// or from it.
	Member bool `json:"member"`
	// Phase is what the agent remembers; "" where it never joined.
	Phase    Phase          `json:"phase,omitempty"`
	Files    FilesView      `json:"files"`
	Process  ProcessView    `json:"process"`
	Row      RowView        `json:"row"`
	Disagree []Disagreement `json:"disagreements"`
}

// FilesView is what the files on disk make of the server at its next start.
type FilesView struct {
	Err     string    `json:"error,omitempty"`
	Dir     string    `json:"dir,omitempty"`
	Release string    `json:"release,omitempty"`
	Mode    conf.Mode `json:"mode,omitempty"`
	// Drift lists files that differ from what a join to the known MongoDB
	// would write.
	Drift []string `json:"drift,omitempty"`
	// Undo tells that leave can give the former bytes back.
	Undo bool `json:"undo"`
	// Interrupted tells that a run was killed while it wrote; the next join or
	// leave finishes it.
	Interrupted bool `json:"interrupted,omitempty"`
}

// ProcessView is the server that runs now.
type ProcessView struct {
	Err      string       `json:"error,omitempty"`
	Service  string       `json:"service"`
	State    ams.State    `json:"state"`
	Liveness ams.Liveness `json:"liveness"`
	// EditedSince lists files written after the server was started.
	EditedSince []string `json:"edited_since,omitempty"`
}

// RowView is this node as its peers read it from MongoDB.
type RowView struct {
	Err     string `json:"error,omitempty"`
	ID      string `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
	// Registry is our own row, nil where there is none.
	Registry *cluster.Node `json:"registry,omitempty"`
	// EarlierBoot tells that the row is of an earlier boot of this machine: nobody has
	// written it since.
	EarlierBoot bool `json:"earlier_boot,omitempty"`
	// Age is how long ago the row was written, by the server's clock.
	Age time.Duration `json:"age_ns,omitempty"`
	// AMS are the documents of this address that AMS wrote itself.
	AMS   []cluster.AMSNode `json:"ams"`
	Fresh bool              `json:"fresh"` // one of AMS is
	// Agent and Server are when the two witnesses of this node were heard, and
	// Verdict what they say together; "" where there is nothing to judge.
	Agent   cluster.Heard   `json:"agent_heard"`
	Server  cluster.Heard   `json:"ams_heard"`
	Verdict cluster.Verdict `json:"verdict,omitempty"`
	// Looked tells whether MongoDB answered.
	Looked bool `json:"looked"`
}

// Disagreement is one contradiction between two sides.
type Disagreement struct {
	ID   string `json:"id"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// Status looks at this machine. It changes nothing, and a side that cannot be
// seen does not keep it from showing the others; its error is for what makes
// all of them impossible.
func (m *Machine) Status(ctx context.Context, req StatusRequest) (*Status, error) {
	store := m.store()
	s := &Status{Disagree: []Disagreement{}, Row: RowView{AMS: []cluster.AMSNode{}}}
	state, err := loadState(store)
	if err != nil {
		return nil, err
	}
	if state != nil {
		s.Phase = state.Phase
		s.Row.ID, s.Row.Address = state.InstanceID, state.Address
	}
	service, serr := m.Service.State(ctx)
	install := m.viewFiles(store, req, state, service, s)
	m.viewProcess(ctx, install, service, serr, s)
	m.viewRow(ctx, req, s)
	s.Member = s.Files.Mode == conf.ModeCluster || state != nil
	s.compare(state)
	return s, nil
}

func (m *Machine) viewFiles(store *conf.Store, req StatusRequest, state *State, service ams.State, s *Status) *ams.Installation {
	v := &s.Files
	in, err := m.open()
	if err != nil {
		v.Err = err.Error()
		return nil
	}
	v.Dir, v.Release = in.Dir, in.Release.String()
	if v.Mode, err = in.Mode(); err != nil {
		v.Err = err.Error()
	}
	record, err := store.Record()
	if err != nil {
		v.Err = err.Error()
	}
	v.Undo = record != nil
	v.Interrupted = store.Interrupted()
	if v.Err != "" || v.Mode != conf.ModeCluster || req.Mongo.IsZero() || state == nil {
		return in
	}
	f := &facts{install: in, record: record, service: service, address: ams.Address{Addr: previousAddress(state)}}
	m.checkPlan(store, JoinRequest{Mongo: req.Mongo, Valve: req.Valve, DryRun: true}, f)
	if f.plan != nil {
		for _, c := range f.plan.Changed() {
			v.Drift = append(v.Drift, c.Before.Path)
		}
	}
	return in
}

func (m *Machine) viewProcess(ctx context.Context, in *ams.Installation, service ams.State, serr error, s *Status) {
	v := &s.Process
	v.Service = m.Service.Name()
	if v.State = service; serr != nil {
		v.Err = serr.Error()
	}
	if in == nil {
		return
	}
	v.Liveness = ams.CheckLiveness(ctx, m.http(), in.BaseURL())
	started := v.State.Started
	if started.IsZero() && v.State.MainPID > 0 {
		if p, err := ams.ReadProcess(m.Root, v.State.MainPID); err == nil {
			started = p.Started
		}
	}
	if started.IsZero() || !v.State.Running() {
		return
	}
	// The container alone decides the mode, and nobody but us writes it while
	// AMS runs.
	edited, err := ams.EditedAfter(m.Root, started, in.Container.Path)
	if err == nil {
		for _, e := range edited {
			v.EditedSince = append(v.EditedSince, e.Path)
		}
	}
}

func (m *Machine) viewRow(ctx context.Context, req StatusRequest, s *Status) {
	v := &s.Row
	if req.Mongo.IsZero() {
		v.Err = "nobody told where MongoDB is"
		return
	}
	if v.ID == "" && req.Identify != nil {
		if inst, err := req.Identify(ctx); err == nil {
			v.ID = inst.ID
			if a, err := m.address("", false, inst); err == nil {
				v.Address = a.Addr.String()
			}
		}
	}
	c, err := m.Connect(ctx, req.Mongo)
	if err != nil {
		v.Err = err.Error()
		return
	}
	defer closeClient(ctx, c)
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	skew, _, err := c.ClockSkew(ctx)
	if err != nil {
		v.Err = err.Error()
		return
	}
	now := time.Now().Add(-skew)
	if v.ID != "" {
		switch n, err := c.Node(ctx, v.ID); {
		case err == nil:
			v.Registry = &n
			v.Age, _ = n.Age(now)
			boot := m.bootID()
			v.EarlierBoot = boot != "" && n.BootID != "" && n.BootID != boot
		case !errors.Is(err, cluster.ErrNoNode):
			v.Err = err.Error()
			return
		}
	}
	if v.Address != "" {
		if v.AMS, err = c.AMSNodesByAddress(ctx, v.Address); err != nil {
			v.Err = err.Error()
			return
		}
		// AMS stamps with this machine's clock.
		for _, n := range v.AMS {
			v.Fresh = v.Fresh || n.Fresh(time.Now())
		}
	}
	v.judge(now, skew)
	v.Looked = true
}

// judge asks both witnesses. AMS stamps with this machine's clock, of which we
// know how far it is ahead of the server's.
func (v *RowView) judge(now time.Time, skew time.Duration) {
	look := cluster.Look{AMS: v.AMS, ServerTime: now}
	if v.Registry != nil {
		n, ms := *v.Registry, skew.Milliseconds()
		n.ClockMS = &ms
		if v.Address != "" {
			n.IP = v.Address // where the row has another one, that is told elsewhere
		}
		look.Nodes = []cluster.Node{n}
	}
	var o cluster.Observer
	for _, m := range o.Judge(look, now) {
		if m.Node != nil || v.Registry == nil {
			v.Agent, v.Server, v.Verdict = m.Agent, m.Server, m.Verdict
		}
	}
}

// compare names what contradicts each other.
func (s *Status) compare(state *State) {
	add := func(id, hint, format string, args ...any) {
		s.Disagree = append(s.Disagree, Disagreement{ID: id, Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	files, proc, row := s.Files, s.Process, s.Row
	if files.Interrupted {
		add("STATUS-INTERRUPTED", "run the same join or leave again: it finishes what was begun", "a run of amsagent was killed while it wrote the files")
	}
	if len(files.Drift) > 0 {
		add("STATUS-DRIFT", "amsagent join puts it back", "edited since the join: %s", joinPaths(files.Drift))
	}
	if len(proc.EditedSince) > 0 || (state != nil && state.RestartPending) {
		add("STATUS-RESTART", "amsagent join restarts it", "the files say %s, but the server was started before they were written", files.Mode)
	}
	if state != nil && state.Phase == PhaseJoined && files.Mode == conf.ModeStandalone {
		add("STATUS-FILES", "amsagent join makes it a node again", "this machine joined, but its files make the server standalone")
	}
	if state != nil && state.Phase == PhaseJoining {
		add("STATUS-JOINING", "run the same amsagent join again", "a join was begun and not proved")
	}
	if state != nil && state.Phase == PhaseLeaving {
		add("STATUS-LEAVING", "run amsagent leave again", "a leave was begun and not finished")
	}
	switch {
	case state != nil || files.Mode != conf.ModeCluster:
	case files.Undo:
		add("STATUS-JOINING", "run amsagent join, without --offline", "amsagent edited the files, and no join was proved")
	default:
		add("STATUS-FOREIGN", "amsagent join takes it over; amsagent leave makes it standalone", "the files are a cluster node's, and not amsagent made them so")
	}
	left := row.Registry != nil && row.Registry.State == cluster.StateLeft // and is stopped for that
	if proc.State.Known() && !proc.State.Running() && files.Mode == conf.ModeCluster && !left {
		add("STATUS-STOPPED", "look at the log of "+proc.Service, "the files are a cluster node's, but %s is %s", proc.Service, proc.State)
	}
	if !row.Looked {
		return
	}
	running := proc.State.Running() || proc.Liveness.State == ams.Live
	switch {
	case files.Mode == conf.ModeCluster && running && !row.Fresh:
		add("STATUS-NOT-SEEN", "look at the server's log; other nodes take this one for dead", "the server runs, but its own document in the cluster is missing or old")
	case files.Mode == conf.ModeStandalone && row.Fresh:
		add("STATUS-STILL-SEEN", "restart the server", "the files make the server standalone, but it is still seen in the cluster")
	}
	if n := row.Registry; n != nil && n.Beats() && !row.Agent.Fresh && n.State != cluster.StateLeft && files.Mode == conf.ModeCluster {
		add("STATUS-SILENT", "systemctl status amsagent", "the agent is silent: its last beat was %s ago", row.Agent.Age.Round(time.Second))
	}
	switch {
	case state != nil && state.Phase == PhaseJoined && row.Registry == nil:
		add("STATUS-NO-ROW", "amsagent join writes it again", "the registry has no row of this node")
	case row.Registry != nil && files.Mode == conf.ModeStandalone && row.Registry.State == cluster.StateActive:
		add("STATUS-ROW", "run amsagent leave again", "the registry says active, but the files make the server standalone")
	case row.Registry != nil && state != nil && state.Address != "" && !cluster.SameAddress(row.Registry.IP, state.Address):
		add("STATUS-ADDRESS", "amsagent join writes it again", "the registry has this node under %s, and it joined as %s", row.Registry.IP, state.Address)
	}
}
