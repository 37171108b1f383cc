// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// TestKilledAtEveryWrite kills a drain after each write of its record, and right before each, and continues.
func TestKilledAtEveryWrite(t *testing.T) {
	const viewerLeaves = 3 * time.Minute
	scenes := map[string]func(*world, *life){
		"zero": func(w *world, l *life) { l.Notice(terminate()) },
		"deadline": func(w *world, l *life) {
			l.Notice(terminate())
			l.Drain(DrainRequest{Deadline: seconds.Duration(2 * time.Minute), Who: "root"})
		},
		"park":     func(w *world, l *life) { n := terminate(); n.Kind = Park; l.Notice(n) },
		"unjoined": func(w *world, l *life) { w.set(func(w *world) { w.joined = false }); l.Notice(terminate()) },
	}
	for name, begin := range scenes {
		t.Run(name, func(t *testing.T) {
			writes := 0
			whole := func(killAt int, before bool) (end string) {
				bubble(t, 1, func(t *testing.T, w *world) {
					w.stopTime, w.mongoTime, w.cloudTime = 2*time.Second, 50*time.Millisecond, 50*time.Millisecond
					w.countTime = 10 * time.Millisecond
					began := time.Now()
					time.AfterFunc(viewerLeaves, func() {
						w.set(func(w *world) {
							if w.cut == 0 {
								w.viewers = p(0)
							}
						})
					})
					killed := make(chan struct{})
					n := 0
					var kept []byte
					w.onWrite = func(data []byte) { // the lock is held
						if n++; n == killAt {
							if before {
								w.file = kept // the rename did not happen
							}
							w.diskErr = errors.New("killed") // this process writes nothing any more
							close(killed)
						}
						kept = data
					}
					l := w.live()
					begin(w, l)
					if killAt > 0 {
						<-killed
						l.kill()
						w.set(func(w *world) { w.diskErr, w.onWrite = nil, nil })
						tick(5 * time.Second) // systemd starts it again
						l = w.live()
						asked := slices.ContainsFunc(l.View().Notices, func(n Notice) bool { return n.Kind == Ask })
						if l.View().Step == StepNone || name == "deadline" && !asked {
							// Killed before the first write: no drain was confirmed, and the source still reports the notice.
							begin(w, l)
						}
					}
					must.Equal(t, fmt.Sprintf("killed at write %d (before %v): ready", killAt, before), l.View().Ready, false)
					l.until("done", 20*time.Minute, isDone)
					tick(30 * time.Second)
					v := l.View()
					if w.cut > 0 && w.cutAt.Before(began.Add(2*time.Minute)) {
						t.Errorf("killed at write %d (before %v): cut %d after %s", killAt, before, w.cut, w.cutAt.Sub(began))
					}
					if name == "deadline" && killAt > 4 && w.cutAt.Sub(began) > 2*time.Minute+7*time.Second {
						t.Errorf("killed at write %d (before %v): cut only after %s", killAt, before, w.cutAt.Sub(began))
					}
					if got := w.order(); name != "unjoined" && strings.Index(got, "record:left") > strings.Index(got, "complete?") {
						t.Errorf("killed at write %d (before %v): the hook was completed first: %s", killAt, before, got)
					}
					end = fmt.Sprintf("state %s, record %s, cut %d, completed %v, record written %v", v.State, w.record, w.cut, w.completed, v.RegistryTold)
					l.kill()
					if killAt == 0 {
						writes = len(w.snapshots)
					}
				})
				return end
			}
			want := whole(0, false)
			if writes < 3 {
				t.Fatalf("only %d writes", writes)
			}
			for i := 1; i <= writes; i++ {
				for _, before := range []bool{false, true} {
					must.Equal(t, fmt.Sprintf("killed at write %d of %d (before %v)", i, writes, before), whole(i, before), want)
				}
			}
			t.Logf("%d writes, each killed after and before: %s", writes, want)
		})
	}
}

// TestClockJumps sets the wall clock while the agent is down: no deadline moves, and the view shows the same one by the new
// clock.
func TestClockJumps(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 5 * time.Hour, "back": -5 * time.Hour, "a little": 300 * time.Millisecond} {
		t.Run(name, alive(1, func(t *testing.T, w *world, l *life) {
			must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(30 * time.Minute)}))
			l.kill()
			w.setClock(-jump)
			tick(time.Minute)
			l = w.live()
			if got := time.Until(l.View().Deadline); (got - 29*time.Minute).Abs() >= time.Second {
				t.Errorf("%s left, want 29m", got)
			}
			l.until("the stop", 29*time.Minute+5*time.Second, isDone)
		}))
	}
}

