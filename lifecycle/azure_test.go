// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func azureEdge() azure.Machine {
	return azure.Machine{VMID: "vm-1", Name: "edge_3", ScaleSet: "edge"}
}

// azureEvent is one about the machine and others.
func azureEvent(kind string, notBefore time.Time, others ...string) azure.Event {
	return azure.Event{
		ID: "602d", Type: kind, Status: azure.StatusScheduled, ResourceType: "VirtualMachine", Resources: append([]string{"EDGE_3"}, others...),
		NotBefore: notBefore, Source: "User", Duration: -1,
	}
}

func TestAzureNotices(t *testing.T) {
	t.Parallel()
	seen := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	at := seen.Add(5 * time.Minute)
	hook := func(name string, others ...string) *Hook {
		return &Hook{Provider: "azure", Group: "edge", Name: name + " 602d", Token: "602d", Fixed: true, Limit: at, Others: others}
	}
	notice := func(kind Kind, reason string, deadline time.Time, h *Hook) Notice {
		return Notice{ID: "azure/vm-1/602d", Source: "azure-events", Kind: kind, Who: "Azure (User)", Reason: reason, Received: seen, Deadline: deadline, Hook: h}
	}
	with := func(e azure.Event, change func(*azure.Event)) azure.Event { change(&e); return e }
	started := func(e *azure.Event) { e.Status, e.NotBefore = azure.StatusStarted, time.Time{} }
	for _, tt := range []struct {
		name  string
		event azure.Event
		first bool
		want  Notice
		what  azureVerdict
	}{
		{"terminate", azureEvent("Terminate", at), true, notice(Terminate, "scale-in", at, hook("Terminate")), azureTold},
		{
			"of several machines", azureEvent("terminate", at, "edge_4", "edge_3", "edge_5"), false,
			notice(Terminate, "scale-in", at, hook("terminate", "edge_4", "edge_5")), azureTold,
		},
		{"preempt", azureEvent("Preempt", at), false, notice(Interrupt, "spot eviction", at, hook("Preempt")), azureTold},
		{"reboot", with(azureEvent("Reboot", at), func(e *azure.Event) { e.Source, e.Duration, e.Description = "", 9*time.Second, "because" }), false, func() Notice {
			n := notice(Reboot, "scheduled event Reboot, for 9s: because", at, hook("Reboot"))
			n.Who = "Azure"
			return n
		}(), azureTold},
		{"redeploy", azureEvent("Redeploy", at), false, notice(Reboot, "scheduled event Redeploy", at, hook("Redeploy")), azureTold},
		{"freeze", azureEvent("Freeze", at), false, Notice{}, azureFreeze},
		{"an end that has begun", with(azureEvent("Terminate", at), started), true, notice(Interrupt, "scale-in", time.Time{}, nil), azureTold},
		{"an eviction that has begun", with(azureEvent("Preempt", at), started), false, notice(Interrupt, "spot eviction", time.Time{}, nil), azureTold},
		{"a reboot that has begun", with(azureEvent("Reboot", at), started), false, notice(Reboot, "scheduled event Reboot", time.Time{}, nil), azureTold},
		{"the reboot before this boot", with(azureEvent("Redeploy", at), started), true, Notice{}, azurePast},
		{"its time is over", azureEvent("Terminate", seen.Add(-time.Minute)), true, func() Notice {
			n := notice(Terminate, "scale-in", seen.Add(-time.Minute), hook("Terminate"))
			n.Hook.Limit = n.Deadline
			return n
		}(), azureTold},
		{"a time that could not be read", azureEvent("Preempt", time.Time{}), false, func() Notice {
			n := notice(Interrupt, "spot eviction", time.Time{}, hook("Preempt"))
			n.Hook.Limit = time.Time{}
			return n
		}(), azureTold},
		{"without the type of its resources", with(azureEvent("Preempt", at), func(e *azure.Event) { e.ResourceType = "" }), false, notice(Interrupt, "spot eviction", at, hook("Preempt")), azureTold},
		{"of something else", with(azureEvent("Preempt", at), func(e *azure.Event) { e.ResourceType = "Disk" }), false, Notice{}, azureUnknown},
		{"a type unheard of", azureEvent("Party", at), false, Notice{}, azureUnknown},
		{"a state unheard of, to come", with(azureEvent("Terminate", at), func(e *azure.Event) { e.Status = "Approved" }), false, notice(Terminate, "scale-in", at, hook("Terminate")), azureTold},
		{"a state unheard of, past", with(azureEvent("Terminate", time.Time{}), func(e *azure.Event) { e.Status = "Completed" }), false, Notice{}, azureUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, what := azureNotice(azure.Signal{Event: tt.event, First: tt.first, Machine: azureEdge(), Seen: seen})
			if what != tt.what {
				t.Fatalf("verdict %d", what)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" && what == azureTold {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

type azureWatch func(ctx context.Context, o azure.WatchOptions, fn func(azure.Signal))

func (f azureWatch) Watch(ctx context.Context, o azure.WatchOptions, fn func(azure.Signal)) {
	f(ctx, o, fn)
}

// azureSaid runs a source over signals and gives kinds and ids of its notices, and its log.
func azureSaid(t *testing.T, announced map[string]string, err error, signals ...azure.Signal) (said []string, log string) {
	t.Helper()
	var b bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	s := NewAzureSource(azureWatch(func(_ context.Context, o azure.WatchOptions, fn func(azure.Signal)) {
		if len(o.Known) != len(announced) {
			t.Errorf("options %+v", o)
		}
		for _, sig := range signals {
			sig.Machine = azureEdge()
			fn(sig)
		}
		cancel()
	}), AzureSourceOptions{
		Announced: func() (map[string]string, error) { return announced, err }, Log: slog.New(slog.NewTextHandler(&b, nil)),
	})
	if err := s.Watch(ctx, func(n Notice) {
		text := string(n.Kind) + " " + n.ID
		if n.Hook != nil {
			text += " hook"
		}
		said = append(said, text)
	}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	return said, b.String()
}

func TestAzureSource(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := now.Add(5 * time.Minute)
	signal := func(kind, id string) azure.Signal {
		e := azureEvent(kind, at)
		e.ID = id
		return azure.Signal{Event: e, Seen: now}
	}
	gone := func(s azure.Signal) azure.Signal { s.Gone, s.Before = true, s.Event; return s }
	t.Run("what comes and goes", func(t *testing.T) {
		t.Parallel()
		begun := signal("Terminate", "1")
		begun.Before, begun.Event.Status, begun.Event.NotBefore = begun.Event, azure.StatusStarted, time.Time{}
		said, log := azureSaid(t, nil, nil, signal("Terminate", "1"), begun, gone(begun), gone(signal("Freeze", "2")), signal("Preempt", "3"))
		want := []string{"terminate azure/vm-1/1 hook", "interrupt azure/vm-1/1", "withdrawn azure/vm-1/1", "interrupt azure/vm-1/3 hook"}
		if diff := cmp.Diff(want, said); diff != "" || log != "" {
			t.Errorf("%s\nlog %s", diff, log)
		}
	})
	t.Run("what another life was told of", func(t *testing.T) {
		t.Parallel()
		lost := azure.Signal{Event: azure.Event{ID: "1"}, Gone: true, Seen: now}
		said, _ := azureSaid(t, map[string]string{"1": "azure/vm-1/1", "2": "azure/vm-1/2"}, nil, signal("Terminate", "2"), lost)
		if diff := cmp.Diff([]string{"terminate azure/vm-1/2 hook", "withdrawn azure/vm-1/1"}, said); diff != "" {
			t.Error(diff)
		}
		if _, log := azureSaid(t, nil, errors.New("no disk"), signal("Terminate", "2")); !strings.Contains(log, "no disk") {
			t.Errorf("log %s", log)
		}
	})
	t.Run("put off", func(t *testing.T) {
		t.Parallel()
		later := signal("Terminate", "1")
		later.Before, later.Event.NotBefore = later.Event, at.Add(time.Minute)
		earlier := signal("Terminate", "1")
		earlier.Before, earlier.Event.NotBefore = later.Event, at
		said, _ := azureSaid(t, nil, nil, signal("Terminate", "1"), later, earlier)
		want := []string{"terminate azure/vm-1/1 hook", "terminate azure/vm-1/1 hook", "terminate azure/vm-1/1 hook"}
		if diff := cmp.Diff(want, said); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a storm of freezes is two lines", func(t *testing.T) {
		t.Parallel()
		var storm []azure.Signal
		for i := range 600 {
			s := signal("Freeze", fmt.Sprint(i))
			s.Event.Duration, s.Seen = 5*time.Second, now.Add(time.Duration(i)*2*time.Second)
			begun := s
			begun.Before, begun.Event.Status = s.Event, azure.StatusStarted
			storm = append(storm, s, begun)
		}
		said, log := azureSaid(t, nil, nil, storm...)
		if len(said) > 0 || strings.Count(log, "\n") != 2 || strings.Count(log, "for=5s") != 2 || !strings.Contains(log, "not_told_since_the_last_one=299") {
			t.Errorf("%v\n%s", said, log)
		}
	})
	t.Run("what nobody knows is said once", func(t *testing.T) {
		t.Parallel()
		odd := signal("Terminate", "4")
		odd.Event.Status = "Approved"
		said, log := azureSaid(t, nil, nil, signal("Party", "1"), signal("Party", "2"), signal("Parade", "3"), odd, odd)
		if len(said) != 2 || strings.Count(log, "\n") != 3 || strings.Count(log, "Party") != 1 || strings.Count(log, "Approved") != 1 {
			t.Errorf("%v\n%s", said, log)
		}
		reboot := signal("Reboot", "5")
		reboot.Event.Status, reboot.First = azure.StatusStarted, true
		if said, log := azureSaid(t, nil, nil, reboot); len(said) > 0 || !strings.Contains(log, "was the boot before it") {
			t.Errorf("%v\n%s", said, log)
		}
	})
}

// azureLife is a manager with a source, whose signals the test gives.
func azureLife(w *world, change ...func(*Options)) (*life, func(azure.Signal)) {
	signals := make(chan azure.Signal)
	watch := azureWatch(func(ctx context.Context, o azure.WatchOptions, fn func(azure.Signal)) {
		// As the real one: what it knows of and does not see is gone.
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if s.Event.ID == "" {
					for _, id := range o.Known {
						fn(azure.Signal{Event: azure.Event{ID: id}, Gone: true, Machine: azureEdge(), Seen: time.Now()})
					}
					continue
				}
				s.Machine, s.Seen = azureEdge(), time.Now()
				fn(s)
			}
		}
	})
	source := NewAzureSource(watch, AzureSourceOptions{Announced: func() (map[string]string, error) { return AzureAnnounced(w) }})
	l := w.live(append(change, func(o *Options) { o.Sources = []Source{source} })...)
	return l, func(s azure.Signal) {
		touch()
		signals <- s
		touch()
	}
}

// TestAzureRestart: a daemon that comes back sees the same document once more.
func TestAzureRestart(t *testing.T) {
	t.Run("after it is done, whatever the time", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := empty(t)
			l, say := azureLife(w)
			e := azureEvent("Terminate", time.Now().Add(5*time.Minute))
			say(azure.Signal{Event: e})
			l.until("done", time.Minute, isDone)
			l.kill()
			for _, after := range []time.Duration{time.Second, 10 * time.Minute} {
				tick(after)
				l, say = azureLife(w)
				say(azure.Signal{Event: e, First: true})
				tick(20 * time.Second)
				begun := e
				begun.Status, begun.NotBefore = azure.StatusStarted, time.Time{}
				say(azure.Signal{Event: begun, Before: e})
				tick(20 * time.Second)
				if v := l.View(); v.Step != StepDone {
					t.Errorf("step %s", v.Step)
				}
				l.kill()
			}
			w.set(func(w *world) {
				if w.stops != 1 || len(w.completed) != 1 || len(w.tombs) != 1 {
					t.Errorf("stopped %d times, completed %v, left %d times", w.stops, w.completed, len(w.tombs))
				}
			})
		})
	})
	t.Run("while it drains, and the event was cancelled meanwhile", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := newWorld(t)
			w.viewers = p(1)
			l, say := azureLife(w)
			say(azure.Signal{Event: azureEvent("Terminate", time.Now().Add(15*time.Minute))})
			l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
			l.kill()
			l, say = azureLife(w)
			defer l.kill()
			tick(10 * time.Second)
			say(azure.Signal{})
			l.until("it serves", 10*time.Second, func(v View) bool { return v.Step == StepNone })
			tick(10 * time.Second)
			w.set(func(w *world) {
				if w.row != cluster.StateActive || w.stops != 0 {
					t.Errorf("row %s, stopped %d times", w.row, w.stops)
				}
			})
		})
	})
	t.Run("into the boot that the event was", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := empty(t)
			l, say := azureLife(w)
			e := azureEvent("Reboot", time.Now().Add(15*time.Minute))
			say(azure.Signal{Event: e})
			l.until("done", time.Minute, isDone)
			tick(5 * time.Second)
			l.kill()
			w.set(func(w *world) {
				if len(w.completed) != 1 || w.stops != 0 {
					t.Errorf("completed %v, stopped %d times", w.completed, w.stops)
				}
				w.boot, w.gone = "boot-2", false
			})
			l, say = azureLife(w)
			defer l.kill()
			e.Status, e.NotBefore = azure.StatusStarted, time.Time{}
			say(azure.Signal{Event: e, First: true})
			tick(time.Minute)
			if v := l.View(); v.Step != StepNone || !v.Ready {
				t.Errorf("after the boot: step %s, notes %v", v.Step, v.Notes)
			}
		})
	})
}

