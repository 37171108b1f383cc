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
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// daemonUnit is the daemon's own.
const daemonUnit = "amsagent.service"

// lifecycleOptions makes of the settings how this node goes.
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

// stopMargin is for the killing, and for who tells us of it.
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

// shutdownReserve is what we leave of systemd's time for the stop of this very process.
const shutdownReserve = 5 * time.Second

// systemdStopping reports whether the machine shuts down, and the time left: that of systemd or of the cloud, whichever is
// less.
func (a *daemonAdapter) systemdStopping(ctx context.Context) (deadline time.Time, by string, down bool) {
	down, err := goesDown(ctx, daemonUnit)
	if err != nil {
		a.g.out.Log().Warn("cannot tell whether the machine goes down: nobody is waited for", "error", err)
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

// stopSpan is how long a machine that goes down may drain, and by whose word. What the machine is may not be known.
func stopSpan(systemd time.Duration, inst metadata.Instance) (span time.Duration, by string) {
	span, by = systemd-min(shutdownReserve, systemd/2), "systemd's TimeoutStopSec"
	if systemd <= 0 {
		span, by = lifecycle.DefaultDeadline, "the usual deadline" // who waits without an end gets the usual one
	}
	window := time.Duration(inst.StopWindow)
	if window <= 0 {
		return span, by
	}
	// The stop of Ant Media Server and the deregistering come after us and have to be over before the machine is.
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

// goesDown asks systemd whether the machine shuts down. The bus ends at that time, too: without its answer, systemd is asked
// directly.
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

// openCloud opens the cloud that was named, or that shows. It makes no request.
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

// hookNames are those that the settings name now; they may change while the daemon runs.
func (a *daemonAdapter) hookNames() cloud.Filter {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.g.settings.Hooks
}

// proxyOf returns the environment's proxy for a cloud's API. The metadata service needs none.
func proxyOf(env Env) func(*http.Request) (*url.URL, error) {
	get := env.getenv
	https, none := cmp.Or(get("HTTPS_PROXY"), get("https_proxy")), cmp.Or(get("NO_PROXY"), get("no_proxy"))
	if https == "" || none == "*" {
		return nil
	}
	return http.ProxyFromEnvironment
}