// setClock makes the file one that was written by a clock that was so much ahead.
func (w *world) setClock(ahead time.Duration) {
	var d document
	must.OK(w.t, json.Unmarshal(w.file, &d))
	d.Start = d.Start.Add(ahead)
	data, err := json.Marshal(d)
	must.OK(w.t, err)
	w.file = data
}

func TestDamagedRecordIsNoDrain(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		tick(time.Second)
		good := w.file
		l.kill()
		bad := map[string][]byte{
			"empty": {}, "text": []byte("no json"), "null": []byte("null"), "array": []byte("[]"), "nothing": []byte("{}"),
			"older":           []byte(`{"version": 1, "step": "draining"}`),
			"newer":           []byte(`{"version": 3, "step": "draining"}`),
			"unknown state":   []byte(`{"version": 2, "want": "dancing"}`),
			"unknown phase":   []byte(`{"version": 2, "step": "dancing"}`),
			"no reason":       []byte(`{"version": 2, "step": "draining"}`),
			"no goal":         []byte(`{"version":2,"step":"draining","began":1,"notices":[{"id":"x","kind":"launch"}]}`),
			"a strange clock": []byte(`{"version": 2, "step": "done", "boot_time": "99999-01-01T00:00:00Z"}`),
		}
		for i := 0; i < len(good); i += 7 {
			bad[fmt.Sprintf("cut at %d", i)] = good[:i]
			flipped := slices.Clone(good)
			flipped[i] ^= 0x15
			bad[fmt.Sprintf("flipped at %d", i)] = flipped
		}
		for name, data := range bad {
			w.set(func(w *world) { w.file = data })
			l := w.live()
			tick(time.Second)
			v := l.View()
			if !json.Valid(data) || !strings.Contains(name, " at ") {
				if v.State != StateActive || !v.Ready || len(data) > 0 && len(v.Notes) == 0 && v.Trouble["record"] == "" {
					t.Errorf("%s: state %s, notes %v", name, v.State, v.Notes)
				}
			}
			l.kill()
		}
	})
}

func TestDiskFull(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.diskErr = errors.New("no space left on device")
		l := w.live()
		l.Notice(terminate())
		tick(10 * time.Second)
		if v := l.View(); v.Step != StepDraining || v.Trouble["record"] == "" {
			t.Errorf("%s %v", v.Step, v.Trouble)
		}
		w.set(func(w *world) { w.diskErr = nil })
		tick(3 * time.Second)
		if v := l.View(); v.Trouble["record"] != "" || w.file == nil {
			t.Errorf("not written once there is room: %v", v.Trouble)
		}
	})
}

func TestRecordOnARealDisk(t *testing.T) {
	root := t.TempDir()
	store := &conf.Store{Root: root, Dir: "/var/lib/amsagent"}
	w := newWorld(t)
	w.viewers = p(1)
	o := w.options()
	o.Files, o.Hooks = store, nil
	m := NewRunner(o)
	path := filepath.Join(root, RecordPath)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a record of nothing: %v", err)
	}
	must.OK(t, m.observe(reported("aws-lifecycle", ofGroup(Terminate))))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	data, err := os.ReadFile(path)
	if err != nil || !json.Valid(data) {
		t.Errorf("%s %v", data, err)
	}
	again := NewRunner(o)
	if again.View().State != StateDraining || !again.View().Deadline.Equal(m.View().Deadline) {
		t.Errorf("%+v", again.View())
	}
	must.OK(t, again.Undrain("root", ""))
	must.OK(t, again.observe(change(func(s situation) { s.recordWritten(cluster.StateActive, nil) })))
	for range goneAfter {
		must.OK(t, again.observe(reported("aws-lifecycle")))
	}
	again.Settled()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a record of nothing: %v", err)
	}
	for _, text := range []string{"damaged", "damaged again"} {
		must.OK(t, os.WriteFile(path, []byte(text), 0o600))
		NewRunner(o)
		kept, err := os.ReadFile(path + ".damaged")
		if _, gone := os.Stat(path); err != nil || string(kept) != text || !os.IsNotExist(gone) {
			t.Errorf("%q is kept as %q, %v, %v", text, kept, err, gone)
		}
	}
	must.OK(t, os.Mkdir(path, 0o700)) // cannot be read
	if m := NewRunner(o); m.View().Trouble["record"] == "" || m.Drain(DrainRequest{}) != nil || m.View().Step != StepAnnouncing {
		t.Errorf("%+v", m.View())
	}
	must.OK(t, os.Remove(path))
}

