// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/pci"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	// holdTime is how long the service holds an answer without news.
	holdTime   = time.Minute
	holdMargin = 10 * time.Second
	// pace is the minimum time between requests for an item.
	pace = time.Second
	// absentPause applies if the item does not exist.
	absentPause = time.Minute
	// confirmations are immediate requests after a signal ends.
	confirmations = 3

	// Time from a maintenance notice to the stop, without and with a GPU (docs: Handle GPU host maintenance events).
	maintenanceNotice    = time.Minute
	maintenanceNoticeGPU = time.Hour
	// usualShutdown is the default of a graceful shutdown.
	usualShutdown = 10 * time.Minute
	maxShutdown   = 24 * time.Hour
)

const (
	topicPreempted   = "gcp-preempted"
	topicMaintenance = "gcp-maintenance"
	topicShutdown    = "gcp-shutdown"
)

type item struct {
	topic, path string
	// signal announces something; idle values do not.
	signal string
	idle   []string
	// began reports that the previous answer had no signal.
	read func(ctx context.Context, began bool) cloud.Notice

	word      string // the last value
	looked    bool
	current   []cloud.Notice
	etag      string
	confirmed int // reports since the start or the end of a signal
}

// Watch implements cloud.Watcher. Held requests cost an idle machine three requests a minute.
//
// The metadata announces no scale-in of a managed instance group before power-off.
func (p *Provider) Watch(ctx context.Context, report cloud.Report) {
	var wg sync.WaitGroup
	for _, it := range []*item{
		{topic: topicPreempted, path: "instance/preempted", signal: "TRUE", idle: []string{"FALSE", "NONE"}, read: preempted()},
		{topic: topicMaintenance, path: "instance/maintenance-event", signal: "TERMINATE_ON_HOST_MAINTENANCE", idle: []string{"NONE", "MIGRATE_ON_HOST_MAINTENANCE"}, read: p.maintenance},
		{
			topic: topicShutdown, path: "instance/shutdown-details/stop-state", signal: "PENDING_STOP", read: p.shutdown,
			idle: []string{"NONE", "UNSPECIFIED", "STOP_STATE_UNSPECIFIED", "UNKNOWN_STOP_STATE"},
		},
	} {
		wg.Go(func() {
			cloud.Poll(ctx, p.Options.Log, it.path, pace, func(ctx context.Context) (time.Duration, error) { return p.look(ctx, it, report) })
		})
	}
	wg.Wait()
}

// look sends the last ETag, so that the service answers on a change.
func (p *Provider) look(ctx context.Context, it *item, report cloud.Report) (time.Duration, error) {
	asked, held := cloud.Item{Name: it.path, Path: it.path}, it.etag != ""
	if held {
		asked.Path += fmt.Sprintf("?wait_for_change=true&last_etag=%s&timeout_sec=%d", url.QueryEscape(it.etag), int(jitter(holdTime).Seconds()))
		asked.Timeout = holdTime + holdMargin
	}
	it.etag = ""
	head, body, err := p.Client.Once(ctx, asked)
	word := strings.ToUpper(strings.TrimSpace(string(body)))
	if err == nil && !oneWord.MatchString(word) {
		err = fmt.Errorf("%s is %s", it.path, cloud.Quote(word))
	}
	absent := errors.Is(err, cloud.ErrNotFound)
	if err != nil && !absent {
		if held {
			return pace, nil // only a failure of the next, direct request counts
		}
		return 0, err
	}
	if it.take(ctx, word) {
		it.confirmed = 0
	}
	report(it.topic, it.current)
	if it.confirmed++; it.confirmed > confirmations {
		if absent {
			return jitter(absentPause), nil
		}
		it.etag = head.Get("ETag") // without an ETag the service does not hold
	}
	return pace, nil
}

var oneWord = regexp.MustCompile(`^[A-Z0-9_]{0,64}$`)

// take reports whether a signal has ended. An unknown value withdraws no notice.
func (it *item) take(ctx context.Context, word string) (ended bool) {
	known := slices.DeleteFunc(slices.Clone(it.current), func(n cloud.Notice) bool { return n.Kind == cloud.Unknown })
	began := it.looked && len(known) == 0
	it.looked = true
	if word == it.word {
		return false
	}
	it.word = word
	switch {
	case word == it.signal:
		it.current = []cloud.Notice{it.read(ctx, began)}
	case word == "" || slices.Contains(it.idle, word):
		it.current, ended = nil, len(known) > 0
	default:
		it.current = append(known, cloud.Notice{ID: it.topic + "/" + word, Kind: cloud.Unknown, Who: who, Reason: it.path + " is " + word})
	}
	return ended
}

