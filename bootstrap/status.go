// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata"
)

// StatusRequest is the input of [Machine.Status].
type StatusRequest struct {
	// Mongo is zero if unknown. The node record is then not read.
	Mongo   cluster.Target
	Valve   Valve
	Address string
	// Identify is called if the state file lacks the instance.
	Identify func(context.Context) (metadata.Instance, error)
}

// Status compares files, process and node record. A part that could not be read has an error.
type Status struct {
	// Member reports whether this machine is a node, or joins or leaves.
	Member bool `json:"member"`
	// Phase is "" if this machine never joined.
	Phase    Phase       `json:"phase,omitempty"`
	Files    FilesView   `json:"files"`
	Process  ProcessView `json:"process"`
	Row      RowView     `json:"registry"`
	Disagree []Finding   `json:"disagreements"`
}

// FilesView is what the files make of the server at its next start.
type FilesView struct {
	Err     string    `json:"error,omitempty"`
	Dir     string    `json:"dir,omitempty"`
	Release string    `json:"release,omitempty"`
	Mode    conf.Mode `json:"mode,omitempty"`
	// Drift lists files that differ from the join's, Values the differences.
	Drift  []string     `json:"drift,omitempty"`
	Values []Difference `json:"drift_values,omitempty"`
	// Digest is a hash of the settings that nodes of a role should have in common; unknown if a file is unreadable.
	Digest string `json:"settings_digest,omitempty"`
	// Digests are those of each file, by its path in the installation.
	Digests map[string]string `json:"settings_digests,omitempty"`
	// ByHand reports that an operator made this machine standalone by hand.
	ByHand bool `json:"standalone_by_hand,omitempty"`
	// Undo reports that a leave can restore the original files.
	Undo        bool `json:"undo_record"`
	Interrupted bool `json:"interrupted,omitempty"` // the agent was killed while it wrote; the next join or leave recovers
}

// ProcessView is the running server.
type ProcessView struct {
	Err      string       `json:"error,omitempty"`
	Service  string       `json:"service"`
	State    ams.State    `json:"state"`
	Liveness ams.Liveness `json:"liveness"`
	// Applications are the answers of those that must serve, if a node's server runs.
	Applications []ams.AppAnswer `json:"applications,omitempty"`
	// Release is compared with that of the files, if a node's server runs.
	Release *RunningRelease `json:"release,omitempty"`
	// EditedSince lists files written after the server's start.
	EditedSince []string `json:"edited_since,omitempty"`
}

// RowView is this node in MongoDB.
type RowView struct {
	Err      string        `json:"error,omitempty"`
	ID       string        `json:"id,omitempty"`
	Address  string        `json:"address,omitempty"`
	Registry *cluster.Node `json:"record,omitempty"` // the node record, or nil
	// EarlierBoot reports that the record is older than this machine's boot.
	EarlierBoot bool `json:"earlier_boot,omitempty"`
	// OtherMachine reports that another machine uses this machine's id.
	OtherMachine bool `json:"other_machine,omitempty"`
	// Age is the node record's, by MongoDB's clock.
	Age seconds.Duration `json:"age_seconds,omitempty"`
	// AMS are the server's documents with this address.
	AMS   []cluster.AMSNode `json:"ams"`
	Fresh bool              `json:"fresh"` // at least one of AMS
	// Agent and Server are the liveness signals, Health follows from them; "" if unknown.
	Agent  cluster.Signal `json:"agent_signal"`
	Server cluster.Signal `json:"ams_signal"`
	Health cluster.Health `json:"health,omitempty"`
	// Looked reports whether MongoDB answered.
	Looked bool `json:"read"`
	// Cause is why not, or nil if it was not called.
	Cause error `json:"-"`
}

func (v *RowView) fail(err error) { v.Err, v.Cause = err.Error(), err }

// AddNotReady adds the daemon's reason, unless another finding explains it.
func (s *Status) AddNotReady(why string) {
	if slices.ContainsFunc(s.Disagree, func(d Finding) bool { return d.Severity == Bad || d.ID == IDDuplicate }) {
		return
	}
	s.add("AMS-NOT-SERVING", notServingHint, "the node is not ready for new sessions: %s", why)
}

