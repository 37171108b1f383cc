// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Settings may change while the daemon runs, except Interval.
type Settings struct {
	Interval time.Duration
	// AutoJoin joins a machine that never joined, once MongoDB's address is known.
	AutoJoin    bool
	JoinTimeout time.Duration
	// JoinRequest lacks the fields that the daemon sets.
	bootstrap.JoinRequest
	// UnhealthyAfter is how long the machine may fail to serve before /healthz reports it; 0 means forever.
	UnhealthyAfter time.Duration
	// NoRemoteDrain refuses drains that other machines request in the registry.
	NoRemoteDrain bool
	// Wrong is the settings file's fault and what applies instead, or "". With one, no machine joins by itself.
	Wrong string
}

// Machine is the used part of bootstrap's machine.
type Machine interface {
	Converge(context.Context, bootstrap.ConvergeRequest) (*bootstrap.Convergence, error)
	Join(context.Context, bootstrap.JoinRequest) (*bootstrap.JoinResult, error)
	Prove(ctx context.Context, client *cluster.Client, address string) (*bootstrap.Evidence, error)
	StateFile() (*bootstrap.State, error)
	// EnteredBefore reports whether the cluster has seen this instance; Entered records that.
	EnteredBefore(instance string) bool
	Entered(instance string) error
	StopServer(context.Context) (stoppedAt time.Time, err error)
	StartServer(context.Context) error
	Depart(ctx context.Context, client *cluster.Client, d bootstrap.Departure) (bootstrap.Departed, error)
}

// Options configure a Daemon.
type Options struct {
	Machine Machine
	// Reread reads the files of Settings again.
	Settings func() Settings
	Reread   func() error
	// Outdated reports whether these options need a new daemon; nil means never. It is called before each session, and
	// [Daemon.Run] then returns [ErrOutdated].
	Outdated func() bool
	// Mongo may return ErrNoMongo.
	Mongo func(context.Context) (Named, error)
	// Connect returns a session's client.
	Connect  func(context.Context, cluster.Target) (*cluster.Client, error)
	Identify func(context.Context) (metadata.Instance, error)
	// Sampler creates the sampler. client returns nil between sessions; node has the last known address and role.
	Sampler func(client func() *cluster.Client, node func() cluster.Node) Sampler
	Server  serverProbe
	// Lifecycle lacks the fields that the daemon sets.
	Lifecycle lifecycle.Options
	// Stopping reports whether the machine shuts down, and the deadline with its source. Nil means never.
	Stopping func(context.Context) (deadline time.Time, by string, down bool)
	// Notes are hints on this machine's cloud and tags; may be nil.
	Notes func() []string
	// Notify reports to the service manager; not nil.
	Notify func(state string)
	// Redact removes secrets from a text that every user may read; not nil.
	Redact func(string) string
	// Watchdog is the service manager's limit; 0 means none.
	Watchdog time.Duration
	Reload   <-chan struct{}
	// Metrics is the host:port of /metrics, /readyz and /healthz, or "".
	Metrics string
	// AgentCheck is the host:port for HAProxy's agent checks, or "".
	AgentCheck string
	// AgentCheckKept keeps the clients of the agent check until the machine's boot ends.
	AgentCheckKept lb.Store
	// Control and Lock are paths: of the control socket and the lock file.
	Control, Lock string
	Periods       Periods
	Version       string
	Log           *slog.Logger
}

// Sampler samples the machine.
type Sampler interface {
	Sample(context.Context) heartbeat.Sample
	// Sessions counts this node's sessions now.
	Sessions(context.Context) (cluster.Sessions, error)
	// Run does background work until ctx ends.
	Run(context.Context)
}

// ErrOutdated means that a new daemon is needed.
var ErrOutdated = errors.New("the settings are other ones")

// Named is a configured MongoDB.
type Named struct {
	cluster.Target
	// Stored: it comes from [bootstrap.MongoPath].
	Stored bool
}

// ErrNoMongo means that no MongoDB address is known.
var ErrNoMongo = errors.New("no MongoDB address is known")