const who = "Google Cloud"

func counted(topic string, kind cloud.Kind, reason string, at time.Time) cloud.Notice {
	return cloud.Notice{ID: topic + "/" + string(kind), Kind: kind, Who: who, Reason: reason, At: at, Counted: true}
}

// preempted counts the window once, even if the signal returns.
func preempted() func(context.Context, bool) cloud.Notice {
	var end time.Time
	return func(context.Context, bool) cloud.Notice {
		if now := time.Now(); !end.After(now) {
			end = now.Add(StopWindowSpot)
		}
		return counted(topicPreempted, cloud.Interrupt, "preemption of a Spot VM", end)
	}
}

func (p *Provider) maintenance(ctx context.Context, began bool) cloud.Notice {
	now := time.Now()
	n := counted(topicMaintenance, cloud.Reboot, "host maintenance", now.Add(maintenanceNotice))
	if drivers, _ := pci.NVIDIADrivers(p.Options.Path("/")); began && len(drivers) > 0 {
		n.At = now.Add(maintenanceNoticeGPU)
	}
	var clock cloud.Clock
	h, body, err := p.Client.Once(ctx, cloud.Item{Name: "upcoming maintenance", Path: "instance/upcoming-maintenance?alt=json"})
	clock.Seen(h)
	if start := clock.Local(parseUpcoming(body)); err == nil && clock.Known && start.After(n.At) && start.Before(now.Add(maintenanceNoticeGPU+holdMargin)) {
		n.At, n.Counted = start, false
	}
	return n
}

func (p *Provider) shutdown(ctx context.Context, _ bool) cloud.Notice {
	n := counted(topicShutdown, cloud.Terminate, "graceful shutdown", time.Now().Add(usualShutdown))
	var clock cloud.Clock
	h, body, err := p.Client.Once(ctx, cloud.Item{Name: "shutdown details", Path: "instance/shutdown-details/" + recursive})
	if err != nil {
		p.Options.Log.Warn("shutdown details cannot be read, assuming the usual time", "limit", usualShutdown, "error", err)
		return n
	}
	clock.Seen(h)
	target, ends, counted := parseShutdown(&clock, body, time.Now())
	if target != "" {
		n.Reason += " (to be " + target + ")"
	}
	if !ends.IsZero() {
		n.At, n.Counted = ends, counted
	}
	return n
}

// fields flattens a JSON object; max-duration, max_duration and maxDuration become one name.
func fields(body []byte) map[string]string {
	var doc any
	_ = json.Unmarshal(body, &doc) // not JSON: no fields
	out := map[string]string{}
	var read func(name string, value any)
	read = func(name string, value any) {
		switch v := value.(type) {
		case map[string]any:
			for k, inner := range v {
				read(strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(k)), inner)
			}
		case string, float64:
			out[name] = fmt.Sprint(v)
		}
	}
	read("", doc)
	return out
}

// parseShutdown returns the target state and the end, counted from now if the start is unknown.
//
// The fields are the API's. The duration's format is undocumented: seconds with or without an s, or the API's object.
func parseShutdown(c *cloud.Clock, body []byte, now time.Time) (target string, ends time.Time, counted bool) {
	f := fields(body)
	target = strings.ToLower(cloud.Printable(f["targetstate"]))
	seconds := cmp.Or(f["maxduration"], f["seconds"])
	n, err := strconv.ParseFloat(strings.TrimSuffix(seconds, "s"), 64)
	if err != nil || !(n > 0 && n <= maxShutdown.Seconds()) { // strconv parses NaN
		return target, time.Time{}, false
	}
	span := time.Duration(n * float64(time.Second))
	from := c.Local(cloud.ParseTime(f["requesttimestamp"]))
	// A window in the future or past begins now.
	if counted = !c.Known || from.IsZero() || from.After(now) || !from.Add(span).After(now); counted {
		from = now
	}
	return target, from.Add(span), counted
}

// parseUpcoming returns the earliest start. Observed: NONE, an error object, and the fields with and without an
// enclosing object, in two spellings.
func parseUpcoming(body []byte) time.Time {
	f := fields(body)
	return cmp.Or(cloud.ParseTime(f["windowstarttime"]), cloud.ParseTime(f["starttime"]))
}

// jitter keeps a fleet from polling together.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/10+1) }
