// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// HookNames says which hooks of a group are this agent's: names, or patterns as of
// path.Match, in which a / is a character like any other. Without any it is the only
// hook of a transition, and of several those whose name contains "amsagent": other
// programs have hooks of their own, and complete them when they are ready.
type HookNames []string

// codeDeploy begins the names that AWS CodeDeploy gives to the launch hooks that it makes in a
// group. To complete one would let the machine serve before its deployment.
const codeDeploy = "CodeDeploy-managed-"

// ours returns those of the names of one transition that are this agent's, in their
// order.
func (n HookNames) ours(all []string) []string {
	if len(n) == 0 && len(all) == 1 && !strings.HasPrefix(all[0], codeDeploy) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !n.match(name) })
}

func (n HookNames) match(name string) bool {
	if len(n) == 0 {
		return strings.Contains(strings.ToLower(name), "amsagent")
	}
	return slices.ContainsFunc(n, func(pattern string) bool {
		ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00"))
		return ok && err == nil
	})
}

// literal reports whether there are names, and no pattern among them.
func (n HookNames) literal() bool {
	return len(n) > 0 && !slices.ContainsFunc(n, func(name string) bool { return strings.ContainsAny(name, `*?[\`) })
}

// OthersHooksError is that hooks wait for this machine, and none of them is this
// agent's.
type OthersHooksError struct {
	Group string
	Hooks []string
	// Named: the setting hooks says which are, so the operator knows.
	Named bool
}

func (e *OthersHooksError) Error() string {
	return fmt.Sprintf("none of the hooks of group %s is this agent's, so none is completed: %s; the setting hooks names those that are",
		e.Group, strings.Join(e.Hooks, ", "))
}
