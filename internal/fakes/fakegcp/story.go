// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import "time"

// The kinds of entries in the books.
const (
	// Notice: the metadata announces something.
	Notice = "notice"
	// takenBack: the metadata withdraws the announcement.
	takenBack = "taken-back"
	// softOff: the power button was pressed, and the guest has its window.
	softOff = "soft-off"
	// Gone: the machine is off. Late: not by itself.
	Gone = "gone"
)

// Entry is one line of the books.
type Entry struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
	Text string    `json:"text,omitempty"`
	Late bool      `json:"late,omitempty"`
}

// note adds a line. The lock is held.
func (s *Server) note(what, text string, late bool) {
	s.Write(Entry{Time: time.Now(), What: what, Text: text, Late: late})
}

// signal changes the metadata, and adds a line.
func (s *Server) signal(what, text string, change func(*Signals)) {
	s.Update(func(i *Instance) { change(&i.Signals) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(what, text, false)
}

// Preempt takes a Spot VM: the metadata announces it, the power button is pressed at the same moment, and after the window
// (0: the machine's own) it is off.
func (s *Server) Preempt(window time.Duration) {
	s.signal(Notice, "is preempted", func(g *Signals) { g.Preempted = true })
	s.powerDown(window)
}

// Announce shows a preemption in the metadata or withdraws it, and does nothing else.
func (s *Server) Announce(preempted bool) {
	what, text := Notice, "is preempted"
	if !preempted {
		what, text = takenBack, "is not preempted"
	}
	s.signal(what, text, func(g *Signals) { g.Preempted = preempted })
}

// Stop begins a graceful shutdown: the guest has up to that long until the power button is pressed, and may be off before.
// target is what it becomes: STOPPED, DELETED.
func (s *Server) Stop(longest time.Duration, target string) {
	s.signal(Notice, "shuts down gracefully and becomes "+target, func(g *Signals) {
		g.StopState, g.StopTarget, g.StopRequested, g.StopMax = "PENDING_STOP", target, time.Now(), longest
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arm(longest, func() { s.press(0) })
}

// Unstop cancels a graceful shutdown.
func (s *Server) Unstop() {
	s.signal(takenBack, "continues", func(g *Signals) {
		g.StopState, g.StopTarget, g.StopRequested, g.StopMax = "", "", time.Time{}, 0
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arm(0, nil)
}

// powerDown presses the button and waits for the window.
func (s *Server) powerDown(window time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.press(window)
}

func (s *Server) press(window time.Duration) {
	if window <= 0 {
		window = s.Get().Window()
	}
	s.note(softOff, "gets the signal of the power button, and has "+window.String(), false)
	s.arm(window, func() { s.off(true) })
}

// Off is the end of a shutdown by the machine itself. Without a step before it, nothing happens.
func (s *Server) Off() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		s.off(false)
	}
}

func (s *Server) off(late bool) {
	s.arm(0, nil)
	text := "has switched itself off"
	if late {
		text = "is switched off: its time was over"
	}
	s.note(Gone, text, late)
}

// arm replaces the next step; nil: none. The lock is held, and it is held while do runs.
func (s *Server) arm(after time.Duration, do func()) {
	if s.next != nil {
		s.next.Stop()
		s.next = nil
	}
	if do == nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.next == timer {
			do()
		}
	})
	s.next = timer
}
