// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bootedDrains is how many drains, joins and restarts TestSystemdAttack makes: 8 s each under attack.
const bootedDrains = 20

// TestSystemdAttack is an attack on a booted machine, by the server's own user: the daemon drains with the rights of its
// unit and no more, and each start of the server lets the agent put the files right before.
func TestSystemdAttack(t *testing.T) {
	m := newMachine(t)
	// A node that left is joined by hand alone.
	m.write(t, "/etc/amsagent/config.yaml", "mongo: "+nodeMongo+"\nbeat_interval: 1s\nauto_join: false\n")
	// The vendor's unit lets root open a file in the server's folder: SECURITY.md says what to do.
	m.write(t, "/etc/systemd/system/"+nodeUnit+".d/60-stderr.conf", "[Service]\nStandardError=journal\n")
	m.boot(t)
	m.agent(t, 0, "join")
	m.active(t, nodeID, nodeAddress)
	p := newPrey(t, m.root, m.path(nodeHome), m.path("/opt/marks"))
	// What the server's user does not own cannot be his work.
	if err := filepath.WalkDir(p.folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid == 0 {
			return fmt.Errorf("%s is root's", name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	status := m.read(t, "/proc/"+m.unit(t, daemonUnit)["MainPID"]+"/status")
	_, held, _ := strings.Cut(status, "CapEff:\t")
	if held, _, _ = strings.Cut(held, "\n"); held == "" || held == capabilitiesOfRoot(t, m) {
		t.Fatalf("the daemon's capabilities are %q, those of root", held)
	}
	t.Logf("the daemon's capabilities: %s", held)

	buildAdversary(t, m.path("/opt/adversary"))
	cmd := m.command("setpriv", "--reuid=antmedia", "--regid=antmedia", "--clear-groups", "/opt/adversary", "/", nodeHome, attackOutside, attackSeed(t))
	_, calm := p.attack(t, cmd)
	// A join fails as long as a file is not the server's own, or the server found one of them strange when it started, and
	// a drain until the daemon has taken up the node.
	again := func(args ...string) nodeRun {
		t.Helper()
		deadline := time.Now().Add(patience)
		for {
			r := m.run(t, args...)
			if err := p.harmless(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, r)
			}
			if r.code == 0 || time.Now().After(deadline) {
				return r
			}
			wait(50 * time.Millisecond)
		}
	}
	daemon := m.unit(t, daemonUnit)
	for range attackNumber(t, bootedDrains) {
		for _, args := range [][]string{{"amsagent", "drain", "--now"}, {"amsagent", "join", "--timeout", "10s"}, {"systemctl", "restart", nodeUnit}} {
			if r := again(args...); r.code != 0 || strings.Contains(r.stdout+r.stderr, "$y$secret") {
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

// capabilitiesOfRoot are those of a process of root's in the machine that no unit limits.
func capabilitiesOfRoot(t *testing.T, m *machine) string {
	t.Helper()
	_, held, _ := strings.Cut(m.sh(t, "cat /proc/self/status"), "CapEff:\t")
	held, _, _ = strings.Cut(held, "\n")
	return held
}
