// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package faults is what goes wrong with a pretended service while it runs: the list
// of it, for faults of any kind, and what all services that speak HTTP can do to an
// answer. What a fault is about, and what else it does, is the service's own.
package faults

import (
	"fmt"
	"slices"
	"sync"
)

// Fault is a fault of one service: its Times end it after so many requests, 0 means never.
type Fault interface {
	HTTP() HTTP
	Validate() error
}

// List holds the faults of one service. The zero value is a healthy one. All methods
// may be called from any goroutine.
type List[F Fault] struct {
	mu     sync.Mutex
	armed  []*armed[F]
	healed chan struct{} // closed and replaced when the faults are taken away
}

type armed[F Fault] struct {
	fault F
	left  int // strikes; 0: without an end
}

// AddFault puts a fault in force beside those that are; the first that matches a
// request counts.
func (l *List[F]) AddFault(f F) error {
	if err := f.Validate(); err != nil {
		return fmt.Errorf("adding a fault: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = append(l.armed, &armed[F]{f, f.HTTP().Times})
	return nil
}

// ClearFaults heals the service. Requests that hang are let go of.
func (l *List[F]) ClearFaults() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = nil
	if l.healed != nil {
		close(l.healed)
		l.healed = nil
	}
}

// Faults lists what is in force.
func (l *List[F]) Faults() []F {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []F{}
	for _, a := range l.armed {
		out = append(out, a.fault)
	}
	return out
}

// Strike finds the first fault that matches a request, and the zero one where none
// does. The channel is closed when the service is healed.
func (l *List[F]) Strike(matches func(F) bool) (F, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.healed == nil {
		l.healed = make(chan struct{})
	}
	for i, a := range l.armed {
		if !matches(a.fault) {
			continue
		}
		if a.left == 1 {
			l.armed = slices.Delete(l.armed, i, i+1)
		}
		a.left = max(0, a.left-1)
		return a.fault, l.healed
	}
	var none F
	return none, l.healed
}
