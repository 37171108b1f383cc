// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
)

// View is the daemon's state.
type View struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Phase is "" on a machine that never joined.
	Phase bootstrap.Phase `json:"phase,omitempty"`
	// Activity is what the daemon does, for people.
	Activity string `json:"activity"`
	// Trouble is what hinders it, or "".
	Trouble string `json:"trouble,omitempty"`
	// SettingsError is the fault of the settings when they were last read, and what applies instead.
	SettingsError string `json:"settings_error,omitempty"`

	ID      string `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
	Role    string `json:"role,omitempty"`
	Group   string `json:"group,omitempty"`
	// State is the node record's, as last written or read.
	State      cluster.State `json:"state,omitempty"`
	StateSince time.Time     `json:"state_since,omitzero"`
	// Proved: AMS was seen in the cluster in this session.
	Proved bool `json:"seen_in_cluster"`
	// Ready reports whether viewers may come: a node without a drain whose server serves. NotReady is the cause if not.
	Ready    bool       `json:"ready"`
	NotReady string     `json:"not_ready,omitempty"`
	Server   ServerView `json:"server"` // what viewers get from the server
	// Lifecycle is the drain of this node.
	Lifecycle *lifecycle.View `json:"lifecycle,omitempty"`

	// OtherMachine names another machine that uses this node's record; usually "".
	OtherMachine string `json:"other_machine,omitempty"`

	Beat BeatView `json:"heartbeat"`
	// Load and Sessions are those of the last round.
	Load     cluster.Load     `json:"load"`
	Sessions cluster.Sessions `json:"sessions"`
	// Missing maps missing readings to reasons.
	Missing map[string]string `json:"missing,omitempty"`
	// AMSAge is the last seen age of AMS's document, or nil.
	AMSAge *seconds.Duration `json:"server_document_age_seconds,omitempty"`
	// RestartPending: files differ from the join, or are newer than the running server.
	RestartPending bool       `json:"restart_pending,omitempty"`
	Drift          *DriftView `json:"drift,omitempty"`      // nil without differences
	Standalone     bool       `json:"standalone,omitempty"` // an operator made this machine standalone by hand
	// Release compares the server with its files, once a minute; nil before that.
	Release  *bootstrap.RunningRelease `json:"release,omitempty"`
	Repairs  []bootstrap.Finding       `json:"repairs"`
	Warnings []bootstrap.Finding       `json:"warnings"`
	// Notes are hints on cloud and tags.
	Notes   []string `json:"notes,omitempty"`
	Metrics string   `json:"metrics,omitempty"` // the address
	// MetricsError is why the port for metrics and health is not open yet. Another program may answer there.
	MetricsError string `json:"metrics_error,omitempty"`
	// AgentCheckError is why HAProxy's agent checks are not answered.
	AgentCheckError string `json:"agent_check_error,omitempty"`

	// entered: this instance was active, and its server seen in the cluster. It holds after a restart of the agent, even
	// without MongoDB.
	entered bool
	// brokenSince is when this machine stopped serving without a shared cause, or zero.
	brokenSince time.Time
	counted     cluster.Sessions
	countedAt   time.Time
	gpus        heartbeat.GPUReading
	clock       *seconds.Duration // how far this machine's clock is ahead of MongoDB's
	node        cluster.Node      // of the session
	digest      string            // of the server's settings; "" if unknown
	// For the counters of /metrics:
	sent, failed, repaired int
	// held counts the commands that hold; holder is the last one.
	held   int
	holder string
	// departed: such a command removed this node from the cluster, unnoticed by the session.
	departed bool
	// spared is why to keep the machine all the same, or "".
	spared string
}

// BeatView is the state of the heartbeats.
type BeatView struct {
	Seq  int64     `json:"seq"`
	Last time.Time `json:"last,omitzero"` // when one was last written
	// Round is the end of the last round, written or not.
	Round   time.Time        `json:"round,omitzero"`
	Dropped int              `json:"dropped,omitempty"`
	Latency seconds.Duration `json:"latency_seconds,omitempty"`
	Error   string           `json:"error,omitempty"`
}

type view struct {
	mu sync.Mutex
	v  View
	// life is called for each read: this node must not look ready after its drain is in the registry. It may be nil.
	life  func() lifecycle.View
	over  func() bool // no drain is under way, and the registry has the end of the last one; may be nil
	notes func() []string
}

func newView(version string) *view {
	return &view{v: View{
		Version: version, PID: os.Getpid(), Started: time.Now(), Activity: "starting",
		Repairs: []bootstrap.Finding{}, Warnings: []bootstrap.Finding{},
	}}
}

func (w *view) change(f func(*View)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refresh()
	f(&w.v)
}

// refresh requires the lock.
func (w *view) refresh() {
	if w.life != nil {
		l := w.life()
		w.v.Lifecycle = &l
	}
}

// get returns a copy whose slices and maps never change.
func (w *view) get() View {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refresh()
	v := w.v
	v.NotReady = v.notReady()
	v.Ready = v.NotReady == ""
	if text := noDrain[v.State]; v.Trouble == "" && text != "" && v.held == 0 && !v.departed && w.over != nil && w.over() {
		v.Trouble = text
	}
	if w.notes != nil {
		v.Notes = w.notes()
	}
	return v
}

func (w *view) setPhase(p bootstrap.Phase) {
	w.change(func(v *View) {
		v.departed = false
		if v.Phase = p; p != bootstrap.PhaseJoined {
			v.State, v.StateSince, v.AMSAge, v.RestartPending = "", time.Time{}, nil, false
			v.Drift, v.Standalone, v.entered = nil, false, false
		}
	})
}

func (w *view) setActivity(text string) { w.change(func(v *View) { v.Activity = text }) }

func (w *view) setOther(text string) (changed bool) {
	w.change(func(v *View) { changed, v.OtherMachine = v.OtherMachine != text, text })
	return changed
}

func (w *view) setLife(f func() lifecycle.View, over func() bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.life, w.over = f, over
}

// noDrain is the trouble of a node that gets no new sessions and does not leave.
var noDrain = map[cluster.State]string{
	cluster.StateDraining: "the registry has this node as draining, but no drain is under way: `amsagent undrain` makes it active, `amsagent drain` drains it",
	cluster.StateLeft:     "the registry has this node as left, but it did not leave: `systemctl restart amsagent` makes it active",
}

func (w *view) setState(s cluster.State, since time.Time) {
	w.change(func(v *View) { v.State, v.StateSince = s, since })
}

func (w *view) setConvergence(c *bootstrap.Convergence) {
	w.change(func(v *View) {
		v.repaired += len(c.Repairs)
		if len(c.Repairs) > 0 {
			v.Repairs = findings(c.Repairs)
		}
		v.Warnings = findings(c.Warnings)
	})
}

// findings bounds a list; its last entry counts the others.
func findings(list []bootstrap.Finding) []bootstrap.Finding {
	first, omitted := listed(list)
	if omitted > 0 {
		first = append(first, bootstrap.Finding{ID: list[len(first)].ID, Severity: list[len(first)].Severity, Text: fmt.Sprintf("and %d more", omitted)})
	}
	return first
}

func (w *view) beat(r heartbeat.Report) {
	now := time.Now()
	missing := make(map[string]string, len(r.Sample.Missing))
	for what, err := range r.Sample.Missing {
		missing[what] = err.Error()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	v := &w.v
	v.Load, v.Sessions, v.Missing, v.gpus = r.Sample.Load, r.Sample.Session, missing, r.Sample.GPUs
	if s := v.Sessions; s.Publishers != nil || s.Viewers != nil {
		v.counted, v.countedAt = s, r.Sample.At
	}
	b := &v.Beat
	b.Round, b.Dropped = now, r.Dropped
	if !r.Tried {
		return
	}
	b.Latency, b.Error, v.clock = seconds.Duration(r.Latency), "", r.Clock
	if r.Err != nil {
		b.Error = r.Err.Error()
		v.failed++
		return
	}
	v.sent++
	b.Seq, b.Last = r.Seq, now
}

// maxLine bounds the status line in bytes.
const maxLine = 8 << 10

func (w *view) line() string {
	v := w.get()
	parts := []string{cmp.Or(string(v.State), v.Activity)}
	gone := v.State == cluster.StateLeft // no count, no heartbeat
	if v.State != "" && !gone {
		parts = append(parts, count(v.Sessions.Publishers, "publisher"), count(v.Sessions.Viewers, "viewer"))
	}
	switch {
	case v.Phase != bootstrap.PhaseJoined, gone:
	case v.OtherMachine != "":
		parts = append(parts, "no heartbeats: "+v.OtherMachine+" uses this node's record")
	case v.Beat.Dropped > 0 && v.Beat.Last.IsZero():
		parts = append(parts, "no heartbeat yet: MongoDB does not take it")
	case v.Beat.Dropped > 0:
		parts = append(parts, "last heartbeat at "+v.Beat.Last.Format(time.TimeOnly)+", MongoDB does not take it")
	case !v.Beat.Last.IsZero():
		parts = append(parts, "last heartbeat at "+v.Beat.Last.Format(time.TimeOnly))
	}
	if v.State == cluster.StateActive && !v.Server.Up {
		parts = append(parts, "not ready: "+v.Server.whyDown())
	}
	if l := v.Lifecycle; l != nil {
		parts = append(parts, l.Progress)
	}
	parts = append(parts, v.Trouble, v.SettingsError)
	if v.MetricsError != "" {
		parts = append(parts, "no /metrics and no /readyz: "+v.MetricsError)
	}
	parts = slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	return plain.Truncate(plain.Text(strings.Join(strings.Fields(strings.Join(parts, "; ")), " ")), maxLine)
}

func count(n *int, what string) string {
	switch {
	case n == nil:
		return "? " + what + "s"
	case *n == 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", *n, what)
}
