// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
)

// DriftView is what of the server's settings is not as this machine joined. The
// daemon writes none of the server's files while the server runs: they are put
// right just before its next start, or by a command.
type DriftView struct {
	Since time.Time `json:"since"`
	// Values are the first 32 values, Omitted how many more there are.
	Values  []bootstrap.Difference `json:"values"`
	Omitted int                    `json:"omitted,omitempty"`
	// Means says what that leads to, Fix are the commands that end it.
	Means string   `json:"means"`
	Fix   []string `json:"fix"`
}

// RestartView is a restart of the server that has not happened yet.
type RestartView struct {
	// Due tells that the daemon will make it; otherwise nobody asked for it.
	Due   bool      `json:"due"`
	By    string    `json:"by,omitempty"`
	Since time.Time `json:"since"`
	// Values are the first 32 values that it applies, with secrets masked, Omitted how
	// many more there are.
	Values  []bootstrap.Difference `json:"values"`
	Omitted int                    `json:"omitted,omitempty"`
	// Waits says what it waits for, Stop what keeps it from happening.
	Waits     string    `json:"waits"`
	NotBefore time.Time `json:"not_before,omitzero"`
	Stop      string    `json:"stop,omitempty"`

	cause string
}

// maxListed bounds a list of the view, of which the server's user decides how long it is:
// it is an answer of the control socket, and a line of the log.
const maxListed = 32

// listed are the first values of a list, and how many more there are.
func listed[T any](list []T) (first []T, omitted int) {
	n := min(len(list), maxListed)
	return list[:n:n], len(list) - n
}

// reasonStandalone is what the row of a node says that a person made standalone
// with the vendor's script.
const reasonStandalone = "made standalone by hand"

// driftOf tells what a convergence found; nil where all is as joined.
func driftOf(c *bootstrap.Convergence, since time.Time) *DriftView {
	v := &DriftView{Since: since}
	v.Values, v.Omitted = listed(c.Differences)
	switch {
	case c.Standalone:
		v.Values, v.Omitted = []bootstrap.Difference{}, 0
		v.Means = "this machine was made standalone by hand: its files are left alone, and no viewers are sent here"
		v.Fix = []string{"amsagent join", "amsagent leave"}
	case len(c.Torn) > 0:
		v.Means = "settings files are half written; they are made whole just before the server starts the next time"
		v.Fix = []string{"amsagent converge"}
	case len(c.Differences) > 0:
		v.Means = "the server's files were changed; its next start puts back the values that this machine joined with"
		v.Fix = []string{"amsagent join", "amsagent converge", "amsagent converge --restart"}
	default:
		return nil
	}
	return v
}

// restartOf tells which restart waits, and whether the daemon will make it; nil
// where the server runs with what its files say.
func restartOf(c *bootstrap.Convergence, auto bool, since, now time.Time) *RestartView {
	v := &RestartView{Due: c.Asked, Since: since}
	values := []bootstrap.Difference{}
	if p := c.Pending; p != nil {
		v.By, v.Since = p.By, p.Since
		values = append(values, p.Values...)
	}
	v.Values, v.Omitted = listed(append(values, c.Differences...))
	switch {
	case c.Standalone || !c.RestartNeeded:
		return nil
	case c.Asked:
		v.Stop = "amsagent converge --no-restart"
	case auto:
		v.Due, v.By, v.cause, v.Stop = true, "auto_restart", c.Cause, "auto_restart: false"
	default:
		v.Waits = "a command: amsagent converge --restart, amsagent join"
		return v
	}
	at, never := c.NextRestart(v.cause, now)
	switch {
	case never:
		v.Due, v.Waits, v.Stop = false, "a command: the daemon has restarted the server for this once, and does not do it again", ""
	case !at.IsZero():
		v.NotBefore, v.Waits = at, "the hour since the last restart by the daemon, and the end of the last session"
	default:
		v.Waits = "the end of the last session"
	}
	return v
}

// follow shows what a convergence found, and tells of it once.
func (m *member) follow(s Settings, c *bootstrap.Convergence) *RestartView {
	v := m.d.view.get()
	since := func(t time.Time) time.Time {
		if t.IsZero() {
			return time.Now()
		}
		return t
	}
	var driftSince, restartSince time.Time
	if v.Drift != nil {
		driftSince = v.Drift.Since
	}
	if v.Restart != nil {
		restartSince = v.Restart.Since
	}
	drift := driftOf(c, since(driftSince))
	restart := restartOf(c, s.AutoRestart, since(restartSince), time.Now())
	m.d.view.change(func(v *View) { v.Drift, v.Restart, v.Standalone = drift, restart, c.Standalone })
	told := ""
	if drift != nil {
		told = drift.Means
		for _, d := range drift.Values {
			told += "; " + d.String()
		}
		if drift.Omitted > 0 {
			told += fmt.Sprintf("; and %d more", drift.Omitted)
		}
	}
	switch {
	case told == m.d.drifted:
	case told == "":
		m.d.log.Info("the server's files are as joined again")
	default:
		m.d.log.Warn("the server's files are not as joined", "id", bootstrap.IDDrift, "what", told, "fix", strings.Join(drift.Fix, "; or "))
	}
	m.d.drifted = told
	return restart
}
