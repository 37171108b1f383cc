// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// hook is a hook that waits, or waited, for this agent.
type hook struct {
	Hook   Hook    `json:"hook"` // without its Limit
	Limit  instant `json:"limit,omitempty"`
	Notice string  `json:"notice,omitempty"` // that named it
	// Since is the start of its timeout.
	Since    instant `json:"since"`
	Extended instant `json:"extended,omitempty"`
	Extends  int     `json:"extends,omitempty"`
	// Failing: the last heartbeat failed. Denied is the permission that it lacks.
	Failing bool   `json:"failing,omitempty"`
	Denied  string `json:"denied,omitempty"`
	End     End    `json:"end,omitempty"`
	// Ours: the cloud confirmed that the hook is for this agent. New settings need a new confirmation.
	Ours bool `json:"ours,omitempty"`

	completionDenied string
	capNoted         bool
}

// End is the result of a hook; "" while it waits.
type End string

// The results.
const (
	endCompleted End = "completed"
	endGone      End = "gone" // the cloud did not wait
	endLeft      End = "left to its timeout"
)

// isOurs reports whether this agent must complete the hook. A hook that cannot be extended came with its notice.
func (a *hook) isOurs() bool { return a.Hook.Fixed || a.Ours }

// maxExtends is how many timeouts a hook can be kept waiting.
const maxExtends = 100

// limit returns when the cloud stops waiting despite heartbeats; 0 if unknown.
func (a *hook) limit() instant {
	if a.Limit != 0 || a.Hook.Timeout <= 0 {
		return a.Limit
	}
	return a.Since.Add(min(cloud.LongestWait, maxExtends*min(time.Duration(a.Hook.Timeout), cloud.LongestWait)))
}

// lapse returns when the hook ends without another heartbeat; 0 if unknown.
func (a *hook) lapse() instant {
	if a.Hook.Timeout <= 0 {
		return 0
	}
	return a.lastSeen().Add(time.Duration(a.Hook.Timeout))
}

func (a *hook) waits(launching bool) bool { return a.Hook.Launching == launching && a.End == "" }
func (a *hook) lastSeen() instant         { return cmp.Or(a.Extended, a.Since) }

// ends returns when the hook surely ends without another heartbeat.
func (a *hook) ends() instant {
	return min(cmp.Or(a.lapse(), a.lastSeen().Add(longestTimeout)), cmp.Or(a.limit(), math.MaxInt64))
}

func hookKey(h Hook) string {
	return h.Provider + "/" + h.Group + "/" + cmp.Or(h.ID, h.Name) + "/" + strconv.FormatBool(h.Launching)
}

// sameHook reports whether both are the same hook. An event may name only the hook's id.
func sameHook(h, o Hook) bool {
	return h.Provider == o.Provider && h.Launching == o.Launching && (h.Group == o.Group || h.ID != "") && cmp.Or(h.ID, h.Name) == cmp.Or(o.ID, o.Name)
}

type hookKeys []string

func (k hookKeys) has(h Hook) bool { return slices.Contains(k, hookKey(h)) }

// hooks also has the hooks that ended.
type hooks []hook

// find returns the matching hook that still waits, or nil.
func (all hooks) find(h Hook) *hook {
	for i := range all {
		if a := &all[i]; a.End == "" && sameHook(a.Hook, h) {
			return a
		}
	}
	return nil
}

// learn adds a hook, or updates a known one. It accepts nil.
func (s situation) learn(named *Hook, launching bool, notice string, since instant) {
	if named == nil || !hookBounded(*named) {
		return
	}
	h, limit := *named, s.c.Wall.instant(named.Limit)
	h.Launching, h.Limit = h.Launching || launching, time.Time{}
	for i := range s.Hooks {
		a := &s.Hooks[i]
		if !sameHook(a.Hook, h) {
			continue
		}
		a.Hook.Group, a.Hook.Token, a.Notice = cmp.Or(a.Hook.Group, h.Group), cmp.Or(h.Token, a.Hook.Token), cmp.Or(a.Notice, notice)
		a.Hook.Timeout = cmp.Or(a.Hook.Timeout, h.Timeout)
		if a.Hook.Name == a.Hook.ID {
			a.Hook.Name = h.Name
		}
		if limit != 0 && a.Limit.Sub(limit).Abs() > time.Second {
			a.Limit = limit
		}
		if len(h.Others) > 0 {
			a.Hook.Others = h.Others
		}
		return
	}
	if len(s.Hooks) >= maxHooks {
		s.Hooks = slices.DeleteFunc(s.Hooks, func(a hook) bool { return a.End != "" })
	}
	if len(s.Hooks) < maxHooks {
		s.Hooks = append(s.Hooks, hook{Hook: h, Limit: limit, Notice: notice, Since: since})
	}
}

// confirm clears Ours of hooks that the settings do not name.
func (all hooks) confirm(f cloud.Filter) {
	for i := range all {
		a := &all[i]
		a.Ours = a.Ours && (len(f) == 0 || f.Match(a.Hook))
	}
}

func (all hooks) anyWaits(launching bool) bool {
	return slices.ContainsFunc(all, func(a hook) bool { return a.waits(launching) })
}
