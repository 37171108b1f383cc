// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// Load is how busy a machine was at a beat. Each reading may be missing, and
// a missing reading is nil, never zero.
type Load struct {
	// CPU is the busy share of all cores since the beat before, in percent; not
	// known if a control group limits the server's CPU.
	CPU *int `json:"cpu,omitempty"`
	// Mem is the share of memory in use, in percent, as AMS's own limit counts
	// it; not known if a control group limits the server's memory.
	Mem *int `json:"mem,omitempty"`
	// NetRx and NetTx are bytes per second since the beat before, over the
	// interfaces to other machines.
	NetRx *int64 `json:"net_rx,omitempty"`
	NetTx *int64 `json:"net_tx,omitempty"`
	// Disk is the share in use of the volume that AMS is on, in percent.
	Disk *int `json:"disk,omitempty"`
	// GPUs are the devices by their index; nil where there are none, or where
	// nobody could tell.
	GPUs []GPULoad `json:"gpus,omitempty"`
	// Score is the busiest of the resources that AMS is limited by, in percent;
	// not known under such a limit.
	Score *int `json:"score,omitempty"`
}

// GPULoad is how busy one device was, in percent each; nil where the driver
// does not tell, as for a device that is split (MIG).
type GPULoad struct {
	Util *int `json:"util,omitempty"`
	Enc  *int `json:"enc,omitempty"`
	Dec  *int `json:"dec,omitempty"`
	Mem  *int `json:"mem,omitempty"`
}

// Sessions are the publishers and viewers that a node serves itself; nil where
// nobody could count.
type Sessions struct {
	Publishers *int `json:"publishers,omitempty"`
	Viewers    *int `json:"viewers,omitempty"`
	// By says how the viewers were counted.
	By CountedBy `json:"by,omitempty"`
	// PublishersBy is the same for the publishers. Only this machine knows: no row
	// holds it.
	PublishersBy CountedBy `json:"publishers_by,omitempty"`
}

// CountedBy is a way to count sessions.
type CountedBy string

// The ways.
const (
	CountedByAMS         CountedBy = "ams"         // AMS's own statistics
	CountedByConnections CountedBy = "connections" // established connections, an estimate
	CountedByMongoDB     CountedBy = "mongodb"     // AMS's own documents of streams
	CountedByService     CountedBy = "service"     // no server runs, says its service manager
)

// Total is the number of sessions; known only where both parts are.
func (s Sessions) Total() (n int, known bool) {
	if s.Publishers == nil || s.Viewers == nil {
		return 0, false
	}
	return *s.Publishers + *s.Viewers, true
}

// Left says how many there still are: "2 publishers, about 31 viewers left".
func (s Sessions) Left() string {
	if n, known := s.Total(); known && n == 0 {
		return "no publishers and no viewers left"
	}
	count := func(n int, one string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %ss", n, one)
	}
	about := ""
	if s.By == CountedByConnections {
		about = "about "
	}
	switch {
	case s.Publishers == nil && s.Viewers == nil:
		return "publishers and viewers not known"
	case s.Publishers == nil:
		return about + count(*s.Viewers, "viewer") + " left, publishers not known"
	case s.Viewers == nil:
		return count(*s.Publishers, "publisher") + " left, viewers not known"
	}
	return count(*s.Publishers, "publisher") + ", " + about + count(*s.Viewers, "viewer") + " left"
}

// Equal reports whether both say the same to who reads the row.
func (s Sessions) Equal(t Sessions) bool {
	same := func(a, b *int) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	return same(s.Publishers, t.Publishers) && same(s.Viewers, t.Viewers) && s.By == t.By
}

// Serving is what viewers get from the server of a node, as its agent sees it.
type Serving struct {
	// Up reports whether every application that has to serve does.
	Up bool `json:"up"`
	// Why names what does not serve; "" while Up.
	Why string `json:"why,omitempty"`
}

// maxWhy bounds the reason in a row: a server may have hundreds of applications.
const maxWhy = 200

