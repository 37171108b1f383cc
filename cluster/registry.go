// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"

	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	registryDatabase = "amsagent"
	nodesCollection  = "nodes"
	eventsCollection = "events"

	// For TTL indexes, if the server has them.
	keepLeft   = 30 * 24 * time.Hour
	keepEvents = 90 * 24 * time.Hour

	heartbeatKey = "heartbeat"
	// maxRecord is in bytes: a record with 64 GPUs has 8 KB.
	maxRecord = 16 << 10
)

type record struct {
	Node `bson:",inline"`
	// Rev is random and changes with each write except heartbeats: after an election, a counter could repeat.
	Rev string `bson:"rev,omitempty"`
	// Taken is the last accepted drain request: a taker that lost the answer finds itself here.
	Taken *takenRequest `bson:"drain_taken,omitempty"`

	// dropBeat removes balancers, and even a heartbeat that the majority read did not return.
	dropBeat bool
	bad      *BadRecordError // only ID and Rev are known
	doc      bson.Raw
}

func (r *record) readable() bool { return r != nil && r.bad == nil }

type takenRequest struct {
	ID string `bson:"id"`
	By string `bson:"by"`
}

// BadRecordError is a record with content that no agent writes.
type BadRecordError struct {
	ID  string
	Err error

	name string
}

func (e *BadRecordError) Error() string {
	return "the record of node " + e.ID + " cannot be read: " + e.Err.Error()
}

func (e *BadRecordError) Unwrap() error { return e.Err }

func unmarshal(doc bson.Raw, v any) error {
	if len(doc) > maxRecord {
		return fmt.Errorf("it has %d bytes, more than %d", len(doc), maxRecord)
	}
	return bson.Unmarshal(doc, v)
}

func decode(doc bson.Raw) *record {
	r := record{doc: doc}
	err := unmarshal(doc, &r)
	times := []time.Time{r.StateSince, r.UpdatedAt}
	for _, b := range r.Balancers {
		times = append(times, b.At)
	}
	if r.DrainRequest != nil {
		times = append(times, r.DrainRequest.At)
	}
	switch {
	case err != nil:
	case r.Port < 0 || r.Port > math.MaxUint16:
		err = fmt.Errorf("port %d", r.Port)
	case slices.ContainsFunc(times, func(t time.Time) bool { return !inJSON(t) }):
		err = errors.New("a time is outside the years 1 to 9999")
	}
	if err != nil {
		id := idText(field(doc, "_id"))
		return &record{Node: Node{ID: id}, Rev: textField(doc, "rev"), bad: &BadRecordError{id, err, textField(doc, "name")}, doc: doc}
	}
	return &r
}

// update changes a record by compare-and-swap. next computes it from the current one (or nil) and MongoDB's clock, or
// returns nil to write nothing. own sets updated_at.
//
// After a transient failure or another write it reads again: its own rev proves a write whose answer was lost.
func (c *Client) update(ctx context.Context, op, id string, own bool, next func(was *record, now time.Time) (*record, error)) (*record, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	mine := crand.Text() // begins the revs of this call
	var failed error
	for pause := firstConflictPause; ; pause = min(2*pause, mostConflictPause) {
		stored, err := c.tryUpdate(ctx, op, id, own, mine, next)
		switch {
		case err == nil:
			return stored, nil
		case KindOf(err).Passes() && c.notPrimary() == nil:
			failed = err
		case !errors.Is(err, errConflict):
			return nil, err
		}
		if !sleep.For(ctx, pause/2+rand.N(pause)) {
			return nil, cmp.Or[error](failed, newError(op, context.Cause(ctx), c.target, nil))
		}
	}
}

var errConflict = errors.New("the record has changed")

