// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

const (
	mostShare = 500 * time.Millisecond // of a first boot, that is the agent's
	mostJoin  = 50 * time.Millisecond  // a join that needs no restart
)

// bootApps are the applications of a real server that serve viewers.
var bootApps = []string{"LiveApp", "WebRTCApp", "live"}

// BenchmarkRealBootRatio is how much later a real server serves its viewers where
// user data runs `amsagent join` than where the same server, with the same files and
// the same MongoDB, is started bare: BENCH_BOOTS (3) of each, in turn. The agent's
// share is also measured within each join: what passes before it starts the server,
// and between the moment at which all applications serve and its success.
func BenchmarkRealBootRatio(b *testing.B) {
	n, args := realNode(b)
	boots := int(setting(b, "BENCH_BOOTS", 3))
	n.MustRun(b, args...) // MongoDB has the applications' settings from here on
	var joins, bares, shares []time.Duration
	for b.Loop() {
		for range boots {
			n.MustRun(b, realams.Service, "stop")
			bares = append(bares, start(b, n))

			n.MustRun(b, args[0], "leave", "--now")
			n.MustRun(b, realams.Service, "stop")
			join, share := firstBoot(b, n, args)
			joins, shares = append(joins, join), append(shares, share)
			b.Logf("served %.2f s after user data ran, %.2f s after a bare start; the agent's share %.0f ms",
				join.Seconds(), bares[len(bares)-1].Seconds(), ms(share))
		}
	}
	join, bare, share := quantile(joins, 0.5), quantile(bares, 0.5), quantile(shares, 0.5)
	b.ReportMetric(join.Seconds(), "s-join")
	b.ReportMetric(bare.Seconds(), "s-bare")
	b.ReportMetric((join - bare).Seconds(), "s-difference")
	b.ReportMetric(join.Seconds()/bare.Seconds(), "join/bare")
	b.ReportMetric(ms(share), "ms-share")
	b.ReportMetric(float64(share)/float64(mostShare), "share/bound")
	b.ReportMetric(0, "ns/op") // a start of the server, which nobody asked for
}

// BenchmarkRealJoinAgainRatio is a join on a node that is one, beside the start of the
// agent's program alone: both on a real server that serves.
func BenchmarkRealJoinAgainRatio(b *testing.B) {
	n, args := realNode(b)
	n.MustRun(b, args...)
	var joins, starts, work []time.Duration
	for b.Loop() {
		for range 40 { // a server that has just started answers the first of them slowly
			took, _ := timed(b, n, args[0], "version")
			starts = append(starts, took)
			took, cpu := timed(b, n, args...)
			joins, work = append(joins, took), append(work, cpu)
		}
	}
	if asked := n.Asked(); len(asked) != 1 {
		b.Fatalf("the joins asked the service for %v", asked)
	}
	again, alone := quantile(joins, 0.5), quantile(starts, 0.5)
	b.ReportMetric(ms(again), "ms-join")
	b.ReportMetric(ms(alone), "ms-version")
	b.ReportMetric(ms(again-alone), "ms-difference")
	b.ReportMetric(float64(again-alone)/float64(mostJoin), "difference/bound")
	b.ReportMetric(ms(quantile(joins, 0)), "ms-best")
	b.ReportMetric(ms(quantile(work, 0.5)), "ms-cpu")
	b.ReportMetric(0, "ns/op")
}

// realNode is a machine with a real server that is stopped and standalone, and the
// command line of its join.
func realNode(b *testing.B) (n *realams.Node, join []string) {
	b.Helper()
	w := realams.New(b, realams.Options{})
	n = w.Node(b, realams.Newest)
	return n, []string{
		buildAgent(b), "join", "--mongo", w.Mongo.Addrs(), "--address", n.Address,
		"--provider", "generic", "--service-command", realams.Service,
	}
}

// start starts the server and measures until all applications serve.
func start(b *testing.B, n *realams.Node) time.Duration {
	b.Helper()
	began := time.Now()
	n.MustRun(b, realams.Service, "start")
	return served(b, n).Sub(began)
}

// firstBoot joins, and measures when all applications serve and what of it is the
// agent's.
func firstBoot(b *testing.B, n *realams.Node, args []string) (took, share time.Duration) {
	b.Helper()
	began := time.Now()
	p := n.Start(b, args...)
	at := served(b, n)
	if code, err := p.Wait(5 * time.Minute); err != nil || code != 0 {
		b.Fatalf("join: exit %d, %v: %s", code, err, p.Output())
	}
	ended := time.Now()
	started, err := os.Stat(n.Path("/run/antmedia.pid"))
	must.OK(b, err)
	return at.Sub(began), started.ModTime().Sub(began) + max(0, ended.Sub(at))
}

// served waits until all applications serve.
func served(b *testing.B, n *realams.Node) time.Time {
	b.Helper()
	for _, app := range bootApps {
		for n.Served(app) != http.StatusOK {
			pause(b, 20*time.Millisecond)
		}
	}
	return time.Now()
}

// timed runs a program and measures it, by the clock and by what it took of the
// processors.
func timed(b *testing.B, n *realams.Node, args ...string) (took, cpu time.Duration) {
	b.Helper()
	cmd := n.Command(args...)
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return time.Since(began), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}
