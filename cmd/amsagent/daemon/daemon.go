// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
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
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Settings are what an operator may change while the daemon runs.
type Settings struct {
	// Interval is the time from beat to beat.
	Interval time.Duration
	// AutoJoin lets a machine that never joined join by itself, where it is told
	// where MongoDB is.
	AutoJoin bool
	// JoinTimeout bounds one attempt to join.
	JoinTimeout time.Duration
	Role, Group string
	Address     string
	// ForceAddress takes it although no interface has it; AddressKept tells that a join on this disk was given it.
	ForceAddress, AddressKept bool
	Valve                     bootstrap.Valve
	OnFailure                 bootstrap.OnFailure
	// UnhealthyAfter is for how long this machine may fail to serve, by a cause of
	// its own, before /healthz says so.
	UnhealthyAfter time.Duration
}

// Machine is bootstrap's machine, as far as the daemon uses it.
type Machine interface {
	Converge(context.Context, bootstrap.ConvergeRequest) (*bootstrap.Convergence, error)
	Join(context.Context, bootstrap.JoinRequest) (*bootstrap.JoinResult, error)
	Prove(ctx context.Context, client *cluster.Client, address string) (*bootstrap.Evidence, error)
	StateFile() (*bootstrap.State, error)
	// EnteredBefore reports whether this machine was seen in the cluster in this life, whoever
	// looked, and Entered notes that it was.
	EnteredBefore(instance string) bool
	Entered(instance string) error
}

// Options are what a daemon is made of.
type Options struct {
	Machine Machine
	// Settings are the effective ones, as known now; Reread reads the files of
	// settings again.
	Settings func() Settings
	Reread   func() error
	// Outdated reports whether these options were made of other settings than there are
	// now. It is asked before each session; [Daemon.Run] then ends with [ErrOutdated].
	// nil is never.
	Outdated func() bool
	// Mongo tells where the cluster's memory is, as known now; ErrNoMongo where
	// nobody told.
	Mongo func(context.Context) (Named, error)
	// Connect prepares a client for the time of a session.
	Connect func(context.Context, cluster.Target) (*cluster.Client, error)
	// Identify asks who this machine is.
	Identify func(context.Context) (metadata.Instance, error)
	// Sampler makes what looks at the machine. client is that of the session, nil between sessions; node
	// has the address and the role, as known last.
	Sampler func(client func() *cluster.Client, node func() cluster.Node) Sampler
	// Server asks the server on this machine whether viewers are served.
	Server serverProbe
	// Lifecycle is how this node goes; nil is a node that nobody can drain.
	Lifecycle *Lifecycle
	// Notes are what an operator needs to know of this machine's cloud and tags; nil is none.
	Notes func() []string
	// Notify tells the service manager; it is never nil.
	Notify func(state string)
	// Watchdog is after how long without a word the service manager ends the
	// daemon; 0 is never.
	Watchdog time.Duration
	// Reload delivers requests to read the settings again.
	Reload <-chan struct{}
	// Metrics is the address, host:port, of /metrics, /readyz and /healthz; "" for none.
	Metrics string
	// AgentCheck is the address, host:port, for the agent checks of HAProxy; "" for none.
	AgentCheck string
	// Control is the path of the control socket, Lock that of the file that
	// keeps a second daemon away.
	Control, Lock string
	// Periods replaces the usual periods that are not zero.
	Periods Periods
	Version string
	Log     *slog.Logger
}

// Sampler looks at the machine.
type Sampler interface {
	Sample(context.Context) heartbeat.Sample
	// Run looks after what the sampler keeps running, until ctx ends.
	Run(context.Context)
}

// ErrOutdated says that a daemon was made of other settings than there are now.
var ErrOutdated = errors.New("the settings are other ones")

// Named is where the cluster's memory is.
type Named struct {
	cluster.Target
	// Stored tells that the agent's own file, [bootstrap.MongoPath], says so.
	Stored bool
}

// ErrNoMongo says that no MongoDB address is configured.
var ErrNoMongo = errors.New("no MongoDB address is configured")