// Periods are those of the daemon's intervals and waits that tests shorten; zero means the default.
type Periods struct {
	// State is how often the state file is read, for a join or leave by hand. Twice a second would be half of the daemon's
	// cost.
	State time.Duration
	// Retry and MostRetry bound pauses after failures.
	Retry, MostRetry time.Duration
	// Drift is how often the files are compared with the join: an upgrade of AMS may restore old ones.
	Drift time.Duration
	// Document is how often AMS's document is read, by two queries.
	Document time.Duration
	// Stop bounds the wait for a hanging loop. Closing the client of an unreachable MongoDB needs up to 2 s.
	Stop time.Duration
}

func (p Periods) withDefaults() Periods {
	return Periods{
		State: cmp.Or(p.State, 2*time.Second), Retry: cmp.Or(p.Retry, 2*time.Second), MostRetry: cmp.Or(p.MostRetry, time.Minute),
		Drift: cmp.Or(p.Drift, time.Minute), Document: cmp.Or(p.Document, 15*time.Second), Stop: cmp.Or(p.Stop, 5*time.Second),
	}
}

const (
	// convergeTime bounds a convergence: silent metadata must not stop heartbeats.
	convergeTime = time.Minute
	// askTime bounds the identity request before a session's first heartbeat. The state file has the identity, too, and the
	// next convergence waits longer.
	askTime = 2 * time.Second
	// firstRejoin is the pause after a failed join that restarted AMS, nextRejoin each later one.
	firstRejoin = 15 * time.Second
	nextRejoin  = time.Hour
	// idlePause is the pause of a machine that is no node. Without a MongoDB address it reads the instance's tags each time.
	idlePause = 15 * time.Second
	// proveTime bounds a wait for AMS; the next one checks the service again.
	proveTime = time.Minute
	// portPause is the retry interval for a port in use.
	portPause = 3 * time.Second
)

// Daemon is a running agent.
type Daemon struct {
	o        Options
	log      *slog.Logger
	view     *view
	once     sync.Once     // logs missing TTL indexes once
	interval time.Duration // between heartbeats

	member atomic.Pointer[member] // of the session; nil between sessions
	// self is this node as the last convergence found it; nil while that is not known.
	self atomic.Pointer[cluster.Node]

	mu sync.Mutex
	// own is the state file as known to the daemon.
	own *bootstrap.State
	// steps counts the steps in progress, which may write that file; joining: one is a join.
	steps   int
	joining bool
	reread  bool
	// again triggers a check of the state file.
	again   chan struct{}
	beatNow chan struct{}
	check   *lb.AgentCheck
	sampler Sampler
	life    *life // of Run
	// phaseChanged triggers a check of the server.
	phaseChanged chan struct{}

	// For the goroutine of follow only:
	left    bool   // by hand, while the daemon ran
	drifted string // last logged
	// restarted: the session's join failed and had restarted the server.
	restarted bool
}

// New prepares a daemon.
func New(o Options) *Daemon {
	o.Periods = o.Periods.withDefaults()
	settings := o.Settings()
	d := &Daemon{
		o: o, log: o.Log, view: newView(o.Version), interval: settings.Interval,
		again: make(chan struct{}, 1), beatNow: make(chan struct{}, 1), phaseChanged: make(chan struct{}, 1),
	}
	d.check = &lb.AgentCheck{State: d.nodeState, Kept: o.AgentCheckKept, Now: time.Now, Log: o.Log}
	d.view.notes, d.view.v.SettingsError = o.Notes, settings.Wrong
	d.own, _ = o.Machine.StateFile() // nil if damaged
	if d.own != nil {
		d.view.v.Role = d.own.Role // until the first session
	}
	client := func() *cluster.Client {
		if m := d.member.Load(); m != nil {
			return m.client
		}
		return nil
	}
	d.sampler = o.Sampler(client, func() cluster.Node {
		v := d.view.get()
		return cluster.Node{IP: v.Address, Role: v.Role}
	})
	return d
}

