// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/gcp"
)

func TestGCPNotices(t *testing.T) {
	seen := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	at := seen.Add(30 * time.Second)
	notice := func(kind Kind, id, source, reason string) Notice {
		return Notice{ID: "gcp/self/" + id, Kind: kind, Source: source, Reason: reason, Who: "Google Cloud", Received: seen, Deadline: at}
	}
	gone := func(n Notice) Notice {
		n.Kind, n.Deadline = Withdrawn, time.Time{}
		return n
	}
	moved := func(n Notice) Notice {
		n.Moved = true
		return n
	}
	for name, c := range map[string]struct {
		signal gcp.Signal
		want   Notice
		known  bool
	}{
		"preempted": {
			gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", At: at},
			notice(Interrupt, "interrupt", "gcp-preempted", "preemption of a Spot VM"), true,
		},
		"not preempted": {
			gcp.Signal{Kind: gcp.SignalPreempted, Gone: true},
			gone(notice(Interrupt, "interrupt", "gcp-preempted", "preemption of a Spot VM")), true,
		},
		"maintenance": {
			gcp.Signal{Kind: gcp.SignalMaintenance, Value: gcp.MaintenanceTerminate, At: at},
			notice(Reboot, "reboot", "gcp-maintenance", "host maintenance"), true,
		},
		"maintenance over": {
			gcp.Signal{Kind: gcp.SignalMaintenance, Value: gcp.MaintenanceTerminate, Gone: true},
			gone(notice(Reboot, "reboot", "gcp-maintenance", "host maintenance")), true,
		},
		"graceful shutdown": {
			gcp.Signal{Kind: gcp.SignalStopState, Value: gcp.PendingStop, At: at, Text: "deleted"},
			notice(Terminate, "terminate", "gcp-shutdown", "graceful shutdown (to be deleted)"), true,
		},
		"upcoming": {
			gcp.Signal{Kind: gcp.SignalUpcoming, Value: "PENDING", At: at, Text: "scheduled"},
			moved(notice(Reboot, "reboot/upcoming", "gcp-maintenance", "upcoming host maintenance (scheduled)")), true,
		},
		"upcoming, taken back": {
			gcp.Signal{Kind: gcp.SignalUpcoming, Value: "PENDING", Gone: true},
			gone(notice(Reboot, "reboot/upcoming", "gcp-maintenance", "upcoming host maintenance")), true,
		},
		"an unknown word":   {gcp.Signal{Kind: gcp.SignalStopState, Value: "STOPPING"}, Notice{}, false},
		"an unknown word 2": {gcp.Signal{Kind: gcp.SignalPreempted, Value: "SOON"}, Notice{}, false},
		"an unknown signal": {gcp.Signal{Kind: "instance/new"}, Notice{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.signal.Seen = seen
			n, known := gcpNotice(c.signal)
			if d := cmp.Diff(c.want, n); d != "" || known != c.known {
				t.Errorf("known %v\n%s", known, d)
			}
		})
	}
}

// gcpSignals is a machine whose metadata signal this.
type gcpSignals chan gcp.Signal

func (s gcpSignals) Watch(ctx context.Context, fn func(gcp.Signal)) {
	for {
		select {
		case signal := <-s:
			signal.Seen = time.Now()
			fn(signal)
		case <-ctx.Done():
			return
		}
	}
}

func TestGCPSourceTellsOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		signals := make(gcpSignals)
		s := NewGCPSource(signals, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		var notices []Notice
		done := make(chan error)
		go func() { done <- s.Watch(ctx, func(n Notice) { notices = append(notices, n) }) }()
		for range 3 {
			signals <- gcp.Signal{Kind: gcp.SignalPreempted, Value: "SOON"}
			signals <- gcp.Signal{Kind: gcp.SignalMaintenance, Value: gcp.MaintenanceMigrate, Gone: true}
		}
		signals <- gcp.Signal{Kind: gcp.SignalMaintenance, Value: gcp.MaintenanceMigrate}
		signals <- gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", At: time.Now().Add(30 * time.Second)}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if len(notices) != 1 || notices[0].Kind != Interrupt {
			t.Errorf("%+v", notices)
		}
		if n := strings.Count(log.String(), "SOON"); n != 1 {
			t.Errorf("an unknown word is told %d times: %s", n, log.String())
		}
		if n := strings.Count(log.String(), "moved to another host"); n != 1 {
			t.Errorf("a move is told %d times: %s", n, log.String())
		}
	})
}

