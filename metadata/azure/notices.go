// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
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
	// firstTimeout: the first call switches the events on, and may take two minutes; so may a call after a day without calls.
	firstTimeout = 150 * time.Second
	switchedOff  = 23 * time.Hour
	// eventTimeout bounds all other calls. One second is known to be too short.
	eventTimeout = 5 * time.Second
)

// topicEvents is the topic of all notices.
const topicEvents = "azure-events"

var eventsItem = cloud.Item{Name: "scheduled events", Path: "/metadata/scheduledevents?api-version=2020-07-01"}

// event is one scheduled event.
type event struct {
	ID           string   `json:"EventId"`
	Type         string   `json:"EventType"`
	Status       string   `json:"EventStatus"` // Scheduled, Started
	ResourceType string   `json:"ResourceType"`
	Resources    []string `json:"Resources"`
	NotBefore    string   `json:"NotBefore"` // "" once it has begun
	Description  string   `json:"Description"`
	Source       string   `json:"EventSource"` // Platform, User
	Seconds      float64  `json:"DurationInSeconds"`
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

// watch is one run of Watch. It belongs to one goroutine.
type watch struct {
	p       *Provider
	report  cloud.Report
	good    time.Time       // the last time at which the events could be read
	machine *machine        // nil until its metadata can be read
	past    map[string]bool // the events that had started at the first poll; nil before that
}

// Watch implements cloud.Watcher. It requests the events from the start on, because that switches them on for all machines of
// the set in this zone. The name in the metadata shows which of them concern this machine.
func (p *Provider) Watch(ctx context.Context, report cloud.Report) {
	w := &watch{p: p, report: report}
	cloud.Poll(ctx, p.opts.Log, eventsItem.Name, pollEvery, func(ctx context.Context) (time.Duration, error) { return 0, w.look(ctx) })
}

// look reports the events that concern this machine.
func (w *watch) look(ctx context.Context) error {
	timeout := eventTimeout
	if time.Since(w.good) > switchedOff {
		timeout = firstTimeout
	}
	events, err := w.p.readEvents(ctx, timeout)
	if err != nil {
		return err
	}
	w.good = time.Now()
	if w.machine == nil {
		if err := w.name(ctx); err != nil {
			return err
		}
	}
	name := w.machine.Compute.Name
	if name == "" {
		return nil
	}
	first := w.past == nil
	if first {
		w.past = map[string]bool{}
	}
	var current []cloud.Notice
	for _, e := range events {
		if !slices.ContainsFunc(e.Resources, func(r string) bool { return strings.EqualFold(r, name) }) {
			continue
		}
		if first && e.started() {
			w.past[e.ID] = true
		}
		if n := w.notice(e); n != nil {
			current = append(current, *n)
		}
	}
	w.report(topicEvents, current)
	return nil
}

// name finds the name of this machine in the events.
func (w *watch) name(ctx context.Context) error {
	_, body, err := w.p.items.Once(ctx, instance)
	if err != nil {
		return err
	}
	m, err := parseMachine(body)
	if err != nil {
		return err
	}
	if m.Compute.Name == "" {
		w.p.opts.Log.Warn("machine has no name in the metadata, scheduled events cannot be matched", "provider", Name)
	}
	w.machine = &m
	return nil
}

// notice returns the notice of an event about this machine. It is nil if the machine only stands still for a moment: viewers
// have buffers for that, and a drain would cost more.
func (w *watch) notice(e event) *cloud.Notice {
	n := &cloud.Notice{ID: topicEvents + "/" + cloud.Printable(e.ID), Kind: cloud.Unknown, Who: "Azure", Reason: reason(e)}
	if e.Source != "" {
		n.Who += " (" + cloud.Printable(e.Source) + ")"
	}
	if e.ResourceType != "" && !strings.EqualFold(e.ResourceType, "VirtualMachine") {
		return n
	}
	kind := cloud.Unknown
	switch strings.ToLower(e.Type) {
	case "freeze":
		return nil
	case "terminate":
		kind = cloud.Terminate
	case "preempt":
		kind = cloud.Interrupt
	case "reboot", "redeploy":
		kind = cloud.Reboot
	}
	at := cloud.ParseTime(e.NotBefore, http.TimeFormat, "Mon, 2 Jan 2006 15:04:05 GMT")
	switch {
	case e.started():
		// The event has begun, and waits for no completion. It is unknown how long the machine remains: viewers stay until its
		// end, and no new ones come.
		if n.Kind = kind; kind == cloud.Terminate {
			n.Kind = cloud.Interrupt
		}
		// It stays in the document until Azure has detected that the machine is back.
		n.Past = kind == cloud.Reboot && w.past[e.ID]
	case strings.EqualFold(e.Status, "Scheduled"), at.After(time.Now()):
		n.Kind, n.At = kind, at
		others := slices.DeleteFunc(slices.Clone(e.Resources), func(r string) bool { return strings.EqualFold(r, w.machine.Compute.Name) })
		n.Hook = &cloud.Hook{
			Provider: Name, Group: w.machine.scaleSet(), Name: cloud.Printable(e.Type + " " + e.ID), Token: e.ID,
			Others: others, Fixed: true, Limit: at,
		}
	}
	if n.Kind == cloud.Unknown {
		n.Hook = nil
	}
	return n
}

// reason returns the text for people: the cause, and the duration if the machine comes back.
func reason(e event) string {
	text := "scheduled event " + cloud.Printable(e.Type)
	switch strings.ToLower(e.Type) {
	case "terminate":
		text = "scale-in" // of a set, by its rules or by the operator
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

func (p *Provider) readEvents(ctx context.Context, timeout time.Duration) ([]event, error) {
	item := eventsItem
	item.Timeout = timeout
	_, body, err := p.items.Once(ctx, item)
	if err != nil {
		return nil, err
	}
	return parseEvents(body)
}

// acknowledger completes the hooks of this cloud: each hook is a scheduled event, and came with its notice.
type acknowledger struct{ p *Provider }

var _ cloud.Hooks = acknowledger{}

// Hooks returns the acknowledger of scheduled events.
func (p *Provider) Hooks() cloud.Hooks { return acknowledger{p} }

// Pending implements cloud.Hooks: no hook is found by a query.
func (acknowledger) Pending(context.Context, bool) ([]cloud.Hook, error) { return nil, nil }

// Extend implements cloud.Hooks. An event cannot be extended.
func (acknowledger) Extend(context.Context, cloud.Hook) (time.Duration, error) {
	return 0, cloud.ErrNotWaiting
}

// Complete implements cloud.Hooks: the event may begin, for all machines that it names.
func (a acknowledger) Complete(ctx context.Context, h cloud.Hook) error {
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
	bound, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(bound, http.MethodPost, a.p.items.Base+eventsItem.Path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	_, _, err = a.p.items.Do(req)
	e, ok := errors.AsType[*cloud.Error](err)
	if !ok {
		return err
	}
	e.Provider, e.Item = Name, "acknowledgement of a scheduled event"
	judge(e)
	if e.Status == http.StatusBadRequest { // according to the documentation, the event has begun or is not scheduled any more
		return fmt.Errorf("%w: %w", cloud.ErrGone, e)
	}
	return e
}

// Check implements cloud.Provider. The setting "terminate notification" is in the model of the scale set. Only a machine with
// an identity can read it, and the agent works without one.
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
