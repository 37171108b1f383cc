// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// op is a call to the cloud.
type op string

const (
	opDiscover op = "discover"
	opBeat     op = "heartbeat"
	opContinue op = "continue"
)

// world is a machine, its cluster and its cloud: fakes that fail as the test sets them.
type world struct {
	t     *testing.T
	mu    sync.Mutex
	log   []entry       // the calls
	lines locked.Buffer // of the agent's log

	// The machine.
	publishers, viewers *int
	peers               *int              // connections of other nodes
	countedBy           cluster.CountedBy // "" means by AMS
	publishersBy        cluster.CountedBy
	countErr            error
	countHang           bool
	countTime           time.Duration
	running, joined     bool
	joinedAt            time.Time
	stopTime            time.Duration
	stopErr, startErr   error
	stops               int
	cutAt               time.Time // when AMS was stopped with sessions
	cut                 int
	boot                string
	born                time.Time

	// The registry.
	record      cluster.State
	reason      string
	stopFailed  bool
	mongoErr    error
	mongoHang   bool
	mongoTime   time.Duration
	tombs       []Departure
	registerErr func(cluster.State) error
	events      []cluster.Event

	// The cloud.
	hook      *Hook         // of the group, and of this agent unless there are others
	foreign   *Hook         // of the group, and of another program
	named     []Hook        // the hooks that notices have named: the group has them, too
	extends   time.Duration // how long a hook waits after a heartbeat; 0 means its own timeout
	waitsFrom time.Time
	gone      bool
	cloudErr  func(op) error
	cloudHang bool
	cloudTime time.Duration
	beats     []time.Time
	completed []string // names with results
	proveErr  error
	proveHang bool

	current map[string][]cloud.Notice // in the metadata, by topic
	sky     sky                       // which is read each second

	// The disk.
	file      []byte
	aside     []byte // the copy of a damaged file
	diskErr   error
	readErr   error
	snapshots [][]byte
	onWrite   func([]byte)
}

type entry struct {
	at   time.Time
	what string
}

func newWorld(t *testing.T) *world {
	return &world{t: t, publishers: p(0), viewers: p(0), running: true, joined: true, record: cluster.StateActive, boot: "boot-1", born: time.Now(), current: map[string][]cloud.Notice{}}
}

func (w *world) set(change func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

func (w *world) did(what string) { w.log = append(w.log, entry{time.Now(), what}) }

func (w *world) times(what string) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var times []time.Time
	for _, e := range w.log {
		if e.what == what {
			times = append(times, e.at)
		}
	}
	return times
}

// logged counts a text in the agent's log.
func (w *world) logged(text string) int { return strings.Count(w.lines.String(), text) }

// order returns the calls, without consecutive repetitions.
func (w *world) order() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, e := range w.log {
		list = append(list, e.what)
	}
	return strings.Join(slices.Compact(list), " ")
}

// sinceStop returns the calls from the stop of the server on.
func (w *world) sinceStop() string {
	_, after, _ := strings.Cut(w.order(), "stop")
	return "stop" + after
}

func hold(ctx context.Context, d time.Duration, forever bool) error {
	if forever {
		<-ctx.Done()
	} else if d > 0 {
		sleep.For(ctx, d)
	}
	return ctx.Err()
}

func (w *world) SetState(ctx context.Context, s cluster.State, reason string, stopFailed bool) error {
	touch()
	w.mu.Lock()
	d, hang := w.mongoTime, w.mongoHang
	w.mu.Unlock()
	if err := hold(ctx, d, hang); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mongoErr != nil {
		return w.mongoErr
	}
	if w.registerErr != nil {
		if err := w.registerErr(s); err != nil {
			return err
		}
	}
	if !w.record.CanTransition(s) {
		return &cluster.TransitionError{ID: "i-1", From: w.record, To: s}
	}
	w.record, w.reason, w.stopFailed = s, reason, stopFailed
	w.did("record:" + string(s))
	return nil
}

