// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/metadata"
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
	Valve       bootstrap.Valve
	OnFailure   bootstrap.OnFailure
}

// Machine is bootstrap's machine, as far as the daemon uses it.
type Machine interface {
	Converge(context.Context, bootstrap.ConvergeRequest) (*bootstrap.Convergence, error)
	Join(context.Context, bootstrap.JoinRequest) (*bootstrap.JoinResult, error)
	Prove(ctx context.Context, client *cluster.Client, address string) (*bootstrap.Evidence, error)
	Restart(context.Context) error
	StateFile() (*bootstrap.State, error)
}

// Options are what a daemon is made of.
type Options struct {
	Machine Machine
	// Settings are the effective ones, as known now; Reread reads the files of
	// settings again.
	Settings func() Settings
	Reread   func() error
	// Mongo tells where the cluster's memory is, as known now; ErrNoMongo where
	// nobody told.
	Mongo func(context.Context) (cluster.Target, error)
	// Connect prepares a client for the time of a session.
	Connect func(context.Context, cluster.Target) (*cluster.Client, error)
	// Identify asks who this machine is.
	Identify func(context.Context) (metadata.Instance, error)
	// Sampler makes what looks at the machine. client and address are those of
	// the session: nil and "" between sessions.
	Sampler func(client func() *cluster.Client, address func() string) Sampler
	// Notify tells the service manager; it is never nil.
	Notify func(state string)
	// Reload delivers requests to read the settings again.
	Reload <-chan struct{}
	// Metrics is the address, host:port, of /metrics and /healthz; "" for none.
	Metrics string
	// Control is the path of the control socket, Lock that of the file that
	// keeps a second daemon away.
	Control, Lock string
	Version       string
	Log           *slog.Logger
}

// Sampler looks at the machine.
type Sampler interface {
	Sample(context.Context) heartbeat.Sample
	// Run looks after what the sampler keeps running, until ctx ends.
	Run(context.Context)
}

// ErrNoMongo says that nobody told where MongoDB is.
var ErrNoMongo = errors.New("nobody told where MongoDB is")

const (
	// statePoll is how often the state file is looked at: a join or a leave by
	// hand is followed within this time.
	statePoll = 500 * time.Millisecond
	// leastRetry and mostRetry bound the pauses after something failed.
	leastRetry = 2 * time.Second
	mostRetry  = time.Minute
	// leastRejoin and mostRejoin are those after a join or a repair that had
	// begun to change things.
	leastRejoin = 15 * time.Second
	mostRejoin  = 10 * time.Minute
	// convergeTime bounds a convergence: metadata that does not answer must not
	// keep a node from beating.
	convergeTime = time.Minute
	// driftEvery is how often the files are compared with what was joined with:
	// an upgrade of AMS may restore old ones at any time.
	driftEvery = time.Minute
)

// Daemon is one running agent.
type Daemon struct {
	o       Options
	log     *slog.Logger
	view    *view
	metrics *metrics
	once    sync.Once // to say what a server lacks

	mu     sync.Mutex
	client *cluster.Client // of the session; nil between sessions
	// own is the state file as the daemon itself left it.
	own *bootstrap.State
	// working counts the daemon's own steps that write the state file.
	working int
	sampler Sampler
}

// New prepares a daemon.
func New(o Options) *Daemon {
	d := &Daemon{o: o, log: o.Log, view: newView(o.Version), metrics: newMetrics()}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.sampler = o.Sampler(d.sessionClient, func() string { return d.view.get().Address })
	return d
}

// Run serves until ctx ends, which is no error: leaving is not the daemon's
// decision. A second daemon on one machine is refused with a [RunningError].
func (d *Daemon) Run(ctx context.Context) error {
	release, err := lockFile(d.o.Lock)
	if err != nil {
		return err
	}
	defer release()
	servers, err := d.listen(ctx)
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	work.Go(func() { d.sampler.Run(ctx) })
	work.Go(func() { d.follow(ctx) })
	work.Go(func() { d.reloads(ctx) })
	// From here on the machine may go on booting: what follows takes as long as
	// AMS and MongoDB take.
	d.o.Notify("READY=1")
	d.status()
	<-ctx.Done()
	d.o.Notify("STOPPING=1")
	cancel()
	work.Wait()
	servers.close()
	return nil
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
			d.forget() // the session begins anew, with them
		}
		d.o.Notify("READY=1")
		d.status()
	}
}

func (d *Daemon) sessionClient() *cluster.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.client
}

// follow runs one session after the other: each ends when the state file is
// another one.
func (d *Daemon) follow(ctx context.Context) {
	retry := leastRetry
	for ctx.Err() == nil {
		session, end := context.WithCancelCause(ctx)
		var watcher sync.WaitGroup
		watcher.Go(func() { d.watchState(session, end) })
		err := d.session(session)
		end(nil)
		watcher.Wait()
		if ctx.Err() != nil {
			return
		}
		if err == nil || errors.Is(context.Cause(session), errStateChanged) {
			retry = leastRetry
			continue
		}
		// A join that was taken back restarted AMS twice.
		least, most := leastRetry, mostRetry
		if _, tried := errors.AsType[*bootstrap.FailedError](err); tried {
			least, most = leastRejoin, mostRejoin
		}
		retry = max(retry, least)
		d.trouble(err)
		d.log.Error("it is tried again", "error", err, "in", retry.String())
		if !pause(ctx, retry) {
			return
		}
		retry = min(2*retry, most)
	}
}

// errStateChanged ends a session because somebody joined or left by hand.
var errStateChanged = errors.New("the state file was changed by another amsagent")

func (d *Daemon) watchState(ctx context.Context, end context.CancelCauseFunc) {
	for pause(ctx, statePoll) {
		s, err := d.o.Machine.StateFile()
		d.mu.Lock()
		same := d.working > 0 || sameState(s, d.own)
		d.mu.Unlock()
		if err != nil || same {
			continue // a damaged file is the next convergence's matter
		}
		end(errStateChanged)
		return
	}
}

func sameState(a, b *bootstrap.State) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// forget ends the session as if the state file had changed.
func (d *Daemon) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.own = &bootstrap.State{}
}

// step runs something that may write the state file, and remembers how it left
// it.
func (d *Daemon) step(do func() error) error {
	d.mu.Lock()
	d.working++
	d.mu.Unlock()
	err := do()
	s, serr := d.o.Machine.StateFile()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.working--; serr == nil {
		d.own = s
	}
	return err
}

func pause(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
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

// RunningError says that another daemon runs on this machine.
type RunningError struct{ PID int }

func (e *RunningError) Error() string {
	if e.PID == 0 {
		return "another amsagent daemon runs on this machine"
	}
	return fmt.Sprintf("another amsagent daemon runs on this machine, with pid %d", e.PID)
}
