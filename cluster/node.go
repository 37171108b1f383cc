// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

const (
	registryDatabase = "amsagent"
	nodesCollection  = "nodes"
	eventsCollection = "events"

	// How long tombstones and events are kept, where the server has TTL
	// indexes. A month is longer than any incident stays unexplained.
	keepTombstones = 30 * 24 * time.Hour
	keepEvents     = 90 * 24 * time.Hour
)

// ErrNoNode says that the registry has no row of that id.
var ErrNoNode = errors.New("no such node in the registry")

// Node is one row of the registry: what a machine says about itself. AMS's own
// word about the same machine is [AMSNode].
type Node struct {
	ID       string `bson:"_id" json:"id"` // the cloud's id of the instance
	IP       string `bson:"ip,omitempty" json:"ip,omitempty"`
	PublicIP string `bson:"public_ip,omitempty" json:"public_ip,omitempty"`
	Hostname string `bson:"hostname,omitempty" json:"hostname,omitempty"`
	// Name is what the cloud's signals call the machine by, where that is not ID.
	Name     string `bson:"name,omitempty" json:"name,omitempty"`
	Role     string `bson:"role,omitempty" json:"role,omitempty"`
	Group    string `bson:"group,omitempty" json:"group,omitempty"`
	Provider string `bson:"provider,omitempty" json:"provider,omitempty"`
	Region   string `bson:"region,omitempty" json:"region,omitempty"`
	Zone     string `bson:"zone,omitempty" json:"zone,omitempty"`
	Type     string `bson:"type,omitempty" json:"type,omitempty"`
	Agent    string `bson:"agent,omitempty" json:"agent,omitempty"` // version
	AMS      string `bson:"ams,omitempty" json:"ams,omitempty"`     // version
	// BootID and IP together tell one life of the machine from the next.
	BootID string `bson:"boot_id,omitempty" json:"boot_id,omitempty"`
	// Drift names values of the server's files that differ from those of the join, by
	// application, with secrets masked; the server runs with them until it is restarted.
	Drift string `bson:"drift,omitempty" json:"drift,omitempty"`
	// Port is where AMS answers HTTP; 0 where nobody told.
	Port       int    `bson:"port,omitempty" json:"port,omitempty"`
	IntervalMS Millis `bson:"interval_ms,omitempty" json:"interval_ns,omitempty"`

	State  State  `bson:"state" json:"state"`
	Reason string `bson:"reason,omitempty" json:"reason,omitempty"`
	// Seq counts the beats of one life; who beats sets it.
	Seq int64 `bson:"seq" json:"seq"`

	// These are set by the server's clock and ignored when a Node is written.
	StateSince time.Time `bson:"state_since,omitempty" json:"state_since,omitzero"`
	UpdatedAt  time.Time `bson:"updated_at,omitempty" json:"updated_at,omitzero"`

	// These are written by [Client.Beat] and ignored when a Node is written;
	// nil until the first beat.
	Load     *Load     `bson:"load,omitempty" json:"load,omitempty"`
	Sessions *Sessions `bson:"sessions,omitempty" json:"sessions,omitempty"`
	Devices  []string  `bson:"gpus,omitempty" json:"gpus,omitempty"` // names of the GPUs
	// Serving is nil where the agent does not know it, or is one that does not report
	// it.
	Serving *Serving `bson:"serving,omitempty" json:"serving,omitempty"`
	// LeftBy is what took the node out of the cluster, or is about to: leave (the command), drain,
	// stop (of the server's unit).
	LeftBy string `bson:"left_by,omitempty" json:"left_by,omitempty"`
	// StopFailed: the node drains, and its server does not end.
	StopFailed bool `bson:"stop_failed,omitempty" json:"stop_failed,omitempty"`
	// Cut is how many sessions were cut when the node left; nil where nobody
	// counted, or it has not left.
	Cut *int `bson:"cut,omitempty" json:"cut,omitempty"`
	// ClockMS is how far the machine's clock is ahead of the server's.
	ClockMS *Millis `bson:"clock_ms,omitempty" json:"clock_ns,omitempty"`
	// DrainRequest is what somebody elsewhere asks of this node, until its agent takes it
	// up.
	DrainRequest *DrainRequest `bson:"-" json:"drain_request,omitempty"`
}