// Equal reports whether both say the same; nil is not known.
func (s *Serving) Equal(t *Serving) bool {
	if s == nil || t == nil {
		return s == t
	}
	return *s == *t
}

// Beat is one heartbeat of a node.
type Beat struct {
	ID   string // of the row
	Life Life   // of the row; zero beats into a row of any life
	Seq  int64  // counts the beats of one life
	Load
	Sessions Sessions

	// What follows changes rarely, and is written when it differs from the
	// beat before.

	// Interval is the time from beat to beat.
	Interval time.Duration
	// Clock is how far the machine's clock is ahead of the server's. AMS stamps
	// its document by it. nil is not known.
	Clock *time.Duration
	// Devices are the names of the GPUs by index.
	Devices []string
	// Serving is nil where it is not known.
	Serving *Serving
}

// clockStep is by how much the clock may wander before a beat tells: readers
// compare it with a limit of seconds.
const clockStep = 500 * time.Millisecond

// ErrNewPrimary says that the primary was elected since the beat before. It may lack
// what only the one before had, and its clock may be another one: the beat has to be
// written again, as a whole, with [Client.ClockSkew] read anew.
var ErrNewPrimary = errors.New("another primary was elected since the beat before")

// Beat writes one heartbeat, in one update that the primary alone acknowledges:
// a beat that is lost in an election is followed by the next one. last is the
// beat that the row holds already, nil if that is not known; of what changes
// rarely only the difference to it is written.
//
// The error is [ErrNoNode] where there is no row of that id: somebody removed
// it, and the node has to register again; [ErrNewPrimary] only where last is not nil. It
// is an [OtherMachineError] where the row is of another life than b.Life: another machine
// registered under this id. A beat is not repeated here; the next one is newer.
func (c *Client) Beat(ctx context.Context, b Beat, last *Beat) error {
	if b.ID == "" {
		return errors.New("a beat: it has no node")
	}
	op := "writing a beat of node " + b.ID
	reply, err := c.writeBeat(ctx, op, b, last)
	if err != nil {
		return err
	}
	if c.elects(reply) && last != nil {
		return ErrNewPrimary
	}
	if n, ok := int64Field(reply, "n"); ok && n == 0 {
		if b.Life == 0 {
			return fmt.Errorf("%s: %w", op, ErrNoNode)
		}
		return c.beatRefused(ctx, op, b)
	}
	return nil
}

// elects reports whether the primary that replied is another one than that of the
// beat before, or was elected again. A server that tells no election is the same one.
func (c *Client) elects(reply bson.Raw) bool {
	now, ok := field(reply, "electionId").ObjectIDOK()
	if !ok {
		return false
	}
	before := c.elected.Swap(&now)
	return before != nil && *before != now
}

func (c *Client) writeBeat(ctx context.Context, op string, b Beat, last *Beat) (reply bson.Raw, _ error) {
	// Not UpdateOne, which says "ordered" as well: every byte here is sent by
	// every node every few seconds.
	command := bson.D{
		{Key: "update", Value: nodesCollection},
		{Key: "updates", Value: bson.A{bson.D{
			{Key: "q", Value: b.filter()},
			{Key: "u", Value: b.update(last)},
		}}},
	}
	concern := bson.E{Key: "writeConcern", Value: bson.D{{Key: "w", Value: int32(1)}}}
	err := c.once(ctx, op, func(ctx context.Context) error {
		var err error
		command := command
		if !c.link.Load().watch.standalone() {
			command = append(slices.Clone(command), concern)
		}
		reply, err = c.db(registryDatabase).RunCommand(ctx, command).Raw()
		if err == nil {
			err = writeErrors(reply)
		}
		return err
	})
	return reply, err
}

func (b Beat) filter() bson.D {
	q := bson.D{{Key: "_id", Value: b.ID}}
	if b.Life != 0 {
		q = append(q, bson.E{Key: lifeKey, Value: int32(b.Life)})
	}
	return q
}

