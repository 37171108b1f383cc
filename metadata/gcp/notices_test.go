// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp_test

import (
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	base            = "/computeMetadata/v1/"
	pathPreempted   = "instance/preempted"
	pathMaintenance = "instance/maintenance-event"
	pathUpcoming    = "instance/upcoming-maintenance"
	pathDetails     = "instance/shutdown-details/"
	pathStop        = pathDetails + "stop-state"

	maintenanceStop = "TERMINATE_ON_HOST_MAINTENANCE"

	topicPreempted   = "gcp-preempted"
	topicMaintenance = "gcp-maintenance"
	topicShutdown    = "gcp-shutdown"
)

// start is the begin of the time in a bubble.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// watched is Watch on an emulated machine, in a bubble with its own clock.
type watched struct {
	*fakegcp.Server
	*metadatatest.Watched
	log locked.Buffer
}

// watch answers some paths with recorded texts.
func watch(t *testing.T, root string, answers map[string]string, test func(t *testing.T, w *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{Server: fakegcp.New(fakegcp.Options{})}
		for path, body := range answers {
			w.fault(t, fakes.Fault{Path: path, Status: http.StatusOK, Body: body})
		}
		w.Watched = metadatatest.Watch(t, open(t, cloud.Options{Transport: fakes.Transport{Handler: w}, Root: root, Log: slog.New(slog.NewTextHandler(&w.log, nil))}))
		test(t, w)
	})
}

func (w *watched) fault(t *testing.T, f fakes.Fault) {
	t.Helper()
	must.OK(t, w.AddFault(f))
}

func (w *watched) maintenance(word string) {
	w.Update(func(i *fakegcp.Instance) { i.Signals.Maintenance = word })
}

// of is a notice at a time after the start of the bubble.
func of(id string, kind cloud.Kind, reason string, at time.Duration) cloud.Notice {
	return cloud.Notice{ID: id, Kind: kind, Reason: reason, Who: "Google Cloud", At: start.Add(at), Counted: true}
}

// exact is a notice with the cloud's own time.
func exact(n cloud.Notice) cloud.Notice {
	n.Counted = false
	return n
}

func preemption(at time.Duration) cloud.Notice {
	return of("gcp-preempted/interrupt", cloud.Interrupt, "preemption of a Spot VM", at)
}

func reboot(at time.Duration) cloud.Notice {
	return of("gcp-maintenance/reboot", cloud.Reboot, "host maintenance", at)
}

func shutdown(more string, at time.Duration) cloud.Notice {
	return of("gcp-shutdown/terminate", cloud.Terminate, "graceful shutdown"+more, at)
}

func unknown(id, reason string) cloud.Notice {
	return cloud.Notice{ID: id, Kind: cloud.Unknown, Reason: reason, Who: "Google Cloud"}
}