// What a machine on Google Cloud goes through: preempted, and told so by its power
// button, too; the 30 s are shared, and whoever watches is cut before the end.
func TestGCPPreemption(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.viewers = p(1)
		signals := make(gcpSignals)
		l := w.live(func(o *Options) {
			o.Completer, o.Sources = nil, []Source{NewGCPSource(signals, nil)}
		})
		defer l.kill()
		signals <- gcp.Signal{Kind: gcp.SignalPreempted, Gone: true} // as the first look says
		tick(time.Second)
		if v := l.View(); v.Step != StepNone {
			t.Fatalf("of a quiet machine: %+v", v)
		}
		// Taken back in time.
		signals <- gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", At: time.Now().Add(30 * time.Second)}
		tick(3 * time.Second)
		if v := l.View(); v.Step != StepDraining {
			t.Fatalf("step %s", v.Step)
		}
		signals <- gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", Gone: true}
		tick(3 * time.Second)
		if v := l.View(); v.Step != StepNone || w.row != cluster.StateActive {
			t.Fatalf("taken back: step %s, row %s", v.Step, w.row)
		}
		begun := time.Now()
		signals <- gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", At: begun.Add(30 * time.Second)}
		tick(2 * time.Second)
		n := goesDown(10 * time.Second)
		n.By = "the 30 s that Google Cloud gives a Spot VM"
		l.Notice(n)
		tick(time.Second)
		v := l.View()
		if len(v.Timeline) < 2 || v.Timeline[0].By != "the stop of the machine (the 30 s that Google Cloud gives a Spot VM)" || !v.Timeline[0].Decides {
			t.Errorf("%+v", v.Timeline)
		}
		<-l.ended
		l.ended <- nil
		if took := time.Since(begun); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("it waited for %s", took)
		}
		tomb, err := LastWord(w, "boot-1")
		if err != nil || tomb == nil || tomb.Cut == nil || *tomb.Cut != 1 || tomb.Reason != "preemption of a Spot VM" {
			t.Errorf("%+v, %v", tomb, err)
		}
	})
}

// A maintenance that is moved far ahead while the node drains for it lets it serve again;
// one that is moved by minutes does not.
func TestGCPMaintenancePutOff(t *testing.T) {
	for by, again := range map[time.Duration]bool{7 * 24 * time.Hour: true, 10 * time.Minute: false} {
		for sessions, step := range map[int]Step{1: StepDraining, 0: StepDone} {
			t.Run(by.String()+", "+string(step), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t)
					w.publishers, w.viewers = &sessions, &sessions
					signals := make(gcpSignals)
					l := w.live(func(o *Options) {
						o.Completer, o.Sources = nil, []Source{NewGCPSource(signals, nil)}
					})
					defer l.kill()
					upcoming := gcp.Signal{Kind: gcp.SignalUpcoming, Value: "PENDING", At: time.Now().Add(2 * time.Minute)}
					signals <- upcoming
					tick(5 * time.Second)
					if v := l.View(); v.Step != step {
						t.Fatalf("for a maintenance that is near: step %s", v.Step)
					}
					upcoming.At = upcoming.At.Add(by)
					signals <- upcoming
					tick(5 * time.Second)
					v := l.View()
					if again != (v.Step == StepNone && v.Ready) || again && v.NextDrain.Before(upcoming.At.Add(-4*time.Hour)) {
						t.Errorf("step %s, ready %v, next drain %s", v.Step, v.Ready, v.NextDrain)
					}
				})
			})
		}
	}
}

// A maintenance whose date is moved, to either side, is awaited at the new date, also by an
// agent that was not there when it was moved.
func TestGCPMaintenanceMoves(t *testing.T) {
	for name, restarted := range map[string]bool{"at once": false, "while the agent was away": true} {
		for _, by := range []time.Duration{time.Hour, -time.Hour} {
			t.Run(name+", by "+by.String(), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t)
					signals := make(gcpSignals)
					begin := func() *life {
						return w.live(func(o *Options) {
							o.Completer, o.Sources = nil, []Source{NewGCPSource(signals, nil)}
						})
					}
					l := begin()
					at := time.Now().Add(5 * time.Hour)
					upcoming := gcp.Signal{Kind: gcp.SignalUpcoming, Value: "PENDING", At: at}
					signals <- upcoming
					tick(time.Second)
					before := l.View().NextDrain
					if before.IsZero() || before.After(at) {
						t.Fatalf("a drain at %s for a maintenance at %s", before, at)
					}
					if restarted {
						l.kill()
						l = begin()
					}
					defer func() { l.kill() }()
					upcoming.At = at.Add(by)
					signals <- upcoming
					tick(time.Second)
					if after := l.View().NextDrain; after.Sub(before).Round(time.Second) != by {
						t.Errorf("the drain was at %s and is at %s", before, after)
					}
					signals <- gcp.Signal{Kind: gcp.SignalUpcoming, Value: "PENDING", Gone: true}
					tick(time.Second)
					if v := l.View(); !v.NextDrain.IsZero() || v.Step != StepNone {
						t.Errorf("taken back: %+v", v)
					}
				})
			})
		}
	}
}
