// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import "time"

// Clock is how the clock of a cloud differs from the machine's.
type Clock struct {
	Name string
	// Ahead is how far the machine's clock is ahead.
	Ahead time.Duration
	// Undated: the answers have no header Date.
	Undated bool
}

// Clocks are those that a machine may have.
func Clocks() []Clock {
	return []Clock{
		{Name: "right"},
		{Name: "a second ahead", Ahead: time.Second},
		{Name: "90 s ahead", Ahead: 90 * time.Second},
		{Name: "3 min ahead", Ahead: 3 * time.Minute},
		{Name: "2 d ahead", Ahead: 48 * time.Hour},
		{Name: "5 h behind", Ahead: -5 * time.Hour},
		{Name: "2 d ahead, no Date", Ahead: 48 * time.Hour, Undated: true},
		{Name: "5 h behind, no Date", Ahead: -5 * time.Hour, Undated: true},
	}
}

// Now is the cloud's time.
func (c Clock) Now() time.Time { return time.Now().Add(-c.Ahead) }

// Date is for the header of an answer.
func (c Clock) Date() time.Time {
	if c.Undated {
		return time.Time{}
	}
	return c.Now()
}
