// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// daemonUnit is the daemon's own.
const daemonUnit = "amsagent.service"

// lifecycleOptions makes of the settings how this node goes.
func (a *daemonAdapter) lifecycleOptions() *daemon.Lifecycle {
	s := a.g.settings
	c := newCloud(a)
	c.begin(a.cmd.Context())
	l := &daemon.Lifecycle{
		New: lifecycle.NewManager, Leaver: a.machine,
		Options: lifecycle.Options{
			Files:     drainFiles{&conf.Store{Root: s.Root, Dir: bootstrap.StateDir}},
			Deadline:  a.drainDeadline,
			Completer: c, Sources: []lifecycle.Source{c},
			Uptime:   lifecycle.BootClock(s.Root),
			Hardware: lifecycle.Hardware(s.Root),
			StopTime: func() time.Duration { return stopTime(s.Root, s.AMSDir) },
		},
	}
	if onSystemd(a.machine, ams.SystemdRuns()) {
		l.Stopping = a.systemdStopping
	}
	return l
}

// drainDeadline is how long a drain waits for sessions. It is not final while an instance tag that was not read yet may
// say another one.
func (a *daemonAdapter) drainDeadline() (d time.Duration, final bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.g.settings
	return s.DrainDeadline, a.tagsRead || s.origin(keyDrainDeadline).Layer > layerTag
}

// stopTime is how long a drain waits for the end of Ant Media Server: longer than the service manager does, by the drop-in
// of a join, before it kills. Who goes on earlier deregisters a server that still writes that it is there. 0 is the usual
// time.
func stopTime(root, dir string) time.Duration {
	in, err := ams.Open(root, dir)
	if err != nil {
		return 0
	}
	return ams.StopTimeout(len(in.Apps)) + stopMargin
}

// stopMargin is for the killing, and for who tells us of it.
const stopMargin = 30 * time.Second

// drainFiles keeps the record of a drain where join and leave keep theirs. They clean up there what interrupted writing
// left, and that of this very moment with it: then it is written once more.
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

// shutdownReserve is what we leave of systemd's time for the stop of this very process.
const shutdownReserve = 5 * time.Second

// systemdStopping asks systemd whether the machine goes down, and how long we may take: no longer than systemd waits for
// us, and no longer than the cloud leaves us of the time in which a machine has to be down.
func (a *daemonAdapter) systemdStopping(ctx context.Context) (deadline time.Time, by string, down bool) {
	down, err := goesDown(ctx, daemonUnit)
	if err != nil {
		a.g.log().Warn("cannot tell whether the machine goes down: nobody is waited for", "error", err)
	}
	if err != nil || !down {
		return time.Time{}, "", false
	}
	var limit time.Duration
	if st, err := ams.NewSystemd(daemonUnit).State(ctx); err == nil {
		limit = st.StopTimeout
	}
	span, by := stopSpan(limit, a.known.Load())
	return time.Now().Add(span), by, true
}

// stopSpan is how long a machine that goes down may drain, and by whose word. What the machine is may not be known.
func stopSpan(systemd time.Duration, inst *metadata.Instance) (span time.Duration, by string) {
	span, by = systemd-min(shutdownReserve, systemd/2), "systemd's TimeoutStopSec"
	if systemd <= 0 {
		span, by = lifecycle.DefaultDeadline, "the usual deadline" // who waits without an end gets the usual one
	}
	if inst == nil || inst.StopWindow <= 0 {
		return span, by
	}
	// The stop of Ant Media Server and the deregistering come after us and have to be over before the machine is.
	if left := inst.StopWindow - min(stopReserve, inst.StopWindow*2/3); left < span {
		return left, stopWindowWord(*inst)
	}
	return span, by
}

// stopReserve is what comes after a drain: Ant Media Server takes some 17 s to end with streams on it, deregistering and
// the rest of the machine a few more. Of a time that is short for that a third is left for those who watch, and the two
// thirds are enough where one application has streams: of 30 s, 20.
const stopReserve = 30 * time.Second

