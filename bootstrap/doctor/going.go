// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// hooks are this agent's hooks for the end of the machine.
type hooks struct {
	cloud.Check
	name string // all names; "" without one
	// timeout is the time for one heartbeat, limit that for all; of several hooks, the shortest. 0 is unknown.
	timeout, limit time.Duration
	abandons       string        // a hook whose default result is ABANDON
	window         time.Duration // that the cloud gives a machine that is switched off; 0 is unknown
}

func askHooks(ctx context.Context, p *patient) (hooks, error) {
	if p.Hooks == nil {
		return hooks{}, errors.New("no cloud was asked for hooks")
	}
	inst, err := p.identity.get(ctx)
	if err != nil {
		return hooks{}, err
	}
	c, err := p.Hooks(ctx)
	h := hooks{Check: c, window: time.Duration(inst.StopWindow)}
	shorten := func(to *time.Duration, d time.Duration) {
		if d > 0 && (*to == 0 || d < *to) {
			*to = d
		}
	}
	var names []string
	for _, hook := range c.Ours {
		names = append(names, hook.Name)
		shorten(&h.timeout, time.Duration(hook.Timeout))
		if !hook.Limit.IsZero() {
			shorten(&h.limit, time.Until(hook.Limit).Round(5*time.Second))
		}
		if hook.Abandons {
			h.abandons = hook.Name
		}
	}
	h.name = strings.Join(names, ", ")
	return h, err
}

const hookPage = "make one: amsagent doctor --explain AGENT-HOOK"

func checkHook(ctx context.Context, p *patient) []Result {
	if p.Hooks == nil {
		return one(unknown("not asked"))
	}
	if _, err := p.identity.get(ctx); err != nil {
		// Reported with the identity.
		return one(unknown("without an identity no cloud is asked"))
	}
	v, err := p.hook.get(ctx)
	if denied, ok := errors.AsType[*cloud.DeniedError](err); ok {
		hint := "grant it to this machine's role"
		if denied.Policy != "" {
			hint += ": " + denied.Policy
		}
		return one(bad(hint, "%s", denied).as(idHookDenied))
	}
	switch {
	case err != nil:
		return one(notKnown(err))
	case v.Without != "" && v.window > 0:
		return one(good("%s, and gives this one %.0f s", v.Without, v.window.Seconds()))
	case v.Without != "":
		return one(good("%s", v.Without))
	case v.Untold != "":
		r := unknown("%s", v.Untold)
		r.Hint = v.Ask
		return one(r)
	case v.Group == "":
		return one(good("this machine is in no scaling group: no cloud ends it by itself"))
	case v.name == "" && len(v.Others) > 0:
		return one(warning("name this agent's in the setting hooks (join --hooks, or hooks: in config.yaml)",
			"of the hooks of group %s for the end of a machine none is this agent's: %s; a scale-in does not wait for its sessions", v.Group, strings.Join(v.Others, ", ")))
	case v.name == "":
		return one(warning(hookPage, "group %s has no hook for the end of a machine: a scale-in cuts its sessions", v.Group))
	}
	text := fmt.Sprintf("%s of group %s", v.name, v.Group)
	if v.Unproved != "" {
		text += "; " + v.Unproved
	}
	if v.abandons != "" {
		text += "; if this machine crashes, " + v.abandons + " ends with ABANDON: a group with TerminateHookAbandon=retain keeps the dead machine"
	}
	return one(good("%s", text))
}

// moment is one line of the timeline.
type moment struct {
	what string
	d    time.Duration // 0: not known
}

func (m moment) String() string {
	if m.d == 0 {
		return m.what + " not known"
	}
	return m.what + " " + span(m.d)
}

// span is a time as people say it: 30s, 2m20s, 1h.
func span(d time.Duration) string {
	s := d.Round(time.Second).String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}

// daemonUnit drains when the machine shuts down, as long as systemd allows.
const daemonUnit = "amsagent.service"

// checkTimeline puts all that ends a drain into one line, and into one picture. What
// can only be known in the middle of a drain is left to `amsagent status`.
func checkTimeline(ctx context.Context, p *patient) []Result {
	if p.Drain == nil {
		return one(unknown("how long a drain waits is not known"))
	}
	hook, hookErr := p.hook.get(ctx) // before Drain: it reads the machine's tags
	drain := p.Drain()
	line := []string{moment{"drain deadline", drain}.String()}
	picture := timeline{drain: drain, reserve: p.Reserve}
	var found []Result
	if hookErr == nil {
		picture.window = hook.window
		if hook.name != "" {
			picture.hook = hook
			line = append(line, hookSpan(hook))
			found = append(found, hookTimes(hook, drain, p.Reserve)...)
		}
	}
	if p.Unit != nil {
		if st, err := p.Unit(ctx, daemonUnit); err == nil && st.StopTimeout > 0 {
			picture.off = st.StopTimeout
			text := moment{"power-off gives it", st.StopTimeout}.String()
			if st.StopTimeout < drain {
				text += " (less: who is still there is cut)"
			}
			line = append(line, text)
		}
	}
	in, err := p.inspection.get(ctx)
	if err == nil && in.Install != nil && in.Service.Known() {
		picture.stop = in.Service.StopTimeout
		if need := ams.StopTimeout(len(in.Install.Apps)); in.State == nil {
			picture.stop = max(picture.stop, need) // as a join makes it
		}
		found = append(found, stopTimeout(in, &line)...)
	}
	text := strings.Join(line, " · ")
	if len(found) == 0 {
		found = one(good("%s", text))
	} else {
		for i := range found {
			found[i].Text += " [" + text + "]"
		}
	}
	found[0].Lines = picture.lines()
	return found
}