func (w *world) Sessions(ctx context.Context) (cluster.Sessions, error) {
	touch()
	w.mu.Lock()
	d, hang := w.countTime, w.countHang
	w.mu.Unlock()
	if err := hold(ctx, d, hang); err != nil {
		return cluster.Sessions{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.countErr != nil {
		return cluster.Sessions{}, w.countErr
	}
	by := cluster.CountedByAMS
	if w.countedBy != "" {
		by = w.countedBy
	}
	return cluster.Sessions{Publishers: num(w.publishers), Viewers: num(w.viewers), By: by, PublishersBy: w.publishersBy, Peers: num(w.peers)}, nil
}

func num(p *int) *int {
	if p == nil {
		return nil
	}
	n := *p
	return &n
}

func (w *world) StopServer(ctx context.Context) error {
	touch()
	w.mu.Lock()
	if w.running {
		if n, _ := (cluster.Sessions{Publishers: w.publishers, Viewers: w.viewers}).Total(); n > 0 {
			w.cut, w.cutAt = w.cut+n, time.Now()
			noPublishers, noViewers := 0, 0
			w.publishers, w.viewers = &noPublishers, &noViewers
		}
	}
	d := w.stopTime
	w.did("stop")
	w.mu.Unlock()
	if err := hold(ctx, d, false); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopErr != nil {
		return w.stopErr
	}
	w.running = false
	w.stops++
	return nil
}

func (w *world) StartServer(context.Context) error {
	touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did("start")
	if w.startErr != nil {
		return w.startErr
	}
	w.running = true
	return nil
}

func (w *world) Deregister(ctx context.Context, tomb Departure) error {
	touch()
	w.mu.Lock()
	d, hang := w.mongoTime, w.mongoHang
	w.did("deregister?")
	w.mu.Unlock()
	if err := hold(ctx, d, hang); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mongoErr != nil {
		return w.mongoErr
	}
	w.record = cluster.StateLeft
	w.tombs = append(w.tombs, tomb)
	w.did("record:left")
	return nil
}

func (w *world) Joined() bool {
	touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.joined
}

func (w *world) JoinedAt() time.Time {
	touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.joinedAt
}

// rejoin is a join by the operator that succeeds, with a stopped server.
func (w *world) rejoin() {
	w.set(func(w *world) { w.running, w.joinedAt = true, time.Now().Truncate(time.Second) })
}

func (w *world) cloud(ctx context.Context, o op) error {
	touch()
	w.mu.Lock()
	d, hang := w.cloudTime, w.cloudHang
	w.mu.Unlock()
	if err := hold(ctx, d, hang); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cloudErr != nil {
		return w.cloudErr(o)
	}
	return nil
}

// failing is a cloud whose calls fail: all, or only some.
func failing(err error, ops ...op) func(op) error {
	return func(o op) error {
		if len(ops) == 0 || slices.Contains(ops, o) {
			return err
		}
		return nil
	}
}

// Pending lists all hooks of the group, whether or not they wait, as AWS does.
func (w *world) Pending(ctx context.Context, launching bool) ([]Hook, error) {
	touch()
	if err := w.cloud(ctx, opDiscover); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(w.named)
	for _, h := range []*Hook{w.hook, w.foreign} {
		if h != nil && !slices.ContainsFunc(all, func(known Hook) bool { return isHook(known, *h) }) {
			all = append(all, *h)
		}
	}
	return slices.DeleteFunc(all, func(h Hook) bool { return h.Launching != launching }), nil
}

// isHook compares hooks, of which a cloud may not name the group or the id.
func isHook(a, b Hook) bool {
	return a.Provider == b.Provider && a.Launching == b.Launching && (a.Group == b.Group || a.ID != "") && cmp.Or(a.ID, a.Name) == cmp.Or(b.ID, b.Name)
}

func (w *world) state() error {
	switch {
	case w.gone:
		return cloud.ErrGone
	case time.Now().Before(w.waitsFrom):
		return cloud.ErrNotWaiting
	}
	return nil
}

func (w *world) Extend(ctx context.Context, h Hook) (time.Duration, error) {
	touch()
	w.mine(h)
	if err := w.cloud(ctx, opBeat); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.state(); err != nil {
		return 0, err
	}
	w.beats = append(w.beats, time.Now())
	w.did("beat")
	return cmp.Or(w.extends, time.Duration(h.Timeout)), nil
}

// mine fails the test if the hook belongs to another program.
func (w *world) mine(h Hook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.foreign != nil && isHook(*w.foreign, h) {
		w.t.Errorf("the agent calls hook %s of another program", h.Name)
	}
}

func (w *world) Complete(ctx context.Context, h Hook) error {
	touch()
	w.mine(h)
	w.set(func(w *world) { w.did("complete?") })
	if err := w.cloud(ctx, opContinue); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.state(); err != nil {
		return err
	}
	w.completed = append(w.completed, h.Name+" CONTINUE")
	w.gone = true // an action is completed once
	w.did("complete")
	return nil
}

// Read, WriteFile and RemoveFile are the disk.
func (w *world) Read(string) (conf.File, error) {
	touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	return conf.File{Bytes: slices.Clone(w.file)}, w.readErr
}

func (w *world) WriteFile(path string, data []byte, mode, _ fs.FileMode) error {
	touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.diskErr != nil {
		return w.diskErr
	}
	if path != RecordPath {
		w.aside = slices.Clone(data)
		return nil
	}
	must.Equal(w.t, "drain.json is written with mode", mode, 0o600)
	w.file = slices.Clone(data)
	w.snapshots = append(w.snapshots, w.file)
	if w.onWrite != nil {
		w.onWrite(w.file)
	}
	return nil
}

// isIdle reports whether the file has nothing to continue. It may name hooks that were used.
func (w *world) isIdle() bool {
	var d struct {
		Step               Step
		Notices, Overruled []any
		Start              any
		Want, Have         cluster.State
		Forgotten          bool
	}
	if len(w.file) > 0 && json.Unmarshal(w.file, &d) != nil {
		return false
	}
	return d.Step == StepNone && len(d.Notices)+len(d.Overruled) == 0 && d.Start == nil && d.Want == d.Have && !d.Forgotten
}

func (w *world) RemoveFile(string) error {
	touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.diskErr != nil {
		return w.diskErr
	}
	w.file = nil
	return nil
}

func (w *world) options() Options {
	return Options{
		Node: w, Files: w, Hooks: w, Watcher: &w.sky, Peers: noPeers{}, Log: slog.New(slog.NewTextHandler(&w.lines, nil)),
		Role:      func() string { return "" },
		Before:    noCount,
		Deadline:  fixed(DefaultDeadline),
		StopTime:  usualStop,
		Filter:    noNames,
		Balancers: func(context.Context) []string { return nil },
		Event: func(_ context.Context, e cluster.Event) error {
			touch()
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.mongoErr != nil {
				return w.mongoErr
			}
			w.events = append(w.events, e)
			return nil
		},
		Uptime: func() (string, time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.boot, time.Hour + time.Since(w.born)
		},
		Prove: func(ctx context.Context) error {
			touch()
			w.mu.Lock()
			err, hang := w.proveErr, w.proveHang
			w.did("prove")
			w.mu.Unlock()
			if hang {
				<-ctx.Done()
				return ctx.Err()
			}
			return err
		},
	}
}

// life is one run of a runner.
type life struct {
	*Runner
	t      *testing.T
	w      *world
	ear    ear
	cancel context.CancelFunc
	ended  chan struct{}
}

// ear lets the test report what the cloud announces, beside another watcher.
type ear struct {
	cloud.Watcher

	report chan cloud.Report
}

func (e ear) Watch(ctx context.Context, report cloud.Report) {
	e.report <- report
	e.Watcher.Watch(ctx, report)
}

// live starts a daemon, which ends with the test or before.
func (w *world) live(change ...func(*Options)) *life {
	w.t.Helper()
	o := w.options()
	for _, c := range change {
		c(&o)
	}
	e := ear{o.Watcher, make(chan cloud.Report, 1)}
	o.Watcher = e
	m := NewRunner(o)
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{Runner: m, t: w.t, w: w, ear: e, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		m.Run(ctx)
	}()
	w.t.Cleanup(l.kill)
	return l
}

// Notice reports a notice as its source does: the metadata reports all notices in force each time, an event comes once. The
// group also gets a hook that the notice names, unless the hook cannot be extended.
func (l *life) Notice(n Notice) {
	if h := n.Hook; h != nil && !h.Fixed {
		l.w.set(func(w *world) {
			if !slices.ContainsFunc(w.named, func(known Hook) bool { return isHook(known, *h) }) {
				w.named = append(w.named, *h)
			}
		})
	}
	if n.ID = cmp.Or(n.ID, string(n.Kind)); !strings.Contains(n.ID, "/") && n.Kind != Shutdown {
		n.ID = cmp.Or(n.Source, "cloud") + "/" + n.ID
	}
	topic, _, _ := strings.Cut(n.ID, "/")
	switch {
	case n.Kind == Ask:
		l.Drain(DrainRequest{Reason: n.Reason, Who: n.Who})
	case n.Kind == withdrawn, n.Kind == Resume && n.Source != "event":
		current := l.w.reports(topic, func(c cloud.Notice) bool { return n.Kind == withdrawn && c.ID != n.ID })
		for range reportsUntilGone {
			l.report(topic, current)
		}
	case n.Kind == Shutdown, n.Kind == Launch, n.Source == "event":
		l.Runner.Notice(n)
	default:
		c := cloud.Notice{ID: n.ID, Kind: n.Kind, Reason: n.Reason, Who: n.Who, At: n.Deadline, Hook: n.Hook}
		l.report(topic, l.w.reports(topic, func(c cloud.Notice) bool { return c.ID != n.ID }, c))
	}
}

// event is a notice that the group sent to the operator's queue at that time.
func (l *life) event(kind Kind, at time.Time) {
	e := cloud.Event{InstanceID: "i-1", Kind: kind, Hook: Hook{Provider: "aws"}, Time: at}
	l.Notice(EventNotice(e, time.Now()))
}

// reports changes the notices in the metadata for a topic.
func (w *world) reports(topic string, keep func(cloud.Notice) bool, more ...cloud.Notice) []cloud.Notice {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.current[topic] {
		if keep(c) {
			more = append([]cloud.Notice{c}, more...)
		}
	}
	w.current[topic] = more
	return slices.Clone(more)
}

// withdrawn removes a notice from the metadata, which must lack it in [reportsUntilGone] reports.
const withdrawn Kind = "withdrawn"

const reportsUntilGone = 3

// kill ends a life like kill -9, without a notice to the agent.
func (l *life) kill() {
	l.cancel()
	<-l.ended
}

// until waits for a condition, by the clock of the bubble, and returns how long it took.
func (l *life) until(what string, most time.Duration, cond func(View) bool) time.Duration {
	l.t.Helper()
	began := time.Now()
	for !cond(l.View()) {
		if time.Since(began) > most {
			v := l.View()
			l.t.Fatalf("after %s it is not so: %s; state %s step %s trouble %v notes %v", most, what, v.State, v.Step, v.Trouble, v.Notes)
		}
		touch()
		<-time.After(10 * time.Millisecond)
	}
	defer synctest.Wait()
	return time.Since(began)
}

// between reports a time outside its bounds.
func between(t *testing.T, what string, took, least, most time.Duration) {
	t.Helper()
	if took < least || took > most {
		t.Errorf("%s: %s, want %s to %s", what, took, least, most)
	}
}

// edge shows the race detector that tests read a world only while no goroutine writes it. The clock of the bubble ensures that.
var edge sync.Mutex

func touch() {
	edge.Lock()
	defer edge.Unlock()
}

func tick(d time.Duration) {
	touch()
	<-time.After(d)
	synctest.Wait()
}

func isDone(v View) bool { return v.Step == StepDone }

// fixed is a deadline that never changes.
func fixed(d time.Duration) func() (time.Duration, bool) {
	return func() (time.Duration, bool) { return d, true }
}

// bubble runs a test of a machine with viewers in a bubble of fake time.
func bubble(t *testing.T, viewers int, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.viewers = &viewers
		f(t, w)
	})
}