func stopWindowWord(inst metadata.Instance) string {
	window := fmt.Sprintf("the %d s that ", int(inst.StopWindow.Seconds()))
	if inst.Provider == metadata.GCP {
		kind := "a standard VM"
		if inst.StopWindow <= gcp.StopWindowSpot {
			kind = "a Spot VM"
		}
		return window + "Google Cloud gives " + kind
	}
	return window + inst.Provider + " gives this machine"
}

// goesDown asks systemd whether the machine goes down. The bus over which we ask is on its way down then, too: an answer
// that it took along is asked for again, of systemd itself.
func goesDown(ctx context.Context, unit string) (down bool, err error) {
	for range stoppingTries {
		if down, err = ams.NewSystemd(unit).SystemStopping(ctx); err == nil || ctx.Err() != nil {
			return down, err
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(stoppingRetry):
		}
	}
	return false, err
}

const (
	stoppingTries = 5
	stoppingRetry = 200 * time.Millisecond
)

// cloud is this machine's cloud as a source of notices and as the owner of hooks. Which one it is is found out when the
// network is there; until then, and on a cloud without either, it is silent.
type cloud struct {
	a *daemonAdapter
	// unwatched tells that nobody watches: then it is looked for when it is asked.
	unwatched bool

	once      sync.Once
	known     chan struct{} // closed when the cloud is
	source    lifecycle.Source
	completer lifecycle.Completer
}

func newCloud(a *daemonAdapter) *cloud { return &cloud{a: a, known: make(chan struct{})} }

// lateCloud is a cloud that nobody watches.
func lateCloud(a *daemonAdapter) *cloud {
	c := newCloud(a)
	c.unwatched = true
	return c
}

// Watch implements lifecycle.Source.
func (c *cloud) Watch(ctx context.Context, report func(lifecycle.Notice)) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	if c.source == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return c.source.Watch(ctx, report)
}

// begin opens a cloud whose signals are to be asked for from the first moment on, if the firmware shows it. Later somebody
// who waits for the metadata may be in the way.
func (c *cloud) begin(ctx context.Context) {
	p := c.a.g.settings.Provider
	if p == "auto" {
		opts := c.a.g.metadataOptions()
		opts.NoNetwork = true
		d, err := metadata.Detect(ctx, opts)
		if err != nil {
			return
		}
		p = d.Provider
	}
	if p == metadata.Azure {
		_ = c.open(metadata.Instance{Provider: p}) // or else it is tried again
	}
}

// settle finds out which cloud this is, however long that takes.
func (c *cloud) settle(ctx context.Context) error {
	select {
	case <-c.known:
		return nil
	default:
	}
	for {
		inst, err := c.who(ctx)
		var tags error
		if errors.Is(err, bootstrap.ErrTags) {
			tags, err = err, nil // who this machine is is known all the same
		}
		if err != nil {
			// Who this machine is may never be known; where it is not, is.
			if p, perr := c.a.provider(ctx); perr == nil && !hasHooks(p) {
				inst, err = metadata.Instance{Provider: p}, nil
			}
		}
		if err == nil {
			err = c.open(inst)
		}
		if err == nil {
			if tags != nil {
				c.a.g.log().Warn("a malformed instance tag has no effect; the cloud is watched", "error", tags)
			}
			return nil
		}
		// The daemon says elsewhere why the metadata cannot be read.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(identifyEvery):
		}
	}
}

// who is this machine, as far as its signals need it.
func (c *cloud) who(ctx context.Context) (metadata.Instance, error) {
	if p, err := c.a.provider(ctx); err == nil && p == metadata.Azure {
		// Its events are off until somebody asks for them, and that takes minutes: the rest is found out beside it.
		return metadata.Instance{Provider: p}, nil
	}
	return c.a.identify(ctx)
}

