// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakecloud puts the fake clouds behind one face, for those who tell the
// same story on each of them: the demo and the end-to-end tests. What is a cloud's
// own is in fakeaws, fakeazure, fakealibaba and fakegcp.
//
// The API is not stable.
package fakecloud

import (
	"context"
	"time"
)

// Cloud is one pretended cloud with two scaling groups, origins and edges.
type Cloud interface {
	// Name is the provider's, as --provider takes it, and Title what people call it.
	Name() string
	Title() string
	// Machine starts the metadata service of one machine in the group of its role.
	Machine(ctx context.Context, m Machine) (Metadata, error)
	// ScaleIn begins to take a machine away in the way that this cloud is worst at
	// waiting for, and returns at once. Of what follows it keeps books.
	ScaleIn(id string) error
	// Lead is how long after ScaleIn the machine is gone when it says nothing.
	Lead() time.Duration
	// Books are what has happened, oldest first.
	Books() []Entry
	// WaitFor waits until the books hold an entry that fits, and returns the first.
	WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error)
	Close() error
}

// Machine is what the cloud is told of a machine.
type Machine struct {
	// Name is what people call it; ID is the instance's id in this cloud's form.
	Name, ID, Address, Role, MAC string
}

// Metadata is the metadata service of one machine.
type Metadata interface {
	// Environ are the settings, as KEY=value, by which the agent finds this cloud's
	// metadata and API.
	Environ() []string
	Close() error
}

// What is in the books.
const (
	// Notice: the machine can see that it is to go.
	Notice = "notice"
	// Heartbeat: it asked the cloud to wait longer.
	Heartbeat = "heartbeat"
	// Answer: it told the cloud that it may go, or completed the hook.
	Answer = "answer"
	// Gone: the cloud has taken it. Text says whether by the machine's answer or
	// because the time was over.
	Gone = "gone"
)

// Entry is one line of the books.
type Entry struct {
	Time time.Time
	What string
	// ID is the machine's. Text is for people.
	ID, Text string
	// Late tells of a Gone that the cloud's time ran out.
	Late bool
}
