// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// TestNothingLiesBetweenNoticeAndRegistry: the state is written without a timer in between.
func TestNothingLiesBetweenNoticeAndRegistry(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		tick(time.Hour)
		began := time.Now()
		l.Notice(terminate())
		synctest.Wait()
		if at := w.times("record:draining"); len(at) != 1 || at[0] != began {
			t.Errorf("written at %v, notice at %v", at, began)
		}
		must.Contain(t, "the first record", string(w.snapshots[0]), `"announcing"`)
	})
}

func TestRegistryThatRefuses(t *testing.T) {
	for _, c := range []struct {
		from    cluster.State
		refused bool // for good
	}{{cluster.StateLeft, true}, {cluster.StateFailed, true}, {cluster.StateJoining, false}} {
		bubble(t, 1, func(t *testing.T, w *world) {
			w.record = c.from
			l := w.live()
			l.Notice(terminate())
			tick(time.Minute)
			if v := l.View(); v.RegistryTold != c.refused || (v.Trouble["registry"] == "") != c.refused {
				t.Errorf("from %s: written %v, trouble %v", c.from, v.RegistryTold, v.Trouble)
			}
			w.set(func(w *world) { w.record = cluster.StateActive })
			tick(20 * time.Second)
			if !c.refused && w.record != cluster.StateDraining {
				t.Errorf("from %s: record %s", c.from, w.record)
			}
		})
	}
}

func TestProgressForPeopleAndInTheRegistry(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.publishers, w.viewers = p(2), p(31)
		l := w.live()
		l.Notice(terminate())
		for half := range 10 {
			tick(30 * time.Second)
			if n := w.logged("msg=draining"); n <= half || n > half+2 {
				t.Errorf("%d lines in %d half minutes", n, half+1)
			}
			if half == 5 {
				w.set(func(w *world) { w.viewers = p(30) })
			}
		}
		for line := range strings.Lines(w.lines.String()) {
			if strings.Contains(line, "msg=draining") {
				must.Contain(t, "progress", line, "2 publishers, 3", "to the deadline (the configured deadline)")
			}
		}
		must.Equal(t, "the reason in the record", w.reason, "scale-in: 2 publishers, 30 viewers left")
		if n := len(w.times("record:draining")); n > 5 {
			t.Errorf("%d writes", n)
		}
	})
}

func TestTimesAsPeopleSayThem(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 40 * time.Second: "40s", 59*time.Second + 600*time.Millisecond: "59s",
		11*time.Minute + 10*time.Second: "11m", time.Hour: "1h", 65 * time.Minute: "1h5m", 48 * time.Hour: "48h", 10 * time.Minute: "10m",
		110 * time.Minute: "1h50m",
	} {
		must.Equal(t, fmt.Sprint(d), shortTime(d), want)
	}
}

func TestEventsWaitForMongo(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.mongoErr = errMongo
		l := w.live()
		l.Notice(terminate())
		l.until("done", time.Minute, isDone)
		must.Equal(t, "written into nothing", len(w.events), 0)
		w.set(func(w *world) { w.mongoErr = nil })
		tick(20 * time.Second)
		must.Equal(t, fmt.Sprintf("number of events %+v", w.events), len(w.events), 2)
		began := time.Now()
		l.kill()
		must.Equal(t, "the end waited for", time.Since(began), 0)
	})
}

func TestViewIsOneDocument(t *testing.T) {
	living(t, 3, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		tick(2 * time.Second)
		data, err := json.Marshal(l.View())
		must.OK(t, err)
		var back View
		if err := json.Unmarshal(data, &back); err != nil || back.State != StateDraining || *back.Sessions.Viewers != 3 {
			t.Errorf("%s %v", data, err)
		}
		t.Logf("%s", data)
	})
}

// A MongoDB that is away fails with a different text each time: the log gets it at most once a minute, the view always.
func TestTroubleIsLoggedOnceAMinute(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		tries := 0
		w.registerErr = func(cluster.State) error {
			tries++
			if tries%7 == 0 {
				return nil
			}
			return fmt.Errorf("server selection timed out, try %d", tries)
		}
		l := w.live()
		must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(20 * time.Minute)}))
		changing := func(w *world) { n := *w.viewers%2 + 1; w.viewers = &n }
		for range 100 { // the reason of the record changes, so that it is written
			tick(6 * time.Second)
			w.set(changing)
		}
		warnings, ends := w.logged("level=WARN"), w.logged("works again")
		if tries < 50 || warnings < 5 || warnings > 11 || ends > warnings {
			t.Errorf("%d tries, %d warnings, %d ends of what was warned of, in ten minutes", tries, warnings, ends)
		}
		if text := l.View().Trouble["registry"]; text != "" && !strings.HasSuffix(text, fmt.Sprint("try ", tries)) {
			t.Errorf("after %d tries the view says %s", tries, text)
		}
	})
}