// hasHooks tells that this cloud may let a hook wait of which no notice tells, so that it has to be asked. The signals of
// such a cloud name the instance, which therefore has to be known first.
func hasHooks(provider string) bool { return provider == metadata.AWS || provider == metadata.Alibaba }

// provider is the cloud that somebody named, or that shows.
func (a *daemonAdapter) provider(ctx context.Context) (string, error) {
	a.mu.Lock()
	q := a.g.instanceQuestion()
	a.mu.Unlock()
	if q.provider != "auto" {
		return q.provider, nil
	}
	d, err := metadata.Detect(ctx, q.opts)
	return d.Provider, err
}

// identifyEvery is how often a cloud that does not answer is asked again.
const identifyEvery = 10 * time.Second

// open prepares what this cloud has.
func (c *cloud) open(inst metadata.Instance) error {
	var (
		source    lifecycle.Source
		completer lifecycle.Completer
		err       error
	)
	switch inst.Provider {
	case metadata.AWS:
		source, completer, err = openAWS(c.a, inst)
	case metadata.Azure:
		source, completer, err = openAzure(c.a, inst)
	case metadata.Alibaba:
		source, completer, err = openAlibaba(c.a, inst)
	case metadata.GCP:
		source, completer, err = openGCP(c.a, inst)
	}
	if err != nil {
		return err
	}
	c.once.Do(func() {
		c.source, c.completer = source, completer
		close(c.known)
	})
	return nil
}

// ours is an error where a hook is another cloud's. That shows before the metadata answer, which they may never do.
func (c *cloud) ours(ctx context.Context, h lifecycle.Hook) error {
	if p, err := c.a.provider(ctx); err == nil && p != h.Provider {
		return fmt.Errorf("%w: this machine is on %s, not on %s", lifecycle.ErrGone, p, h.Provider)
	}
	return nil
}

// ready waits until the cloud is known.
func (c *cloud) ready(ctx context.Context) error {
	if c.unwatched {
		return c.settle(ctx)
	}
	select {
	case <-c.known:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("which cloud this machine is on is not known yet: %w", context.Cause(ctx))
	}
}

// Discover implements lifecycle.Completer.
func (c *cloud) Discover(ctx context.Context, launching bool) (*lifecycle.Hook, error) {
	if p, err := c.a.provider(ctx); err == nil && !hasHooks(p) {
		return nil, nil //nolint:nilnil // no hook, and no error: nobody needs to be asked for one
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if c.completer == nil {
		return nil, nil //nolint:nilnil // no hook, and no error: this cloud has none
	}
	return c.completer.Discover(ctx, launching)
}

// Heartbeat implements lifecycle.Completer.
func (c *cloud) Heartbeat(ctx context.Context, h lifecycle.Hook) error {
	return c.ask(ctx, h, func() error { return c.completer.Heartbeat(ctx, h) })
}

// Complete implements lifecycle.Completer.
func (c *cloud) Complete(ctx context.Context, h lifecycle.Hook) error {
	return c.ask(ctx, h, func() error { return c.completer.Complete(ctx, h) })
}

func (c *cloud) ask(ctx context.Context, h lifecycle.Hook, call func() error) error {
	if err := c.ours(ctx, h); err != nil {
		return err
	}
	if err := c.ready(ctx); err != nil {
		return err
	}
	if c.completer == nil {
		return fmt.Errorf("%w: this machine is not on %s", lifecycle.ErrGone, h.Provider)
	}
	return call()
}

// proxy finds the proxy for calls to a cloud's API, as the environment says: unlike the metadata, an API is often reached
// by one only.
func (g *globals) proxy() func(*http.Request) (*url.URL, error) {
	get := g.env.getenv
	https, none := cmp.Or(get("HTTPS_PROXY"), get("https_proxy")), cmp.Or(get("NO_PROXY"), get("no_proxy"))
	if https == "" || none == "*" {
		return nil
	}
	return http.ProxyFromEnvironment
}
