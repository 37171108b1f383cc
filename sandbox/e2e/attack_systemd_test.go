// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// bootedDrains is how many drains, joins and restarts TestSystemdAttack makes: 8 s each under attack.
const bootedDrains = 20

// TestSystemdAttack attacks a booted machine as the server's own user. The daemon drains with only the capabilities of its
// unit, and the agent repairs the files before each start of the server.
func TestSystemdAttack(t *testing.T) {
	m := newMachine(t)
	// A node that left is joined by hand alone.
	m.write(t, "/etc/amsagent/config.yaml", "mongo: "+nodeMongo+"\nbeat_interval: 1s\nauto_join: false\n")
	// The vendor's unit lets root open a file in the server's folder: SECURITY.md says what to do.
	m.write(t, "/etc/systemd/system/"+nodeUnit+".d/60-stderr.conf", "[Service]\nStandardError=journal\n")
	m.boot(t)
	m.agent(t, 0, "join")
	m.active(t, nodeID, nodeAddress)
	p := newPrey(t, m.root, m.Path(nodeHome), m.Path("/opt/marks"))
	if err := p.harmless(); err != nil { // a later error must come from the attack
		t.Fatal(err)
	}
	held, all := capabilitiesIn(m.read(t, "/proc/"+m.unit(t, daemonUnit)["MainPID"]+"/status")), capabilitiesIn(m.sh(t, "cat /proc/self/status"))
	if held == "" || held == all {
		t.Fatalf("the daemon's capabilities are %q, and %q those of root", held, all)
	}
	t.Logf("the daemon's capabilities: %s", held)

	buildAdversary(t, m.Path("/opt/adversary"))
	cmd := m.Command("setpriv", "--reuid=antmedia", "--regid=antmedia", "--clear-groups", "/opt/adversary", "/", nodeHome, attackOutside, attackSeed(t))
	_, calm := p.attack(t, cmd)
	daemon := m.unit(t, daemonUnit)
	for range attackNumber(t, bootedDrains) {
		for _, args := range [][]string{{"amsagent", "drain", "--now"}, {"amsagent", "join", "--timeout", "10s"}, {"systemctl", "restart", nodeUnit}} {
			var r nodeRun
			// A join fails, too, where the server found one of its files strange when it started.
			done := p.retry(t, args, func() bool {
				r = m.run(t, args...)
				return r.code == 0
			})
			if !done || strings.Contains(r.stdout+r.stderr, "$y$secret") {
				t.Fatalf("%v: %s\n%s", args, r, m.journal(t))
			}
		}
	}
	struck(t, calm(), besideAttack)
	if now := m.unit(t, daemonUnit); now["MainPID"] != daemon["MainPID"] || now["NRestarts"] != daemon["NRestarts"] {
		t.Errorf("the daemon was started again: %v, before %v", now, daemon)
	}
	for _, args := range [][]string{{"leave"}, {"join"}, {"leave"}} {
		m.agent(t, 0, append(args, "--now")...)
	}
	m.agent(t, 5, "status")
	if err := errors.Join(p.harmless(), os.Remove(p.marks)); err != nil {
		t.Error(err)
	}
}

// capabilitiesIn are the effective ones that a process' status names.
func capabilitiesIn(status string) string {
	_, held, _ := strings.Cut(status, "CapEff:\t")
	held, _, _ = strings.Cut(held, "\n")
	return held
}