// TestNotices: what the metadata may say, and the notice of it.
func TestNotices(t *testing.T) {
	maintained := func(plan string) map[string]string {
		return map[string]string{pathMaintenance: maintenanceStop, pathUpcoming: plan}
	}
	stopped := func(details string) map[string]string {
		return map[string]string{pathStop: "PENDING_STOP", pathDetails: details}
	}
	const ago = `"requestTimestamp": "1999-12-31T23:59:56Z"`
	for _, tt := range []struct {
		name    string
		answers map[string]string
		want    []cloud.Notice
	}{
		{"quiet", nil, nil},
		{"preempted", map[string]string{pathPreempted: "true\n"}, []cloud.Notice{preemption(30 * time.Second)}},
		{"unknown word", map[string]string{pathPreempted: "SOON"}, []cloud.Notice{unknown("gcp-preempted/SOON", "instance/preempted is SOON")}},
		{"moved while it runs", map[string]string{pathMaintenance: "MIGRATE_ON_HOST_MAINTENANCE"}, nil},
		{"maintenance, no plan", maintained("NONE"), []cloud.Notice{reboot(time.Minute)}},
		{"planned", maintained(`{"startTime": "2000-01-01T00:30:00Z"}`), []cloud.Notice{exact(reboot(30 * time.Minute))}},
		{"plan for another", maintained(`{"startTime": "2000-01-01T05:00:00Z"}`), []cloud.Notice{reboot(time.Minute)}},
		{"no state", map[string]string{pathStop: "STOP_STATE_UNSPECIFIED"}, nil},
		{"unknown state", map[string]string{pathStop: "STOPPING"}, []cloud.Notice{unknown("gcp-shutdown/STOPPING", "instance/shutdown-details/stop-state is STOPPING")}},
		{"details", stopped(`{"maxDuration": 600, "targetState": "DELETED", ` + ago + `}`), []cloud.Notice{exact(shutdown(" (to be deleted)", 596*time.Second))}},
		{"seconds with an s", stopped(`{"max-duration": "90s", "request-timestamp": "1999-12-31T23:59:56Z"}`), []cloud.Notice{exact(shutdown("", 86*time.Second))}},
		{"duration of the API", stopped(`{"maxDuration": {"seconds": "300", "nanos": 0}, "new": 1, ` + ago + `}`), []cloud.Notice{exact(shutdown("", 296*time.Second))}},
		{"no moment", stopped(`{"maxDuration": "300"}`), []cloud.Notice{shutdown("", 300*time.Second)}},
		{"long ago", stopped(`{"maxDuration": "300", "requestTimestamp": "1989-01-01T00:00:00Z"}`), []cloud.Notice{shutdown("", 300*time.Second)}},
		{"in the future", stopped(`{"maxDuration": "300", "requestTimestamp": "2099-01-01T00:00:00Z"}`), []cloud.Notice{shutdown("", 300*time.Second)}},
		{"no number", stopped(`{"maxDuration": "NaN"}`), []cloud.Notice{shutdown("", 10*time.Minute)}},
		{"no duration", stopped(`{"maxDuration": 0, "targetState": "STOPPED"}`), []cloud.Notice{shutdown(" (to be stopped)", 10*time.Minute)}},
		{"not JSON", stopped("oops"), []cloud.Notice{shutdown("", 10*time.Minute)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			watch(t, "", tt.answers, func(t *testing.T, w *watched) {
				synctest.Wait()
				want := map[string][]cloud.Notice{topicPreempted: nil, topicMaintenance: nil, topicShutdown: nil}
				for _, n := range tt.want {
					topic, _, _ := strings.Cut(n.ID, "/")
					want[topic] = tt.want
				}
				must.NoDiff(t, "notices", w.Last(), want)
			})
		})
	}
}

// TestClock: the clock of the machine is not the cloud's.
func TestClock(t *testing.T) {
	for _, c := range fakes.Clocks() {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &watched{Server: fakegcp.New(fakegcp.Options{})}
				moment := func(d time.Duration) string { return c.Now().Add(d).UTC().Format(time.RFC3339) }
				for path, body := range map[string]string{
					pathMaintenance: maintenanceStop, pathUpcoming: `{"startTime": "` + moment(30*time.Minute) + `"}`,
					pathStop: "PENDING_STOP", pathDetails: `{"maxDuration": "300", "requestTimestamp": "` + moment(-time.Minute) + `"}`,
				} {
					w.fault(t, fakes.Fault{Path: path, Status: http.StatusOK, Body: body})
				}
				w.Watched = metadatatest.Watch(t, open(t, cloud.Options{Transport: fakes.Transport{Handler: w, Clock: c.Date}}))
				synctest.Wait()
				planned, ends := 30*time.Minute, 4*time.Minute
				if c.Undated { // from the first sight
					planned, ends = time.Minute, 5*time.Minute
				}
				w.One(topicMaintenance, cloud.Reboot, planned)
				w.One(topicShutdown, cloud.Terminate, ends)
			})
		})
	}
}

