// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/singleflight"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/metadata"
)

// Paths of the daemon's own files, below the root.
const (
	controlSocket = "/run/amsagent/control.sock"
	daemonLock    = "/run/amsagent/daemon.lock"
	// agentCheckFile ends with the boot, as a state "maint" that only an operator can have set does.
	agentCheckFile = "/run/amsagent/agent-check.json"
)

func newRunCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [flags]",
		Short: "run the daemon: keep this node joined, and report its load",
		Long: "The daemon repairs what changed since the join (a new address, a copied disk;\n" +
			"the server's files only while the server is stopped), verifies that Ant Media\n" +
			"Server is in the cluster, and then writes a heartbeat with load and sessions\n" +
			"into the registry. A machine that never joined joins by itself if its settings\n" +
			"or tags have MongoDB's address.\n\n" +
			"A restart of the daemon changes nothing in the cluster. SIGHUP makes it read\n" +
			"its settings again. systemd runs it as amsagent.service; `amsagent status`\n" +
			"shows what it does.",
		Example: "  systemctl start amsagent\n" +
			"  amsagent run --beat-interval 1s",
	}
	cmd.RunE = func(*cobra.Command, []string) error { return runDaemon(cmd, g) }
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitInterrupted)
	g.addSettings(cmd, append(machineSettings(), settings.KeyRole, settings.KeyGroup, settings.KeyRemoteIPValve, settings.KeyOnFailure, settings.KeyBeatInterval, settings.KeyMetrics, settings.KeyDrainDeadline)...)
	return cmd
}

func runDaemon(cmd *cobra.Command, g *globals) error {
	if err := mustBeRoot(g, "run"); err != nil {
		return err
	}
	reload := g.signals.onHangup()
	for {
		err := serveDaemon(cmd, g, reload)
		if !errors.Is(err, daemon.ErrOutdated) {
			return err
		}
		g.out.Log().Info("beginning anew with other settings", "dir", g.settings.AMSDir)
	}
}

// serveDaemon is the daemon for as long as the settings are those that it is made of.
func serveDaemon(cmd *cobra.Command, g *globals, reload chan struct{}) error {
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	m.Begin = nil // it has no time that ends
	a := &daemonAdapter{g: g, cmd: cmd, machine: m, made: madeOf(g.settings)}
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.over = true
	}()
	a.given = a.givenNow()
	server := m.Server()
	o := daemon.Options{
		Machine: m, Server: server, Settings: a.settings, Reread: a.reread, Mongo: a.mongo, Identify: a.identify,
		Outdated: a.outdated, Connect: a.connect, Reload: reload, Redact: g.out.Redact, Notify: g.env.Notify,
		Notes:          func() []string { return g.lastSeen().Notes },
		AgentCheckKept: stateFile{path: g.settings.Root + agentCheckFile},
		Control:        g.settings.Root + controlSocket, Lock: g.settings.Root + daemonLock,
		Version: currentVersion().Version, Log: g.out.Log(),
	}
	// systemd's own, for the process it started: sd_watchdog_enabled(3).
	if us, err := strconv.ParseInt(g.env.getenv("WATCHDOG_USEC"), 10, 64); err == nil {
		o.Watchdog = time.Duration(us) * time.Microsecond
	}
	o.Lifecycle = a.lifecycleOptions()
	if onSystemd(m, ams.SystemdRuns()) {
		o.Stopping = a.systemdStopping
	}
	if o.Metrics = g.settings.Metrics; o.Metrics == "off" {
		o.Metrics = ""
	}
	if o.AgentCheck = g.settings.AgentCheck; o.AgentCheck == "off" {
		o.AgentCheck = ""
	}
	root, dir, interval := g.settings.Root, g.settings.AMSDir, g.settings.BeatInterval
	o.Sampler = func(client func() *cluster.Client, node func() cluster.Node) daemon.Sampler {
		sampler := heartbeat.NewSampler(heartbeat.SamplerOptions{
			Root: root, AMSDir: dir, State: m.Service.State, Interval: interval, Log: g.out.Log(),
			Open: func() (*ams.Installation, error) { return ams.Open(root, dir) }, Own: server.Connections,
			Edge: func() bool { return node().Role == "edge" },
			Streams: func() (heartbeat.Streams, string) {
				if c := client(); c != nil {
					return c, node().IP
				}
				return nil, ""
			},
		})
		m.Sessions = sampler.Sessions
		return sampler
	}
	// Half of Go's usual: 1.6 MiB less for 5 ms of a processor a minute.
	debug.SetGCPercent(50)
	err = daemon.New(o).Run(cmd.Context())
	switch {
	case errors.Is(err, daemon.ErrRunning):
		return &userError{Msg: "cannot run", Cause: err, Hints: []string{"one daemon for a machine is enough: systemctl status amsagent"}, State: stateUntouched}
	case errors.Is(err, daemon.ErrOutdated):
		return err
	case err != nil:
		return &userError{Msg: "cannot run", Cause: err, State: stateUntouched}
	}
	return nil
}

