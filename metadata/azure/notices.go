// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	// pollEvery is the interval that Azure advises.
	pollEvery = time.Second
	// firstTimeout: the first call, or one after a day without calls, enables the events and may take two minutes.
	firstTimeout = 150 * time.Second
	switchedOff  = 23 * time.Hour
	// eventTimeout bounds all other calls. One second is known to be too short.
	eventTimeout = 5 * time.Second
)

const topicEvents = "azure-events"

var eventsItem = cloud.Item{Name: "scheduled events", Path: "/metadata/scheduledevents?api-version=2020-07-01", Timeout: eventTimeout}

type event struct {
	ID           string  `json:"EventId"`
	Type         string  `json:"EventType"`
	Status       string  `json:"EventStatus"` // Scheduled, Started
	ResourceType string  `json:"ResourceType"`
	Resources    names   `json:"Resources"`
	NotBefore    string  `json:"NotBefore"` // "" once started
	Description  string  `json:"Description"`
	Source       string  `json:"EventSource"` // Platform, User
	Seconds      float64 `json:"DurationInSeconds"`
}

type names []string

// UnmarshalJSON also reads one name as text: an event of unknown form may concern this machine.
func (n *names) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err != nil || one == "" {
		return json.Unmarshal(b, (*[]string)(n))
	}
	*n = names{one}
	return nil
}

func parseEvents(body []byte) ([]event, error) {
	doc, _, err := cloud.Decode[struct {
		Events []event `json:"Events"`
	}](body)
	if err != nil || doc.Events == nil {
		return nil, fmt.Errorf("the scheduled events are not the JSON expected: %s", cloud.Quote(string(body)))
	}
	return doc.Events, nil
}

func (e *event) started() bool { return strings.EqualFold(e.Status, "Started") }

// watch belongs to one goroutine.
type watch struct {
	p       *Provider
	report  cloud.Report
	good    time.Time       // of the last successful poll
	machine *machine        // nil until its metadata is read
	past    map[string]bool // events that were started then
	clock   cloud.Clock
	seen    map[string]time.Time // when an event was first seen
}

// Watch implements cloud.Watcher. Its first request enables the events for all machines of the scale set in this zone. The
// metadata's name selects this machine's events.
func (p *Provider) Watch(ctx context.Context, report cloud.Report) {
	w := &watch{p: p, report: report, past: map[string]bool{}, seen: map[string]time.Time{}}
	cloud.Poll(ctx, p.Options.Log, eventsItem.Name, pollEvery, func(ctx context.Context) (time.Duration, error) { return 0, w.look(ctx) })
}

func (w *watch) look(ctx context.Context) error {
	item := eventsItem
	if time.Since(w.good) > switchedOff {
		item.Timeout = firstTimeout
	}
	h, body, err := w.p.Client.Once(ctx, item)
	if err != nil {
		return err
	}
	w.clock.Seen(h)
	events, err := parseEvents(body)
	if err != nil {
		return err
	}
	w.good = time.Now()
	if w.machine == nil {
		if err := w.name(ctx, events); err != nil {
			return err
		}
	}
	if w.machine.Compute.Name == "" {
		return nil
	}
	var current []cloud.Notice
	for _, e := range events {
		if slices.ContainsFunc(e.Resources, w.isSelf) {
			if n := w.notice(e); n != nil {
				current = append(current, *n)
			}
		}
	}
	w.report(topicEvents, current)
	return nil
}

func (w *watch) isSelf(name string) bool { return strings.EqualFold(name, w.machine.Compute.Name) }

func (w *watch) name(ctx context.Context, listed []event) error {
	_, body, err := w.p.Client.Once(ctx, instance)
	if err != nil {
		return err
	}
	m, err := parseMachine(body)
	if err != nil {
		return err
	}
	if m.Compute.Name == "" {
		w.p.Options.Log.Warn("machine has no name in the metadata, scheduled events cannot be matched", "provider", Name)
	}
	w.machine = &m
	for _, e := range listed {
		w.past[e.ID] = e.started()
	}
	return nil
}

// kinds are those of event types, in lower case, with the shortest notice (docs: Scheduled Events).
var kinds = map[string]struct {
	cloud.Kind
	lead time.Duration
}{
	"terminate": {cloud.Terminate, 5 * time.Minute}, "preempt": {cloud.Interrupt, 30 * time.Second},
	"reboot": {cloud.Reboot, 15 * time.Minute}, "redeploy": {cloud.Reboot, 10 * time.Minute},
}