// TestAzurePutOff: the later time counts, and nobody is cut at the earlier one.
func TestAzurePutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.viewers = p(1)
		l, say := azureLife(w)
		defer l.kill()
		at := time.Now().Add(5 * time.Minute)
		e := azureEvent("Terminate", at)
		say(azure.Signal{Event: e})
		l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
		later := e
		later.NotBefore = at.Add(5 * time.Minute)
		say(azure.Signal{Event: later, Before: e})
		l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining && v.Deadline.After(at) })
		tick(time.Until(at))
		w.set(func(w *world) {
			if w.stops != 0 {
				t.Error("stopped by the time that does not count any more")
			}
		})
		l.until("done", 6*time.Minute, isDone)
		w.set(func(w *world) {
			if w.cutAt.After(later.NotBefore) || w.cutAt.Before(later.NotBefore.Add(-time.Minute)) || len(w.completed) != 1 {
				t.Errorf("cut at %s, completed %v", w.cutAt, w.completed)
			}
		})
	})
}

// TestAzureMoves: an event whose time moves, either way and to the nanosecond at
// which it was seen, keeps the node draining (clouds C4: in 11 of 17 tries it
// served again, since a withdrawal and the notice after it were told apart by two
// readings of the clock).
func TestAzureMoves(t *testing.T) {
	for _, by := range []time.Duration{10 * time.Minute, -2 * time.Minute} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t)
			w.viewers = p(1)
			l, say := azureLife(w)
			defer l.kill()
			at := time.Now().Add(15 * time.Minute)
			e := azureEvent("Terminate", at)
			say(azure.Signal{Event: e})
			l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
			moved := e
			moved.NotBefore = at.Add(by)
			say(azure.Signal{Event: moved, Before: e})
			for range 60 {
				tick(100 * time.Millisecond)
				if v := l.View(); v.Step != StepDraining || v.Ready {
					t.Fatalf("moved by %s: step %s, ready %v", by, v.Step, v.Ready)
				}
			}
			if v := l.View(); v.Deadline.After(moved.NotBefore) || v.Deadline.Before(moved.NotBefore.Add(-time.Minute)) {
				t.Errorf("moved by %s: the deadline is %s, of an event at %s", by, v.Deadline, moved.NotBefore)
			}
			// A move that happens while no daemon runs is seen by the next one.
			l.kill()
			l.ended <- nil
			moved.NotBefore = moved.NotBefore.Add(by)
			l, say = azureLife(w)
			defer l.kill()
			say(azure.Signal{Event: moved})
			tick(time.Second)
			if v := l.View(); v.Step != StepDraining || v.Deadline.After(moved.NotBefore) || v.Deadline.Before(moved.NotBefore.Add(-time.Minute)) {
				t.Errorf("after a restart: step %s, deadline %s", v.Step, v.Deadline)
			}
		})
	}
}

