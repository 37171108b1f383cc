// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// BenchmarkCommitRatio compares the commit of a tree of four applications with a bare loop that writes, fsyncs and renames the
// same files. Both run in turn, so that a noisy machine hits both. The ratio is to stay at or below 2.2.
func BenchmarkCommitRatio(b *testing.B) {
	s := newTree(b)
	app := "db.name=%s\ndb.type=mapdb\ndb.host=localhost\n" + strings.Repeat("settings.some.key=some value of it\n", 30)
	var paths []string
	for i := range 4 {
		p := fmt.Sprintf("/ams/webapps/app%d/WEB-INF/red5-web.properties", i)
		put(b, s, p, fmt.Sprintf(app, p))
		paths = append(paths, p)
	}
	paths = append(paths, serverPath)
	var ours, bare time.Duration
	for b.Loop() {
		start := time.Now()
		p := s.NewPlan(nil)
		for _, path := range paths {
			must.OK(b, p.Edit(Target{Path: path, Kind: KindProperties}, func(src []byte) ([]Span, error) {
				q, err := ParseProperties(src)
				if err != nil {
					return nil, err
				}
				q.Set("db.type", "mongodb", nil)
				q.Set("db.host", "10.0.0.1", nil)
				return q.Spans(), nil
			}))
		}
		must.OK(b, p.Edit(Target{Path: containerPath, Kind: KindContainer}, toCluster))
		must.OK(b, p.Commit("join"))
		ours += time.Since(start)
		changed := p.Changed()
		undoAll(b, s)

		start = time.Now()
		for _, f := range changed {
			must.OK(b, bareWrite(at(s, f.Before.Path), f.After))
		}
		bare += time.Since(start)
		for _, f := range changed {
			put(b, s, f.Before.Path, string(f.Before.Bytes))
		}
	}
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "µs-commit/op")
	b.ReportMetric(float64(bare.Microseconds())/float64(b.N), "µs-bare/op")
}

// bareWrite is the shortest way to write a file: no journal, no undo, no owner, and no
// fsync of the folder.
func bareWrite(path string, data []byte) error {
	f, err := os.Create(path + ".tmp")
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
