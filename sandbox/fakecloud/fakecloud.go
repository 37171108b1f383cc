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
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Cloud is one pretended cloud with two scaling groups, origins and edges.
type Cloud interface {
	// Name is the provider's, as --provider takes it, and Title what people call it.
	Name() string
	Title() string
	// Machine starts the metadata service of one machine in the group of its role.
	// With [Metadata.Environ] the agent learns the id, the address, the role and the
	// group (the role with an s) from it.
	Machine(ctx context.Context, m Machine) (Metadata, error)
	// ScaleIn begins to take a machine away in the way that this cloud is worst at
	// waiting for, and returns at once. Of what follows it keeps books.
	ScaleIn(id string) error
	// Off tells that the machine has switched itself off, as a shutdown ends. A cloud
	// that takes no other word goes by it: what it was about to take is Gone, and not
	// Late. Where the cloud has nothing under way with the machine, nothing follows.
	Off(id string) error
	// Lead is how long after ScaleIn the machine is gone when it says nothing.
	Lead() time.Duration
	// Books are what has happened, oldest first.
	Books() []Entry
	// WaitFor waits until the books hold an entry that fits, and returns the first.
	WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error)
	Close() error
}

// Options says how to start. The zero value is a cloud that waits a minute.
type Options struct {
	// Lead is how long the cloud waits for a machine that says nothing; 0: 60 s, or
	// what the cloud has where that is less. Stories are told in seconds, whatever
	// the cloud's own least time is.
	Lead time.Duration
	// Limit is how long it waits at most, from ScaleIn on, for a machine that asks it
	// to wait; 0: the cloud's own. Where no word makes a cloud wait it says nothing.
	Limit time.Duration
	// Log gets what the fakes log; default nothing.
	Log *slog.Logger
}

// DefaultLead is that of the zero Options.
const DefaultLead = time.Minute

// Machine is what the cloud is told of a machine.
type Machine struct {
	// Name is what people call it; ID is the instance's id in this cloud's form.
	Name, ID, Address, Role, MAC string
}

// ID is the id of the n-th machine, in the form that ids have in a cloud.
func ID(cloud string, n int) string {
	switch cloud {
	case "azure": // the SMBIOS UUID
		return fmt.Sprintf("5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d%04x", n)
	case "alibaba":
		return fmt.Sprintf("i-bp13znx0m0me8cq%04d", n)
	case "gcp":
		return fmt.Sprintf("456789012345678%04d", n)
	}
	return fmt.Sprintf("i-0a1b2c3d4e5f6%04x", n)
}

// Metadata is the metadata service of one machine.
type Metadata interface {
	// Environ are the settings, as KEY=value, by which the agent finds this cloud's
	// metadata and API.
	Environ() []string
	// Fail spoils every answer, signals among them, until Heal. A second fault takes
	// the place of the first. What hangs is let go by Heal.
	Fail(f Fault) error
	Heal()
	Close() error
}

// Fault is one way in which a metadata service fails.
type Fault = cloud.Fault

// What is in the books.
const (
	// Notice: the machine can see that it is to go.
	Notice = "notice"
	// Heartbeat: it asked the cloud to wait longer, and the cloud does.
	Heartbeat = "heartbeat"
	// Answer: it told the cloud that it may go, or completed the hook.
	Answer = "answer"
	// Gone: the cloud has taken it. Text says whether by the machine's answer or
	// because the time was over.
	Gone = "gone"
	// Other is whatever else people may want to read of this cloud.
	Other = "other"
)

// Entry is one line of the books.
type Entry struct {
	Time time.Time
	What string
	// ID is the machine's. Text is for people: a line that tells all, with the
	// machine's name where there is one (`hook "drain" is completed by edge-1`).
	ID, Text string
	// Late tells of a Gone that the cloud's time ran out.
	Late bool
}

// Of returns the entries about one machine, oldest first.
func Of(books []Entry, id string) []Entry {
	return slices.DeleteFunc(slices.Clone(books), func(e Entry) bool { return e.ID != id })
}

// Names are the clouds that Open knows.
func Names() []string { return []string{"aws", "azure", "alibaba", "gcp"} }

// ErrUnknown is that Open knows no such cloud.
var ErrUnknown = errors.New("no such cloud")

// Check tells whether Open knows a cloud of this name, before anything is begun.
func Check(name string) error {
	if !slices.Contains(Names(), name) {
		return fmt.Errorf("%w: %q (known: %s)", ErrUnknown, name, strings.Join(Names(), ", "))
	}
	return nil
}

// Open starts the cloud of this name.
func Open(ctx context.Context, name string, o Options) (Cloud, error) {
	if err := Check(name); err != nil {
		return nil, err
	}
	switch name {
	case "azure":
		return newAzure(ctx, o)
	case "alibaba":
		return newAlibaba(ctx, o)
	case "gcp":
		return newGCP(ctx, o)
	default:
		return newAWS(ctx, o)
	}
}