// TestAzurePutOffFar: a restart that is moved by hours is no reason to send nobody here until
// then; a termination is.
func TestAzurePutOffFar(t *testing.T) {
	for kind, serves := range map[string]bool{"Reboot": true, "Redeploy": true, "Terminate": false} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t)
			w.viewers = p(1)
			l, say := azureLife(w)
			defer l.kill()
			e := azureEvent(kind, time.Now().Add(10*time.Minute))
			say(azure.Signal{Event: e})
			l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
			moved := e
			moved.NotBefore = moved.NotBefore.Add(6 * time.Hour)
			say(azure.Signal{Event: moved, Before: e})
			tick(time.Minute)
			if v := l.View(); v.Ready != serves {
				t.Errorf("%s: ready %v, step %s", kind, v.Ready, v.Step)
			}
			tick(6 * time.Hour)
			if v := l.View(); v.Ready {
				t.Errorf("%s: it serves when its time has come", kind)
			}
		})
	}
}

// TestAzureStarted: the machine goes now, for all we know. Nobody is sent here, and nobody is cut by us.
func TestAzureStarted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.viewers = p(1)
		l, say := azureLife(w)
		defer l.kill()
		e := azureEvent("Preempt", time.Time{})
		e.Status = azure.StatusStarted
		say(azure.Signal{Event: e})
		l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
		tick(10 * time.Minute)
		w.set(func(w *world) {
			if w.row != cluster.StateDraining || w.stops != 0 || len(w.completed) != 0 {
				t.Errorf("row %s, stopped %d times, completed %v", w.row, w.stops, w.completed)
			}
		})
	})
}