// Age returns how long ago the row was written, by the server's clock. It is
// not known for a row that was never written by us.
func (n Node) Age(serverNow time.Time) (age time.Duration, known bool) {
	if n.UpdatedAt.IsZero() {
		return 0, false
	}
	return max(0, serverNow.Sub(n.UpdatedAt)), true
}

// SameLife reports whether both rows were written by one life of a machine:
// the same boot at the same address.
func (n Node) SameLife(m Node) bool {
	return n.ID == m.ID && n.BootID == m.BootID && n.IP == m.IP
}

// WithCloudFactsOf returns n with what a cloud said of the machine in an earlier row,
// where n does not say it: the cloud may not answer at the moment. The public address
// is another one after a boot.
func (n Node) WithCloudFactsOf(row Node) Node {
	for _, f := range []struct{ mine, theirs *string }{
		{&n.Name, &row.Name}, {&n.Provider, &row.Provider}, {&n.Region, &row.Region}, {&n.Zone, &row.Zone}, {&n.Type, &row.Type},
	} {
		if *f.mine == "" {
			*f.mine = *f.theirs
		}
	}
	if n.PublicIP == "" && n.BootID == row.BootID {
		n.PublicIP = row.PublicIP
	}
	return n
}

// fact is a text that is written at registration only.
type fact struct {
	key   string
	value *string
}

func (n *Node) facts() []fact {
	return []fact{
		{"ip", &n.IP},
		{"public_ip", &n.PublicIP},
		{"hostname", &n.Hostname},
		{"name", &n.Name},
		{"role", &n.Role},
		{"group", &n.Group},
		{"provider", &n.Provider},
		{"region", &n.Region},
		{"zone", &n.Zone},
		{"type", &n.Type},
		{"agent", &n.Agent},
		{"ams", &n.AMS},
		{"boot_id", &n.BootID},
		{"drift", &n.Drift},
	}
}

// nodeFields are the fields of a row that are read: whatever else stands there stays
// on the server.
func nodeFields() bson.D {
	d := bson.D{}
	for _, f := range new(Node).facts() {
		d = append(d, bson.E{Key: f.key, Value: 1})
	}
	for _, key := range []string{
		"state", "reason", "state_since", "updated_at", "interval_ms", "seq", "port", "load", "sessions", "serving", "gpus", "clock_ms", "cut", "left_by", "stop_failed", lifeKey, requestKey, askedKey,
	} {
		d = append(d, bson.E{Key: key, Value: 1})
	}
	return d
}

// readNode reads a row whatever its fields hold.
func readNode(doc bson.Raw) Node {
	n := Node{
		ID:         idText(field(doc, "_id")),
		State:      State(textField(doc, "state")),
		Reason:     textField(doc, "reason"),
		StateSince: timeField(doc, "state_since"),
		UpdatedAt:  timeField(doc, "updated_at"),
	}
	interval, _ := int64Field(doc, "interval_ms")
	n.IntervalMS = Millis(interval)
	n.Seq, _ = int64Field(doc, "seq")
	if port := intField(doc, "port"); port != nil && *port > 0 && *port <= math.MaxUint16 {
		n.Port = *port
	}
	n.Load, n.Sessions, n.Devices = readLoad(doc), readSessions(doc), textsField(doc, "gpus")
	n.Serving = readServing(doc)
	n.ClockMS = millisField(doc, "clock_ms")
	n.Cut = intField(doc, "cut")
	n.LeftBy = textField(doc, "left_by")
	n.StopFailed, _ = field(doc, "stop_failed").BooleanOK()
	n.DrainRequest = readRequest(doc)
	for _, f := range n.facts() {
		*f.value = textField(doc, f.key)
	}
	return n
}

