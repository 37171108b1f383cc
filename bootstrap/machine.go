// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"path"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
)

// Service is AMS as something that is started and stopped: a systemd unit, a
// command, or nothing we may touch.
type Service interface {
	Name() string
	State(ctx context.Context) (ams.State, error)
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Restart(ctx context.Context) error
	// Reload makes the service manager read its files again.
	Reload(ctx context.Context) error
}

// Machine is where a join or a leave happens, and how it is reached.
type Machine struct {
	// Root prefixes every path; "" is the real one.
	Root string
	// AMSDir is the installation below Root; "" is where the vendor puts it.
	AMSDir string
	// Release overrides what the server's jar says, where it is known.
	Release ams.Release
	// Service runs AMS.
	Service Service
	// DropIn says that the service is told AMS's address by a systemd drop-in.
	// Otherwise SetAddress has to do it.
	DropIn bool
	// Program is the agent's own path, which the drop-in calls before each start of
	// the server; "" leaves that out.
	Program string
	// SetAddress, if not nil, hands the node's address to the service before
	// it is started: a command gets it in its environment.
	SetAddress func(netip.Addr)
	// Connect reaches MongoDB. The caller of a method of Machine does not see
	// the client.
	Connect func(context.Context, cluster.Target) (*cluster.Client, error)
	// Daemon is the agent's own, which a join starts and a leave stops; nil where
	// there is none to be started or stopped, and for the daemon itself.
	Daemon Daemon
	// Version is the agent's own.
	Version string
	Log     *slog.Logger
	// Progress, if not nil, is told each step in words for people.
	Progress func(string)
	// Euid is the effective user id of the process.
	Euid int
	// Interfaces lists those of this machine; nil asks the system.
	Interfaces func() ([]ams.Interface, error)
	// HTTP reaches AMS on this machine; nil is the usual client.
	HTTP *http.Client
	// Begin, if not nil, is called before a command changes anything, and may be called
	// again. After an error nothing is changed.
	Begin func(context.Context) error
	// Hold, if not nil, makes this node not ready for new sessions before a command stops or restarts the server.
	// Release ends that.
	Hold func(context.Context) (release func())
	// Serving are the applications that are to serve before this machine is ready,
	// as patterns of path.Match; none are all but the console.
	Serving []string
}

func (m *Machine) store() *conf.Store {
	return &conf.Store{Root: m.Root, Dir: StateDir, Left: func(path string, err error) {
		m.log().Warn("a file of the agent's stays, because of the owner of its folder", "path", path, "error", err)
	}}
}

func (m *Machine) say(format string, args ...any) {
	if m.Progress != nil {
		m.Progress(fmt.Sprintf(format, args...))
	}
}

// hold is [Machine.Hold].
func (m *Machine) hold(ctx context.Context) (release func()) {
	if m.Hold == nil {
		return func() {}
	}
	return m.Hold(ctx)
}

// whileSlow does something, and says what it is where that takes long.
func (m *Machine) whileSlow(what string, do func()) {
	said := make(chan struct{})
	t := time.AfterFunc(slowTime, func() {
		defer close(said)
		m.say("%s", what)
	})
	do()
	if !t.Stop() {
		<-said
	}
}

// slowTime is how long a command may be silent.
const slowTime = time.Second

func (m *Machine) log() *slog.Logger {
	if m.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return m.Log
}

func (m *Machine) http() *http.Client {
	if m.HTTP == nil {
		return ams.NewHTTPClient()
	}
	return m.HTTP
}

// lock takes the machine for one command.
func (m *Machine) lock(ctx context.Context) (*conf.Lock, error) {
	return m.store().Lock(ctx, lockPath, func() {
		m.say("waiting: another amsagent is at work")
	})
}

// begin comes before a change. state is what is left where that is not made.
func (m *Machine) begin(ctx context.Context, state string) error {
	if m.Begin == nil {
		return nil
	}
	if err := m.Begin(ctx); err != nil {
		return &FailedError{
			Step: "before the first change", Err: err, State: state, Unknown: isTimeout(err),
			Hint: "run the same command again, with more time: --timeout",
		}
	}
	return nil
}

// recover finishes or undoes what an interrupted run left. state is what to say
// of the machine where nothing else is changed after that.
func (m *Machine) recover(ctx context.Context, store *conf.Store) (_ []Finding, state string, _ error) {
	if err := store.RemoveTemps(path.Dir(lockPath)); err != nil {
		return nil, untouched, err
	}
	if store.Interrupted() {
		if err := m.begin(ctx, untouched); err != nil {
			return nil, untouched, err
		}
	}
	r, err := store.Recover()
	if err != nil || r == nil {
		return nil, untouched, err
	}
	how := "undone"
	if r.Finished {
		how = "finished"
	}
	m.say("an interrupted %s was %s first", r.Purpose, how)
	findings := []Finding{{ID: IDInterrupted, Text: fmt.Sprintf("an interrupted %s was %s first", r.Purpose, how)}}
	for _, c := range r.Conflicts {
		findings = append(findings, Finding{ID: IDConflict, Text: c.String()})
	}
	return findings, fmt.Sprintf("an interrupted %s was %s first; beyond that nothing was changed on this machine", r.Purpose, how), nil
}

