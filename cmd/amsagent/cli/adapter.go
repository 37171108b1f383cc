// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/singleflight"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// daemonAdapter gives the daemon what globals has. The daemon calls it from several goroutines, and globals is made for one.
type daemonAdapter struct {
	g       *globals
	cmd     *cobra.Command
	machine *bootstrap.Machine
	made    map[string]string // what the daemon was made of

	asking singleflight.Group // the question to the metadata that is under way

	mu         sync.Mutex
	over       bool                         // another daemon uses the settings now
	given      string                       // version of the values given to join, when the settings were read
	kept       bool                         // config.yaml is kept
	identified time.Time                    // when the instance was read last
	tagErr     error                        // of its malformed tags
	tagsRead   bool                         // since the settings were read
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

// givenNow are the values given to join, as a text to compare.
func (a *daemonAdapter) givenNow() string {
	given, err := bootstrap.LoadGiven(a.g.settings.Root)
	return fmt.Sprint(given, err)
}

func (a *daemonAdapter) rereadLocked() error {
	was := a.g.settings
	a.identified, a.given, a.tagsRead, a.kept = time.Time{}, a.givenNow(), false, false
	err := a.g.load(a.cmd)
	if now := a.g.settings; err == nil && now.ServiceCommand != "" && now.ServiceCommand != was.ServiceCommand {
		if _, err = serviceCommand(now); err != nil {
			a.g.settings = was // a daemon with these would not start
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
	return daemon.Named{Target: src.Target, Stored: src.Origin.Layer == settings.FromStored && src.Origin.Name == bootstrap.MongoPath}, err
}

// namedMongo finds MongoDB by what is known now.
func (a *daemonAdapter) namedMongo() (mongoSource, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.g.joinedMongo()
}

// identify returns the instance, from the cloud or from a recent answer. After ctx ends, the request continues for the next
// caller. With a malformed tag it returns [bootstrap.ErrTags] and the instance, and reads the tags again at each call.
func (a *daemonAdapter) identify(ctx context.Context) (metadata.Instance, error) {
	a.mu.Lock()
	inst, age := a.g.lastSeen().Instance, identityAge
	if inst.Provider == metadata.Generic || a.g.settings.Role == "" {
		age = shortAge
	}
	s, err := (&bootstrap.Machine{Root: a.g.settings.Root}).StateFile()
	other := err == nil && s != nil && s.InstanceID != inst.ID // a second answer must confirm another id
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

// daemonUnit is the daemon's own.
const daemonUnit = "amsagent.service"

// lifecycleOptions are the settings of drains and of the end of this machine.
func (a *daemonAdapter) lifecycleOptions() lifecycle.Options {
	s := a.g.settings
	o := lifecycle.Options{
		Files:    drainFiles{&conf.Store{Root: s.Root, Dir: bootstrap.StateDir}},
		Deadline: a.drainDeadline,
		Filter:   a.hookNames,
		Uptime:   lifecycle.BootClock(s.Root),
		Hardware: metadata.Hardware(s.Root),
		StopTime: func() time.Duration { return stopTime(s.Root, s.AMSDir) },
	}
	if p, err := a.openCloud(); err != nil {
		a.g.out.Log().Warn("cloud cannot be opened, no scale-in is seen", "error", err)
	} else {
		o.Watcher = p
		o.Hooks, _ = p.(cloud.Hooks) // nil without hooks
	}
	return o
}

// drainDeadline is how long a drain waits for sessions. It is not final while an unread tag may change it.
func (a *daemonAdapter) drainDeadline() (d time.Duration, final bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.g.settings
	return s.DrainDeadline, a.tagsRead || s.Origin(settings.KeyDrainDeadline).Layer > settings.FromTag
}

// stopTime is how long a drain waits for the end of the server: longer than the join's drop-in lets systemd wait before it
// kills, because a running server writes its document again. 0 means the default.
func stopTime(root, dir string) time.Duration {
	in, err := ams.Open(root, dir)
	if err != nil {
		return 0
	}
	return ams.StopTimeout(len(in.Apps)) + stopMargin
}

// stopMargin is for systemd to kill the server, and to report it.
const stopMargin = 30 * time.Second

// drainFiles keeps the record of a drain in the folder of join and leave. Their clean-up may remove a file that is being
// written: then it is written again.
type drainFiles struct{ *conf.Store }

// WriteFile implements lifecycle.Files.
func (f drainFiles) WriteFile(path string, data []byte, mode, dirMode fs.FileMode) error {
	var err error
	for range writeTries {
		if err = f.Store.WriteFile(path, data, mode, dirMode); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

const writeTries = 5

// shutdownReserve is the part of systemd's time in which this process ends.
const shutdownReserve = 5 * time.Second

// systemdStopping reports whether the machine shuts down, and the time left: that of systemd or of the cloud, whichever is
// less.
func (a *daemonAdapter) systemdStopping(ctx context.Context) (deadline time.Time, by string, down bool) {
	down, err := goesDown(ctx, daemonUnit)
	if err != nil {
		a.g.out.Log().Warn("asking systemd for a shutdown failed, the daemon does not drain", "error", err)
	}
	if err != nil || !down {
		return time.Time{}, "", false
	}
	var limit time.Duration
	if st, err := ams.NewSystemd(daemonUnit).State(ctx); err == nil {
		limit = st.StopTimeout
	}
	span, by := stopSpan(limit, a.g.lastSeen().Instance)
	return time.Now().Add(span), by, true
}

// stopSpan is how long a machine that shuts down may drain, and what sets that limit. inst is zero if it is not known.
func stopSpan(systemd time.Duration, inst metadata.Instance) (span time.Duration, by string) {
	span, by = systemd-min(shutdownReserve, systemd/2), "systemd's TimeoutStopSec"
	if systemd <= 0 {
		span, by = lifecycle.DefaultDeadline, "the usual deadline"
	}
	window := time.Duration(inst.StopWindow)
	if window <= 0 {
		return span, by
	}
	// Ant Media Server stops and the node deregisters after the drain, and before the machine ends.
	if left := window - min(stopReserve, window*2/3); left < span {
		return left, stopWindowWord(inst)
	}
	return span, by
}

// stopReserve is the time after a drain: with streams the server takes about 17 s to end. Of a short time, two thirds are
// reserved, which is enough for the streams of one application.
const stopReserve = 30 * time.Second

func stopWindowWord(inst metadata.Instance) string {
	window := fmt.Sprintf("the %d s that ", int(time.Duration(inst.StopWindow).Seconds()))
	if inst.Provider == metadata.GCP {
		kind := "a standard VM"
		if time.Duration(inst.StopWindow) <= gcp.StopWindowSpot {
			kind = "a Spot VM"
		}
		return window + "Google Cloud gives " + kind
	}
	return window + inst.Provider + " gives this machine"
}

// goesDown asks systemd whether the machine shuts down. The bus ends at that time, too, so it tries again.
func goesDown(ctx context.Context, unit string) (down bool, err error) {
	for range stoppingTries {
		if down, err = ams.NewSystemd(unit).SystemStopping(ctx); err == nil || !sleep.For(ctx, stoppingRetry) {
			break
		}
	}
	return down, err
}

const (
	stoppingTries = 5
	stoppingRetry = 200 * time.Millisecond
)

// openCloud opens the cloud that the settings name, or the detected one. It makes no request.
func (a *daemonAdapter) openCloud() (metadata.Provider, error) {
	a.mu.Lock()
	q := a.g.question()
	a.mu.Unlock()
	if q.provider == "auto" {
		d, err := metadata.Detect(q.opts)
		if err != nil {
			return nil, err
		}
		q.provider = d.Provider
	}
	return a.open(q.provider, q.opts)
}

// open opens each provider once: it remembers its session token and what it has warned of.
func (a *daemonAdapter) open(name string, opts metadata.Options) (metadata.Provider, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.opened[name]; p != nil {
		return p, nil
	}
	p, err := metadata.Open(name, opts)
	if err != nil {
		return nil, err
	}
	if a.opened == nil {
		a.opened = map[string]metadata.Provider{}
	}
	a.opened[name] = p
	return p, nil
}

// hookNames are those of the settings, which may change while the daemon runs.
func (a *daemonAdapter) hookNames() cloud.Filter {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.g.settings.Hooks
}