// Periods say how often the daemon looks at what, and how long it waits. A zero
// is the usual one.
type Periods struct {
	// State is how often the state file is looked at: a join or a leave by hand
	// is followed within this time. Twice a second would be half of what the daemon
	// costs.
	State time.Duration
	// Retry and MostRetry bound the pauses after something failed. Rejoin is the first
	// pause after a join that failed and had restarted AMS, MostRejoin each later one.
	Retry, MostRetry   time.Duration
	Rejoin, MostRejoin time.Duration
	// Idle is after what a machine that is no node looks again whether it is to
	// join. Without an address of MongoDB it reads the instance's tags each time.
	Idle time.Duration
	// Drift is how often the files are compared with what was joined with: an
	// upgrade of AMS may restore old ones at any time.
	Drift time.Duration
	// Witness is how often AMS's own word is looked at. It is a compromise: two
	// more queries for each node.
	Witness time.Duration
	// Prove is after how long the waiting for AMS is told, and begun anew with a
	// fresh look at the service.
	Prove time.Duration
	// Port is how often a metrics port that is taken is tried again.
	Port time.Duration
	// Stop is how long the end waits for a loop that hangs. To close what leads to a
	// MongoDB that is away takes up to two seconds.
	Stop time.Duration
}

func (p Periods) withDefaults() Periods {
	for _, d := range []struct {
		period *time.Duration
		usual  time.Duration
	}{
		{&p.State, 2 * time.Second},
		{&p.Retry, 2 * time.Second},
		{&p.MostRetry, time.Minute},
		{&p.Rejoin, 15 * time.Second},
		{&p.MostRejoin, time.Hour},
		{&p.Idle, 15 * time.Second},
		{&p.Drift, time.Minute},
		{&p.Witness, 15 * time.Second},
		{&p.Prove, time.Minute},
		{&p.Port, 3 * time.Second},
		{&p.Stop, 5 * time.Second},
	} {
		if *d.period <= 0 {
			*d.period = d.usual
		}
	}
	return p
}

const (
	// convergeTime bounds a convergence: metadata that does not answer must not
	// keep a node from beating.
	convergeTime = time.Minute
	// askTime bounds the question who this machine is at the beginning of a session,
	// before which nothing beats: the state file says it as well, and the next
	// convergence asks for longer.
	askTime = 2 * time.Second
)

// Daemon is one running agent.
type Daemon struct {
	o        Options
	log      *slog.Logger
	view     *view
	metrics  *metrics
	once     sync.Once    // to say what a server lacks
	interval atomic.Int64 // from beat to beat, of the settings in use

	mu     sync.Mutex
	client *cluster.Client // of the session; nil between sessions
	// own is the state file as the daemon itself knows it.
	own *bootstrap.State
	// begun tells that own was read.
	begun bool
	// mine, for each step of the daemon's own that is under way, tells which states
	// of the file may be of its making.
	mine map[int]maker
	// steps counts the beginnings and ends of steps.
	steps int
	// reread tells that the settings are other ones than the session has.
	reread bool
	// again wakes who looks at the state file, for that. It has room for one.
	again chan struct{}
	// beatNow asks for a beat before the next one is due. It has room for one.
	beatNow chan struct{}
	// check answers the agent checks of HAProxy.
	check   *lb.AgentCheck
	sampler Sampler
	life    *life // nil: see Options.Lifecycle
	// phaseChanged has the server looked at now.
	phaseChanged chan struct{}

	// What follows is for the goroutine of follow alone.
	phase  bootstrap.Phase // of the last convergence
	left   bool            // somebody made this machine leave while we watched
	idling string          // what was last said of idling
	warned []string        // by the last convergence
	failed string          // what was last said of files that could not be mended
	// drifted is what was last logged of files that are not as joined.
	drifted string
	// restarted reports that the session's join failed, and had restarted the server.
	restarted bool
}

// New prepares a daemon.
func New(o Options) *Daemon {
	o.Periods = o.Periods.withDefaults()
	d := &Daemon{
		o: o, log: o.Log, view: newView(o.Version), metrics: new(metrics), mine: map[int]maker{},
		again: make(chan struct{}, 1), beatNow: make(chan struct{}, 1), phaseChanged: make(chan struct{}, 1),
	}
	d.check = &lb.AgentCheck{State: d.nodeState, Started: time.Now(), Now: time.Now}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.view.notes = o.Notes
	d.interval.Store(int64(o.Settings().Interval))
	d.sampler = o.Sampler(d.sessionClient, func() cluster.Node {
		v := d.view.get()
		return cluster.Node{IP: v.Address, Role: v.Role}
	})
	return d
}

