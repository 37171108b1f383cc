// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/fakeaws"
)

// BenchmarkDrainNotice takes the time from a notice to readiness being off and to
// the registry saying so: BENCH_NOTICES times (10), at any moment between two
// looks at the metadata. What is called late is counted from the look that could
// see it; before that is the poll interval.
func BenchmarkDrainNotice(b *testing.B) {
	n := benchSetting(b, "BENCH_NOTICES", 10)
	h := newScaled(b, newDatabase(b), "10.0.8.71", fakeaws.AutoScalingOptions{}, endHook(time.Hour))
	p := h.serving()
	h.viewers(1)
	ready := "http://" + p.view().Metrics + "/readyz"
	for b.Loop() {
		var off, offLate, told, toldLate []time.Duration
		for range n {
			wait(rand.N(2 * time.Second))
			began := time.Now()
			h.terminate()
			var offAt, toldAt time.Time
			var both sync.WaitGroup
			both.Go(func() {
				offAt = first(b, 2*time.Millisecond, func() bool {
					_, code, err := fetch(http.DefaultClient, ready)
					return err == nil && code == http.StatusServiceUnavailable
				})
			})
			both.Go(func() {
				toldAt = first(b, 2*time.Millisecond, func() bool {
					n, err := h.client.Node(context.Background(), h.id)
					return err == nil && n.State == cluster.StateDraining
				})
			})
			both.Wait()
			seen := h.seenAt(began)
			off, told = append(off, offAt.Sub(began)), append(told, toldAt.Sub(began))
			offLate, toldLate = append(offLate, offAt.Sub(seen)), append(toldLate, toldAt.Sub(seen))
			if err := h.asg.Restore(h.id); err != nil {
				b.Fatal(err)
			}
			h.rowIs(cluster.StateActive)
			p.viewIs("it serves", func(v daemon.View) bool { return v.Ready && v.Lifecycle.Step == "" })
		}
		report(b, "readiness", off)
		report(b, "readiness-after-poll", offLate)
		report(b, "registry", told)
		report(b, "registry-after-poll", toldLate)
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkDrainEnd takes the time from the last session's end to the hook's
// completion, less AMS's own stop: BENCH_ENDS times (5), by a machine that goes
// into a warm pool and comes back.
func BenchmarkDrainEnd(b *testing.B) {
	n := benchSetting(b, "BENCH_ENDS", 5)
	h := newScaled(b, newDatabase(b), "10.0.8.72", fakeaws.AutoScalingOptions{}, endHook(time.Hour))
	var stops []time.Duration
	for range 3 {
		began := time.Now()
		for _, what := range []string{"stop", "start"} {
			if out, err := exec.Command(h.wrapper, what).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			if what == "stop" {
				stops = append(stops, time.Since(began))
			}
		}
	}
	stop := percentile(stops, 0.5)
	p := h.serving()
	for b.Loop() {
		var took []time.Duration
		for range n {
			h.viewers(1)
			if err := h.asg.Pool(h.id, "Running", false); err != nil {
				b.Fatal(err)
			}
			p.counted(1)
			wait(rand.N(time.Second))
			h.viewersGo()
			gone := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			e, err := h.asg.WaitFor(ctx, func(e fakeaws.Entry) bool { return e.What == fakeaws.Completed && e.Time.After(gone) })
			cancel()
			if err != nil {
				b.Fatal(err)
			}
			took = append(took, e.Time.Sub(gone)-stop)
			p.step(lifecycle.StepDone)
			if err := h.asg.Launch(h.id); err != nil {
				b.Fatal(err)
			}
			p.viewIs("it serves", func(v daemon.View) bool { return v.Ready && v.Lifecycle.Step == "" })
		}
		report(b, "less-stop", took)
		b.ReportMetric(percentile(took, 0.5).Seconds(), "sample-intervals-median") // of one second
		b.ReportMetric(percentile(took, 1).Seconds(), "sample-intervals-most")
		b.ReportMetric(float64(stop.Microseconds())/1e3, "ms-stop-of-ams")
		b.ReportMetric(0, "ns/op")
	}
}

// seenAt is when the metadata was first asked for the target state after a moment.
func (h *scaled) seenAt(after time.Time) time.Time {
	h.t.Helper()
	var seen time.Time
	for _, r := range h.aws.Requests() {
		if r.Time.After(after) && strings.HasSuffix(r.Path, "/autoscaling/target-lifecycle-state") && (seen.IsZero() || r.Time.Before(seen)) {
			seen = r.Time
		}
	}
	if seen.IsZero() {
		h.t.Fatal("the metadata was not asked")
	}
	return seen
}

// first is the first moment at which something is so.
func first(t testing.TB, every time.Duration, so func() bool) time.Time {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			t.Error("it did not come true")
			break
		}
		wait(every)
	}
	return time.Now()
}

func report(b *testing.B, name string, took []time.Duration) {
	b.Helper()
	for what, q := range map[string]float64{"median": 0.5, "p99": 0.99} {
		b.ReportMetric(float64(percentile(took, q).Microseconds())/1e3, "ms-"+name+"-"+what)
	}
}

func percentile(took []time.Duration, q float64) time.Duration {
	s := slices.SortedFunc(slices.Values(took), cmp.Compare[time.Duration])
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

func benchSetting(b *testing.B, name string, usual int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s: %q is no number", name, text)
	}
	return n
}
