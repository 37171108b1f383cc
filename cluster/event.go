// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Event is an entry of the event log.
type Event struct {
	Node    string            `bson:"node" json:"node"` // its id
	Kind    string            `bson:"kind" json:"kind"` // "join", "leave", "drain", "drained", "undrain"…
	Who     string            `bson:"asked_by,omitempty" json:"asked_by,omitempty"`
	Why     string            `bson:"reason,omitempty" json:"reason,omitempty"`
	Cut     *int64            `bson:"cut,omitempty" json:"cut,omitempty"`         // sessions; nil if unknown
	Details map[string]string `bson:"details,omitempty" json:"details,omitempty"` // for people
	// ID makes all tries to write an event one event; AddEvent makes one if it is zero.
	ID bson.ObjectID `bson:"-" json:"-"`
}

// NewEventID returns an ID for [Event].
func NewEventID() bson.ObjectID { return bson.NewObjectID() }

// AddEvent may have written the event even after an error.
func (c *Client) AddEvent(ctx context.Context, e Event) error {
	if e.Node == "" || e.Kind == "" {
		return errors.New("writing an event: it has no node or no kind")
	}
	id := cmp.Or(e.ID, NewEventID())
	return c.call(ctx, "writing an event", func(ctx context.Context) error {
		// Unlike an insert, an upsert can use the server's clock.
		update := bson.D{
			{Key: "$set", Value: e},
			{Key: "$currentDate", Value: bson.D{{Key: "at", Value: true}}},
		}
		_, err := c.events().UpdateByID(ctx, id, update, options.UpdateOne().SetUpsert(true))
		return err
	})
}

// PastEvent is a stored event.
type PastEvent struct {
	At    time.Time `bson:"at" json:"at"` // by MongoDB's clock; zero if missing
	Event `bson:",inline"`
}

// EventQuery selects events.
type EventQuery struct {
	Nodes []string  // ids; empty selects all
	Since time.Time // by MongoDB's clock; zero selects all
	Limit int       // the latest, at least 1
}

// Events reads the latest events, oldest first.
func (c *Client) Events(ctx context.Context, q EventQuery) ([]PastEvent, error) {
	filter := bson.D{}
	if len(q.Nodes) > 0 {
		filter = append(filter, bson.E{Key: "node", Value: bson.D{{Key: "$in", Value: q.Nodes}}})
	}
	if !q.Since.IsZero() {
		filter = append(filter, bson.E{Key: "at", Value: bson.D{{Key: "$gte", Value: q.Since}}})
	}
	found, err := find(ctx, c, "reading the events of the registry", c.events(), filter, readEvent, options.Find().
		SetSort(bson.D{{Key: "at", Value: -1}, {Key: "_id", Value: -1}}).SetLimit(int64(max(1, q.Limit))))
	slices.Reverse(found)
	return found, err
}

func readEvent(doc bson.Raw) (e PastEvent) {
	if err := unmarshal(doc, &e); err != nil {
		return PastEvent{Event: Event{Kind: "unreadable", Why: err.Error()}}
	}
	if !inJSON(e.At) {
		e.At = time.Time{}
	}
	return e
}

// The reasons of registrations.
const (
	ReasonJoin = "join"
	ReasonRun  = "run" // the daemon
)

// History returns the events of a registration of is that replaces was. A join that begins has an event at its end.
func History(was, is Node, now time.Time) (events []Event) {
	add := func(kind, why string) {
		events = append(events, Event{ID: NewEventID(), Node: is.ID, Kind: kind, Who: "amsagent", Why: why})
	}
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	silent := "silent from " + at(was.UpdatedAt) + " to " + at(now)
	joins, booted := is.State == StateJoining && is.Reason == ReasonJoin, was.BootID != is.BootID
	age, known := was.Age(now)

	switch {
	case joins && was.State == StateJoining && was.Reason == ReasonJoin:
		add("join-interrupted", "the join of "+at(was.StateSince)+" did not report its end")
	case joins || !known:
	case booted:
		add("boot", silent)
	case was.Heartbeats() && was.State != StateLeft && was.State != StateFailed && age >= goneLimit(was.interval()):
		add("back", "came back: "+silent)
	}
	if is.State == StateActive && (booted || was.State == StateJoining && was.Reason == ReasonRun) {
		add("serving", "its server is in the cluster again")
	}
	if was.Role != is.Role {
		add("role", cmp.Or(was.Role, "none")+" → "+cmp.Or(is.Role, "none"))
	}
	return events
}
