// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/lifecycle"
)

// View is what the daemon knows of itself, as the control socket tells it.
type View struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Phase is what the state file says; "" on a machine that never joined.
	Phase bootstrap.Phase `json:"phase,omitempty"`
	// Activity says in words what the daemon is about.
	Activity string `json:"activity"`
	// Trouble is what keeps it from that; "" where nothing does.
	Trouble string `json:"trouble,omitempty"`

	ID      string `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
	Role    string `json:"role,omitempty"`
	Group   string `json:"group,omitempty"`
	// State is the row's, as the daemon last wrote it.
	State      cluster.State `json:"state,omitempty"`
	StateSince time.Time     `json:"state_since,omitzero"`
	// Proved tells that Ant Media Server was seen in the cluster since the daemon
	// was started.
	Proved bool `json:"proved"`
	// Ready is whether viewers may be sent here: this is a node, it does not drain,
	// and its server serves them. NotReady says what is missing.
	Ready    bool   `json:"ready"`
	NotReady string `json:"not_ready,omitempty"`
	// Server is what viewers get from the server on this machine.
	Server ServerView `json:"server"`
	// Lifecycle is how this node goes, where it does.
	Lifecycle *lifecycle.View `json:"lifecycle,omitempty"`

	// OtherMachine names the machine that uses this node's row; "" where none does.
	OtherMachine string `json:"other_machine,omitempty"`

	Beat BeatView `json:"beat"`
	// Load and Sessions are those of the last round.
	Load     cluster.Load     `json:"load"`
	Sessions cluster.Sessions `json:"sessions"`
	// Missing are readings that could not be had, with their reasons.
	Missing map[string]string `json:"missing,omitempty"`
	// AMSAge is how old AMS's own document was when it was last looked at; nil
	// where that is not known.
	AMSAge *time.Duration `json:"ams_age_ns,omitempty"`
	// RestartPending reports that the server runs with other settings than it will start
	// with: files differ from those of the join, or are newer than the server.
	RestartPending bool `json:"restart_pending,omitempty"`
	// Drift says which, and what ends it; nil where nothing differs.
	Drift *DriftView `json:"drift,omitempty"`
	// Standalone tells that a person made this machine standalone by hand.
	Standalone bool                `json:"standalone,omitempty"`
	Repairs    []bootstrap.Finding `json:"repairs"`
	Warnings   []bootstrap.Finding `json:"warnings"`
	// Notes are what an operator needs to know of this machine's cloud and tags.
	Notes   []string `json:"notes,omitempty"`
	Metrics string   `json:"metrics,omitempty"` // where they are served
	// MetricsError says why the port for metrics and health is not open; another
	// program may answer there. It is tried again until it is free.
	MetricsError string `json:"metrics_error,omitempty"`

	// entered tells that this node was active, and its server seen in the cluster, in this boot
	// and under this address. That holds for an agent that was started again while MongoDB, or the server's
	// word, cannot be had.
	entered bool
	// brokenSince is since when this machine ought to serve and does not, by no cause
	// that other nodes share; zero where it does.
	brokenSince time.Time
	// counted are the sessions that were known last, at countedAt.
	counted   cluster.Sessions
	countedAt time.Time
	// held is how many commands that stop or restart the server are at work, holder the name of the last one.
	held   int
	holder string
	// departed reports that such a command took this machine out of the cluster, before the session follows.
	departed bool
	// spared is why this machine is to be kept all the same; "" where nothing says so.
	spared string
}

// BeatView is how the beats go.
type BeatView struct {
	Seq  int64     `json:"seq"`
	Last time.Time `json:"last,omitzero"` // when one was last written
	// Round is when the loop last went round, whether it wrote or not.
	Round   time.Time     `json:"round,omitzero"`
	Dropped int           `json:"dropped,omitempty"`
	Latency time.Duration `json:"latency_ns,omitempty"`
	Error   string        `json:"error,omitempty"`
}

// view is the View that is kept.
type view struct {
	mu     sync.Mutex
	v      View
	sample heartbeat.Sample
	boot   string // of the node
	// life is asked at each look: nobody who has read in the registry that this node
	// drains may find it ready here. Nil where the daemon does not drain.
	life func() lifecycle.View
	// notes is Options.Notes.
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

// refresh takes in what the view has no copy of. The lock is held.
func (w *view) refresh() {
	if w.life != nil {
		l := w.life()
		w.v.Lifecycle = &l
	}
}

// get returns a copy. Slices and maps in it are replaced, never changed.
func (w *view) get() View {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refresh()
	v := w.v
	v.NotReady = v.notReady()
	v.Ready = v.NotReady == ""
	if w.notes != nil {
		v.Notes = w.notes()
	}
	return v
}

func (w *view) lastSample() heartbeat.Sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sample
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

func (w *view) setTrouble(text string) (changed bool) {
	w.change(func(v *View) { changed, v.Trouble = v.Trouble != text, text })
	return changed
}

func (w *view) setNode(n cluster.Node) {
	w.change(func(v *View) {
		v.ID, v.Address, v.Role, v.Group = n.ID, n.IP, n.Role, n.Group
		v.OtherMachine, w.boot = "", n.BootID
	})
}

// bootID names the boot that the node was registered in; "" before that.
func (w *view) bootID() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.boot
}

// setOther reports whether that is another machine than before.
func (w *view) setOther(text string) (changed bool) {
	w.change(func(v *View) { changed, v.OtherMachine = v.OtherMachine != text, text })
	return changed
}

func (w *view) setLife(f func() lifecycle.View) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.life = f
}

func (w *view) setState(s cluster.State, since time.Time) {
	w.change(func(v *View) { v.State, v.StateSince = s, since })
}

func (w *view) setWitness(age *time.Duration) { w.change(func(v *View) { v.AMSAge = age }) }

func (w *view) setConvergence(c *bootstrap.Convergence) {
	w.change(func(v *View) {
		if len(c.Repairs) > 0 {
			v.Repairs = findings(c.Repairs)
		}
		v.Warnings = findings(c.Warnings)
	})
}

// findings are the first of a list, the last of which tells how many more there are.
func findings(list []bootstrap.Finding) []bootstrap.Finding {
	first, omitted := listed(list)
	if omitted > 0 {
		first = append(first, bootstrap.Finding{ID: list[len(first)].ID, Text: fmt.Sprintf("and %d more", omitted)})
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
	w.sample = r.Sample
	v := &w.v
	v.Load, v.Sessions, v.Missing = r.Sample.Load, r.Sample.Session, missing
	if s := v.Sessions; s.Publishers != nil || s.Viewers != nil {
		v.counted, v.countedAt = s, r.Sample.At
	}
	b := &v.Beat
	b.Round, b.Dropped = now, r.Dropped
	if !r.Tried {
		return
	}
	b.Latency, b.Error = r.Latency, ""
	if r.Err != nil {
		b.Error = r.Err.Error()
		return
	}
	b.Seq, b.Last = r.Seq, now
}

// maxLine is what the service manager is told at most, in bytes.
const maxLine = 8 << 10

// line is the daemon in one line, for the service manager.
func (w *view) line() string {
	v := w.get()
	var parts []string
	switch {
	case v.State != "":
		parts = append(parts, string(v.State))
	default:
		parts = append(parts, v.Activity)
	}
	gone := v.State == cluster.StateLeft // nothing is counted, and nothing beats
	if v.State != "" && !gone {
		parts = append(parts, count(v.Sessions.Publishers, "publisher"), count(v.Sessions.Viewers, "viewer"))
	}
	switch {
	case v.Phase != bootstrap.PhaseJoined, gone:
	case v.OtherMachine != "":
		parts = append(parts, "no beats: "+v.OtherMachine+" uses this node's row")
	case v.Beat.Dropped > 0 && v.Beat.Last.IsZero():
		parts = append(parts, "no beat yet: MongoDB does not take it")
	case v.Beat.Dropped > 0:
		parts = append(parts, "last beat at "+v.Beat.Last.Format(time.TimeOnly)+", MongoDB does not take it")
	case !v.Beat.Last.IsZero():
		parts = append(parts, "last beat at "+v.Beat.Last.Format(time.TimeOnly))
	}
	if v.State == cluster.StateActive && !v.Server.Up {
		parts = append(parts, "not ready: "+v.Server.whyDown())
	}
	if l := v.Lifecycle; l != nil && l.Progress != "" {
		parts = append(parts, l.Progress)
	}
	if v.Trouble != "" {
		parts = append(parts, v.Trouble)
	}
	if v.MetricsError != "" {
		parts = append(parts, "no /metrics and no /readyz: "+v.MetricsError)
	}
	return plain.Truncate(plain.Text(strings.Join(strings.Fields(strings.Join(parts, "; ")), " ")), maxLine)
}

// count says a number that may not be known.
func count(n *int, what string) string {
	switch {
	case n == nil:
		return "? " + what + "s"
	case *n == 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", *n, what)
}
