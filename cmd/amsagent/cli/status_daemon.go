// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/lifecycle"
)

// idStatusPort: the port for metrics and health is not the daemon's.
const idStatusPort = "STATUS-PORT"

// statusDaemonTime bounds the question: a daemon that hangs must not hide the other views.
const statusDaemonTime = 2 * time.Second

// statusView is this machine from all sides: what bootstrap reads, and what the daemon reports of itself and of the cloud.
type statusView struct {
	*bootstrap.Status
	// Daemon is nil if none answers; daemon_error has the reason.
	Daemon    *daemon.View `json:"daemon,omitempty"`
	DaemonErr string       `json:"daemon_error,omitempty"`
	// Role, Group and Address are the node's, with their origin.
	Role    settingValue `json:"role"`
	Group   settingValue `json:"group"`
	Address settingValue `json:"address"`
	// Given are the settings that were given to join.
	Given map[string]string `json:"kept,omitempty"`
	// Notes name settings that do not count, or not yet.
	Notes []string `json:"notes,omitempty"`
}

// addSettings adds what this node has of the settings.
func (s *statusView) addSettings(g *globals) {
	node, notes := nodeSettings(g.settings)
	s.Role, s.Group, s.Address, s.Notes = node[settings.KeyRole], node[settings.KeyGroup], node[settings.KeyAddress], notes
}

func (s *statusView) givenText() string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(s.Given)) {
		parts = append(parts, key+" "+output.Printable(s.Given[key]))
	}
	return strings.Join(parts, ", ")
}

// disagree adds a contradiction.
func (s *statusView) disagree(id, text string, hints ...string) {
	s.Disagree = append(s.Disagree, bootstrap.Finding{ID: id, Severity: bootstrap.Warning, Text: text, Hint: strings.Join(hints, "; ")})
}

// addMongo lists first why MongoDB did not answer: all that a node lacks follows from it.
func (s *statusView) addMongo(g *globals) {
	if s.Row.Cause == nil || !s.Member {
		return
	}
	e := g.explain(s.Row.Cause)
	s.Disagree = slices.Insert(s.Disagree, 0, bootstrap.Finding{ID: e.ID, Severity: bootstrap.Warning, Text: e.Error(), Hint: strings.Join(e.Hints, "; ")})
}

// addConfig shows a fault of config.yaml, as this command read it, else as the daemon did.
func (s *statusView) addConfig(g *globals) {
	if text := wrongText(g.settings.Sources); text != "" {
		s.disagree(idConfig, text, "`amsagent config` lists what is wrong")
	} else if s.Daemon != nil && s.Daemon.SettingsError != "" {
		s.disagree(idConfig, "the daemon has read: "+s.Daemon.SettingsError, "systemctl reload amsagent")
	}
}

// askDaemon adds the daemon's view.
func (s *statusView) askDaemon(ctx context.Context, g *globals) {
	c := g.daemon()
	c.Patience, c.Timeout = 0, statusDaemonTime
	v, err := c.Status(context.WithoutCancel(ctx)) // the time of a wait may be over
	switch {
	case errors.Is(err, daemon.ErrDown):
		s.DaemonErr = "none runs"
		return
	case err != nil:
		e := g.explain(err)
		s.DaemonErr = err.Error()
		s.disagree(e.ID, s.DaemonErr, e.Hints...)
		return
	}
	s.Daemon = &v
	// A drain is the first line, and before the proof, or the first answers, the daemon has only been started.
	if v.State == cluster.StateActive && v.Proved && !v.Ready && v.NotReady != daemon.NotAsked && (v.Lifecycle == nil || v.Lifecycle.Ready) {
		s.AddNotReady(v.NotReady)
	}
	for _, port := range []struct{ err, does, setting string }{
		{v.AgentCheckError, "answer HAProxy's agent checks", "agent_check_address"},
		{v.MetricsError, "serve /metrics, /healthz and /readyz", "metrics_address"},
	} {
		if port.err != "" {
			s.disagree(idStatusPort, "the daemon does not "+port.does+": "+port.err,
				"ss -ltnp shows which program listens there; stop it, or give the daemon another "+port.setting)
		}
	}
}