func TestBootClock(t *testing.T) {
	root := t.TempDir()
	if boot, _ := BootClock(root)(); boot != "" {
		t.Errorf("boot %q without a kernel to ask", boot)
	}
	dir := filepath.Join(root, "proc/sys/kernel/random")
	must.OK(t, os.MkdirAll(dir, 0o755))
	must.OK(t, os.WriteFile(filepath.Join(dir, "boot_id"), []byte("abc\n"), 0o600))
	boot, up := BootClock(root)()
	_, later := BootClock(root)()
	if boot != "abc" || up <= 0 || later < up {
		t.Errorf("%q %s %s", boot, up, later)
	}
}

func TestAnotherBoot(t *testing.T) {
	for _, c := range []struct {
		name  string
		n     Notice
		until func(View) bool
		state State
	}{
		{"a person's drain, under way", Notice{Kind: Ask}, func(v View) bool { return v.Step == StepDraining }, StateActive},
		{"the cloud's, under way", terminate(), func(v View) bool { return v.Step == StepDraining }, StateDraining},
		{"a person's, done", Notice{Kind: Ask}, isDone, StateActive},
		{"the cloud's, done", terminate(), isDone, StateActive},
		{"parked", Notice{Kind: Park}, isDone, StateActive},
	} {
		t.Run(c.name, alive(1, func(t *testing.T, w *world, l *life) {
			l.Notice(c.n)
			tick(3 * time.Second)
			if !c.until(l.View()) {
				w.set(func(w *world) { w.viewers = p(0) })
			}
			l.until("there", time.Minute, c.until)
			l.kill()
			w.boot, w.record = "boot-2", cluster.StateActive
			l = w.live()
			tick(time.Second)
			if v := l.View(); v.State != c.state || v.Ready != (c.state == StateActive) {
				t.Errorf("%s, ready %v, notes %v", v.State, v.Ready, v.Notes)
			}
			must.Equal(t, "record", w.record, cluster.State(c.state))
		}))
	}
}

