// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/heartbeat"
)

// Paths of the daemon's own files, below the root.
const (
	daemonLock = "/run/amsagent/daemon.lock"
	// agentCheckFile ends with the boot.
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
		g.out.Log().Info("starting again with other settings", "dir", g.settings.AMSDir)
	}
}

// serveDaemon runs the daemon until a setting changes that it cannot apply.
func serveDaemon(cmd *cobra.Command, g *globals, reload chan struct{}) error {
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	m.Begin = nil // the daemon has no limit of time
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
	if err == nil || errors.Is(err, daemon.ErrOutdated) {
		return err
	}
	failed := &userError{Msg: "cannot run", Cause: err, State: stateUntouched}
	if errors.Is(err, daemon.ErrRunning) {
		failed.Hints = []string{"look at the daemon that runs: systemctl status amsagent"}
	}
	return failed
}

// madeOf are the settings that a running daemon cannot apply.
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