// writeErrors finds what a server refused although it calls the command done.
func writeErrors(reply bson.Raw) error {
	list, ok := field(reply, "writeErrors").ArrayOK()
	if !ok {
		return nil
	}
	values, err := list.Values()
	if err != nil || len(values) == 0 {
		return err
	}
	doc, _ := values[0].DocumentOK()
	code, _ := int64Field(doc, "code")
	return mongo.CommandError{Code: int32(code), Name: textField(doc, "codeName"), Message: boundedText(field(doc, "errmsg"), maxMessage)}
}

func (b Beat) update(last *Beat) bson.D {
	set := bson.D{{Key: "seq", Value: small(b.Seq)}, {Key: "load", Value: b.Load.document()}}
	var unset bson.D
	put := func(key string, value any, known bool) {
		if known {
			set = append(set, bson.E{Key: key, Value: value})
		} else {
			unset = append(unset, bson.E{Key: key, Value: ""})
		}
	}
	switch {
	case last == nil:
		put("sessions", b.Sessions.document(), true)
	case !b.Sessions.Equal(last.Sessions):
		// Often only the viewers differ, so each part is written by itself.
		was, is := last.Sessions.document(), b.Sessions.document()
		for _, key := range []string{"publishers", "viewers", "by"} {
			before, _ := lookup(was, key)
			if now, known := lookup(is, key); now != before {
				put("sessions."+key, now, known)
			}
		}
	}
	if last == nil || b.Interval != last.Interval {
		put("interval_ms", small(b.Interval.Milliseconds()), b.Interval > 0)
	}
	if last == nil || ClockMoved(last.Clock, b.Clock) {
		var ms int64
		if b.Clock != nil {
			ms = b.Clock.Milliseconds()
		}
		put("clock_ms", small(ms), b.Clock != nil)
	}
	if last == nil || !slices.Equal(b.Devices, last.Devices) {
		put("gpus", b.Devices, len(b.Devices) > 0)
	}
	if last == nil || !b.Serving.Equal(last.Serving) {
		put("serving", b.Serving.document(), b.Serving != nil)
	}
	u := bson.D{{Key: "$set", Value: set}}
	if len(unset) > 0 {
		u = append(u, bson.E{Key: "$unset", Value: unset})
	}
	return append(u, bson.E{Key: "$currentDate", Value: bson.D{{Key: "updated_at", Value: true}}})
}

// ClockMoved reports whether a clock wandered far enough for a beat to tell, or
// became known, or unknown.
func ClockMoved(was, is *time.Duration) bool {
	if was == nil || is == nil {
		return (was == nil) != (is == nil)
	}
	return (*is - *was).Abs() >= clockStep
}

// small writes a number in four bytes where it fits.
func small(n int64) any {
	if n >= math.MinInt32 && n <= math.MaxInt32 {
		return int32(n)
	}
	return n
}

func (l Load) document() bson.D {
	d := bson.D{}
	percent := func(key string, v *int) {
		if v != nil {
			d = append(d, bson.E{Key: key, Value: int32(*v)})
		}
	}
	rate := func(key string, v *int64) {
		if v != nil {
			d = append(d, bson.E{Key: key, Value: small(*v)})
		}
	}
	percent("cpu", l.CPU)
	percent("mem", l.Mem)
	rate("net_rx", l.NetRx)
	rate("net_tx", l.NetTx)
	percent("disk", l.Disk)
	if len(l.GPUs) > 0 {
		d = append(d, bson.E{Key: "gpus", Value: packGPUs(l.GPUs)})
	}
	percent("score", l.Score)
	return d
}

// A device takes four bytes in a row: utilisation, encoder, decoder, memory, in
// percent each, 255 where it is not known. As documents eight devices would take
// more room than all the rest of a beat.
const (
	gpuBytes   = 4
	gpuUnknown = 0xff
)

func packGPUs(gpus []GPULoad) bson.Binary {
	data := make([]byte, 0, gpuBytes*len(gpus))
	for _, g := range gpus {
		for _, v := range []*int{g.Util, g.Enc, g.Dec, g.Mem} {
			b := byte(gpuUnknown)
			if v != nil {
				b = byte(min(max(*v, 0), gpuUnknown-1))
			}
			data = append(data, b)
		}
	}
	return bson.Binary{Data: data}
}

