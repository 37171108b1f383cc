// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Intervals of Watch. Together they cost less than one request a second: DNS and NTP share the service's packet limit.
const (
	// stateEvery bounds the delay of a scale-in.
	stateEvery = 2 * time.Second
	// spotEvery is AWS's advice for Spot's two minutes of notice.
	spotEvery = 5 * time.Second
	// scheduledEvery: scheduled events are announced days ahead.
	scheduledEvery = time.Minute
	// spotLead is the notice period of an interruption. A hibernation has none.
	spotLead = 2 * time.Minute
)

// Topics besides [cloud.GroupTopic].
const (
	topicSpot      = "aws-spot"
	topicScheduled = "aws-scheduled"
)

// Watch implements cloud.Watcher.
func (p *Provider) Watch(ctx context.Context, report cloud.Report) {
	spotEnd, target := cloud.SpotEnd{Lead: spotLead}, targetState{membership: p.membership}
	var wg sync.WaitGroup
	for _, item := range []struct {
		cloud.Item
		topic string
		every time.Duration
		parse func(*cloud.Clock, []byte) ([]cloud.Notice, error)
	}{
		{meta("target lifecycle state", "autoscaling/target-lifecycle-state"), cloud.GroupTopic(Name), stateEvery, func(_ *cloud.Clock, body []byte) ([]cloud.Notice, error) { return target.parse(ctx, body) }},
		{meta("spot interruption", "spot/instance-action"), topicSpot, spotEvery, func(c *cloud.Clock, body []byte) ([]cloud.Notice, error) { return parseSpot(c, body, &spotEnd) }},
		{meta("scheduled events", "events/maintenance/scheduled"), topicScheduled, scheduledEvery, parseScheduled},
	} {
		wg.Go(func() { p.Client.Watch(ctx, item.Item, item.topic, item.every, report, item.parse) })
	}
	wg.Wait()
}

// targetState reads the target lifecycle state. Undocumented states, such as that of a root volume replacement, are looked
// up by the API.
type targetState struct {
	membership func(context.Context) (group, state string, err error)

	id      string // of the unknown target
	current []cloud.Notice
	asked   time.Time
	final   bool
	// looked: a state was read. past: the first one was that of a root volume that was being replaced, so this is the new root.
	looked, past bool
}

const askEvery = 10 * time.Second

func (t *targetState) parse(ctx context.Context, body []byte) ([]cloud.Notice, error) {
	if body == nil {
		return nil, cloud.ErrNotFound // before the first transition, and outside a group
	}
	current, err := parseTarget(body)
	if len(current) == 0 || current[0].Kind != cloud.Unknown {
		t.id = ""
		return t.decided(current), err
	}
	if t.id != current[0].ID || !t.final && time.Since(t.asked) >= askEvery {
		t.ask(ctx, current[0])
	}
	return t.current, nil
}

// decided keeps a root volume replacement in the past that had proceeded at the first look.
func (t *targetState) decided(current []cloud.Notice) []cloud.Notice {
	t.past = len(current) > 0 && current[0].Past && (t.past || !t.looked)
	t.looked = true
	if len(current) > 0 {
		current[0].Past = t.past
	}
	return current
}

func (t *targetState) ask(ctx context.Context, n cloud.Notice) {
	_, state, err := t.membership(ctx)
	is, _ := parseTarget([]byte(targetOf.Replace(state)))
	denied, isDenied := errors.AsType[*cloud.DeniedError](err)
	t.id, t.current, t.asked, t.final = n.ID, []cloud.Notice{n}, time.Now(), isDenied
	switch {
	case isDenied:
		t.current[0].Reason += ", state not known without " + denied.Permission
	case err != nil:
	case len(is) > 0 && is[0].Kind != cloud.Unknown:
		t.current = t.decided(is)
		t.final = !t.past
	case strings.HasSuffix(n.ID, "/"+rootReplaced):
		t.current = t.decided(nil) // not yet, or no longer
	default:
		t.current[0].Reason += ", state " + cloud.Printable(state)
		t.final = len(is) > 0 // else it has not begun
	}
}

// targetOf makes a transition's state the target.
var targetOf = strings.NewReplacer("Terminating", "Terminated", "EnteringStandby", "Standby", "Detaching", "Detached", ":Wait", "", ":Retained", "")