// change collects an update. Empty facts are removed rather than written, so
// that nothing of an earlier registration shines through.
type change struct{ set, unset, now bson.D }

func (c *change) put(key, value string) {
	if value == "" {
		c.remove(key)
		return
	}
	c.set = append(c.set, bson.E{Key: key, Value: value})
}

func (c *change) remove(keys ...string) {
	for _, key := range keys {
		c.unset = append(c.unset, bson.E{Key: key, Value: ""})
	}
}

// stamp sets fields to the server's clock.
func (c *change) stamp(keys ...string) {
	for _, key := range keys {
		c.now = append(c.now, bson.E{Key: key, Value: true})
	}
}

func (c *change) update() bson.D {
	var u bson.D
	add := func(operator string, fields bson.D) {
		if len(fields) > 0 { // an empty operator is an error for old servers
			u = append(u, bson.E{Key: operator, Value: fields})
		}
	}
	add("$set", c.set)
	add("$unset", c.unset)
	add("$currentDate", c.now)
	return u
}

// facts adds what a registration says, without the state.
func (c *change) facts(n Node) {
	for _, f := range n.facts() {
		c.put(f.key, *f.value)
	}
	c.set = append(c.set, bson.E{Key: lifeKey, Value: int32(n.Life())})
	// The interval is the daemon's word, which who registers may not know.
	for _, number := range []struct {
		key   string
		value int64
	}{{"interval_ms", int64(n.IntervalMS)}, {"port", int64(n.Port)}} {
		if number.value > 0 {
			c.set = append(c.set, bson.E{Key: number.key, Value: number.value})
		}
	}
	c.stamp("updated_at")
}

// forget drops what was beaten into the row before this registration.
func (c *change) forget(n Node) {
	c.set = append(c.set, bson.E{Key: "seq", Value: n.Seq})
	c.remove("load", "sessions", "serving", "gpus", "clock_ms", requestKey, askedKey)
	if n.IntervalMS <= 0 {
		c.remove("interval_ms")
	}
}

// Details is what the row holds beside a state.
type Details struct {
	LeftBy     string // see [Node]
	StopFailed bool
	// Cut is how many sessions were cut; nil is not known.
	Cut *int
}

// The values of LeftBy.
const (
	LeftByLeave = "leave"
	LeftByDrain = "drain"
	LeftByStop  = "stop"
)

// state adds the entry into a state. left_at is there for a TTL index alone:
// one on updated_at would delete nodes that are alive and do not beat.
func (c *change) state(s State, reason string, d Details) {
	c.put("state", string(s))
	c.stamp("state_since")
	if s == StateLeft {
		c.stamp("left_at")
	} else {
		c.remove("left_at")
	}
	if s != StateLeft && d.Cut == nil {
		c.remove("cut")
	}
	if d.LeftBy == "" {
		c.remove("left_by")
	}
	c.details(reason, d)
}

// details adds what changes with and without the entry into a state.
func (c *change) details(reason string, d Details) {
	c.put("reason", reason)
	if d.LeftBy != "" {
		c.put("left_by", d.LeftBy)
	}
	if d.StopFailed {
		c.set = append(c.set, bson.E{Key: "stop_failed", Value: true})
	} else {
		c.remove("stop_failed")
	}
	if d.Cut != nil {
		c.set = append(c.set, bson.E{Key: "cut", Value: int32(*d.Cut)})
	}
}

// Registration is what [Client.Register] did.
type Registration struct {
	Node Node // the row as it is stored now, as every peer reads it
	// Before is the row of the same id that was there, nil if none was.
	Before *Node
	// Rejoined says that Before was of another life (boot or address) and
	// that its state, load and sessions were dropped. If it was written
	// moments ago, two machines use one id.
	Rejoined bool
}