const serverLog = "/var/log/antmedia/ant-media-server.log"

// RestartHint makes the server read its files.
const RestartHint = "amsagent drain && amsagent join (without sessions: amsagent join)"

const notServingHint = "look at " + serverLog + "; while MongoDB is away no application answers"

func (s *Status) add(id, hint, format string, args ...any) {
	f := warningOf(id, hint, format, args...)
	switch id {
	case "STATUS-STOPPED", "AMS-NOT-SEEN", "AMS-NOT-SERVING", "STATUS-FILES":
		f.Severity = Bad // such a node serves no viewers, or only those who do not need the others
	}
	s.Disagree = append(s.Disagree, f)
}

// Status changes nothing. A part that cannot be read has its own error; the returned one concerns all parts.
func (m *Machine) Status(ctx context.Context, req StatusRequest) (*Status, error) {
	store := m.store()
	s := &Status{Disagree: []Finding{}, Row: RowView{AMS: []cluster.AMSNode{}}}
	state, err := loadState(store)
	if err != nil {
		return nil, err
	}
	if state != nil {
		s.Phase = state.Phase
		s.Row.ID, s.Row.Address = state.InstanceID, state.Address
	}
	service, serr := ams.State{Activity: ams.ActivityUnknown}, error(nil)
	if s.Process.Service = m.Service.Name(); m.isTree() {
		s.Process.Err = "not known: a tree below another root does not run"
		s.Process.Liveness.State = ams.LiveUnknown
	} else {
		service, serr = m.Service.State(ctx)
	}
	install := m.viewFiles(store, req, state, service, s)
	m.viewProcess(ctx, install, service, serr, s)
	m.viewRow(ctx, req, s)
	s.Member = s.Files.Mode == conf.ModeCluster || state != nil
	s.compare(state)
	return s, nil
}

// isTree reports whether no server runs from these files.
func (m *Machine) isTree() bool {
	_, none := m.Service.(ams.None)
	_, systemd := m.Service.(*ams.Systemd) // of this machine
	return m.Root != "" && (none || systemd)
}

func (m *Machine) viewFiles(store *conf.Store, req StatusRequest, state *State, service ams.State, s *Status) *ams.Installation {
	v := &s.Files
	in, err := m.open()
	if err != nil {
		v.Err = err.Error()
		return nil
	}
	v.Dir, v.Release = in.Dir, in.Release.String()
	v.Digest, v.Digests, _ = m.digest(in, &digests{})
	if v.Mode, err = in.Mode(); err != nil {
		v.Err = err.Error()
	}
	record, err := store.Record()
	if err != nil {
		v.Err = err.Error()
	}
	v.Undo = record != nil
	v.Interrupted = store.Interrupted()
	v.ByHand = state != nil && state.Phase == PhaseJoined && madeStandalone(store, in, state.Release)
	if v.Err != "" || v.Mode != conf.ModeCluster || req.Mongo.IsZero() || state == nil {
		return in
	}
	f := &facts{install: in, record: record, service: service, state: state, own: state.Own, address: ams.Address{Addr: previousAddress(state)}}
	m.checkPlan(store, JoinRequest{Mongo: req.Mongo, Valve: req.Valve, DryRun: true}, f)
	if f.plan != nil {
		for _, c := range f.plan.Changed() {
			if !changesServer(c) && !agentsOwn(c.Before.Path) {
				continue // only permissions, as of a new application
			}
			v.Drift = append(v.Drift, c.Before.Path)
			v.Values = append(v.Values, c.Differences()...)
		}
	}
	return in
}

func (m *Machine) viewProcess(ctx context.Context, in *ams.Installation, service ams.State, serr error, s *Status) {
	v := &s.Process
	if v.State = service; serr != nil {
		v.Err = serr.Error()
	}
	if in == nil || m.isTree() { // its port is this machine's
		return
	}
	started := m.serverStarted(v.State)
	v.Liveness = ams.CheckLiveness(ctx, m.http(), in.BaseURL())
	if v.State.Running() || v.Liveness.State == ams.Live {
		m.viewServer(ctx, s)
	}
	if started.IsZero() || !v.State.Running() {
		return
	}
	// The container decides the mode, and only the agent writes it now.
	if ams.EditedAfter(m.Root, in.Container.Path, started) {
		v.EditedSince = append(v.EditedSince, in.Container.Path)
	}
}

