// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"slices"
)

// State is the lifecycle state of a node.
type State string

// The states of a node.
const (
	StateJoining  State = "joining"
	StateActive   State = "active"
	StateDraining State = "draining"
	StateLeft     State = "left"
	StateFailed   State = "failed"
)

// States returns all states, in the order of the lifecycle.
func States() []State {
	return []State{StateJoining, StateActive, StateDraining, StateLeft, StateFailed}
}

// Valid reports whether s is one of the states.
func (s State) Valid() bool { return slices.Contains(States(), s) }

func (s State) successors() []State {
	switch s {
	case StateJoining:
		return []State{StateActive, StateFailed, StateLeft}
	case StateActive:
		return []State{StateDraining, StateLeft}
	case StateDraining:
		return []State{StateActive, StateLeft}
	case StateLeft:
		return []State{StateJoining}
	case StateFailed:
		return []State{StateJoining, StateLeft}
	}
	return nil
}

// CanTransition reports whether a node may change from s to next, which may be s.
func (s State) CanTransition(next State) bool {
	return s.Valid() && (s == next || slices.Contains(s.successors(), next))
}

// TransitionError is a change of state that is not allowed.
type TransitionError struct {
	ID       string
	From, To State
}

// Error names the node and both states.
func (e *TransitionError) Error() string {
	return fmt.Sprintf("node %s is %s and cannot become %s", e.ID, e.From, e.To)
}