// bootID names this boot of the machine; "" where the kernel does not say.
func (m *Machine) bootID() string {
	f, err := m.store().Read("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(f.Bytes))
}

// self is what tells this machine's row from one that another machine registered
// under the same id.
func (m *Machine) self(id, address string) cluster.Node {
	return cluster.Node{ID: id, IP: address, BootID: m.bootID()}
}

// open looks at the installation, with the release a person gave.
func (m *Machine) open() (*ams.Installation, error) {
	in, err := ams.Open(m.Root, m.AMSDir)
	if err != nil {
		return nil, err
	}
	if !in.Release.Known() && m.Release.Known() {
		in.Release = m.Release
	}
	return in, nil
}

func (m *Machine) interfaces() ([]ams.Interface, error) {
	if m.Interfaces != nil {
		return m.Interfaces()
	}
	return ams.HostInterfaces(m.Root)
}

// address chooses the node's address.
func (m *Machine) address(explicit string, force bool, inst metadata.Instance) (ams.Address, error) {
	source := inst.AddressSource
	switch inst.Provider {
	case "", metadata.Generic: // this machine's own facts
	default:
		source = "instance metadata of " + inst.Provider + ": " + source
	}
	v4, v6 := metadata.Options{Root: m.Root}.WithDefaults().Local()
	if !v4.IsValid() {
		v4 = v6
	}
	return ams.ChooseAddress(ams.AddressOptions{
		Explicit: explicit, Force: force,
		Metadata: inst.Address, MetadataSource: source, Known: []netip.Addr{inst.Address, inst.IPv6, inst.PublicAddress},
		Interfaces: m.interfaces, DefaultRoute: v4,
	})
}

// Bounds of what happens outside the caller's time, each with its reason.
const (
	// rollbackTime: a stop of AMS takes up to a minute and a half with four
	// applications, a start half a minute.
	rollbackTime = 3 * time.Minute
	// mongoTime bounds one call to MongoDB; its own server selection takes
	// less.
	mongoTime = 10 * time.Second
	// mongoFirst bounds the first attempt: after that a person is told that we
	// wait. The driver itself searches on for as long as it is allowed to.
	mongoFirst = 2 * time.Second
	// mongoPatience is how long preflight waits for a MongoDB that does not
	// answer yet: in a new environment it boots at the same moment as we do.
	mongoPatience = 30 * time.Second
	// mongoRetry is the pause between two attempts.
	mongoRetry = 2 * time.Second
	// reloadTime bounds a reload of systemd's units after the caller's time.
	reloadTime = 10 * time.Second
	// stableTime is how long AMS must stay up after its start before we call
	// it started: a JVM that cannot bind its port dies within a second or two.
	stableTime = 3 * time.Second
)

// after gives a context that outlives ctx, for what must be done although the
// caller's time is over.
func after(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}

// whileStopped stops the server for what do changes and starts it again, whatever came of
// that: an interruption leaves no server stopped. do is told why the server could not be
// stopped, nil where it has ended; that is then the error, whatever do returns.
func (m *Machine) whileStopped(ctx context.Context, do func(unstopped error) error) error {
	start, unstopped := m.Service.Start, m.end(ctx)
	if unstopped != nil {
		start = m.Service.Restart
	}
	err := do(unstopped)
	if unstopped != nil {
		err = unstopped
	}
	bound, cancel := after(ctx, rollbackTime)
	defer cancel()
	return errors.Join(err, start(bound))
}

// end stops the server and returns when it has ended.
func (m *Machine) end(ctx context.Context) error {
	if err := m.Service.Stop(ctx); err != nil {
		return err
	}
	return m.awaitDead(ctx)
}

// outlasting is ctx with some more time after its end.
func outlasting(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(more, cancel) })
	return own, func() {
		stop()
		cancel()
	}
}

// electionTime is how long a replica set is waited for that elects a primary. Ten
// seconds without the old one is what a set waits by itself.
const electionTime = 20 * time.Second

// outlast makes an exchange with MongoDB, and again while a replica set elects a
// primary, as far as its error is one that waits says to wait for.
func (m *Machine) outlast(ctx context.Context, waits func(error) bool, do func(context.Context) error) error {
	end := time.Now().Add(electionTime)
	for told := false; ; told = true {
		bound, cancel := context.WithTimeout(ctx, mongoTime)
		err := do(bound)
		cancel()
		if err == nil || !mayCome(err) || !waits(err) || ctx.Err() != nil || time.Until(end) <= 0 {
			return err
		}
		if !told {
			m.say("waiting up to %s for MongoDB: %v", electionTime, summary(err))
		}
		if !sleep.For(ctx, time.Second) {
			return err
		}
	}
}

// pauseAbout waits for between half of d and one and a half: whoever does the
// same thing as often as we do must not be met each time.
func pauseAbout(ctx context.Context, d time.Duration) bool {
	return sleep.For(ctx, d/2+rand.N(d))
}

// serverNow says whether AMS runs, for the end of a sentence.
func (m *Machine) serverNow(ctx context.Context) string {
	st, err := m.Service.State(ctx)
	switch {
	case err != nil || !st.Known():
		return "whether it runs is not known"
	case st.Running():
		return "it runs, with which of the files is not known"
	}
	return "it does not run"
}

// start is when a server was started or, where nobody knows that, since when it is looked at.
type start struct {
	at    time.Time
	known bool
}

// or is the start, looked at since then where it is not known.
func (s start) or(since time.Time) start {
	if !s.known {
		s.at = since
	}
	return s
}

// serverStarted is when the server that runs was started: a service command does not know it,
// its process does, to a second.
func (m *Machine) serverStarted(st ams.State) start {
	if !st.Started.IsZero() {
		return start{st.Started, true}
	}
	p, err := ams.ReadProcess(m.Root, st.MainPID)
	if err != nil || !p.Java() {
		return start{}
	}
	return start{p.Started, true}
}

// closeClient ends a connection without waiting for a server that is gone.
func closeClient(ctx context.Context, c *cluster.Client) {
	if c == nil {
		return
	}
	ctx, cancel := after(ctx, time.Second)
	defer cancel()
	_ = c.Close(ctx)
}