func (c *Client) tryUpdate(
	ctx context.Context, op, id string, own bool, mine string, next func(was *record, now time.Time) (*record, error),
) (*record, error) {
	now, err := c.ServerTime(ctx)
	if err != nil {
		return nil, err
	}
	was, err := c.readRecord(ctx, op, id, readconcern.Majority())
	if err != nil || was != nil && strings.HasPrefix(was.Rev, mine) {
		return was, err
	}
	is, err := next(was, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if is == nil {
		return was, nil
	}
	if was != nil && was.bad != nil {
		// It may have fields that no update can name.
		return nil, cmp.Or(c.deleteMany(ctx, op, c.nodes(), unchanged(id, was)), errConflict)
	}
	is.Rev = mine + crand.Text()
	return c.swap(ctx, op, id, was, is, own)
}

const (
	firstConflictPause = 5 * time.Millisecond
	mostConflictPause  = 200 * time.Millisecond
)

// readRecord: what is read locally may be rolled back.
func (c *Client) readRecord(ctx context.Context, op, id string, concern *readconcern.ReadConcern) (*record, error) {
	var found *record
	err := c.call(ctx, op, func(ctx context.Context) error {
		doc, err := c.nodes().Clone(options.Collection().SetReadConcern(concern)).FindOne(ctx, bson.D{{Key: "_id", Value: id}}).Raw()
		switch {
		case errors.Is(err, mongo.ErrNoDocuments):
			return nil
		case err == nil:
			found = decode(doc)
		}
		return err
	})
	return found, err
}

func (c *Client) swap(ctx context.Context, op, id string, was, is *record, own bool) (stored *record, err error) {
	update, err := is.update(was, own)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	err = c.call(ctx, op, func(ctx context.Context) error {
		doc, err := c.nodes().FindOneAndUpdate(ctx, unchanged(id, was), update,
			options.FindOneAndUpdate().SetUpsert(was == nil).SetReturnDocument(options.After)).Raw()
		switch {
		case err == nil:
			stored = decode(doc)
		case errors.Is(err, mongo.ErrNoDocuments), was == nil && isDuplicate(err):
			return nil
		}
		return err
	})
	if err == nil && stored == nil {
		err = errConflict
	}
	return stored, err
}

// isDuplicate: DocumentDB's engine calls it an internal error.
func isDuplicate(err error) bool {
	return mongo.IsDuplicateKeyError(err) || strings.Contains(err.Error(), "duplicate key value")
}

// unchanged: rev may have any type.
func unchanged(id string, was *record) bson.D {
	var rev any
	if was != nil && !field(was.doc, "rev").IsZero() {
		rev = field(was.doc, "rev")
	}
	return bson.D{{Key: "_id", Value: id}, {Key: "rev", Value: bson.D{{Key: "$eq", Value: rev}}}}
}

// notWritten are the id and the keys set by MongoDB's clock, a heartbeat or a load balancer.
var notWritten = []string{"_id", "state_since", "updated_at", "left_at", heartbeatKey, balancersKey}

func (r *record) update(was *record, own bool) (bson.D, error) {
	data, err := bson.Marshal(r)
	if err != nil {
		return nil, err
	}
	var set, unset, now bson.D
	if err := bson.Unmarshal(data, &set); err != nil {
		return nil, err
	}
	set = slices.DeleteFunc(set, func(e bson.E) bool { return slices.Contains(notWritten, e.Key) })
	if was != nil {
		stored, _ := was.doc.Elements()
		for _, e := range stored {
			key := e.Key()
			gone := field(data, key).IsZero() && !slices.Contains(notWritten, key) && key != "" && !strings.ContainsAny(key, ".$")
			if gone || key == "left_at" && r.State != StateLeft {
				unset = append(unset, bson.E{Key: key, Value: ""})
			}
		}
		if r.dropBeat {
			unset = append(unset, bson.E{Key: heartbeatKey, Value: ""}, bson.E{Key: balancersKey, Value: ""})
		}
	}
	if own {
		now = append(now, bson.E{Key: "updated_at", Value: true})
	}
	if was == nil || was.State != r.State || !was.SameInstance(r.Node) {
		now = append(now, bson.E{Key: "state_since", Value: true})
		if r.State == StateLeft {
			now = append(now, bson.E{Key: "left_at", Value: true}) // TTL index: other nodes must not have it
		}
	}
	u := bson.D{{Key: "$set", Value: set}}
	if len(unset) > 0 {
		u = append(u, bson.E{Key: "$unset", Value: unset})
	}
	if len(now) > 0 {
		u = append(u, bson.E{Key: "$currentDate", Value: now})
	}
	return u, nil
}

// RegisterOptions select which records a registration replaces.
type RegisterOptions struct {
	Replace bool // even a record that another machine uses
	// GiveWay keeps a record that any other instance uses.
	GiveWay bool
	// Waits keeps a record that another boot uses, also at this address: without a person's word it may be another machine's.
	Waits bool
	// Silence, if not nil, must last before a record of another address is replaced that had a writer.
	Silence *Silence
	// Incomplete keeps the record's cloud facts where the registration has none.
	Incomplete bool
	// DrainOver lets active replace draining: this node's own drain has ended.
	DrainOver bool
	// Found gets the record that is replaced and MongoDB's clock, perhaps several times.
	Found func(was Node, now time.Time)
}

// Register writes this machine's facts and n.State, and returns the record. It replaces another instance's record. In
// this instance's, joining and active replace only joining, left and failed, and active a draining that is over or of an
// unfinished leave; other states follow [State.CanTransition].
//
// It returns an [OtherMachineError] if another machine uses the record, and is safe to repeat.
func (c *Client) Register(ctx context.Context, n Node, o RegisterOptions) (Node, error) {
	op := "registering node " + n.ID
	switch {
	case n.ID == "":
		return Node{}, errors.New("registering a node: it has no id")
	case !n.State.Valid():
		return Node{}, fmt.Errorf("%s: %q is not a state", op, string(n.State))
	}
	stored, err := c.update(ctx, op, n.ID, true, func(was *record, now time.Time) (*record, error) {
		if o.Found != nil && was.readable() {
			o.Found(was.Node, now)
		}
		return register(was, n, o, now)
	})
	if err != nil {
		return Node{}, err
	}
	return stored.Node, nil
}

func register(was *record, self Node, o RegisterOptions, now time.Time) (*record, error) {
	if was.readable() && o.Incomplete {
		self = self.WithCloudFactsOf(was.Node)
	}
	is := &record{Node: self, dropBeat: true}
	is.DrainRequest, is.DrainRefused = nil, nil
	if !was.readable() {
		return is, nil
	}
	if !was.SameInstance(self) {
		other := o.GiveWay || was.otherMachine(self) || o.Waits && was.BootID != self.BootID
		switch age, used := was.inUse(now); {
		case o.Replace || !other:
		case used:
			return nil, was.usedByOther(self, age)
		case o.Silence.isMissing(was.Node, self, now):
			return nil, &OtherMachineError{Node: was.Node, Silent: true}
		}
		return is, nil
	}
	// Only the daemon may know these.
	is.Interval, is.Port = cmp.Or(self.Interval, was.Interval), cmp.Or(self.Port, was.Port)
	over := was.State == StateDraining && self.State == StateActive && (o.DrainOver || was.LeftBy == LeftByLeave)
	gives := over || self.State.replaces(was.State)
	if was.State == StateLeft && gives || !was.State.Valid() {
		// An interval from before the leave is no liveness signal.
		is.Interval = self.Interval
		return is, nil
	}
	is.DrainRequest, is.DrainRefused, is.Taken, is.dropBeat = was.DrainRequest, was.DrainRefused, was.Taken, false
	if gives {
		return is, nil
	}
	is.LeftBy, is.StopFailed, is.Cut = was.LeftBy, was.StopFailed, was.Cut
	if was.State != self.State {
		is.State, is.Reason = was.State, was.Reason
	}
	return is, nil
}

func (s State) replaces(was State) bool {
	if s == StateJoining || s == StateActive {
		return was != s && slices.Contains([]State{StateJoining, StateLeft, StateFailed}, was)
	}
	return was != s && was.CanTransition(s)
}

// Details are a state's fields of [Node].
type Details struct {
	LeftBy     string
	StopFailed bool
	Cut        *int
}

// The values of LeftBy.
const (
	LeftByLeave = "leave"
	LeftByDrain = "drain"
	LeftByStop  = "stop"
	// LeftByReimage: the root volume is replaced, and the machine returns with the same id.
	LeftByReimage = "reimage"
)

// SetOwnState sets this machine's state, or returns [ErrNoNode], a [TransitionError] or an [OtherMachineError].
func (c *Client) SetOwnState(ctx context.Context, self Node, s State, reason string, d Details) error {
	op := fmt.Sprintf("setting node %s to %s", self.ID, s)
	_, err := c.update(ctx, op, self.ID, true, func(was *record, now time.Time) (*record, error) {
		return transition(was, self, s, reason, d, now)
	})
	return err
}

func transition(was *record, self Node, s State, reason string, d Details, now time.Time) (*record, error) {
	switch {
	case was == nil:
		return nil, ErrNoNode
	case was.bad != nil:
		return nil, was.bad
	}
	// The record of an earlier boot is this machine's once it is silent.
	age, used := was.inUse(now)
	switch {
	case was.otherMachine(self), used && was.BootID != self.BootID:
		return nil, was.usedByOther(self, age)
	case !was.State.CanTransition(s):
		return nil, &TransitionError{ID: was.ID, From: was.State, To: s}
	}
	is := *was
	is.State, is.Reason, is.StopFailed = s, reason, d.StopFailed
	if was.State != s || d.LeftBy != "" {
		is.LeftBy = d.LeftBy
	}
	if d.Cut != nil || was.State != s && s != StateLeft {
		is.Cut = d.Cut
	}
	if s == StateLeft {
		is.dropBeat, is.DrainRequest = true, nil // the server has stopped
	}
	return &is, nil
}

// CheckOwner returns an [OtherMachineError] if another machine writes the record, or if silence is not nil and does not last.
func (c *Client) CheckOwner(ctx context.Context, self Node, silence *Silence) error {
	n, now, err := c.nodeNow(ctx, self.ID)
	if errors.Is(err, ErrNoNode) {
		return nil
	}
	if err != nil {
		return err
	}
	if age, used := n.UsedByOther(self, now); used {
		return &OtherMachineError{Node: n, Age: age}
	}
	if n.otherMachine(self) && silence.isMissing(n, self, now) {
		return &OtherMachineError{Node: n, Silent: true}
	}
	return nil
}

func (c *Client) nodeNow(ctx context.Context, id string) (n Node, now time.Time, err error) {
	if now, err = c.ServerTime(ctx); err == nil {
		n, err = c.Node(ctx, id)
	}
	return n, now, err
}

// DrainRequest is another machine's request to drain.
type DrainRequest struct {
	ID string `bson:"id" json:"id"`
	// Deadline is the wait for sessions; 0 is the node's setting. Now does not wait.
	Deadline seconds.Duration `bson:"deadline_ns,omitempty" json:"deadline_seconds,omitempty"`
	Now      bool             `bson:"now,omitempty" json:"now,omitempty"`
	// RepairStreams ends streams that the node leaves "broadcasting".
	RepairStreams bool      `bson:"repair_streams,omitempty" json:"repair_streams,omitempty"`
	Reason        string    `bson:"reason,omitempty" json:"reason,omitempty"`
	Who           string    `bson:"asked_by,omitempty" json:"asked_by,omitempty"`
	At            time.Time `bson:"at" json:"at,omitzero"` // by MongoDB's clock
}

// DrainRefusal is the answer to a request.
type DrainRefusal struct {
	ID     string `bson:"id" json:"id"` // of the request
	Reason string `bson:"reason" json:"reason"`
}

// RefusedRemoteDrain is the reason of a node whose setting remote_drain is false.
const RefusedRemoteDrain = "remote_drain"

// ErrNotAskable means that the record is missing, of another instance, or left.
var ErrNotAskable = errors.New("the record of this node is another one now, or it has left")

// AskDrain writes a request into a node's record, replacing an earlier one, or returns [ErrNotAskable].
func (c *Client) AskDrain(ctx context.Context, n Node, r DrainRequest) (id string, err error) {
	op := "asking node " + n.ID + " to drain"
	r.ID = crand.Text()
	_, err = c.update(ctx, op, n.ID, false, func(was *record, now time.Time) (*record, error) {
		if was.readable() && was.Taken != nil && was.Taken.ID == r.ID {
			return nil, nil //nolint:nilnil // the answer to our write was lost, and the agent was quick
		}
		if !was.readable() || !was.SameInstance(n) || !slices.Contains([]State{StateJoining, StateActive, StateDraining}, was.State) {
			return nil, ErrNotAskable
		}
		is := *was
		r.At = now
		is.DrainRequest = &r
		return &is, nil
	})
	return r.ID, err
}

// TakeDrainRequest removes a request. Of the node's agent and an operator, exactly one gets true.
func (c *Client) TakeDrainRequest(ctx context.Context, node, id, taker string) (taken bool, err error) {
	return c.takeDrainRequest(ctx, node, id, taker, nil)
}

// RefuseDrainRequest is TakeDrainRequest with an answer to the requester.
func (c *Client) RefuseDrainRequest(ctx context.Context, node, id, taker, reason string) (taken bool, err error) {
	return c.takeDrainRequest(ctx, node, id, taker, &DrainRefusal{id, reason})
}

func (c *Client) takeDrainRequest(ctx context.Context, node, id, taker string, refused *DrainRefusal) (taken bool, err error) {
	mine := takenRequest{ID: id, By: taker}
	_, err = c.update(ctx, "taking the request to drain node "+node, node, false, func(was *record, _ time.Time) (*record, error) {
		taken = was != nil && was.Taken != nil && *was.Taken == mine
		if taken || was == nil || was.DrainRequest == nil || was.DrainRequest.ID != id {
			return nil, nil //nolint:nilnil // write nothing
		}
		is := *was
		is.DrainRequest, is.DrainRefused, is.Taken, taken = nil, refused, &mine, true
		return &is, nil
	})
	return taken && err == nil, err
}

// RemoveNode deletes a record unless its machine wrote it since, and reports whether no record is left.
func (c *Client) RemoveNode(ctx context.Context, n Node) (bool, error) {
	if n.ID == "" {
		return false, errors.New("removing a node: it has no id")
	}
	op := "removing node " + n.ID
	failed := c.call(ctx, op, func(ctx context.Context) error {
		_, err := c.nodes().DeleteOne(ctx, bson.D{{Key: "_id", Value: n.ID}, {Key: "updated_at", Value: orNull(n.UpdatedAt)}})
		return err
	})
	// The answer may be lost: what is left decides.
	_, err := c.Node(ctx, n.ID)
	if errors.Is(err, ErrNoNode) {
		return true, nil
	}
	return false, cmp.Or(failed, err)
}

// Node reads a record of the primary, also without a majority, or returns [ErrNoNode] or a [BadRecordError].
func (c *Client) Node(ctx context.Context, id string) (Node, error) {
	op := "reading node " + id
	r, err := c.readRecord(ctx, op, id, readconcern.Local())
	switch {
	case err != nil:
		return Node{}, err
	case r == nil:
		return Node{}, fmt.Errorf("%s: %w", op, ErrNoNode)
	case r.bad != nil:
		return Node{}, fmt.Errorf("%s: %w", op, r.bad)
	}
	return r.Node, nil
}

// Nodes reads all valid records, ordered by id.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	nodes, _, err := c.records(ctx)
	return nodes, err
}