func unpackGPUs(data []byte) []GPULoad {
	var gpus []GPULoad
	for part := range slices.Chunk(data, gpuBytes) {
		if len(part) < gpuBytes {
			break
		}
		value := func(i int) *int {
			if part[i] == gpuUnknown {
				return nil
			}
			n := int(part[i])
			return &n
		}
		gpus = append(gpus, GPULoad{Util: value(0), Enc: value(1), Dec: value(2), Mem: value(3)})
	}
	return gpus
}

func (s Sessions) document() bson.D {
	d := bson.D{}
	if s.Publishers != nil {
		d = append(d, bson.E{Key: "publishers", Value: int32(*s.Publishers)})
	}
	if s.Viewers != nil {
		d = append(d, bson.E{Key: "viewers", Value: int32(*s.Viewers)})
		if s.By != "" {
			d = append(d, bson.E{Key: "by", Value: string(s.By)})
		}
	}
	return d
}

func (s *Serving) document() bson.D {
	if s == nil {
		return nil
	}
	d := bson.D{{Key: "up", Value: s.Up}}
	if why := strings.ToValidUTF8(s.Why[:min(len(s.Why), maxWhy)], ""); why != "" && !s.Up {
		d = append(d, bson.E{Key: "why", Value: why})
	}
	return d
}

func lookup(d bson.D, key string) (any, bool) {
	i := slices.IndexFunc(d, func(e bson.E) bool { return e.Key == key })
	if i < 0 {
		return nil, false
	}
	return d[i].Value, true
}

// readLoad reads the load of a row; nil where the row has none.
func readLoad(row bson.Raw) *Load {
	doc, ok := field(row, "load").DocumentOK()
	if !ok {
		return nil
	}
	l := &Load{
		CPU: intField(doc, "cpu"), Mem: intField(doc, "mem"), Disk: intField(doc, "disk"), Score: intField(doc, "score"),
		NetRx: rateField(doc, "net_rx"), NetTx: rateField(doc, "net_tx"),
	}
	if _, data, ok := field(doc, "gpus").BinaryOK(); ok {
		l.GPUs = unpackGPUs(data[:min(len(data), maxDevices*gpuBytes)])
	}
	return l
}

func readSessions(row bson.Raw) *Sessions {
	doc, ok := field(row, "sessions").DocumentOK()
	if !ok {
		return nil
	}
	return &Sessions{
		Publishers: intField(doc, "publishers"), Viewers: intField(doc, "viewers"), By: CountedBy(textField(doc, "by")),
	}
}

// readServing returns nil where the row does not say it, as that of an older agent.
func readServing(row bson.Raw) *Serving {
	doc, ok := field(row, "serving").DocumentOK()
	if !ok {
		return nil
	}
	up, ok := field(doc, "up").BooleanOK()
	if !ok {
		return nil
	}
	s := &Serving{Up: up}
	if !up {
		s.Why = textField(doc, "why")
	}
	return s
}

func intField(doc bson.Raw, key string) *int {
	n, ok := int64Field(doc, key)
	if !ok || n < math.MinInt32 || n > math.MaxInt32 {
		return nil
	}
	i := int(n)
	return &i
}

func rateField(doc bson.Raw, key string) *int64 {
	n, ok := int64Field(doc, key)
	if !ok {
		return nil
	}
	return &n
}

func textsField(doc bson.Raw, key string) []string {
	list, ok := field(doc, key).ArrayOK()
	if !ok {
		return nil
	}
	var texts []string
	for i := range uint(maxDevices) {
		v, err := list.IndexErr(i) // one by one: a row of 16 MB has millions, which would take a gigabyte
		if err != nil {
			break
		}
		texts = append(texts, boundedText(v, maxText)) // the place counts, whatever stands there
	}
	return texts
}
