// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Mode is one way for the server to misbehave.
type Mode string

// The modes. "Matching" below means: the command is listed in [Fault.Commands],
// or that list is empty.
const (
	// None is a healthy server.
	None Mode = "none"
	// Delay holds every matching command back for [Fault.Delay] before it is
	// executed; it is not executed if its client hangs up meanwhile.
	Delay Mode = "delay"
	// Cut resets every connection (RST). With [Fault.After] it waits until so many
	// matching commands have passed. It is over when it has happened: new
	// connections are welcome, unless [Fault.Then] says otherwise.
	Cut Mode = "cut"
	// CutReply executes a matching command and resets its connection instead of
	// answering: the client cannot know whether it was executed.
	CutReply Mode = "cut-reply"
	// Refuse closes the listening socket and resets every connection: a connect
	// gets ECONNREFUSED from the kernel. The port stays ours until healed.
	Refuse Mode = "refuse"
	// BlackHole takes connections and matching commands and never answers. Their commands are
	// never executed: when the fault ends, those connections are reset.
	BlackHole Mode = "black-hole"
	// Error answers a matching command with the command error [Fault.Code].
	Error Mode = "error"
)

// Modes lists every mode.
func Modes() []Mode {
	return []Mode{None, Delay, Cut, CutReply, Refuse, BlackHole, Error}
}

// Fault says how the server misbehaves from now on.
type Fault struct {
	Mode Mode `json:"mode"`
	// Delay is for mode delay.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// After lets so many matching commands pass unharmed first.
	After int `json:"after,omitempty"`
	// Times ends the fault after so many strikes; 0 means never.
	Times int `json:"times,omitempty"`
	// Commands restricts the fault to these command names (hello, find, update, ...).
	// Without it all commands count, the driver's own hello included.
	Commands []string `json:"commands,omitempty"`
	// Database restricts it to commands on that database. A server that is in the cluster
	// writes to its own, whenever it likes.
	Database string `json:"database,omitempty"`
	// Code, Name and Message are for mode error. The default is the error of a server
	// during its shutdown (91, ShutdownInProgress).
	Code    int32  `json:"code,omitempty"`
	Name    string `json:"name,omitempty"`
	Message string `json:"message,omitempty"`
	// Then is the mode that follows when this fault has ended by itself.
	Then Mode `json:"then,omitempty"`
}

func (f Fault) validate() error {
	if !slices.Contains(Modes(), f.Mode) {
		return fmt.Errorf("unknown fault mode %q (known: %v)", f.Mode, Modes())
	}
	if f.Then != "" && !slices.Contains(Modes(), f.Then) {
		return fmt.Errorf("unknown following fault mode %q (known: %v)", f.Then, Modes())
	}
	if f.Mode == Delay && f.Delay <= 0 {
		return errors.New("fault mode delay needs a positive delay")
	}
	if f.Delay < 0 || f.After < 0 || f.Times < 0 {
		return errors.New("negative number in a fault")
	}
	if (len(f.Commands) > 0 || f.Database != "") && (f.Mode == Refuse || f.Then == Refuse && f.Times == 0 && f.Mode != Cut) {
		return errors.New("refusing connections cannot depend on a command")
	}
	return nil
}

// Faults switches faults of a running server on and off. All methods may be
// called from any goroutine. One fault is in force at a time.
type Faults struct {
	apply func(Mode) // makes the proxy cut, refuse or heal; called without mu held

	// set serialises whole transitions, so that the side effects of two of them
	// (closing and opening the listener) happen in the order of the states.
	set sync.Mutex

	mu      sync.Mutex
	current Fault
	passed  int
	struck  int
	changed chan struct{} // closed and replaced at every change
}

func newFaults(apply func(Mode)) *Faults {
	return &Faults{apply: apply, current: Fault{Mode: None}, changed: make(chan struct{})}
}

// Set puts f in force in place of the present fault. When it returns, connections
// that f cuts are closed and a listener that f closes is closed.
func (f *Faults) Set(fault Fault) error {
	if err := fault.validate(); err != nil {
		return fmt.Errorf("setting a fault: %w", err)
	}
	f.set.Lock()
	defer f.set.Unlock()
	f.enter(fault)
	return nil
}

// Clear makes the server healthy again.
func (f *Faults) Clear() {
	f.set.Lock()
	defer f.set.Unlock()
	f.enter(Fault{Mode: None})
}

// Current returns the fault in force.
func (f *Faults) Current() Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// enter needs f.set held.
func (f *Faults) enter(fault Fault) {
	immediate := fault.Mode
	if fault.Mode == Cut && fault.After == 0 && len(fault.Commands) == 0 && fault.Database == "" {
		// Happens now and is over.
		fault = Fault{Mode: orNone(fault.Then)}
	}
	f.mu.Lock()
	f.current, f.passed, f.struck = fault, 0, 0
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()

	if immediate == Cut && fault.Mode != Cut {
		f.apply(Cut)
	}
	if fault.Mode == Refuse {
		f.apply(Refuse)
	} else {
		f.apply(None)
	}
}

func orNone(m Mode) Mode { return cmp.Or(m, None) }

// strike is asked once per command. It returns the fault to apply to it (Mode
// None for no fault) and a channel that closes when the state changes.
func (f *Faults) strike(command, database string) (Fault, <-chan struct{}) {
	f.mu.Lock()
	cur := f.current
	changed := f.changed
	if cur.Mode == None || cur.Mode == Refuse ||
		len(cur.Commands) > 0 && !slices.Contains(cur.Commands, command) || cur.Database != "" && cur.Database != database {
		f.mu.Unlock()
		return Fault{Mode: None}, changed
	}
	if f.passed < cur.After {
		f.passed++
		f.mu.Unlock()
		return Fault{Mode: None}, changed
	}
	if cur.Times > 0 && f.struck >= cur.Times {
		// Another connection's command took the last strike; its expiry is under way.
		f.mu.Unlock()
		return Fault{Mode: None}, changed
	}
	f.struck++
	over := cur.Mode == Cut || cur.Times > 0 && f.struck >= cur.Times
	f.mu.Unlock()

	if over {
		f.expire(changed, Fault{Mode: orNone(cur.Then)}, cur.Mode == Cut)
	}
	return cur, changed
}

// expire enters the next fault, unless the state has changed meanwhile.
func (f *Faults) expire(seen <-chan struct{}, next Fault, cut bool) {
	f.set.Lock()
	defer f.set.Unlock()
	f.mu.Lock()
	same := (<-chan struct{})(f.changed) == seen
	f.mu.Unlock()
	if !same {
		return
	}
	if cut {
		f.apply(Cut)
	}
	if next.Mode == None {
		// Do not signal a change: the last command struck (a delay, say) must
		// live through its fault.
		f.mu.Lock()
		f.current, f.passed, f.struck = next, 0, 0
		f.mu.Unlock()
		return
	}
	f.enter(next)
}