// living is bubble with a daemon on the machine.
func living(t *testing.T, viewers int, f func(t *testing.T, w *world, l *life)) {
	t.Helper()
	bubble(t, viewers, func(t *testing.T, w *world) { f(t, w, w.live()) })
}

// inBubble is bubble for a subtest, alive is living for one.
func inBubble(viewers int, f func(t *testing.T, w *world)) func(*testing.T) {
	return func(t *testing.T) { bubble(t, viewers, f) }
}

func alive(viewers int, f func(t *testing.T, w *world, l *life)) func(*testing.T) {
	return func(t *testing.T) { living(t, viewers, f) }
}

func terminate() Notice {
	return Notice{
		ID: "aws-lifecycle/terminate", Source: "aws-lifecycle", Kind: Terminate, Reason: "scale-in",
		Hook: &Hook{Provider: "aws", Group: "edge", Name: "drain", Timeout: seconds.Duration(10 * time.Minute)},
	}
}

// unhooked returns a notice without its hook, which the agent must ask for.
func unhooked(n Notice) Notice {
	n.Hook = nil
	return n
}

func spot(in time.Duration) Notice {
	return Notice{ID: "aws-spot/interrupt", Source: "aws-spot", Kind: Interrupt, Reason: "spot interruption", Deadline: time.Now().Add(in)}
}

var errMongo = errors.New("server selection timed out")

func p(n int) *int { return &n }

func usualStop() time.Duration { return 0 }

func noNames() cloud.Filter { return nil }

// noCount: there was no count before the drain.
func noCount() (cluster.Sessions, time.Time) { return cluster.Sessions{}, time.Time{} }

// report is what the cloud's watcher reports of a topic.
func (l *life) report(topic string, current []cloud.Notice) {
	report := <-l.ear.report
	l.ear.report <- report
	report(topic, current)
}

// noPeers cannot be asked.
type noPeers struct{}

func (noPeers) Serving(context.Context, []string) ([]string, error) { return nil, errMongo }