// States of a root volume replacement, without :Wait and :Proceed.
const (
	replacingRoot = "ReplacingRootVolume"
	rootReplaced  = "RootVolumeReplaced"
)

func parseTarget(body []byte) ([]cloud.Notice, error) {
	state, err := cloud.ParseLine(body)
	if err != nil {
		return nil, fmt.Errorf("the target lifecycle state: %w", err)
	}
	var n cloud.Notice
	state, proceeds := strings.CutSuffix(state, ":Proceed")
	pool, warmed := strings.CutPrefix(state, "Warmed:")
	switch {
	case state == "InService":
		return nil, nil
	case state == "Terminated", state == "Warmed:Terminated":
		n = cloud.OfGroup(Name, cloud.Terminate, "scale-in")
	case state == "Detached":
		// The machine may be attached again.
		n = cloud.OfGroup(Name, cloud.Park, "detached from the group")
	case state == "Standby":
		n = cloud.OfGroup(Name, cloud.Park, "standby")
	case strings.HasPrefix(state, replacingRoot):
		n = cloud.OfGroup(Name, cloud.Reimage, "root volume replaced")
		n.Past = proceeds
	case warmed:
		n = cloud.OfGroup(Name, cloud.Park, "return to the warm pool ("+pool+")")
	default:
		n = cloud.OfGroup(Name, cloud.Unknown, "target state "+state)
		n.ID += "/" + state
	}
	return []cloud.Notice{n}, nil
}

// parseSpot parses spot/instance-action; empty if no action is announced.
func parseSpot(c *cloud.Clock, body []byte, end *cloud.SpotEnd) ([]cloud.Notice, error) {
	var doc struct {
		Action string    `json:"action"` // terminate, stop, hibernate
		Time   time.Time `json:"time"`
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &doc); err != nil || doc.Time.IsZero() {
			return nil, fmt.Errorf("the instance action is not the JSON expected: %s", cloud.Quote(string(body)))
		}
	}
	at := end.At(c, doc.Time)
	if at.IsZero() {
		return nil, nil
	}
	n := cloud.Notice{
		ID: topicSpot + "/interrupt", Kind: cloud.Interrupt, Who: "EC2 Spot", At: at,
		Reason: "spot interruption (" + cloud.Printable(doc.Action) + ")", Counted: !c.Known, Past: c.Past(c.Local(doc.Time)),
	}
	if doc.Action == "hibernate" {
		// EC2 resumes the machine with its memory, in the same boot.
		n.Kind = cloud.Park
	}
	return []cloud.Notice{n}, nil
}

// scheduledKinds are those of scheduled events. A stop has a date, but neither a group nor a hook. Network or power
// maintenance interrupts the machine like a reboot.
var scheduledKinds = map[string]cloud.Kind{
	"instance-stop": cloud.Interrupt, "instance-retirement": cloud.Interrupt,
	"instance-reboot": cloud.Reboot, "system-reboot": cloud.Reboot, "system-maintenance": cloud.Reboot,
}

// parseScheduled parses events/maintenance/scheduled; empty if none is scheduled.
func parseScheduled(c *cloud.Clock, body []byte) ([]cloud.Notice, error) {
	var docs []struct {
		EventID     string `json:"EventId"`
		Code        string `json:"Code"`
		State       string `json:"State"`
		NotBefore   string `json:"NotBefore"`
		Description string `json:"Description"`
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &docs); err != nil {
			return nil, fmt.Errorf("the scheduled events are not the JSON expected: %w", err)
		}
	}
	var current []cloud.Notice
	for _, d := range docs {
		if d.State != "" && !strings.EqualFold(d.State, "active") {
			continue // canceled or completed
		}
		code := cloud.Printable(d.Code)
		n := cloud.Notice{
			ID: topicScheduled + "/" + code + "/" + cloud.Printable(d.EventID), Kind: cloud.Unknown, Who: "EC2", Reason: "scheduled event " + code,
			At: c.Local(cloud.ParseTime(d.NotBefore, "2 Jan 2006 15:04:05 GMT")),
		}
		if d.Description != "" {
			n.Reason += ": " + cloud.Printable(d.Description)
		}
		// Without a date the event may be two weeks ahead: no drain.
		if kind := scheduledKinds[code]; kind != "" && !n.At.IsZero() {
			n.Kind, n.Past = kind, code == "instance-reboot" && c.Past(n.At)
		}
		current = append(current, n)
	}
	return current, nil
}
