// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/lifecycle"
)

// statusDaemonTime bounds the question: a daemon that hangs must not hide the other views.
const statusDaemonTime = 2 * time.Second

// statusView is this machine from all sides: what bootstrap sees, and what the daemon says of itself and of the cloud.
type statusView struct {
	*bootstrap.Status
	// Daemon is nil where none answers; DaemonErr says why.
	Daemon    *daemon.View `json:"daemon,omitempty"`
	DaemonErr string       `json:"daemon_error,omitempty"`
}

// askDaemon adds the daemon's view.
func (s *statusView) askDaemon(ctx context.Context, g *globals) {
	ctx, cancel := context.WithTimeout(ctx, statusDaemonTime)
	defer cancel()
	c := g.controlClient()
	c.patience = 0
	v, err := c.status(ctx)
	var none *noDaemonError
	switch {
	case err == nil:
		s.Daemon = &v
	case errors.As(err, &none):
		s.DaemonErr = "none runs"
	default:
		s.DaemonErr = err.Error()
	}
}

// life is how this node goes; nil where it does not, or nobody tells.
func (s *statusView) life() *lifecycle.View {
	if s.Daemon == nil || s.Daemon.Lifecycle == nil {
		return nil
	}
	l := s.Daemon.Lifecycle
	if l.State == lifecycle.StateActive && len(l.Trouble) == 0 && l.NextDrain.IsZero() && l.Start != "starting" {
		return nil
	}
	return l
}

// lifeVerdict is the first line where this node is on its way; "" where it is not.
func (s *statusView) lifeVerdict(w *textWriter) string {
	l := s.life()
	if l == nil {
		return ""
	}
	switch l.State {
	case lifecycle.StateDraining:
		return w.color.yellow("draining") + ": " + printable(l.Progress)
	case lifecycle.StateLeft:
		return w.color.bold("left") + ": this node is out of the cluster, the machine may go"
	case lifecycle.StateParked:
		return w.color.bold("parked") + ": out of the cluster until it is wanted again"
	case lifecycle.StateResuming:
		return w.color.yellow("resuming") + ": Ant Media Server is being started"
	case lifecycle.StateActive:
	}
	return ""
}

func (s *statusView) daemonText() string {
	v := s.Daemon
	if v == nil {
		return printable(s.DaemonErr)
	}
	text := fmt.Sprintf("%s, pid %d", v.Activity, v.PID)
	if v.Ready {
		text += ", ready for new sessions"
	} else if v.State != "" {
		text += ", not ready for new sessions"
	}
	if v.Trouble != "" {
		text += "; " + v.Trouble
	}
	return printable(text)
}

// lifeText shows who wants what until when, as one timeline.
func (s *statusView) lifeText(w *textWriter) {
	l := s.life()
	if l == nil {
		return
	}
	w.heading("Going")
	w.fields("step", printable(string(l.Step)), "reason", printable(l.Reason), "asked by", printable(l.Who), "progress", printable(l.Progress))
	var rows [][]string
	for _, m := range l.Timeline {
		mark := ""
		if m.Decides {
			mark = "decides"
		}
		rows = append(rows, []string{m.At.Local().Format(time.DateTime), m.By, mark})
	}
	if !l.NextDrain.IsZero() {
		rows = append(rows, []string{l.NextDrain.Local().Format(time.DateTime), "a drain begins that is announced", ""})
	}
	w.table(rows)
	rows = nil
	for _, h := range l.Hooks {
		state := "waits for us"
		if h.End != "" {
			state = string(h.End)
		}
		if h.Denied != "" {
			state += "; permission " + h.Denied + " is missing"
		}
		rows = append(rows, []string{"hook " + h.Name, "group " + h.Group, state})
	}
	w.table(rows)
	var troubles []string
	for what, text := range l.Trouble {
		troubles = append(troubles, what+": "+text)
	}
	slices.Sort(troubles)
	for _, t := range troubles {
		w.line("  %s", w.color.yellow(printable(t)))
	}
}