// Run serves until ctx ends; then it returns nil, for stopping is not leaving. It returns [ErrRunning] or [ErrOutdated].
func (d *Daemon) Run(ctx context.Context) error {
	release, err := lockFile(d.o.Lock)
	if err != nil {
		return err
	}
	defer release()
	d.life = newLife(d)
	control, unheard := listenUnix(ctx, d.o.Control, func(err error) {
		if err != nil {
			d.log.Error("the control socket does not answer", "error", err)
		}
	})
	if unheard != nil { // heartbeats matter more
		d.log.Error("no control socket: `amsagent status` cannot ask this daemon", "error", unheard)
	}
	var work sync.WaitGroup
	asked := ctx
	// A shutdown drains before the work ends.
	ctx, cancel := context.WithCancel(context.WithoutCancel(asked))
	defer cancel()
	bound, tried := context.WithCancel(ctx)
	work.Go(func() { d.serveMetrics(ctx, tried) })
	<-bound.Done()
	// Before AMS and MongoDB, which may take long: booting may continue.
	d.o.Notify(d.ready())
	d.status()
	work.Go(func() { d.life.run(ctx) })
	work.Go(func() { d.sampler.Run(ctx) })
	work.Go(func() { d.followServer(ctx) })
	outdated := make(chan struct{})
	work.Go(func() {
		if d.follow(ctx) {
			close(outdated)
		}
	})
	if unheard == nil {
		work.Go(func() { d.serveHTTP(ctx, control, d.controlHandler(), commandTime) })
	}
	work.Go(func() { d.agentCheck(ctx) })
	select {
	case <-asked.Done():
		d.o.Notify("STOPPING=1")
		d.life.shutdown(ctx)
	case <-outdated: // the process stays
		err = ErrOutdated
	}
	cancel()
	ended := make(chan struct{})
	go func() {
		work.Wait()
		close(ended)
	}()
	d.await(ended)
	return err
}

// await gives up on a hanging loop, which must not block a shutdown, but not on a join that is being undone: that has a
// bound.
func (d *Daemon) await(ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-time.After(d.o.Periods.Stop):
		}
		if !d.stepping() {
			d.log.Error("something hangs; it is not waited for")
			return
		}
	}
}

// reload lets a new session use the settings.
func (d *Daemon) reload() {
	d.o.Notify(reloading())
	if d.readSettings() {
		d.log.Info("settings read again")
		d.mu.Lock()
		d.reread = true
		d.mu.Unlock()
	}
	d.o.Notify(d.ready())
	d.status()
}

// follow runs sessions, each until the state file or the settings change. It returns true if a new daemon is needed.
func (d *Daemon) follow(ctx context.Context) (outdated bool) {
	p := d.o.Periods
	retry, rejoin := p.Retry, firstRejoin
	var said throttle
	for ctx.Err() == nil {
		d.begin()
		if d.outdated() {
			return true
		}
		session, end := context.WithCancel(ctx)
		var watcher sync.WaitGroup
		watcher.Go(func() { d.watch(session, end) })
		d.restarted = false
		err := d.session(session)
		if err == nil || session.Err() != nil {
			retry, rejoin, said.text = p.Retry, firstRejoin, ""
		} else {
			again := retry
			if retry = min(2*retry, p.MostRetry); d.restarted {
				// A join that was undone restarted AMS twice: viewers are cut once an hour at most.
				again, rejoin = rejoin, nextRejoin
				err = fmt.Errorf("%w; it restarted the server, so the next try is at %s, or at once by `amsagent join` or `systemctl reload amsagent`",
					err, time.Now().Add(again).Format(time.TimeOnly))
			}
			d.trouble(err)
			if d.restarted || said.allows(err.Error(), time.Now()) {
				d.log.Error("it is tried again", "error", err, "in", again.String())
			}
			// A join or leave by hand ends this wait.
			d.beside(session, func() {
				if !sleep.For(session, again) {
					retry, rejoin = p.Retry, firstRejoin
				}
			})
		}
		end()
		watcher.Wait()
	}
	return false
}

// outdated does not interrupt a step, for example of a drain.
func (d *Daemon) outdated() bool {
	if d.o.Outdated == nil || !d.o.Outdated() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reread = d.steps > 0 // end the session after the step
	return !d.reread
}