// A termination survives a restart of the machine in each step, until its hook has ended: then the node serves again, and the
// log has a warning. Heartbeats that the cloud accepts prove that the hook still waits.
func TestTerminationOverABoot(t *testing.T) {
	completes := func(w *world) {
		w.cloudErr = failing(errThrottled, opContinue)
	}
	notWaiting := func(w *world) { w.cloudErr = failing(cloud.ErrNotWaiting) }
	for _, tt := range []struct {
		name  string
		n     Notice
		holds func(*world) // what keeps the drain in the step
		step  Step
		down  time.Duration
		back  func(*world)  // how the cloud is after the boot
		clock time.Duration // how far the clock was ahead before the boot
		after time.Duration // from the boot
		state State
	}{
		{name: "draining", n: terminate(), step: StepDraining, down: time.Minute, state: StateDraining},
		{name: "stopping", n: terminate(), step: StepStopping, holds: func(w *world) { w.stopTime = time.Hour }, down: time.Minute, state: StateDraining},
		{name: "deregistering", n: terminate(), step: StepDeregistering, holds: func(w *world) { w.mongoErr = errMongo }, down: time.Minute, state: StateDraining},
		{name: "completing", n: terminate(), step: StepCompleting, holds: completes, down: time.Minute, state: StateDraining},
		{name: "done", n: terminate(), step: StepDone, down: time.Minute, state: StateActive},
		{name: "the hook ended meanwhile", n: terminate(), step: StepDraining, down: 11 * time.Minute, state: StateActive},
		{name: "no hook", n: unhooked(terminate()), step: StepDraining, down: time.Minute, state: StateActive},
		{name: "the cloud still waits", n: terminate(), step: StepDraining, down: 9 * time.Minute, after: 20 * time.Minute, state: StateDraining},
		{name: "the hook ends later", n: terminate(), step: StepDraining, down: 3 * time.Minute, back: notWaiting, after: 6 * time.Minute, state: StateDraining},
		{name: "the hook has ended later", n: terminate(), step: StepDraining, down: 3 * time.Minute, back: notWaiting, after: 8 * time.Minute, state: StateActive},
		{name: "the clock was ahead", n: terminate(), step: StepDraining, down: 3 * time.Minute, back: notWaiting, clock: 5 * time.Hour, after: 11 * time.Minute, state: StateActive},
		{name: "an unknown end", n: endless(), step: StepDraining, down: time.Hour, state: StateDraining},
		{name: "an unknown end long ago", n: endless(), step: StepDraining, down: 7 * time.Hour, state: StateActive},
	} {
		t.Run(tt.name, alive(1, func(t *testing.T, w *world, l *life) {
			l.Notice(tt.n)
			tick(5 * time.Second)
			if tt.step != StepDraining {
				w.set(func(w *world) {
					w.viewers = p(0)
					if tt.holds != nil {
						tt.holds(w)
					}
				})
			}
			l.until(string(tt.step), time.Minute, func(v View) bool { return v.Step == tt.step })
			l.kill()
			w.setClock(tt.clock)
			tick(tt.down)
			w.lines.Reset()
			w.set(func(w *world) {
				w.boot, w.record, w.running, w.viewers = "boot-2", cluster.StateActive, true, p(1)
				w.stopTime, w.mongoErr, w.cloudErr = 0, nil, nil
				if tt.back != nil {
					tt.back(w)
				}
			})
			l = w.live()
			tick(tt.after + 5*time.Second)
			v := l.View()
			if v.State != tt.state || v.Ready != (tt.state == StateActive) || w.record != cluster.State(tt.state) {
				t.Errorf("%s, ready %v, record %s, notes %v", v.State, v.Ready, w.record, v.Notes)
			}
			must.Equal(t, "it is warned of\n"+w.lines.String(), w.logged("level=WARN") > 0, tt.state == StateActive)
			if tt.after > 10*time.Minute && tt.state == StateDraining && (len(v.Hooks) != 1 || v.Hooks[0].Beats < 3) {
				t.Errorf("hooks %+v", v.Hooks)
			}
		}))
	}
}

// endless is a termination with a hook whose timeout is unknown: an event named it.
func endless() Notice {
	n := terminate()
	n.Hook.Timeout = 0
	return n
}

// A record that cannot be read is kept and read again. Meanwhile the operator can drain the node, and the cloud can terminate it.
func TestUnreadableRecord(t *testing.T) {
	for _, tt := range []struct {
		name      string
		meanwhile func(t *testing.T, l *life)
		kinds     []Kind // of the notices at the end
	}{
		{"nothing", func(*testing.T, *life) {}, []Kind{Terminate}},
		{"the cloud repeats it", func(_ *testing.T, l *life) { l.Notice(terminate()) }, []Kind{Terminate}},
		{"a new drain", func(t *testing.T, l *life) { must.OK(t, l.Drain(DrainRequest{Who: "root"})) }, []Kind{Terminate, Ask}},
		{"an undrain", func(t *testing.T, l *life) { must.OK(t, l.Undrain("root", cluster.StateDraining)) }, nil},
	} {
		t.Run(tt.name, alive(1, func(t *testing.T, w *world, l *life) {
			l.Notice(terminate())
			tick(time.Minute)
			l.kill()
			before, file := l.View(), slices.Clone(w.file)
			w.set(func(w *world) { w.readErr = errors.New("input/output error") })
			l = w.live()
			tick(time.Second)
			tt.meanwhile(t, l)
			tick(time.Minute)
			if v := l.View(); v.Trouble["record"] == "" || !bytes.Equal(w.file, file) {
				t.Errorf("trouble %v, file %s", v.Trouble, w.file)
			}
			w.set(func(w *world) { w.readErr = nil })
			tick(11 * time.Second)
			v := l.View()
			var kinds []Kind
			for _, n := range v.Notices {
				kinds = append(kinds, n.Kind)
			}
			if !slices.Equal(kinds, tt.kinds) || v.Ready != (kinds == nil) || len(v.Trouble) > 0 {
				t.Errorf("%s, ready %v, notices %v, trouble %v", v.State, v.Ready, v.Notices, v.Trouble)
			}
			if tt.name == "nothing" && (!v.Begun.Equal(before.Begun) || !v.Deadline.Equal(before.Deadline)) {
				t.Errorf("begun %s, deadline %s; before %s, %s", v.Begun, v.Deadline, before.Begun, before.Deadline)
			}
			if tick(time.Minute); w.record != cluster.State(l.View().State) {
				t.Errorf("record %s, state %s", w.record, l.View().State)
			}
		}))
	}
}