// madeOf are the settings that a daemon is made of; the rest of them may change while it runs.
func madeOf(s *settings.Settings) map[string]string {
	made := map[string]string{}
	for _, key := range []string{
		settings.KeyAMSDir, settings.KeyAMSRelease, settings.KeyService, settings.KeyServiceCommand, settings.KeyServing, settings.KeyMetrics, settings.KeyAgentCheck, settings.KeyProvider,
		settings.KeyBeatInterval, settings.KeyLogLevel,
	} {
		made[key] = s.Values[key].Text
	}
	return made
}

// daemonAdapter gives the daemon what globals knows. The daemon asks from several goroutines, and globals is made for
// one.
type daemonAdapter struct {
	g       *globals
	cmd     *cobra.Command
	machine *bootstrap.Machine
	made    map[string]string // what the daemon was made of

	asking singleflight.Group // the question to the metadata that is under way

	mu         sync.Mutex
	over       bool                         // the settings are another daemon's by now
	given      string                       // version of what was given to join, when the settings were read
	kept       bool                         // config.yaml is kept
	identified time.Time                    // when the instance was read last
	tagErr     error                        // what is malformed of its tags
	tagsRead   bool                         // what the tags say was read since the settings were
	opened     map[string]metadata.Provider // by name
}

// identityAge is how long an answer of the metadata service is used: addresses change with a boot.
const identityAge = 10 * time.Minute

// shortAge is the same without a cloud, where an address may change when its lease ends, and without a role, whose tag may
// come after the join.
const shortAge = 30 * time.Second

func (a *daemonAdapter) settings() daemon.Settings {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd != nil && a.givenNow() != a.given {
		if err := a.rereadLocked(); err != nil {
			a.g.out.Log().Debug("the settings could not be read again", "error", err)
		}
	}
	s := a.g.settings
	a.keepConfig(s.GoodConfig())
	return daemon.Settings{
		Interval: s.BeatInterval, AutoJoin: s.AutoJoin, JoinTimeout: s.Timeout, UnhealthyAfter: s.UnhealthyAfter, Wrong: wrongText(s.Sources),
		NoRemoteDrain: !s.RemoteDrain,
		JoinRequest:   s.JoinRequest(),
	}
}

// keepConfig works once this machine is a node.
func (a *daemonAdapter) keepConfig(text []byte) {
	if a.kept || text == nil {
		return
	}
	var err error
	m := bootstrap.Machine{Root: a.g.settings.Root}
	if a.kept, err = m.KeepGoodConfig(text); err != nil && a.g.out.Once("keeping config.yaml") {
		a.g.out.Log().Warn("keeping config.yaml failed", "error", err)
	}
}

func (a *daemonAdapter) reread() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rereadLocked()
}