// Machines with a graphics processor have an hour, from an announcement that was seen.
func TestWatchGPU(t *testing.T) {
	gpu := t.TempDir()
	for name, text := range map[string]string{"vendor": "0x10de\n", "class": "0x030200\n"} {
		path := filepath.Join(gpu, "sys/bus/pci/devices/0000:00:04.0", name)
		must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.OK(t, os.WriteFile(path, []byte(text), 0o600))
	}
	watch(t, gpu, nil, func(_ *testing.T, w *watched) {
		w.Look(topicMaintenance, 10*time.Second, 4)
		w.maintenance(maintenanceStop)
		w.Look(topicMaintenance, 0, 1, reboot(time.Hour+10*time.Second))
	})
	watch(t, gpu, map[string]string{pathMaintenance: maintenanceStop}, func(_ *testing.T, w *watched) {
		w.Look(topicMaintenance, 0, 1, reboot(time.Minute))
	})
}

// A change is noticed at once: between the changes here no waiting request ends, which takes 54 seconds at least.
func TestWatchPreempted(t *testing.T) {
	watch(t, "", nil, func(_ *testing.T, w *watched) {
		w.Look(topicPreempted, 5*time.Second, 4)
		w.Preempt(0)
		w.Look(topicPreempted, 5*time.Second, 1, preemption(35*time.Second))
		w.Announce(false)
		w.Look(topicPreempted, 0, 1)
		w.Look(topicPreempted, 5*time.Second, 3)
		// A signal that ends and returns does not move the end.
		w.Announce(true)
		w.Look(topicPreempted, 15*time.Second, 1, preemption(35*time.Second))
		w.Announce(false)
		w.Look(topicPreempted, 10*time.Second, 4)
		w.Announce(true)
		w.Look(topicPreempted, 5*time.Second, 1, preemption(70*time.Second))
	})
}

func TestWatch(t *testing.T) {
	watch(t, "", nil, func(t *testing.T, w *watched) {
		w.Look(topicMaintenance, 5*time.Second, 4)
		w.maintenance(maintenanceStop)
		w.Look(topicMaintenance, 5*time.Second, 1, reboot(65*time.Second))
		w.maintenance("SOMETHING_NEW") // withdraws nothing
		w.Look(topicMaintenance, 5*time.Second, 1, reboot(65*time.Second), unknown("gcp-maintenance/SOMETHING_NEW", "instance/maintenance-event is SOMETHING_NEW"))
		w.maintenance("NONE")
		w.Look(topicMaintenance, 0, 1)
		w.Look(topicMaintenance, 5*time.Second, 3)

		w.Stop(5*time.Minute, "DELETED")
		w.Look(topicShutdown, 5*time.Second, 1, exact(shutdown(" (to be deleted)", 320*time.Second)))
		w.Unstop()
		w.Look(topicShutdown, 5*time.Second, 4)

		// Without news each item is one waiting request a minute.
		before, idle := len(w.Requests()), map[string]int{}
		<-time.After(10 * time.Minute)
		for _, r := range w.Requests()[before:] {
			if idle[r.Path]++; !strings.Contains(r.Query, "wait_for_change=true") {
				t.Errorf("%+v does not wait", r)
			}
		}
		for _, path := range []string{pathPreempted, pathMaintenance, pathStop} {
			if n := idle[base+path]; n < 9 || n > 12 || len(idle) != 3 {
				t.Errorf("requests in ten minutes: %v", idle)
			}
		}
		must.Equal(t, "log", w.log.String(), "")
	})
}