// A damaged record is set aside, in one copy, before anything replaces it. One of another release is kept
// until a reboot.
func TestDamagedRecordIsSetAside(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.file, w.diskErr = []byte("damaged"), errors.New("no space left on device")
		l := w.live()
		tick(time.Minute)
		if v := l.View(); v.Trouble["record"] == "" || string(w.file) != "damaged" {
			t.Errorf("trouble %v, file %q", v.Trouble, w.file)
		}
		w.set(func(w *world) { w.diskErr = nil })
		tick(11 * time.Second)
		if v := l.View(); len(v.Trouble) > 0 || w.file != nil || string(w.aside) != "damaged" {
			t.Errorf("trouble %v, file %q, aside %q", v.Trouble, w.file, w.aside)
		}
		must.Equal(t, "warnings", w.logged("level=WARN"), 2)
		l.kill()
		w.set(func(w *world) { w.file = []byte(`{"version": 3, "boot": "boot-1", "step": "draining"}`) })
		l = w.live()
		must.OK(t, l.Drain(DrainRequest{Who: "root"}))
		tick(time.Minute)
		if v := l.View(); v.Trouble["record"] == "" || !strings.Contains(string(w.file), `"version": 3`) || v.Step != StepDone {
			t.Errorf("step %s, trouble %v, file %s", v.Step, v.Trouble, w.file)
		}
		l.kill()
		w.boot = "boot-2"
		l = w.live()
		tick(time.Minute)
		if v := l.View(); len(v.Trouble) > 0 || !strings.Contains(string(w.aside), `"version": 3`) {
			t.Errorf("after a reboot: trouble %v, aside %q", v.Trouble, w.aside)
		}
	})
}

func FuzzRecord(f *testing.F) {
	d := document{Boot: "boot-1", state: state{
		Phase: StepDraining, Began: 1, Want: cluster.StateDraining,
		Notices: []notice{{Notice: Notice{ID: "aws-lifecycle/terminate", Kind: Terminate}, Received: 1}},
		Hooks:   []hook{{Hook: *terminate().Hook, Since: 1}},
	}}
	data, err := d.encode()
	must.OK(f, err)
	f.Add(data)
	f.Add([]byte(`{"version":2,"step":"done","began":1,"notices":[{"id":"x","kind":"park"}],"hooks":[{}],"start":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := newWorld(t)
		w.file = bytes.Clone(data)
		m := NewRunner(w.options())
		v := m.View()
		if _, err := json.Marshal(v); err != nil && !strings.Contains(err.Error(), "year outside") {
			t.Errorf("%v", err)
		}
		must.OK(t, m.observe(reported("aws-lifecycle", ofGroup(Terminate))))
		if m.View().Ready && len(m.View().Dismissed) == 0 {
			t.Errorf("ready after a notice; before: %+v", v)
		}
	})
}

// A machine with a copy of the disk of a terminated machine serves.
func TestDrainOfAnotherMachine(t *testing.T) {
	for hardware, ready := range map[string]bool{"copy": true, "old": false, "": false} {
		bubble(t, 1, func(t *testing.T, w *world) {
			l := w.live(func(o *Options) { o.Hardware = "old" })
			l.Notice(terminate())
			l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
			l.kill()
			w.set(func(w *world) { w.boot, w.viewers = "boot-2", p(0) })
			l = w.live(func(o *Options) { o.Hardware = hardware })
			tick(time.Minute)
			if v := l.View(); v.Ready != ready || (w.stops == 0) != ready {
				t.Errorf("%q: %d stops, %+v", hardware, w.stops, v)
			}
		})
	}
}
