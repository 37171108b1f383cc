// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// BenchmarkNothingToDo is the edit plan of a join that has nothing to do, on an installation of four applications. Its
// processor time is to stay below 5 ms, and it writes nothing.
func BenchmarkNothingToDo(b *testing.B) {
	m := newTree(b)
	for _, app := range []string{"sports", "news"} {
		put(b, m, settingsOf(app), fmt.Sprintf("appName=%[1]s\ndb.name=%[1]s\ndb.type=mapdb\ndb.host=localhost\n", app))
	}
	req := JoinRequest{Offline: true, Address: "10.0.0.7", Valve: ValveKeep, Mongo: mustTarget(b, "10.0.2.4")}
	_, err := m.Join(b.Context(), req)
	must.OK(b, err)
	start := cpuTime(b)
	for b.Loop() {
		store := m.store()
		f := &facts{}
		must.OK(b, m.preflight(b.Context(), store, req, f))
		if len(f.failed()) > 0 || len(f.plan.Changed()) > 0 {
			b.Fatal(f.failed(), f.plan.Changed())
		}
	}
	b.ReportMetric(float64((cpuTime(b)-start).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// cpuTime is what this process has used of the processors.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must.OK(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