func (c *Client) records(ctx context.Context) (nodes []Node, bad []BadRecordError, err error) {
	withoutDoc := func(doc bson.Raw) *record {
		r := decode(doc)
		r.doc = nil // of up to 16 MB
		return r
	}
	found, err := find(ctx, c, "reading the nodes of the registry", c.nodes(), bson.D{}, withoutDoc,
		options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
	for _, r := range found {
		if r.bad != nil {
			bad = append(bad, *r.bad)
			if _, logged := c.loggedBad.LoadOrStore(r.ID, true); !logged {
				c.log.WarnContext(ctx, "record ignored: it cannot be read", "node", r.ID, "error", r.bad.Err)
			}
		} else {
			nodes = append(nodes, r.Node)
		}
	}
	return nodes, bad, err
}

// EnsureIndexes creates TTL indexes. Nothing relies on them.
func (c *Client) EnsureIndexes(ctx context.Context) error {
	return errors.Join(c.expire(ctx, c.nodes(), "left_at", keepLeft), c.expire(ctx, c.events(), "at", keepEvents))
}

func (c *Client) expire(ctx context.Context, coll *mongo.Collection, key string, keep time.Duration) error {
	return c.call(ctx, "making the index that removes old "+coll.Name(), func(ctx context.Context) error {
		_, err := coll.Indexes().CreateOne(ctx, mongo.IndexModel{
			Keys:    bson.D{{Key: key, Value: 1}},
			Options: options.Index().SetExpireAfterSeconds(int32(keep / time.Second)),
		})
		return err
	})
}

func (c *Client) nodes() *mongo.Collection {
	return c.db(registryDatabase).Collection(nodesCollection)
}

func (c *Client) events() *mongo.Collection {
	return c.db(registryDatabase).Collection(eventsCollection)
}