// Register writes the row of this machine: all facts, and n.State.
//
// One id has one row. If the row is of another life of the machine (another
// boot, another address), all of it is replaced. Within one life, joining and
// active are taken on from joining, left and failed, and any other state as
// [State.CanTransition] allows, but a node is never taken out of draining and
// never put back from active to joining: registering again is no reason to
// change what a node is doing. Registration.Node tells the state that counts.
//
// A row that another machine beats into is left alone: the error is an
// [OtherMachineError]. [Client.TakeOver] replaces that row, too.
//
// It may be called again after any error, by several callers at once too.
func (c *Client) Register(ctx context.Context, n Node) (Registration, error) {
	return c.registration(ctx, n, false)
}

// TakeOver is Register for an operator who knows that the machine that seems to
// use the row is gone.
func (c *Client) TakeOver(ctx context.Context, n Node) (Registration, error) {
	return c.registration(ctx, n, true)
}

func (c *Client) registration(ctx context.Context, n Node, replace bool) (Registration, error) {
	op := "registering node " + n.ID
	switch {
	case n.ID == "":
		return Registration{}, errors.New("registering a node: it has no id")
	case !n.State.Valid():
		return Registration{}, fmt.Errorf("%s: %q is not a state", op, string(n.State))
	}
	for range maxRounds {
		r, done, err := c.registerOnce(ctx, op, n, replace)
		if err != nil || done {
			return r, err
		}
	}
	return Registration{}, fmt.Errorf("%s: others keep changing the row", op)
}

// maxRounds bounds the loops below. A round is repeated only when somebody else changed the row in the middle of it.
const maxRounds = 8

// registerOnce is one try; it is not done where another machine took the row since it was read.
func (c *Client) registerOnce(ctx context.Context, op string, n Node, replace bool) (r Registration, done bool, err error) {
	switch before, err := c.Node(ctx, n.ID); {
	case err == nil:
		r.Before = &before
		r.Rejoined = !before.SameLife(n)
	case !errors.Is(err, ErrNoNode):
		return Registration{}, false, err
	}
	if r.Rejoined && !replace {
		if err := c.CheckOwner(ctx, n); err != nil {
			return r, false, fmt.Errorf("%s: %w", op, err)
		}
	}
	err = c.call(ctx, op, func(ctx context.Context) error {
		done, err = c.register(ctx, n, r.Before, replace)
		return err
	})
	if err != nil || !done {
		return Registration{}, false, err
	}
	// What counts is what the peers read.
	r.Node, err = c.Node(ctx, n.ID)
	return r, true, err
}

// takesOver returns the states of the same life that a registration replaces.
func (s State) takesOver() []State {
	if s == StateJoining || s == StateActive {
		from := []State{StateJoining, StateLeft, StateFailed}
		return slices.DeleteFunc(from, func(f State) bool { return f == s })
	}
	return s.predecessors()
}