// viewServer asks the applications of a node's server. The files of an upgrade may be standalone.
func (m *Machine) viewServer(ctx context.Context, s *Status) {
	isNode := s.Files.Mode == conf.ModeCluster
	if !isNode && s.Phase != PhaseJoined {
		return
	}
	server := m.Server()
	if answers := server.look(ctx); isNode {
		s.Process.Applications = answers
	}
	s.Process.Release = new(server.Release(ctx))
}

func (m *Machine) viewRow(ctx context.Context, req StatusRequest, s *Status) {
	v := &s.Row
	if req.Mongo.IsZero() {
		v.Err = "no MongoDB address is known"
		return
	}
	if v.ID == "" && req.Identify != nil {
		if inst, err := req.Identify(ctx); err == nil {
			v.ID = inst.ID
			if a, err := m.address(req.Address, req.Address != "", inst); err == nil {
				v.Address = a.Addr.String()
			}
		}
	}
	c, err := m.Connect(ctx, req.Mongo)
	if err != nil {
		v.fail(err)
		return
	}
	defer closeClient(ctx, c)
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	skew, _, err := c.ClockSkew(ctx)
	if err != nil {
		v.fail(err)
		return
	}
	now := time.Now().Add(-skew)
	if v.ID != "" {
		switch n, err := c.Node(ctx, v.ID); {
		case err == nil:
			v.Registry = &n
			age, _ := n.Age(now)
			v.Age = seconds.Duration(age)
			boot := m.bootID()
			v.EarlierBoot = boot != "" && n.BootID != "" && n.BootID != boot
			_, used := n.UsedByOther(cluster.Node{ID: v.ID, IP: v.Address, BootID: boot}, now)
			v.OtherMachine = v.EarlierBoot && used
		case !errors.Is(err, cluster.ErrNoNode):
			v.fail(err)
			return
		}
	}
	if v.Address != "" {
		if v.AMS, err = c.AMSNodesByAddress(ctx, v.Address); err != nil {
			v.fail(err)
			return
		}
		// The server uses this machine's clock.
		for _, n := range v.AMS {
			v.Fresh = v.Fresh || n.Fresh(time.Now())
		}
	}
	v.judge(now, skew)
	v.Looked = true
}

// judge needs skew because AMS documents have this machine's time.
func (v *RowView) judge(now time.Time, skew time.Duration) {
	look := cluster.Look{AMS: v.AMS, ServerTime: now, At: now}
	if v.Registry != nil {
		n := *v.Registry
		n.Clock = new(seconds.Duration(skew))
		if v.Address != "" {
			n.IP = v.Address // a difference is reported elsewhere
		}
		look.Nodes = []cluster.Node{n}
	}
	var o cluster.Observer
	for _, m := range o.Observe(look) {
		if m.Node != nil || v.Registry == nil {
			v.Agent, v.Server, v.Health = m.Agent, m.Server, m.Health
		}
	}
}

// maxShown bounds the values in a sentence.
const maxShown = 6

