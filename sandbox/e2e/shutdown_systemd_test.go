// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/rig"
)

const (
	shutdownStats  = "/var/log/antmedia/stats.json"
	shutdownDropIn = "/etc/systemd/system/amsagent.service.d/90-short.conf"
)

// downStep is a shutdown under one condition.
type downStep struct {
	name string
	do   func(*testing.T)
}

// steps runs the steps in order, up to the first that fails.
func (s *goingDown) steps(t *testing.T, steps []downStep) {
	t.Helper()
	for _, step := range steps {
		if !t.Run(step.name, step.do) {
			// Also the previous boot, which has the shutdown.
			t.Logf("the journal:\n%s\nof all units:\n%s", s.lines(t, "-o", "short-monotonic"), s.journal("-o", "short-monotonic", "-p", "notice", "-n", "200"))
			t.FailNow()
		}
	}
}

// goingDown is a machine that shuts down.
type goingDown struct {
	*machine
	id    string    // of the instance
	begun time.Time // of the shutdown
}

// goDown starts a systemctl poweroff or reboot.
func (s *goingDown) goDown(t *testing.T, verb string) {
	t.Helper()
	s.begun = time.Now()
	s.run(t, "systemctl", verb).expect(t, 0)
}

// status asks the daemon, which answers for as long as it drains.
func (s *goingDown) status() (daemon.View, error) {
	return viewAt(s.Path("/run/amsagent/control.sock"))
}

// viewAt asks a daemon at its socket how things are.
func viewAt(socket string) (daemon.View, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	v, _, err := (&rig.Daemon{Socket: socket}).Ask(ctx)
	return v, err
}

// sessions returns the statistics of the server that has ended.
func (s *goingDown) sessions(t *testing.T) fakeams.Stats {
	t.Helper()
	st, err := fakeams.ReadStats(s.disk + shutdownStats)
	must.OK(t, err)
	return st
}

// lines returns the journal since the last boot.
func (s *goingDown) lines(t *testing.T, more ...string) string {
	t.Helper()
	return s.journal(append([]string{"-b", "-u", "amsagent", "-u", "amsagent-node", "-u", "antmedia"}, more...)...)
}

// journal runs journalctl on the machine's disk.
func (s *goingDown) journal(more ...string) string {
	args := append([]string{"-D", s.disk + "/var/log/journal", "--no-pager", "-q"}, more...)
	out, err := exec.Command("journalctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return string(out)
}

// moments are the beginnings and the ends of the last stop of each unit, by the
// kernel's own clock.
type moments map[string]time.Duration

func (s *goingDown) moments(t *testing.T) moments {
	t.Helper()
	at := moments{}
	d := json.NewDecoder(strings.NewReader(s.lines(t, "-o", "json")))
	for d.More() {
		var e struct {
			Unit    string `json:"UNIT"`
			ID      string `json:"MESSAGE_ID"`
			Up      string `json:"__MONOTONIC_TIMESTAMP"`
			Message any    `json:"MESSAGE"`
		}
		must.OK(t, d.Decode(&e))
		up, err := strconv.ParseInt(e.Up, 10, 64)
		must.OK(t, err)
		name := strings.TrimSuffix(e.Unit, ".service")
		switch e.ID {
		case "de5b426a63be47a7b6ac3eaac82e2f6f": // stopping, as systemd's catalog has it
			at[name+" stopping"] = time.Duration(up) * time.Microsecond
		case "9d1aaa27d60140bd96365438aad20286":
			at[name+" stopped"] = time.Duration(up) * time.Microsecond
		}
	}
	order := []string{
		"amsagent stopping", "amsagent stopped", "antmedia stopping", "antmedia stopped", "amsagent-node stopping", "amsagent-node stopped",
	}
	for i, what := range order {
		if _, ok := at[what]; !ok {
			t.Fatalf("the journal has no line for %q", what)
		}
		if i > 0 && at[what] < at[order[i-1]] {
			t.Errorf("%s came before %s", what, order[i-1])
		}
	}
	ms := func(a, b string) time.Duration { return (at[b] - at[a]).Round(time.Millisecond) }
	t.Logf("stop of the daemon %s, of the server %s, deregistering %s", ms("amsagent stopping", "amsagent stopped"),
		ms("antmedia stopping", "antmedia stopped"), ms("amsagent-node stopping", "amsagent-node stopped"))
	return at
}