// register does with conditional updates of one document what servers without
// pipeline updates cannot do in one: each step names the rows it is for, the
// steps exclude each other and together cover every row there can be, but for one
// that another life has written since before was read (nil: there was none): it is
// replaced only where takeOver says so, else nothing is done.
func (c *Client) register(ctx context.Context, n Node, before *Node, takeOver bool) (done bool, err error) {
	life := n.lifeFilter()
	from := n.State.takesOver()
	stay := slices.DeleteFunc(States(), func(s State) bool { return s == n.State || slices.Contains(from, s) })

	// Same life, same state: facts and reason. state_since stays.
	var refresh change
	refresh.facts(n)
	refresh.put("reason", n.Reason)
	// Same life, a state that gives way.
	var enter change
	enter.facts(n)
	enter.state(n.State, n.Reason, Details{})
	// Same life, a state that stays with its reason.
	var keep change
	keep.facts(n)
	// No row, another life, or a row without a usable state. Of the same life one that
	// had left, too: what was beaten before that is no sign of life.
	var replace change
	replace.facts(n)
	replace.state(n.State, n.Reason, Details{})
	replace.forget(n)
	thisLife := append(slices.Clone(life[1:]), bson.E{Key: "state", Value: anyOf(States())})
	in := func(states ...State) bson.D {
		return append(slices.Clone(life), bson.E{Key: "state", Value: anyOf(states)})
	}
	gaveWay := slices.DeleteFunc(slices.Clone(from), func(s State) bool { return s == StateLeft })
	not := bson.A{thisLife}
	switch {
	case takeOver:
	case before == nil:
		not = append(not, bson.D{{Key: "_id", Value: n.ID}})
	default:
		not = append(not, bson.D{{Key: "updated_at", Value: bson.D{{Key: "$gt", Value: before.UpdatedAt}}}})
	}
	steps := []struct {
		filter bson.D
		update change
		upsert bool
		likely bool // by what was read; it is tried first
	}{
		{
			bson.D{{Key: "_id", Value: n.ID}, {Key: "$nor", Value: not}},
			replace, true,
			before == nil || !before.SameLife(n),
		},
		{in(n.State), refresh, false, before != nil && before.State == n.State},
		{in(gaveWay...), enter, false, before != nil && slices.Contains(gaveWay, before.State)},
		{in(stay...), keep, false, before != nil && slices.Contains(stay, before.State)},
		{in(StateLeft), replace, false, before != nil && before.State == StateLeft},
	}
	if !slices.Contains(from, StateLeft) {
		steps = steps[:len(steps)-1]
	}
	for i := range steps {
		if steps[i].likely && !steps[0].likely {
			steps[0], steps[i] = steps[i], steps[0]
		}
	}

	for _, step := range steps {
		res, err := c.nodes().UpdateOne(ctx, step.filter, step.update.update(), options.UpdateOne().SetUpsert(step.upsert))
		if step.upsert && mongo.IsDuplicateKeyError(err) {
			continue // there is a row that another step is for, or none
		}
		if err != nil {
			return false, err
		}
		if res.MatchedCount+res.UpsertedCount > 0 {
			return true, nil
		}
	}
	return false, nil
}

// lifeFilter is for the row of this life of the machine.
func (n Node) lifeFilter() bson.D {
	return bson.D{{Key: "_id", Value: n.ID}, {Key: "boot_id", Value: orNull(n.BootID)}, {Key: "ip", Value: orNull(n.IP)}}
}

// orNull makes a filter that matches a missing field for an empty value,
// because empty facts are not stored.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func anyOf(states []State) bson.D {
	values := make(bson.A, 0, len(states))
	for _, s := range states {
		values = append(values, s)
	}
	return bson.D{{Key: "$in", Value: values}}
}

// SetOwnState moves this machine's row to a state, if [State.CanTransition] allows it
// from the state the row has at that moment; otherwise it returns a [TransitionError]
// and changes nothing. state_since is the moment of the change by the server's clock,
// and is kept when the row is in the state already. updated_at is set as well: this is
// the node's own word about itself.
//
// A row that another machine, with another boot and address than self's, has registered
// is not changed, and the error is an [OtherMachineError].
func (c *Client) SetOwnState(ctx context.Context, self Node, s State, reason string, d Details) error {
	if !s.Valid() {
		return fmt.Errorf("setting the state of node %s: %q is not a state", self.ID, string(s))
	}
	op := fmt.Sprintf("setting node %s to %s", self.ID, s)
	// Not an error of the exchange, which call would wrap as one.
	var refused error
	err := c.call(ctx, op, func(ctx context.Context) error {
		var err error
		refused, err = c.setState(ctx, self, s, reason, d)
		return err
	})
	return errors.Join(refused, err)
}

