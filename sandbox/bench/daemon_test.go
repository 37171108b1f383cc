// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"io"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/host"
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
	address := ""
	if noCloud {
		address = "127.0.0.1" // one that this machine has: the agent looks
	}
	h := newHost(b, host.Options{
		Address: address, Agent: agent, Sandbox: sandbox, Mongo: mongo, Interval: 5 * time.Second, Real: os.Geteuid() == 0, NoCloud: noCloud,
	})
	for b.Loop() {
		must.OK(b, h.StartAgent())
		// Starting is not what a minute costs.
		pause(b, 20*time.Second)
		first, began := usage(b, h), time.Now()
		peak := first
		for time.Since(began).Minutes() < minutes {
			pause(b, 15*time.Second)
			scrape(b, h.Metrics())
			if u := usage(b, h); u.RSS > peak.RSS {
				peak = u
			}
		}
		last, took := usage(b, h), time.Since(began).Minutes()
		v, err := h.View(b.Context())
		must.OK(b, err)
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
		b.ReportMetric(0, "ns/op") // minutes by the clock, which nobody asked for
		b.Logf("after %.1f minutes and %d beats: %.2f MiB resident (%.2f of the bound of %.0f; %.2f of its own, %.2f of files), "+
			"%.3f s of CPU a minute (%.2f of the bound of %.2f); load average %s",
			took, v.Beat.Seq, mb(last.RSS), mb(last.RSS)/mostResident, mostResident, mb(last.Anon), mb(last.File),
			cpu, cpu/mostCPU, mostCPU, host.LoadAverage())
		must.OK(b, h.StopAgent(syscall.SIGTERM))
	}
}

func usage(b *testing.B, h *host.Host) host.Usage {
	b.Helper()
	u, err := host.ReadUsage(h.AgentPID())
	must.OK(b, err)
	return u
}

// scrape asks for the metrics as Prometheus does.
func scrape(b *testing.B, addr string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	must.OK(b, err)
	resp, err := http.DefaultClient.Do(req)
	must.OK(b, err)
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n == 0 || resp.StatusCode != http.StatusOK {
		b.Fatalf("metrics: %s, %d bytes, %v", resp.Status, n, err)
	}
}