// notice returns nil for a short freeze: viewers have buffers, and a drain would cost more.
func (w *watch) notice(e event) *cloud.Notice {
	n := &cloud.Notice{ID: topicEvents + "/" + cloud.Printable(e.ID), Kind: cloud.Unknown, Who: "Azure", Reason: reason(e)}
	if e.Source != "" {
		n.Who += " (" + cloud.Printable(e.Source) + ")"
	}
	kind, known := kinds[strings.ToLower(e.Type)]
	at := w.clock.Local(cloud.ParseTime(e.NotBefore, http.TimeFormat, "Mon, 2 Jan 2006 15:04:05 GMT"))
	if !w.clock.Known && !at.IsZero() {
		if w.seen[e.ID].IsZero() {
			w.seen[e.ID] = time.Now()
		}
		at, n.Counted = w.seen[e.ID].Add(kind.lead), true
	}
	switch {
	case e.ResourceType != "" && !strings.EqualFold(e.ResourceType, "VirtualMachine"):
	case strings.EqualFold(e.Type, "freeze"):
		return nil
	case !known:
		n.At = at
	case e.started():
		// The event waits for no completion, and the remaining time is unknown: viewers stay until the end, without new
		// ones.
		if n.Kind = kind.Kind; n.Kind == cloud.Terminate {
			n.Kind = cloud.Interrupt
		}
		// The event stays listed until Azure detects that the machine is back.
		n.Past = n.Kind == cloud.Reboot && w.past[e.ID]
	case strings.EqualFold(e.Status, "Scheduled"), at.After(time.Now()):
		n.Kind, n.At = kind.Kind, at
		n.Hook = &cloud.Hook{
			Provider: Name, Group: w.machine.scaleSet(), Name: cloud.Printable(e.Type + " " + e.ID), Token: e.ID,
			Others: slices.DeleteFunc(slices.Clone(e.Resources), w.isSelf), Fixed: true, Limit: at,
		}
	}
	return n
}

func reason(e event) string {
	text := "scheduled event " + cloud.Printable(e.Type)
	switch strings.ToLower(e.Type) {
	case "terminate":
		text = "scale-in" // by the set's rules or by the operator
	case "preempt":
		text = "spot eviction"
	}
	if e.Seconds > 0 && e.Seconds < 1e6 {
		text += ", for " + time.Duration(e.Seconds*float64(time.Second)).String()
	}
	if e.Description != "" {
		text += ": " + cloud.Printable(e.Description)
	}
	return text
}

// Pending implements cloud.Hooks: hooks come only with notices.
func (p *Provider) Pending(context.Context, bool) ([]cloud.Hook, error) { return nil, nil }

// Extend implements cloud.Hooks. Azure extends no event.
func (p *Provider) Extend(context.Context, cloud.Hook) (time.Duration, error) {
	return 0, cloud.ErrNotWaiting
}

// Complete implements cloud.Hooks: the event may start, for all machines that it names.
func (p *Provider) Complete(ctx context.Context, h cloud.Hook) error {
	if h.Provider != Name || h.Token == "" {
		return fmt.Errorf("%w: it is no scheduled event of Azure's", cloud.ErrGone)
	}
	type request struct {
		EventID string `json:"EventId"`
	}
	body, err := json.Marshal(map[string][]request{"StartRequests": {{h.Token}}})
	if err != nil {
		return err
	}
	item := eventsItem
	item.Name, item.Body = "acknowledgement of a scheduled event", body
	_, _, err = p.Client.Once(ctx, item)
	if e, ok := errors.AsType[*cloud.Error](err); ok && e.Status == http.StatusBadRequest {
		// Documented: the event has started or is no longer scheduled.
		return fmt.Errorf("%w: %w", cloud.ErrGone, e)
	}
	return err
}

// Check implements cloud.Provider. Reading the scale set's terminate notification would need an identity.
func (p *Provider) Check(ctx context.Context, _ cloud.Filter) (cloud.Check, error) {
	m, err := p.read(ctx)
	c := cloud.Check{Group: m.scaleSet()}
	switch {
	case err != nil || c.Group == "":
	case strings.EqualFold(m.Compute.Priority, "spot"):
		c.Without = "Azure announces the eviction of a Spot machine 30 s ahead, but no scale-in"
	default:
		c.Untold = "a machine of scale set " + c.Group + " gets a notice of its end only if terminate notification is on, and Azure does not show this setting to machines"
		c.Ask = "az vmss show -g RESOURCE-GROUP -n " + c.Group + " --query virtualMachineProfile.scheduledEventsProfile.terminateNotificationProfile"
	}
	return c, err
}