func (c *Client) setState(ctx context.Context, self Node, s State, reason string, d Details) (refused, err error) {
	id, owned := self.ID, ownedBy(self)
	var enter, refresh change
	enter.state(s, reason, d)
	enter.stamp("updated_at")
	refresh.details(reason, d)
	refresh.stamp("updated_at")
	if s == StateLeft {
		// They were those of a server that has stopped since.
		enter.remove("sessions", "load", "serving", requestKey, askedKey)
		refresh.remove("sessions", "load", "serving", requestKey, askedKey)
	}
	for range maxRounds {
		for _, step := range []struct {
			from   bson.D
			update change
		}{{anyOf(s.predecessors()), enter}, {anyOf([]State{s}), refresh}} {
			filter := append(bson.D{{Key: "_id", Value: id}, {Key: "state", Value: step.from}}, owned...)
			res, err := c.nodes().UpdateOne(ctx, filter, step.update.update())
			if err != nil {
				return nil, err
			}
			if res.MatchedCount > 0 {
				return nil, nil
			}
		}
		doc, err := c.nodes().FindOne(ctx, bson.D{{Key: "_id", Value: id}}, options.FindOne().SetProjection(nodeFields())).Raw()
		if errors.Is(err, mongo.ErrNoDocuments) {
			return fmt.Errorf("setting node %s to %s: %w", id, s, ErrNoNode), nil
		}
		if err != nil {
			return nil, err
		}
		now := readNode(doc)
		if owned != nil && now.otherMachine(self) {
			return fmt.Errorf("setting node %s to %s: %w", id, s, &OtherMachineError{Row: now}), nil
		}
		if !now.State.CanTransition(s) {
			return &TransitionError{ID: id, From: now.State, To: s}, nil
		}
		// Since the first step the row came into a state that allows it.
	}
	return nil, errors.New("others keep changing the row")
}

// Node reads the row of a node; the error is [ErrNoNode] if there is none.
func (c *Client) Node(ctx context.Context, id string) (Node, error) {
	op := "reading node " + id
	nodes, err := find(ctx, c, op, c.nodes, bson.D{{Key: "_id", Value: id}}, nodeFields(), readNode)
	if err != nil {
		return Node{}, err
	}
	if len(nodes) == 0 {
		return Node{}, fmt.Errorf("%s: %w", op, ErrNoNode)
	}
	return nodes[0], nil
}

// Nodes reads all rows, in the order of their ids.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return find(ctx, c, "reading the nodes of the registry", c.nodes, bson.D{}, nodeFields(), readNode,
		bson.E{Key: "sort", Value: bson.D{{Key: "_id", Value: 1}}})
}

// EnsureIndexes makes the indexes by which the server forgets, after weeks,
// nodes that have left and old events. Nothing relies on them: a server
// without them answers [KindUnsupported], one that does not allow it
// [KindForbidden], and both may be ignored.
func (c *Client) EnsureIndexes(ctx context.Context) error {
	var errs []error
	for _, ix := range []struct {
		coll func() *mongo.Collection
		key  string
		keep time.Duration
	}{{c.nodes, "left_at", keepTombstones}, {c.events, "at", keepEvents}} {
		errs = append(errs, c.call(ctx, "making the index that removes old "+ix.coll().Name(), func(ctx context.Context) error {
			_, err := ix.coll().Indexes().CreateOne(ctx, mongo.IndexModel{
				Keys:    bson.D{{Key: ix.key, Value: 1}},
				Options: options.Index().SetExpireAfterSeconds(int32(ix.keep / time.Second)),
			})
			return err
		}))
	}
	return errors.Join(errs...)
}

func (c *Client) nodes() *mongo.Collection {
	return c.db(registryDatabase).Collection(nodesCollection)
}

func (c *Client) events() *mongo.Collection {
	return c.db(registryDatabase).Collection(eventsCollection)
}