func (s *Status) compare(state *State) {
	add := s.add
	files, proc, row := s.Files, s.Process, s.Row
	if files.Interrupted {
		add("AGENT-UNFINISHED", "run the same join or leave again: it finishes what was begun", "a run of amsagent was killed while it wrote the files")
	}
	if len(files.Drift) > 0 {
		text := fmt.Sprintf("not as joined, and put back before the server starts the next time: %s", joinPaths(files.Drift))
		for _, d := range files.Values[:min(len(files.Values), maxShown)] {
			text += "; " + d.String()
		}
		add("AMS-DRIFT", RestartHint, "%s", text)
	}
	switch {
	case files.ByHand:
	case len(proc.EditedSince) > 0 && files.Mode != "" || state != nil && state.RestartPending:
		add("STATUS-RESTART", RestartHint, "the files were written after the server was started: it runs with other settings")
	}
	if r := proc.Release; r != nil && r.Match == ReleaseOlder {
		add("STATUS-RELEASE", "amsagent drain && amsagent join", "the server runs release %s, and its files are of %s: it was not restarted after they were replaced", r.Running, r.Files)
	}
	if files.ByHand {
		add("STATUS-FILES", "amsagent join makes it a node again; amsagent leave ends its membership", "this machine joined, and was made standalone by hand: it is left so, and no sessions are sent here")
	} else if state != nil && state.Phase == PhaseJoined && files.Mode == conf.ModeStandalone {
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
	left := row.Registry != nil && row.Registry.State == cluster.StateLeft // hence stopped
	if proc.State.Known() && !proc.State.Running() && files.Mode == conf.ModeCluster && !left {
		start := ams.StartCommand(proc.Service)
		if state != nil && !strings.HasSuffix(proc.Service, ".service") {
			start = "amsagent join" // it passes the address to the command
		}
		add("STATUS-STOPPED", "see "+serverLog+"; start it: "+start, "the files are a cluster node's, but %s is %s", proc.Service, proc.State)
	}
	if dumb := notServing(proc.Applications); len(dumb) > 0 && !left && row.Looked {
		add("AMS-NOT-SERVING", notServingHint, "the server runs, but viewers are not served: %s", answerList(dumb))
	}
	if proc.Liveness.State == ams.LiveBroken && files.Mode == conf.ModeCluster {
		add("STATUS-LIVENESS", "getent ahosts \"$(hostname)\" shows whether this machine's own name resolves; amsagent join adds it to /etc/hosts",
			"the server answers its liveness call with %d: what watches it by that call takes it for dead", proc.Liveness.Code)
	}
	if !row.Looked {
		return
	}
	active := row.Registry != nil && row.Registry.State == cluster.StateActive
	// Without a service, the node record decides.
	running := proc.State.Running() || proc.Liveness.State == ams.Live || active && !proc.State.Known()
	switch {
	case files.Mode == conf.ModeCluster && running && !row.Fresh:
		add("AMS-NOT-SEEN", "look at "+serverLog+"; amsagent join restarts a server that runs under another address", "the server's own document in the cluster is missing or old: other nodes take this one for dead")
	case files.Mode == conf.ModeStandalone && row.Fresh:
		add("STATUS-STILL-SEEN", "restart the server", "the files make the server standalone, but it is still seen in the cluster")
	}
	if row.OtherMachine {
		add(IDDuplicate, DuplicateHint, "another machine uses the id %s: %s wrote its row %s ago", row.ID, row.Registry.IP, time.Duration(row.Age).Round(time.Second))
		return // the rest concerns that machine
	}
	if n := row.Registry; n != nil && n.Heartbeats() && !row.Agent.Fresh && n.State != cluster.StateLeft && files.Mode == conf.ModeCluster {
		add("STATUS-SILENT", "systemctl status amsagent", "the agent is silent: its last heartbeat was %s ago", time.Duration(row.Agent.Age).Round(time.Second))
	}
	switch {
	case state != nil && state.Phase == PhaseJoined && row.Registry == nil:
		add("STATUS-NO-RECORD", "amsagent join writes it again", "the registry has no record of this node")
	case files.ByHand: // reported above
	case active && files.Mode == conf.ModeStandalone:
		add("STATUS-RECORD", "run amsagent leave again", "the registry says active, but the files make the server standalone")
	case left && files.Mode == conf.ModeCluster && row.Fresh && running:
		add("STATUS-RECORD", "amsagent join makes it a node again; stop the server if it is to stay out",
			"the registry says left, but the server runs in the cluster: no new sessions are sent here")
	case row.Registry != nil && state != nil && state.Address != "" && !cluster.SameAddress(row.Registry.IP, state.Address):
		add("STATUS-ADDRESS", "amsagent join writes it again", "the registry has this node under %s, and it joined as %s", row.Registry.IP, state.Address)
	}
	if active && row.Agent.Fresh && row.Registry.Serving != nil && !row.Registry.Serving.Up {
		s.AddNotReady(cmp.Or(row.Registry.Serving.Why, "its agent gives no reason"))
	}
}
