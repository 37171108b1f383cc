// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
)

// Hooks asks the cloud for what makes it wait before it ends this machine.
type Hooks interface {
	TerminationHook(ctx context.Context) (HookView, error)
}

// HookView is what the cloud says.
type HookView struct {
	// Without says why this cloud has no hook that concerns us; "" where it may have.
	Without string
	// Group is the scaling group, "" for a machine in none.
	Group string
	// Name, of the hook; "" where the group has none.
	Name string
	// Timeout is how long it waits from one word of ours to the next, Limit how long
	// in all; 0 is not told.
	Timeout, Limit time.Duration
	// Denied is the permission that this machine's role lacks, Policy what has to be
	// granted, and Answer what the cloud said.
	Denied, Policy, Answer string
	// Unproved says which permission could not be tried.
	Unproved string
}

const hookPage = "docs/drain.md says how to make one"

func checkHook(ctx context.Context, p *patient) []Result {
	if p.Hooks == nil {
		return one(unknown("nobody was asked"))
	}
	v, err := p.hook.get(ctx)
	switch {
	case err != nil:
		return one(notKnown(err))
	case v.Denied != "":
		hint := "grant it to this machine's role"
		if v.Policy != "" {
			hint += ": " + v.Policy
		}
		text := "permission " + v.Denied + " is missing"
		if v.Answer != "" {
			text += ": " + v.Answer
		}
		return one(bad(hint, "%s", text).as(IDHookDenied))
	case v.Without != "":
		return one(good("%s", v.Without))
	case v.Group == "":
		return one(good("this machine is in no scaling group: nobody ends it without being told to"))
	case v.Name == "":
		return one(warning(hookPage, "group %s has no hook for the end of a machine: a scale-in cuts its sessions", v.Group))
	}
	text := fmt.Sprintf("%s of group %s", v.Name, v.Group)
	if v.Unproved != "" {
		text += "; " + v.Unproved
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

// daemonUnit drains when the machine goes down, and for as long as systemd lets it.
const daemonUnit = "amsagent.service"

// checkTimeline puts all that ends a drain into one line. What can only be known in
// the middle of a drain is left to `amsagent status`.
func checkTimeline(ctx context.Context, p *patient) []Result {
	if p.Drain <= 0 {
		return one(unknown("how long a drain waits is not known"))
	}
	line := []string{moment{"drain deadline", p.Drain}.String()}
	var found []Result
	hook, err := p.hook.get(ctx)
	if p.Hooks != nil && err == nil && hook.Name != "" && hook.Denied == "" {
		line = append(line, hookSpan(hook))
		most := hook.Limit
		if most > 0 && most-p.Reserve < p.Drain {
			found = append(found, warning("make the hook wait longer, or drain_deadline shorter",
				"the hook waits %s in all, so the sessions get %s and not %s: who is still there then is cut", span(most), span(max(0, most-p.Reserve)), span(p.Drain)))
		}
		if hook.Timeout > 0 && hook.Timeout < minHookTimeout {
			found = append(found, warning("give the hook at least "+span(minHookTimeout),
				"the hook hears of us at half of its timeout of %s: one lost call and it lets the machine go", span(hook.Timeout)))
		}
	}
	if p.Unit != nil {
		if st, err := p.Unit(ctx, daemonUnit); err == nil && st.StopTimeout > 0 {
			text := moment{"power-off gives it", st.StopTimeout}.String()
			if st.StopTimeout < p.Drain {
				text += " (less: who is still there is cut)"
			}
			line = append(line, text)
		}
	}
	in, err := p.inspection.get(ctx)
	if err == nil && in.Install != nil && in.Service.Known() {
		found = append(found, stopTimeout(in, &line)...)
	}
	text := strings.Join(line, " · ")
	if len(found) == 0 {
		return one(good("%s", text))
	}
	for i := range found {
		found[i].Seen += " [" + text + "]"
	}
	return found
}

// minHookTimeout: a heartbeat is tried for ten seconds, and then again.
const minHookTimeout = time.Minute

func hookSpan(h HookView) string {
	text := "hook " + h.Name
	if h.Timeout > 0 {
		text += " waits " + span(h.Timeout) + " at a time"
	}
	if h.Limit > 0 {
		text += ", " + span(h.Limit) + " in all"
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
		"systemd kills the server %s after it was told to stop, and ending %d applications may take %s: streams stay \"broadcasting\"",
		span(have), len(in.Install.Apps), span(need)))
}