// lifecycle is the daemon's view of joining and leaving, or nil.
func (s *statusView) lifecycle() *lifecycle.View {
	if s.Daemon == nil {
		return nil
	}
	return s.Daemon.Lifecycle
}

func (s *statusView) daemonText() string {
	v := s.Daemon
	if v == nil {
		return output.Printable(s.DaemonErr)
	}
	text := fmt.Sprintf("%s, pid %d", v.Activity, v.PID)
	switch {
	case v.Ready:
		text += ", ready for new sessions"
	case v.State != "":
		text += ", not ready for new sessions: " + v.NotReady
	}
	for _, trouble := range []string{v.Trouble, v.SettingsError} {
		if trouble != "" {
			text += "; " + trouble
		}
	}
	return output.Printable(text)
}

// driftText shows which of the server's files differ from those of the join.
func (s *statusView) driftText(w *output.Text) {
	if s.Daemon == nil || s.Daemon.Drift == nil {
		return
	}
	d := s.Daemon.Drift
	w.Heading("Server settings")
	w.Fields("since", w.Ago(d.Since), "means", output.Printable(d.Means), "fix", output.Printable(strings.Join(d.Fix, ", or ")))
	for _, line := range driftLines(d) {
		w.Line("  %s", output.Printable(line))
	}
}

// mostValues bounds what is shown of a file that was replaced as a whole.
const mostValues = 12

func driftLines(d *daemon.DriftView) []string {
	var lines []string
	shown := min(len(d.Values), mostValues)
	for _, value := range d.Values[:shown] {
		lines = append(lines, value.String())
	}
	if more := len(d.Values) - shown + d.Omitted; more > 0 {
		lines = append(lines, "and "+output.Count(more, "value")+" more")
	}
	return lines
}

// lifeText shows the requests and deadlines of a node that starts or leaves, as one timeline.
func (s *statusView) lifeText(w *output.Text) {
	l := s.lifecycle()
	if l == nil || l.State == lifecycle.StateActive && len(l.Trouble) == 0 && l.NextDrain.IsZero() && l.Start != "starting" {
		return
	}
	w.Heading("Shutdown")
	w.Fields("step", output.Printable(string(l.Step)), "reason", output.Printable(l.Reason), "asked by", output.Printable(l.Who), "progress", output.Printable(l.Progress))
	var rows [][]string
	for _, m := range l.Timeline {
		mark := ""
		if m.Decides {
			mark = "decides"
		}
		rows = append(rows, []string{output.Zoned(m.At.Local()), m.By, mark})
	}
	if !l.NextDrain.IsZero() {
		rows = append(rows, []string{output.Zoned(l.NextDrain.Local()), "an announced drain begins", ""})
	}
	w.Table(rows)
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
	w.Table(rows)
	for _, t := range troubles(l) {
		w.Line("  %s", w.Color.Yellow(output.Printable(t)))
	}
}

// board.NodeText is what this node is for, and its address, with the origins.
func (s *statusView) nodeText() string {
	var parts []string
	for _, row := range []struct {
		key string
		settingValue
	}{{settings.KeyRole, s.Role}, {settings.KeyGroup, s.Group}, {settings.KeyAddress, s.Address}} {
		if row.Value != "" {
			parts = append(parts, fmt.Sprintf("%s %s, %s", row.key, output.Printable(row.Value), row.Origin))
		}
	}
	return strings.Join(parts, "; ")
}

// troubles lists what does not work of a drain.
func troubles(l *lifecycle.View) []string {
	var list []string
	for what, text := range l.Trouble {
		list = append(list, what+": "+text)
	}
	slices.Sort(list)
	return list
}