// Run serves until ctx ends, which is no error: leaving is not the daemon's
// decision. A second daemon on one machine is refused with [ErrRunning]. [ErrOutdated] asks for a new one.
func (d *Daemon) Run(ctx context.Context) error {
	release, err := lockFile(d.o.Lock)
	if err != nil {
		return err
	}
	defer release()
	if o := d.o.Lifecycle; o != nil {
		d.life = newLife(d, *o) //nolint:contextcheck // it starts nothing before Run
	}
	servers := d.listen(ctx)
	// From here on the machine may go on booting: what follows takes as long as
	// AMS and MongoDB take. This is the first that the service manager hears.
	d.o.Notify(d.ready())
	d.status()
	var work sync.WaitGroup
	asked := ctx
	// A machine that goes down wants us to drain first.
	ctx, cancel := context.WithCancel(context.WithoutCancel(asked))
	defer cancel()
	if d.life != nil {
		work.Go(func() { d.life.run(ctx) })
	}
	work.Go(func() { d.sampler.Run(ctx) })
	work.Go(func() { d.followServer(ctx) })
	outdated := make(chan struct{})
	work.Go(func() {
		if d.follow(ctx) {
			close(outdated)
		}
	})
	work.Go(func() { d.reloads(ctx) })
	work.Go(func() { d.awaitPort(ctx, servers) })
	work.Go(func() { d.agentCheck(ctx) })
	select {
	case <-asked.Done():
		d.o.Notify("STOPPING=1")
		if d.life != nil {
			d.life.shutdown(ctx, d.o.Lifecycle.Stopping)
		}
	case <-outdated: // the process stays
		err = ErrOutdated
	}
	cancel()
	ended := make(chan struct{})
	go func() {
		work.Wait()
		close(ended)
	}()
	servers.close(ctx)
	d.await(ended)
	return err
}

// await waits for the work to end. A loop that hangs must not keep the machine
// from going down; a join that is being taken back may, for it has a bound.
func (d *Daemon) await(ended <-chan struct{}) {
	for {
		timer := time.NewTimer(d.o.Periods.Stop)
		select {
		case <-ended:
			timer.Stop()
			return
		case <-timer.C:
		}
		if !d.stepping() {
			d.log.Error("something hangs; it is not waited for")
			return
		}
	}
}

// reloads reads the settings again when asked.
func (d *Daemon) reloads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.o.Reload:
		}
		d.o.Notify(reloading())
		if err := d.o.Reread(); err != nil {
			d.log.Error("the settings could not be read again; the old ones stay", "error", err)
		} else {
			d.log.Info("settings read again")
			d.life.reread()
			d.mu.Lock()
			d.reread = true // the session begins anew, with them
			d.mu.Unlock()
			select {
			case d.again <- struct{}{}:
			default:
			}
		}
		d.o.Notify(d.ready())
		d.status()
	}
}

func (d *Daemon) sessionClient() *cluster.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.client
}

// follow runs one session after the other: each ends when the state file is
// another one, or the settings are. It returns true where a new daemon is needed.
func (d *Daemon) follow(ctx context.Context) (outdated bool) {
	p := d.o.Periods
	retry, rejoin := p.Retry, p.Rejoin
	var said throttle
	for ctx.Err() == nil {
		d.begin()
		if d.outdated() {
			return true
		}
		session, end := context.WithCancelCause(ctx)
		var watcher sync.WaitGroup
		watcher.Go(func() { d.watchState(session, end) })
		d.restarted = false
		err := d.session(session)
		if err == nil || session.Err() != nil {
			retry, rejoin, said.text = p.Retry, p.Rejoin, ""
		} else {
			again := retry
			if retry = min(2*retry, p.MostRetry); d.restarted {
				// A join that was taken back restarted AMS twice, and viewers are not cut more often than every hour.
				again, rejoin = rejoin, p.MostRejoin
				err = fmt.Errorf("%w; it restarted the server, so the next try is at %s, or at once by `amsagent join` or `systemctl reload amsagent`",
					err, time.Now().Add(again).Format(time.TimeOnly))
			}
			d.trouble(err)
			if d.restarted || said.allows(err.Error(), time.Now()) {
				d.log.Error("it is tried again", "error", err, "in", again.String())
			}
			// Whoever joins or leaves meanwhile is followed at once.
			d.beside(session, func() {
				if !sleep.For(session, again) {
					retry, rejoin = p.Retry, p.Rejoin
				}
			})
		}
		end(nil)
		watcher.Wait()
	}
	return false
}