// givenNow tells one version of what was given to join from the next.
func (a *daemonAdapter) givenNow() string {
	path, err := settings.UnderRoot(a.g.settings.Root, bootstrap.GivenPath)
	if err != nil {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprint(info.Size(), info.ModTime())
}

func (a *daemonAdapter) rereadLocked() error {
	was := a.g.settings
	a.identified, a.given, a.tagsRead, a.kept = time.Time{}, a.givenNow(), false, false
	err := a.g.load(a.cmd)
	if now := a.g.settings; err == nil && now.ServiceCommand != "" && now.ServiceCommand != was.ServiceCommand {
		if _, err = serviceCommand(now); err != nil {
			a.g.settings = was // a daemon that is made of these would not begin
		}
	}
	return err
}

// outdated reports whether the daemon was made of other settings than there are now.
func (a *daemonAdapter) outdated() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !maps.Equal(madeOf(a.g.settings), a.made)
}

// mongo finds MongoDB, in the instance's tags last.
func (a *daemonAdapter) mongo(ctx context.Context) (daemon.Named, error) {
	src, err := a.namedMongo()
	if errors.Is(err, errNoMongo) {
		a.mu.Lock()
		a.identified = time.Time{} // tags may come after the instance has started
		a.mu.Unlock()
		if _, ierr := a.identify(ctx); ierr == nil {
			src, err = a.namedMongo()
		}
	}
	if errors.Is(err, errNoMongo) {
		return daemon.Named{}, errors.Join(daemon.ErrNoMongo, err)
	}
	return daemon.Named{Target: src.Target, Stored: src.Origin.Layer == settings.FromStored && src.Origin.Name == storedMongo}, err
}

// namedMongo finds MongoDB by what is known now.
func (a *daemonAdapter) namedMongo() (mongoSource, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.g.joinedMongo()
}

// identify returns the instance, from the cloud or from a recent answer. After ctx ends, the request goes on for the next
// caller. With a malformed tag it returns [bootstrap.ErrTags] and the instance, and reads the tags again at each call.
func (a *daemonAdapter) identify(ctx context.Context) (metadata.Instance, error) {
	a.mu.Lock()
	inst, age := a.g.lastSeen().Instance, identityAge
	if inst.Provider == metadata.Generic || a.g.settings.Role == "" {
		age = shortAge
	}
	s, err := (&bootstrap.Machine{Root: a.g.settings.Root}).StateFile()
	other := err == nil && s != nil && s.InstanceID != inst.ID // the same answer twice has to be two answers
	known := a.tagErr == nil && !a.identified.IsZero() && time.Since(a.identified) < age && !other
	a.mu.Unlock()
	if known {
		return inst, nil
	}
	answer := a.asking.DoChan("", func() (any, error) { return a.ask(context.WithoutCancel(ctx)) })
	select {
	case <-ctx.Done():
		return metadata.Instance{}, context.Cause(ctx)
	case r := <-answer:
		inst, _ := r.Val.(metadata.Instance)
		return inst, r.Err
	}
}

// ask asks the cloud, and keeps the answer.
func (a *daemonAdapter) ask(ctx context.Context) (metadata.Instance, error) {
	a.mu.Lock()
	q := a.g.question()
	a.mu.Unlock()
	q.open = a.open
	m, err := a.g.ask(ctx, q)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		return metadata.Instance{}, err
	}
	if a.over {
		return metadata.Instance{}, daemon.ErrOutdated
	}
	a.tagErr = a.g.use(m)
	a.tagsRead = a.tagsRead || m.Instance.TagsKnown || !slices.Contains(m.Instance.Missing, "tags")
	a.identified = time.Now()
	return m.Instance, a.tagErr
}

func (a *daemonAdapter) connect(ctx context.Context, t cluster.Target) (*cluster.Client, error) {
	return cluster.Connect(ctx, t, cluster.Options{AppName: "amsagent", Timeout: mongoTimeout, MaxPool: daemonPool, Log: a.g.out.Log()})
}

// daemonPool is the number of connections per server: a thousand nodes may use it. Two let a heartbeat pass a slow query.
const daemonPool = 2