// fakeAzure is the API that a completer speaks to.
type fakeAzure struct {
	startErr, eventsErr error
	events              []azure.Event
	started             []string
	asked               int
}

func (f *fakeAzure) Start(_ context.Context, id string) error {
	f.started = append(f.started, id)
	return f.startErr
}

func (f *fakeAzure) Events(context.Context) (azure.Document, error) {
	f.asked++
	return azure.Document{Events: f.events}, f.eventsErr
}

func TestAzureCompleter(t *testing.T) {
	t.Parallel()
	status := func(n int) error { return &cloud.Error{Provider: "azure", Kind: cloud.ErrNotReady, Status: n} }
	listed := azureEvent("Terminate", time.Now())
	begun := listed
	begun.Status = azure.StatusStarted
	hook := Hook{Provider: "azure", Name: "Terminate 602d", Token: "602d"}
	for _, tt := range []struct {
		name  string
		api   fakeAzure
		hook  Hook
		gone  bool
		fails bool
		asked int
	}{
		{name: "done", hook: hook},
		{name: "not known, and gone", api: fakeAzure{startErr: status(400)}, hook: hook, gone: true, fails: true, asked: 1},
		{name: "not known, and begun", api: fakeAzure{startErr: status(400), events: []azure.Event{begun}}, hook: hook, gone: true, fails: true, asked: 1},
		{name: "not known, and there", api: fakeAzure{startErr: status(400), events: []azure.Event{listed}}, hook: hook, fails: true, asked: 1},
		{name: "not known, and nobody knows", api: fakeAzure{startErr: status(400), eventsErr: status(500)}, hook: hook, fails: true, asked: 1},
		{name: "not there for the moment", api: fakeAzure{startErr: status(404)}, hook: hook, fails: true},
		{name: "gone for the moment", api: fakeAzure{startErr: status(410)}, hook: hook, fails: true},
		{name: "throttled", api: fakeAzure{startErr: status(429)}, hook: hook, fails: true},
		{name: "broken", api: fakeAzure{startErr: status(http.StatusInternalServerError)}, hook: hook, fails: true},
		{name: "another cloud's", hook: Hook{Provider: "aws", Name: "drain", Token: "1"}, gone: true, fails: true},
		{name: "no event", hook: Hook{Provider: "azure"}, gone: true, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NewAzureCompleter(&tt.api)
			err := c.Complete(t.Context(), tt.hook)
			if (err != nil) != tt.fails || errors.Is(err, ErrGone) != tt.gone || tt.api.asked != tt.asked {
				t.Errorf("%v; asked %d times", err, tt.api.asked)
			}
			if tt.hook.equal(hook) && !cmp.Equal(tt.api.started, []string{"602d"}) {
				t.Errorf("started %v", tt.api.started)
			}
		})
	}
	c := NewAzureCompleter(&fakeAzure{})
	if h, err := c.Discover(t.Context(), false); h != nil || err != nil {
		t.Errorf("%v, %v", h, err)
	}
	if err := c.Heartbeat(t.Context(), hook); !errors.Is(err, ErrNoAction) {
		t.Error(err)
	}
}
