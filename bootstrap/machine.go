// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
)

// Service controls the server: a systemd unit, a command, or nothing.
type Service interface {
	Name() string
	State(ctx context.Context) (ams.State, error)
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Reload(ctx context.Context) error
}

// Machine is the machine and its interfaces.
type Machine struct {
	// Root prefixes every path; "" is the real root.
	Root string
	// AMSDir is the installation below Root; "" is the vendor's path.
	AMSDir string
	// Release is used if the server's jar has none.
	Release ams.Release
	Service Service
	// DropIn reports that a systemd drop-in, not SetAddress, passes the address to the server.
	DropIn bool
	// Program is the agent's path, which the drop-in runs before each start; "" leaves it out.
	Program string
	// SetAddress, if not nil, sets the address for a service command before its start.
	SetAddress func(netip.Addr)
	Connect    func(context.Context, cluster.Target) (*cluster.Client, error)
	// Alone reports that no daemon answers; nil if that is not asked.
	Alone func(context.Context) bool
	// Daemon is nil without one, and in the daemon itself.
	Daemon  Daemon
	Version string
	Log     *slog.Logger
	// Progress, if not nil, gets a sentence for each step.
	Progress func(string)
	Euid     int
	// Interfaces is nil for the system's.
	Interfaces func() ([]ams.Interface, error)
	// HTTP calls the server; nil means the default client.
	HTTP *http.Client
	// Begin, if not nil, is called before the first change, perhaps repeatedly. Its error stops the command.
	Begin func(context.Context) error
	// Hold, if not nil, makes this node not ready, until release, around a stop or a restart.
	Hold func(context.Context) (release func())
	// Sessions, if not nil, is the daemon's count of now. The error has the causes of unknown counts.
	Sessions func(context.Context) (cluster.Sessions, error)
	// Serving are path.Match patterns of the required applications; empty means all but the console.
	Serving []string
	// named is the last id that Converge read in the metadata, since namedSince.
	named      string
	namedSince time.Time
	last       digests
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

func (m *Machine) hold(ctx context.Context) (release func()) {
	if m.Hold == nil {
		return func() {}
	}
	return m.Hold(ctx)
}

// whileSlow reports what after slowTime.
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

const slowTime = time.Second

func (m *Machine) log() *slog.Logger {
	if m.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return m.Log
}

func (m *Machine) http() *http.Client {
	if m.HTTP == nil {
		return ams.NewHTTPClient(nil)
	}
	return m.HTTP
}

func (m *Machine) lock(ctx context.Context) (*conf.Lock, error) {
	return m.store().Lock(ctx, lockPath, func() {
		m.say("waiting: another command or the daemon is at work on this machine")
	})
}

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

// recover finishes an interrupted run. state applies if nothing else is changed.
func (m *Machine) recover(ctx context.Context, store *conf.Store) (_ []Finding, state string, _ error) {
	if err := removeTemps(store); err != nil {
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
	text := fmt.Sprintf("an interrupted %s was finished first", r.Purpose)
	m.say("%s", text)
	findings := []Finding{warningOf(idInterrupted, "", "%s", text)}
	for _, c := range r.Conflicts {
		findings = append(findings, warningOf(IDConflict, "", "%s", c))
	}
	return findings, text + "; beyond that nothing was changed on this machine", nil
}

// bootID returns "" if unknown.
func (m *Machine) bootID() string {
	f, err := m.store().Read("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(f.Bytes))
}

// self distinguishes this machine's node record from another's with the same id.
func (m *Machine) self(id, address string) cluster.Node {
	return cluster.Node{ID: id, IP: address, BootID: m.bootID()}
}

// open uses the operator's release if the jar has none.
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

func (m *Machine) address(explicit string, force bool, inst metadata.Instance) (ams.Address, error) {
	source := inst.AddressSource
	switch inst.Provider {
	case "", metadata.Generic: // no cloud
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

// Bounds of work outside the caller's time.
const (
	// rollbackTime: with four applications a stop can last 90 s and a start 30 s.
	rollbackTime = 3 * time.Minute
	// mongoTime bounds one call. Server selection takes less.
	mongoTime = 10 * time.Second
	// mongoFirst bounds the attempt before the progress message. The driver would use all of its time.
	mongoFirst = 2 * time.Second
	// mongoPatience is for a MongoDB that boots at the same time.
	mongoPatience = 30 * time.Second
	mongoRetry    = 2 * time.Second
	reloadTime    = 10 * time.Second
	// stableTime must pass after a start: a JVM that cannot bind its port exits within two seconds.
	stableTime = 3 * time.Second
)

// after ignores the end of ctx, for required work.
func after(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}

func (m *Machine) end(ctx context.Context) error {
	if err := m.Service.Stop(ctx); err != nil {
		return err
	}
	return m.awaitDead(ctx)
}

func outlasting(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(more, cancel) })
	return own, func() {
		stop()
		cancel()
	}
}

// electionTime bounds the wait for a new primary. A set needs ten seconds to miss the old one.
const electionTime = 20 * time.Second

// outlast repeats do during an election, if waits accepts the error.
func (m *Machine) outlast(ctx context.Context, waits func(error) bool, do func(context.Context) error) error {
	end := time.Now().Add(electionTime)
	for told := false; ; told = true {
		bound, cancel := context.WithTimeout(ctx, mongoTime)
		err := do(bound)
		cancel()
		if err == nil || !cluster.KindOf(err).Passes() || !waits(err) || ctx.Err() != nil || time.Until(end) <= 0 {
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

// serverNow is the end of a sentence.
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

// serverStarted falls back to the process, which is exact to a second. It returns zero if unknown.
func (m *Machine) serverStarted(st ams.State) time.Time {
	if !st.Started.IsZero() {
		return st.Started
	}
	if p, err := ams.ReadProcess(m.Root, st.MainPID); err == nil && p.Java() {
		return p.Started
	}
	return time.Time{}
}

// closeClient does not wait for an unreachable server.
func closeClient(ctx context.Context, c *cluster.Client) {
	if c == nil {
		return
	}
	ctx, cancel := after(ctx, time.Second)
	defer cancel()
	_ = c.Close(ctx)
}
