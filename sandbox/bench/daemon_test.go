// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// The bounds that the figures are held against, as ratios: more than 1 is too much.
const (
	mostResident = 22.0 // MiB
	mostCPU      = 0.15 // seconds in a minute
)

// BenchmarkDaemon is what `amsagent run` takes of a machine: after BENCH_MINUTES
// (10) of beats every five seconds, with metrics that are asked for every fifteen.
// The agent looks at this machine, as root does; without root it looks at an empty
// tree, and the figures are a little too good.
func BenchmarkDaemon(b *testing.B) {
	// What a cloud's signals cost comes on top: EC2's metadata is asked once a second.
	b.Run("none", func(b *testing.B) { benchmarkDaemon(b, true) })
	b.Run("aws", func(b *testing.B) { benchmarkDaemon(b, false) })
}

func benchmarkDaemon(b *testing.B, noCloud bool) {
	minutes := setting(b, "BENCH_MINUTES", 10)
	agent, sandbox := buildAgent(b), buildSandbox(b)
	mongo := startMongo(b, sandbox)
	h := benchmarked(b, agent, sandbox, noCloud)
	join := []string{"join", "--mongo", mongo, "--timeout", "60s"}
	if noCloud {
		join = append(join, "--force-address") // a real machine may have none but loopback
	}
	h.Must(join...)
	for b.Loop() {
		d := h.Daemon()
		// Starting is not what a minute costs.
		pause(b, 20*time.Second)
		first, began := usage(b, d), time.Now()
		peak := first
		for time.Since(began).Minutes() < minutes {
			pause(b, 15*time.Second)
			if text, code := d.Get("/metrics"); code != http.StatusOK || text == "" {
				b.Fatalf("metrics: %d, %d bytes", code, len(text))
			}
			if u := usage(b, d); u.RSS > peak.RSS {
				peak = u
			}
		}
		last, took := usage(b, d), time.Since(began).Minutes()
		v := d.View()
		if v.State != "active" || v.Beat.Seq < int64(took*60/5/2) {
			b.Fatalf("the daemon is %q and has written %d beats: there is nothing to measure", v.State, v.Beat.Seq)
		}
		mb := func(n int64) float64 { return float64(n) / (1 << 20) }
		cpu := (last.CPU - first.CPU).Seconds() / took
		b.ReportMetric(mb(last.RSS), "MiB-resident")
		b.ReportMetric(mb(last.RSS)/mostResident, "rss/bound")
		b.ReportMetric(cpu/mostCPU, "cpu/bound")
		b.ReportMetric(mb(peak.RSS), "MiB-peak")
		b.ReportMetric(mb(last.Anon), "MiB-anon")
		b.ReportMetric(mb(last.File), "MiB-file")
		b.ReportMetric(mb(last.Shmem), "MiB-shmem")
		b.ReportMetric(cpu, "cpu-s/min")
		b.ReportMetric((last.Children-first.Children).Seconds()/took, "children-cpu-s/min")
		b.ReportMetric(float64(last.Minor-first.Minor)/took, "faults/min")
		b.ReportMetric(float64(last.Major-first.Major)/took, "disk-faults/min")
		b.ReportMetric(float64(last.Threads), "threads")
		b.ReportMetric(float64(last.FDs), "fds")
		b.ReportMetric(0, "ns/op") // hides the time of an iteration: it is that of the clock
		b.Logf("after %.1f minutes and %d beats: %.2f MiB resident (%.2f of the bound of %.0f; %.2f of its own, %.2f of files), "+
			"%.3f s of CPU a minute (%.2f of the bound of %.2f); load average %s",
			took, v.Beat.Seq, mb(last.RSS), mb(last.RSS)/mostResident, mostResident, mb(last.Anon), mb(last.File),
			cpu, cpu/mostCPU, mostCPU, proc.LoadAverage())
		d.End(syscall.SIGTERM)
	}
}

// benchmarked is a machine whose agent looks at this one, if we are root.
func benchmarked(b *testing.B, agent, sandbox string, noCloud bool) *rig.Node {
	b.Helper()
	o := nodeOptions(agent, sandbox, "10.0.9.1", 5*time.Second)
	o.Mounted = os.Geteuid() == 0
	if noCloud {
		o.Address = "127.0.0.1" // one that this machine has: the agent looks
		o.Env = append(o.Env, "AMSAGENT_PROVIDER=generic", "AMSAGENT_ADDRESS="+o.Address, "AMSAGENT_ROLE=edge")
		return rig.New(b, o)
	}
	o.Env = append(o.Env, "AMSAGENT_PROVIDER=aws")
	h, _ := rig.NewInEC2(b, o)
	return h
}
