// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// BenchmarkGone kills a node's agent and AMS at a random moment between two heartbeats, and measures the time until
// `amsagent nodes --watch` reports it as gone: BENCH_KILLS times (10).
func BenchmarkGone(b *testing.B) {
	const interval = 5 * time.Second
	kills := int(setting(b, "BENCH_KILLS", 10))
	agent, sandbox := buildAgent(b), buildSandbox(b)
	mongo := startMongo(b, sandbox)
	h, _ := rig.NewInEC2(b, nodeOptions(agent, sandbox, "10.0.9.1", interval))
	// A node is reported gone only while another node sends heartbeats.
	other, _ := rig.NewInEC2(b, nodeOptions(agent, sandbox, "10.0.9.2", interval))
	for _, n := range []*rig.Node{h, other} {
		n.Must("join", "--mongo", mongo, "--timeout", "60s")
	}
	other.Daemon()
	for b.Loop() {
		took := make([]time.Duration, 0, kills)
		lines := watch(b, agent, mongo)
		d := h.Daemon()
		for range kills {
			await(b, lines, h.Address, "healthy")
			// Both signals have to have been written since, and at another phase
			// each time.
			pause(b, 2*interval+rand.N(6*time.Second))
			start := time.Now()
			h.KillServer()
			d.End(syscall.SIGKILL)
			took = append(took, await(b, lines, h.Address, "gone").Sub(start))
			must.OK(b, h.StartServer())
			d = h.Daemon()
		}
		d.End(syscall.SIGTERM)
		b.Logf("%d kills: median %.1f s, most %.1f s (bound 12 s); load average %s",
			kills, quantile(took, 0.5).Seconds(), quantile(took, 1).Seconds(), proc.LoadAverage())
		b.ReportMetric(quantile(took, 0.5).Seconds(), "s-median")
		b.ReportMetric(quantile(took, 1).Seconds(), "s-most")
		b.ReportMetric(0, "ns/op")
	}
}

// seen is a line of the watcher with the time at which it came.
type seen struct {
	text string
	at   time.Time
}

// watch runs `amsagent nodes --watch`.
func watch(b *testing.B, agent, mongo string) <-chan seen {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, agent, "nodes", "--watch", "--mongo", mongo)
	cmd.Env = []string{"NO_COLOR=1"}
	out, err := cmd.StdoutPipe()
	must.OK(b, err)
	must.OK(b, cmd.Start())
	lines := make(chan seen, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- seen{s.Text(), time.Now()}
		}
	}()
	b.Cleanup(func() {
		cancel()
		for range lines { // it may wait for room
		}
		_ = cmd.Wait()
	})
	return lines
}

// await waits for a line about a node with a word in it.
func await(b *testing.B, lines <-chan seen, address, word string) time.Time {
	b.Helper()
	const patience = time.Minute
	late := time.NewTimer(patience)
	defer late.Stop()
	var all []string
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				b.Fatalf("the watcher has ended; it said\n%s", strings.Join(all, "\n"))
			}
			all = append(all, l.text)
			if strings.Contains(l.text, address) && strings.Contains(l.text, word) {
				return l.at
			}
		case <-late.C:
			b.Fatalf("%s is not called %s after %s; the watcher said\n%s", address, word, patience, strings.Join(all, "\n"))
		}
	}
}