// An item that does not exist has no notice. It is requested each minute.
func TestWatchAbsent(t *testing.T) {
	watch(t, "", nil, func(t *testing.T, w *watched) {
		w.Look(topicShutdown, 0, 1)
		w.fault(t, fakes.Fault{Path: pathDetails + "*", Status: http.StatusNotFound})
		w.Look(topicShutdown, time.Hour, metadatatest.Some)
		if n := w.Asked(base+pathStop, start); n < 55 || n > 75 {
			t.Errorf("asked %d times in an hour", n)
		}
		w.Stop(10*time.Minute, "")
		w.ClearFaults()
		w.Look(topicShutdown, 61*time.Second, metadatatest.Some, exact(shutdown("", 70*time.Minute)))
		must.Equal(t, "log", w.log.String(), "")
	})
}

// Without the details of a shutdown the usual time is assumed.
func TestWatchNoDetails(t *testing.T) {
	watch(t, "", nil, func(t *testing.T, w *watched) {
		w.fault(t, fakes.Fault{Path: pathDetails, Status: http.StatusNotFound})
		w.Look(topicShutdown, 5*time.Second, 4)
		w.Stop(time.Minute, "STOPPED")
		w.Look(topicShutdown, 5*time.Second, 1, shutdown("", 10*time.Minute+5*time.Second))
		must.Equal(t, "lines in\n"+w.log.String(), strings.Count(w.log.String(), "shutdown details cannot be read"), 1)
	})
}

// An item is requested at most once a second, whatever the server does, and its end is noticed. An answer that cannot be
// decoded is not reported, and such an outage is two lines in the log for each item.
func TestWatchTrouble(t *testing.T) {
	for _, tt := range []struct {
		name      string
		fault     fakes.Fault
		min, max  int           // requests for an item in ten minutes
		sees      time.Duration // the time until the end is noticed, while long polls stay faulty or after all other faults
		hasOutage bool
	}{
		{"503", fakes.Fault{Status: 503}, 100, 170, 6 * time.Second, true},
		{"403", fakes.Fault{Status: 403}, 8, 30, 61 * time.Second, true},
		{"no header", fakes.Fault{NoFlavor: true}, 8, 30, 61 * time.Second, true},
		{"page", fakes.Fault{Status: 200, Body: "<html>log in</html>"}, 100, 170, 6 * time.Second, true},
		{"half a word", fakes.Fault{Status: 200, Body: "FA\x00"}, 100, 170, 6 * time.Second, true},
		{"answers at once", fakes.Fault{Held: true, Instant: true}, 590, 601, time.Second, false},
		{"gives no tags", fakes.Fault{Path: pathPreempted, Status: 200, Body: "TRUE"}, 530, 601, time.Second, false},
		{"breaks waits off", fakes.Fault{Held: true, Status: 502}, 590, 601, 2 * time.Second, false},
		{"never answers waits", fakes.Fault{Held: true, Hang: true}, 15, 20, 72 * time.Second, false},
		{"away for a moment", fakes.Fault{Status: 503, Times: 3}, 10, 13, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			watch(t, "", nil, func(t *testing.T, w *watched) {
				w.Look(topicPreempted, 0, 1)
				w.Announce(true)
				w.Look(topicPreempted, 3500*time.Millisecond, 3, preemption(31*time.Second)) // no request waits yet
				w.fault(t, tt.fault)
				before := w.Asked(base+pathPreempted, start)
				reports := metadatatest.Some
				if tt.hasOutage {
					reports = 0
				}
				w.Look(topicPreempted, 10*time.Minute, reports, preemption(31*time.Second))
				if n := w.Asked(base+pathPreempted, start) - before; n < tt.min || n > tt.max {
					t.Errorf("asked %d times in ten minutes", n)
				}
				if !tt.fault.Held {
					w.ClearFaults()
				}
				w.Announce(false)
				w.Look(topicPreempted, tt.sees, metadatatest.Some)
				log, lines := w.log.String(), 0
				if tt.hasOutage {
					lines = 3
				}
				if bad, good := strings.Count(log, "level=WARN"), strings.Count(log, "can be read again"); bad != lines || good != lines {
					t.Errorf("%d warnings, %d times well again:\n%s", bad, good, log)
				}
			})
		})
	}
}