// hookTimes compares what a hook gives with what a drain may take.
func hookTimes(hook hooks, drain, reserve time.Duration) []Result {
	var found []Result
	if most := hook.limit; most > 0 && most-reserve < drain {
		found = append(found, warning("make the hook wait longer, or drain_deadline shorter",
			"the hook waits %s in all, so the sessions get %s and not %s: who is still there then is cut", span(most), span(max(0, most-reserve)), span(drain)))
	}
	if hook.timeout > 0 && hook.timeout < minHookTimeout {
		found = append(found, warning("give the hook at least "+span(minHookTimeout),
			"the agent extends the hook at half of its timeout of %s: one lost call, and the cloud ends the machine", span(hook.timeout)))
	}
	return found
}

// timeline is what ends a drain, and what ends the wait of a machine that is
// switched off, each counted from its begin. 0 is not known.
type timeline struct {
	drain, reserve time.Duration
	hook           hooks
	stop           time.Duration // the server's
	off            time.Duration // the daemon's, at a power-off
	window         time.Duration // the cloud's, at a power-off
}

// lines draws it, the earliest first.
func (t timeline) lines() []string {
	type event struct {
		at   time.Duration
		text string
	}
	var all []string
	draw := func(begin string, events []event) {
		sort.SliceStable(events, func(i, j int) bool { return events[i].at < events[j].at })
		for _, e := range events {
			all = append(all, fmt.Sprintf("%-9s %9s  %s", begin, "+"+span(e.at), e.text))
			begin = ""
		}
	}
	cut, by := t.drain, "drain deadline: remaining sessions are cut, the server stops"
	if h := t.hook; h.limit > 0 && h.limit-t.reserve < cut {
		cut, by = max(0, h.limit-t.reserve), "the hook's time, less the last steps: remaining sessions are cut"
	}
	events := []event{{0, "no new sessions"}, {cut, by}}
	if t.stop > 0 {
		events = append(events, event{cut + t.stop, "systemd kills a server that has not ended"})
	}
	if h := t.hook; h.name != "" {
		if h.timeout > 0 {
			events = append(events, event{h.timeout / 2, fmt.Sprintf("hook %s is extended, then every %s (it waits %s)", h.name, span(h.timeout/2), span(h.timeout))})
		}
		if h.limit > 0 {
			events = append(events, event{h.limit, "hook " + h.name + " ends at the latest"})
		}
	}
	draw("drain", events)
	events = nil
	if t.off > 0 {
		text := "remaining sessions are cut, the server stops"
		if t.drain < t.off {
			events = append(events, event{t.drain, "drain deadline: " + text})
			text = "systemd waits for the drain no longer"
		}
		events = append(events, event{t.off, text})
		if t.stop > 0 {
			events = append(events, event{min(t.off, t.drain) + t.stop, "systemd kills a server that has not ended"})
		}
	}
	if t.window > 0 {
		events = append(events, event{t.window, "the cloud switches off: drain and stop are cut to fit"})
	}
	draw("power-off", events)
	return all
}

// minHookTimeout: a heartbeat is tried for ten seconds, and then again.
const minHookTimeout = time.Minute

func hookSpan(h hooks) string {
	text := "hook " + h.name
	if h.timeout > 0 {
		text += " waits " + span(h.timeout) + " at a time"
	}
	if h.limit > 0 {
		text += ", " + span(h.limit) + " in all"
	}
	return text
}

// stopTimeout compares the time that systemd gives the server with what it may need.
func stopTimeout(in *bootstrap.Inspection, line *[]string) []Result {
	have, need := in.Service.StopTimeout, ams.StopTimeout(len(in.Install.Apps))
	if have <= 0 {
		*line = append(*line, "the server's stop is not bounded")
		return nil
	}
	*line = append(*line, moment{"the server's stop", have}.String())
	switch {
	case have >= need:
		return nil
	case in.State == nil:
		(*line)[len(*line)-1] += fmt.Sprintf(" (a join makes it %s)", span(need))
		return nil
	}
	return one(warning("amsagent join writes the drop-in again; a later one may stand over it: systemctl cat "+ams.DefaultUnit,
		"systemd kills the server %s after the stop begins, and ending its applications (%d) may take %s: streams stay \"broadcasting\"",
		span(have), len(in.Install.Apps), span(need)))
}
