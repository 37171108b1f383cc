// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// BenchmarkNothingToDo is the edit plan of a join that has nothing to do, on an
// installation of four applications: reading the tree, parsing every file,
// taking our spans back in memory, editing, proving by etree, comparing. Its
// processor time is to stay below 5 ms, and it writes nothing.
func BenchmarkNothingToDo(b *testing.B) {
	m := ownTree(b, "3.0", "3.0.3")
	for _, app := range []string{"sports", "news"} {
		dir := filepath.Join(m.Root, ams.DefaultDir, "webapps", app, "WEB-INF")
		must.OK(b, os.MkdirAll(dir, 0o755))
		text := fmt.Sprintf("appName=%[1]s\ndb.name=%[1]s\ndb.type=mapdb\ndb.host=localhost\n", app)
		must.OK(b, os.WriteFile(filepath.Join(dir, "red5-web.properties"), []byte(text), 0o644))
	}
	req := JoinRequest{Offline: true, Address: "10.0.0.7", Valve: ValveKeep}
	var err error
	if req.Mongo, err = cluster.ParseTarget("10.0.2.4"); err != nil {
		b.Fatal(err)
	}
	if _, err := m.Join(b.Context(), req); err != nil {
		b.Fatal(err)
	}
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
