// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Watched records a provider's reports in a synctest bubble.
type Watched struct {
	t *testing.T

	mu      sync.Mutex
	reports map[string]int // by topic, since the last Reports or Look
	last    map[string][]cloud.Notice
}

// Watch runs p.Watch in a bubble until the test ends.
func Watch(t *testing.T, p cloud.Watcher) *Watched {
	w, ended := &Watched{t: t, reports: map[string]int{}, last: map[string][]cloud.Notice{}}, make(chan struct{})
	go func() {
		defer close(ended)
		p.Watch(t.Context(), func(topic string, current []cloud.Notice) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.last[topic] = current
			w.reports[topic]++
		})
	}()
	t.Cleanup(func() { <-ended })
	return w
}

// Reports returns the number of reports by topic since the last Reports or Look.
func (w *Watched) Reports() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.reports
	w.reports = map[string]int{}
	return n
}

// Last returns the last report of each topic. The watcher may report meanwhile, hence the lock.
func (w *Watched) Last() map[string][]cloud.Notice {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.last)
}

// One checks that the last report is one notice of this kind, to come so long after the begin of the bubble: a header Date is in
// whole seconds.
func (w *Watched) One(topic string, kind cloud.Kind, after time.Duration) {
	w.t.Helper()
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	n := w.Last()[topic]
	if len(n) != 1 || n[0].Kind != kind || n[0].Past || (n[0].At.Sub(begin)-after).Abs() > 1500*time.Millisecond {
		w.t.Errorf("%s: %+v, want one %s after %s", topic, n, kind, after)
	}
}

// Reports for Look: Some is at least one, Any includes zero.
const (
	Some = -1
	Any  = -2
)

// Look waits for d, then checks the number of reports and the last one.
func (w *Watched) Look(topic string, d time.Duration, reports int, want ...cloud.Notice) {
	w.t.Helper()
	<-time.After(d)
	synctest.Wait()
	n := w.Reports()[topic]
	if diff := gocmp.Diff(want, w.Last()[topic]); diff != "" || n != reports && reports != Any && (reports != Some || n == 0) {
		w.t.Errorf("%s: %d reports, want %d (-want +got)\n%s", topic, n, reports, diff)
	}
}