// outdated reports whether a new daemon is needed, and may take over now: a step that
// is under way, of a drain, is not cut for it.
func (d *Daemon) outdated() bool {
	if d.o.Outdated == nil || !d.o.Outdated() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reread = len(d.mine) > 0 // the session ends after it
	return !d.reread
}

// errStateChanged ends a session because somebody joined or left by hand, or
// because there are new settings.
var errStateChanged = errors.New("the state file or the settings were changed")

// begin notes what the session that follows goes by.
func (d *Daemon) begin() {
	s, err := d.o.Machine.StateFile()
	if err == nil && d.otherState(s) {
		// The join keeps what it was given, and went by the settings file as it is now.
		if err := d.o.Reread(); err != nil {
			d.log.Error("the settings could not be read again; the old ones stay", "error", err)
		} else {
			d.life.reread()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reread = false
	if err == nil { // a damaged file is the convergence's matter
		if d.own != nil && !s.Equal(d.own) {
			d.life.joinedAnew(s)
		}
		d.own, d.begun = s, true
	}
}

// otherState reports whether another process wrote the state file.
func (d *Daemon) otherState(s *bootstrap.State) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begun && !s.Equal(d.own)
}

func (d *Daemon) watchState(ctx context.Context, end context.CancelCauseFunc) {
	for {
		timer := time.NewTimer(cloud.UntilTick(d.o.Periods.State))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-d.again:
		}
		timer.Stop()
		switch {
		case ctx.Err() != nil:
			return
		case d.changed():
			end(errStateChanged)
			return
		}
	}
}

// changed reports whether the session is to begin anew.
func (d *Daemon) changed() bool {
	d.mu.Lock()
	steps := d.steps
	d.mu.Unlock()
	s, err := d.o.Machine.StateFile()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.reread && len(d.mine) == 0:
		return true // a join under way is not cut for it
	case err != nil || d.steps != steps || s.Equal(d.own):
		return false
	}
	for _, mine := range d.mine {
		if mine(d.own, s) {
			return false
		}
	}
	return true
}

// step runs something that may write the state file, and remembers how it left
// it. What is not of its making is somebody else's, who is at work meanwhile.
func (d *Daemon) step(mine maker, do func() error) error {
	d.mu.Lock()
	d.steps++
	number := d.steps
	d.mine[number] = mine
	d.mu.Unlock()
	err := do()
	s, serr := d.o.Machine.StateFile()
	d.mu.Lock()
	defer d.mu.Unlock()
	if serr == nil && mine(d.own, s) {
		d.own = s
	}
	delete(d.mine, number)
	d.steps++
	return err
}

// maker reports whether a step may have made, of what the state file said before,
// what it says now.
type maker func(was, is *bootstrap.State) bool

// joins makes any state.
func joins(*bootstrap.State, *bootstrap.State) bool { return true }

// keepsJoined is a convergence, or a restart of AMS. Neither writes when this machine
// joined: another moment is that of a join by hand, for which the step has waited.
func keepsJoined(was, is *bootstrap.State) bool {
	return was != nil && is != nil && is.Phase == bootstrap.PhaseJoined && is.Since.Equal(was.Since)
}

func (d *Daemon) stepping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.mine) > 0
}

// beside runs do with the loop beside it, which only samples: the watchdog is to
// see progress, and health and metrics are there, whatever do waits for.
func (d *Daemon) beside(ctx context.Context, do func()) {
	ctx, cancel := context.WithCancel(ctx)
	var loop sync.WaitGroup
	loop.Go(func() { d.loop(nil).Run(ctx) })
	defer loop.Wait()
	defer cancel()
	do()
}

// trouble notes what keeps the daemon from its work, for status.
func (d *Daemon) trouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if d.view.setTrouble(text) {
		d.status()
	}
}

// status tells the service manager in one line how things are.
func (d *Daemon) status() { d.o.Notify("STATUS=" + d.view.line()) }

// report is told each round of the loop. The watchdog hears from us here and
// nowhere else: a daemon whose loop hangs is to be restarted.
func (d *Daemon) report(r heartbeat.Report) {
	d.metrics.count(r)
	d.view.beat(r)
	d.o.Notify("WATCHDOG=1")
	d.status()
}