func (d *Daemon) begin() {
	s, err := d.o.Machine.StateFile()
	d.mu.Lock()
	was := d.own
	d.reread = false
	if err == nil { // the convergence handles a damaged file
		d.own = s
	}
	d.mu.Unlock()
	if err != nil || s.Equal(was) {
		return
	}
	d.readSettings() // the other process's join used the current settings file
	if was == nil || s != nil && s.Phase == was.Phase && s.Since.Equal(was.Since) {
		return // no join or leave by hand
	}
	// After one, a finished drain is forgotten.
	if err := d.life.manager.Forget(s != nil && s.Phase == bootstrap.PhaseJoining); err != nil {
		d.log.Info("the present drain continues", "reason", err)
	}
}

func (d *Daemon) readSettings() (ok bool) {
	err := d.o.Reread()
	wrong := d.o.Settings().Wrong
	if err != nil {
		d.log.Error("rereading the settings failed, the old ones stay", "error", err)
		wrong = err.Error() + "; the settings from before stay"
	}
	d.view.change(func(v *View) { v.SettingsError = wrong })
	if err != nil {
		return false
	}
	d.life.manager.Reconsider()
	return true
}

// watch ends a session after a join or leave by hand, with new settings, and when a drain makes this node leave or resume.
func (d *Daemon) watch(ctx context.Context, end func()) {
	for gone := d.life.isGone(); !d.changed(gone); {
		select {
		case <-ctx.Done():
			return
		case <-time.After(cloud.UntilTick(d.o.Periods.State)):
		case <-d.again:
		case <-d.o.Reload:
			d.reload()
		}
	}
	end()
}

// changed reports whether the session must end; gone is what it began with. A join or leave by hand and a drain interrupt a
// step, new settings do not.
func (d *Daemon) changed(gone bool) bool {
	if m := d.member.Load(); d.life.isGone() != gone || m != nil && m.gone.Load() {
		return true
	}
	s, err := d.o.Machine.StateFile() // without the lock: a disk may hang
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reread && d.steps == 0 || err == nil && !s.Equal(d.own) && !d.wrote(s)
}

// wrote reports whether a step in progress may have written s. A convergence or a restart of AMS keeps the time of the join:
// another time is a join by hand, for which the step waited. d.mu is held.
func (d *Daemon) wrote(s *bootstrap.State) bool {
	return d.joining || d.steps > 0 && d.own != nil && s != nil && s.Phase == bootstrap.PhaseJoined && s.Since.Equal(d.own.Since)
}

// step runs do, which may write the state file. Other changes of the file are another process's.
func (d *Daemon) step(join bool, do func() error) error {
	d.mu.Lock()
	d.steps++
	d.joining = d.joining || join
	d.mu.Unlock()
	err := do()
	s, unread := d.o.Machine.StateFile()
	d.mu.Lock()
	defer d.mu.Unlock()
	if unread == nil && d.wrote(s) {
		d.own = s
	}
	d.steps--
	d.joining = d.joining && !join
	return err
}

func (d *Daemon) stepping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps > 0
}

// beside runs do next to a loop that only samples: the watchdog, health and metrics need it.
func (d *Daemon) beside(ctx context.Context, do func()) {
	ctx, cancel := context.WithCancel(ctx)
	var loop sync.WaitGroup
	loop.Go(func() { d.loop(nil).Run(ctx) })
	defer loop.Wait()
	defer cancel()
	do()
}

// poke wakes the reader of c, at once or when it reads the next time.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (d *Daemon) trouble(err error) (changed bool) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	d.view.change(func(v *View) { changed, v.Trouble = v.Trouble != text, text })
	if changed {
		d.status()
	}
	return changed
}

func (d *Daemon) status() { d.o.Notify("STATUS=" + d.o.Redact(d.view.line())) }

// report feeds the watchdog, so that a hanging loop causes a restart.
func (d *Daemon) report(r heartbeat.Report) {
	d.view.beat(r)
	d.o.Notify("WATCHDOG=1")
	d.status()
}
