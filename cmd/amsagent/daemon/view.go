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
	// Ready is whether new sessions may come here, as far as the agent knows: not
	// while this node drains, nor where it is none.
	Ready bool `json:"ready"`
	// Lifecycle is how this node goes, where it does.
	Lifecycle *lifecycle.View `json:"lifecycle,omitempty"`

	Beat BeatView `json:"beat"`
	// Load and Sessions are those of the last round.
	Load     cluster.Load     `json:"load"`
	Sessions cluster.Sessions `json:"sessions"`
	// Missing are readings that could not be had, with their reasons.
	Missing map[string]string `json:"missing,omitempty"`
	// AMSAge is how old AMS's own document was when it was last looked at; nil
	// where that is not known.
	AMSAge *time.Duration `json:"ams_age_ns,omitempty"`
	// RestartPending tells that AMS runs with other settings than its files
	// have, and that sessions keep it from being restarted.
	RestartPending bool                `json:"restart_pending,omitempty"`
	Repairs        []bootstrap.Finding `json:"repairs"`
	Warnings       []bootstrap.Finding `json:"warnings"`
	Metrics        string              `json:"metrics,omitempty"` // where they are served
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
	f(&w.v)
}

// get returns a copy. Slices and maps in it are replaced, never changed.
func (w *view) get() View {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.v
	v.Ready = v.State == cluster.StateActive && v.Proved && (v.Lifecycle == nil || v.Lifecycle.Ready)
	return v
}

func (w *view) lastSample() heartbeat.Sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sample
}

func (w *view) setPhase(p bootstrap.Phase) {
	w.change(func(v *View) {
		if v.Phase = p; p != bootstrap.PhaseJoined {
			v.State, v.StateSince, v.AMSAge, v.RestartPending = "", time.Time{}, nil, false
		}
	})
}

func (w *view) setActivity(text string) { w.change(func(v *View) { v.Activity = text }) }

func (w *view) setTrouble(text string) (changed bool) {
	w.change(func(v *View) { changed, v.Trouble = v.Trouble != text, text })
	return changed
}

func (w *view) setNode(n cluster.Node) {
	w.change(func(v *View) { v.ID, v.Address, v.Role, v.Group = n.ID, n.IP, n.Role, n.Group })
}

func (w *view) setLife(l lifecycle.View) { w.change(func(v *View) { v.Lifecycle = &l }) }

func (w *view) setState(s cluster.State, since time.Time) {
	w.change(func(v *View) { v.State, v.StateSince = s, since })
}

func (w *view) setWitness(age *time.Duration) { w.change(func(v *View) { v.AMSAge = age }) }
func (w *view) setRestart(pending bool)       { w.change(func(v *View) { v.RestartPending = pending }) }

func (w *view) setConvergence(c *bootstrap.Convergence) {
	w.change(func(v *View) {
		if len(c.Repairs) > 0 {
			v.Repairs = c.Repairs
		}
		v.Warnings = c.Warnings
	})
}

func (w *view) beat(r heartbeat.Report) {
	now := time.Now()
	missing := make(map[string]string, len(r.Sample.Missing))
	for _, m := range r.Sample.Missing {
		missing[m.What] = m.Err.Error()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sample = r.Sample
	v := &w.v
	v.Load, v.Sessions, v.Missing = r.Sample.Load, r.Sample.Session, missing
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
	if v.State != "" {
		parts = append(parts, count(v.Sessions.Publishers, "publisher"), count(v.Sessions.Viewers, "viewer"))
	}
	switch {
	case v.Phase != bootstrap.PhaseJoined:
	case v.Beat.Dropped > 0 && v.Beat.Last.IsZero():
		parts = append(parts, "no beat yet: MongoDB does not take it")
	case v.Beat.Dropped > 0:
		parts = append(parts, "last beat at "+v.Beat.Last.Format(time.TimeOnly)+", MongoDB does not take it")
	case !v.Beat.Last.IsZero():
		parts = append(parts, "last beat at "+v.Beat.Last.Format(time.TimeOnly))
	}
	if l := v.Lifecycle; l != nil && l.Progress != "" {
		parts = append(parts, l.Progress)
	}
	if v.Trouble != "" {
		parts = append(parts, v.Trouble)
	}
	return strings.Join(strings.Fields(strings.Join(parts, "; ")), " ")
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
