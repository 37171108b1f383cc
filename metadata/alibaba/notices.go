// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Intervals of Watch.
const (
	spotEvery = 5 * time.Second
	spotLead  = 5 * time.Minute
	// eventsEvery: system events are announced a day or more ahead.
	eventsEvery = time.Minute
	// scalingEvery bounds a scale-in's delay. Calls count per account, so throttling raises it up to scalingSlow.
	scalingEvery = 10 * time.Second
	scalingSlow  = time.Minute
	// idleEvery applies outside a scaling group, deniedEvery without permission.
	idleEvery   = 5 * time.Minute
	deniedEvery = 10 * time.Minute
)

// Topics besides [cloud.GroupTopic].
const (
	topicSpot   = "alibaba-spot"
	topicEvents = "alibaba-events"
)

// Watch implements cloud.Watcher.
func (p *Provider) Watch(ctx context.Context, report cloud.Report) {
	var wg sync.WaitGroup
	spotEnd := cloud.SpotEnd{Lead: spotLead}
	spot := meta("spot termination time", "instance/spot/termination-time")
	wg.Go(func() {
		p.Client.Watch(ctx, spot, topicSpot, spotEvery, report, func(c *cloud.Clock, body []byte) ([]cloud.Notice, error) { return parseSpot(c, body, &spotEnd) })
	})
	events := cloud.Item{Name: "system events", Path: "maintenance/active-system-events"}
	wg.Go(func() { p.Client.Watch(ctx, events, topicEvents, eventsEvery, report, parseEvents) })
	wg.Go(func() { p.watchScaling(ctx, report) })
	wg.Wait()
}

func parseSpot(c *cloud.Clock, body []byte, end *cloud.SpotEnd) ([]cloud.Notice, error) {
	announced := parseTime(string(body))
	if len(body) > 0 && announced.IsZero() {
		return nil, fmt.Errorf("the termination time: %s is no time", cloud.Quote(string(body)))
	}
	at := end.At(c, announced)
	if at.IsZero() {
		return nil, nil
	}
	return []cloud.Notice{{
		ID: topicSpot + "/interrupt", Kind: cloud.Interrupt, Who: "ECS spot", Reason: "spot instance is reclaimed", At: at,
		Counted: !c.Known, Past: c.Past(c.Local(announced)),
	}}, nil
}

// parseEvents uses the fields of the DescribeInstancesFullStatus API: the metadata documents only the list.
func parseEvents(c *cloud.Clock, body []byte) ([]cloud.Notice, error) {
	if text := strings.TrimSpace(string(body)); text == "" || strings.EqualFold(text, "none") {
		return nil, nil // the documented example is "None"
	}
	// A field of the wrong type must not hide other events.
	events, _, err := cloud.Decode[[]systemEvent](body)
	if err != nil {
		return nil, fmt.Errorf("the system events are not the JSON expected: %w", err)
	}
	var current []cloud.Notice
	for _, e := range events {
		switch e.EventCycleStatus.Name {
		case "Avoided", "Executed", "Canceled", "Failed", "Inquiring": // over, or waiting for the owner's consent
		default:
			current = append(current, e.notice(c))
		}
	}
	return current, nil
}

type systemEvent struct {
	EventID, NotBefore, Reason  string
	EventType, EventCycleStatus struct{ Name string }
}

func (e systemEvent) notice(c *cloud.Clock) cloud.Notice {
	name := cloud.Printable(e.EventType.Name)
	n := cloud.Notice{ID: topicEvents + "/" + name + "/" + cloud.Printable(e.EventID), Kind: cloud.Unknown, Who: "ECS", Reason: "system event " + name}
	if e.Reason != "" {
		n.Reason += ": " + cloud.Printable(e.Reason)
	}
	at := c.Local(parseTime(e.NotBefore))
	executing := e.EventCycleStatus.Name == "Executing"
	// Without a date the event may be two weeks ahead: no drain.
	if kind := eventKind(name); kind != "" && (executing || !at.IsZero()) {
		n.Kind, n.At = kind, at
		n.Past = kind == cloud.Reboot && executing && c.Past(at)
	}
	return n
}

// eventKind returns the kind of SystemMaintenance.Reboot and the like; "" if unknown.
func eventKind(name string) cloud.Kind {
	_, does, _ := strings.Cut(name, ".")
	switch {
	case strings.HasPrefix(does, "Reboot"), does == "Redeploy":
		return cloud.Reboot
	case does == "Stop", does == "Delete", does == "Release":
		return cloud.Interrupt
	}
	return ""
}

// watchScaling uses the API: the metadata announces no ordinary scale-in.
func (p *Provider) watchScaling(ctx context.Context, report cloud.Report) {
	every, member := scalingEvery, false
	var refused *cloud.DeniedError
	cloud.Poll(ctx, p.Options.Log, "state in the scaling group", scalingEvery, func(ctx context.Context) (time.Duration, error) {
		group, state, err := p.membership(ctx, 1)
		var pause time.Duration
		denied, isDenied := errors.AsType[*cloud.DeniedError](err)
		switch {
		case isDenied:
			if refused == nil || *refused != *denied {
				refused = denied
				// Info only: a machine without a group, or one that OOS drains, needs no permission.
				p.Options.Log.Info("scale-in cannot be seen from here", "error", denied, "policy", denied.Policy,
					"hint", "an OOS template that runs `amsagent drain` needs no permission")
			}
			pause = deniedEvery
		case err != nil:
			if errors.Is(err, errThrottled) {
				every = min(2*every, scalingSlow)
			}
			pause = every
		default:
			refused = nil
			every = max(every*9/10, scalingEvery)
			pause = every
			if group != "" {
				report(cloud.GroupTopic(Name), scaling(state))
			} else if !member {
				// Released or removed: earlier notices stay. A single answer may be wrong.
				pause = idleEvery
			}
			member = group != ""
		}
		return pause - pause/10 + rand.N(pause/5), err
	})
}

func scaling(state string) []cloud.Notice {
	var n cloud.Notice
	switch step(state) {
	case "InService", "Pending":
		return nil
	case "Removing":
		n = cloud.OfGroup(Name, cloud.Terminate, "scale-in")
	case "Standby":
		n = cloud.OfGroup(Name, cloud.Park, "standby")
	case "Stopped":
		n = cloud.OfGroup(Name, cloud.Park, "stopped by the group")
	default:
		n = cloud.OfGroup(Name, cloud.Unknown, "state "+state)
		n.ID += "/" + state
	}
	return []cloud.Notice{n}
}
