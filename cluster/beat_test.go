// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
)

// fullLoad is that of a machine with eight devices, all readings there and none
// of them small. Beyond 17 Gbit/s a rate takes four bytes more.
func fullLoad() Load {
	n := func(i int) *int { return &i }
	rate := func(i int64) *int64 { return &i }
	l := Load{CPU: n(87), Mem: n(63), NetRx: rate(2_147_000_000), NetTx: rate(1_250_000_000), Disk: n(41), Score: n(99)}
	for i := range 8 {
		l.GPUs = append(l.GPUs, GPULoad{Util: n(90 + i), Enc: n(100), Dec: n(55), Mem: n(77)})
	}
	return l
}

func fullBeat(id string) Beat {
	n := func(i int) *int { return &i }
	clock := -1500 * time.Millisecond
	return Beat{
		ID: id, Life: Node{ID: id, IP: "10.0.0.3", BootID: "6f9619ff-8b86-d011-b42d-00c04fc964ff"}.Life(), Seq: 123456, Load: fullLoad(),
		Sessions: Sessions{Publishers: n(123), Viewers: n(4567), By: CountedByConnections},
		Interval: 5 * time.Second, Clock: &clock,
		Devices: []string{"NVIDIA A10G", "NVIDIA A10G"}, Serving: &Serving{Up: true},
	}
}

// wire counts the bytes of each message as they leave.
type wire struct {
	mu   sync.Mutex
	sent [][]byte
}

func (w *wire) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	return wireConn{c, w}, err
}

type wireConn struct {
	net.Conn
	w *wire
}

func (c wireConn) Write(b []byte) (int, error) {
	c.w.mu.Lock()
	c.w.sent = append(c.w.sent, append([]byte(nil), b...))
	c.w.mu.Unlock()
	return c.Conn.Write(b)
}

// updates returns the messages that carry an update, whole.
func (w *wire) updates() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found [][]byte
	for _, m := range w.sent {
		if len(m) > 26 && strings.HasPrefix(string(m[26:]), "update\x00") {
			found = append(found, m)
		}
	}
	return found
}

// A beat is sent by every node every few seconds: 400 bytes at most, with all
// readings of eight devices, against a server with sessions, and ten more that keep
// it out of another machine's row.
func TestBeatOnTheWire(t *testing.T) {
	t.Parallel()
	sessions := bson.E{Key: "logicalSessionTimeoutMinutes", Value: 30}
	set := []bson.E{
		{Key: "setName", Value: "rs0"},
		{Key: "logicalSessionTimeoutMinutes", Value: 30},
		{Key: "$clusterTime", Value: bson.D{
			{Key: "clusterTime", Value: bson.Timestamp{T: 1793174400, I: 42}},
			{Key: "signature", Value: bson.D{{Key: "hash", Value: bson.Binary{Data: make([]byte, 20)}}, {Key: "keyId", Value: int64(7300000000000000001)}}},
		}},
	}
	const lifeBytes = 10 // type, name and four bytes in the filter
	const aws, uuid = "i-0123456789abcdef0", "6f9619ff-8b86-d011-b42d-00c04fc964ff"
	for _, tt := range []struct {
		name  string
		id    string
		hello []bson.E
		limit int // 0: only told
	}{
		{"standalone, AWS", aws, []bson.E{sessions}, 400 + lifeBytes},
		{"standalone, 36 characters", uuid, []bson.E{sessions}, 417 + lifeBytes},
		{"replica set, AWS", aws, set, 0},
		{"replica set, 36 characters", uuid, set, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startFake(t, nil)
			s.setHello(append([]bson.E{{Key: "isWritablePrimary", Value: true}}, tt.hello...)...)
			s.answer = func(name string, _ bson.Raw) (bson.D, error) {
				return okReply(append([]bson.E{{Key: "n", Value: 1}, {Key: "nModified", Value: 1}}, tt.hello[len(tt.hello)-1])...), nil
			}
			w := &wire{}
			c := connect(t, "mongodb://"+s.addr()+"/", Options{Dialer: w})
			last := fullBeat(tt.id)
			first := last
			for i := range 3 {
				b := last
				b.Seq++
				b.Load.GPUs[0].Util = new(int)
				if i == 2 {
					// The worst of the usual ones: all sessions change as well.
					n, m := 12345, 124
					b.Sessions.Viewers, b.Sessions.Publishers = &n, &m
				}
				before := &last
				if i == 0 {
					b, before = first, nil
				}
				must.OK(t, c.Beat(t.Context(), b, before))
				last = b
			}
			sent := w.updates()
			if len(sent) != 3 {
				t.Fatalf("%d updates", len(sent))
			}
			for i, m := range sent {
				if n := int(binary.LittleEndian.Uint32(m)); n != len(m) {
					t.Fatalf("a message of %d bytes left in pieces of %d", n, len(m))
				}
				t.Logf("%s: %d bytes", []string{"the first one, with all that changes rarely", "a usual one", "sessions changed"}[i], len(m))
				if tt.limit > 0 && i > 0 && len(m) > tt.limit {
					t.Errorf("%d bytes, want at most %d: %s", len(m), tt.limit, bson.Raw(m[21:]))
				}
				if i > 0 && tt.limit > 0 == strings.Contains(string(m), "writeConcern") {
					t.Errorf("who is alone is asked for no acknowledgement, whoever else of the primary: %s", bson.Raw(m[21:]))
				}
				for _, no := range []string{"txnNumber", "readConcern", "ordered"} {
					if strings.Contains(string(m), no) {
						t.Errorf("%s is sent for nothing: %s", no, bson.Raw(m[21:]))
					}
				}
				if !strings.Contains(string(m), "lsid") {
					t.Error("the test does not show a server with sessions")
				}
			}
		})
	}
}

func TestBeatErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		reply  bson.D
		kind   Kind
		noNode bool
	}{
		{"done", okReply(bson.E{Key: "n", Value: 1}), "", false},
		{"done by a server that counts in long", okReply(bson.E{Key: "n", Value: int64(1)}), "", false},
		{"no row", okReply(bson.E{Key: "n", Value: 0}), "", true},
		{"refused", errorReply(13, "Unauthorized", "not authorized"), KindForbidden, false},
		{"an election", errorReply(10107, "NotWritablePrimary", "not primary"), KindNotPrimary, false},
		{"refused inside", okReply(bson.E{Key: "n", Value: 0}, bson.E{Key: "writeErrors", Value: bson.A{
			bson.D{{Key: "index", Value: 0}, {Key: "code", Value: 13}, {Key: "errmsg", Value: "not authorized"}},
		}}), KindForbidden, false},
		{"another inside", okReply(bson.E{Key: "n", Value: 0}, bson.E{Key: "writeErrors", Value: bson.A{
			bson.D{{Key: "index", Value: 0}, {Key: "code", Value: 2}, {Key: "errmsg", Value: "bad value"}},
		}}), KindOther, false},
		{"odd errors", okReply(bson.E{Key: "n", Value: 0}, bson.E{Key: "writeErrors", Value: bson.A{"x"}}), KindOther, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startFake(t, nil)
			s.answer = func(name string, _ bson.Raw) (bson.D, error) {
				if name == "find" { // whether the row is another machine's
					return okReply(bson.E{Key: "cursor", Value: bson.D{
						{Key: "id", Value: int64(0)}, {Key: "ns", Value: "amsagent.nodes"}, {Key: "firstBatch", Value: bson.A{}},
					}}), nil
				}
				return tt.reply, nil
			}
			c := connect(t, s.addr(), Options{})
			err := c.Beat(t.Context(), fullBeat("i-1"), nil)
			if (err == nil) != (tt.kind == "" && !tt.noNode) || KindOf(err) != tt.kind || errors.Is(err, ErrNoNode) != tt.noNode {
				t.Errorf("%v (%s)", err, KindOf(err))
			}
			if n := len(s.sent("update")); n != 1 {
				t.Errorf("sent %d times: the next beat is newer", n)
			}
		})
	}
	// The server is there and does not answer: the time runs out all the same.
	s := startFake(t, nil)
	s.answer = func(string, bson.Raw) (bson.D, error) { return nil, errHang }
	c := connect(t, s.addr(), Options{Timeout: quick / 5})
	begin := time.Now()
	if err := c.Beat(t.Context(), fullBeat("i-1"), nil); KindOf(err) != KindTimeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v (%s)", err, KindOf(err))
	}
	if took := time.Since(begin); took > driverDefault {
		t.Errorf("it took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Beat(ctx, fullBeat("i-1"), nil); KindOf(err) != KindCanceled {
		t.Errorf("%v (%s)", err, KindOf(err))
	}
	if err := c.Beat(t.Context(), Beat{}, nil); err == nil {
		t.Error("a beat of nobody")
	}
}

// A primary that crashes takes beats with it that it alone had acknowledged. After an
// election everything is asked for, not the difference to a lost beat.
func TestBeatAfterAnElection(t *testing.T) {
	t.Parallel()
	primary := atomic.Pointer[bson.ObjectID]{}
	s := startFake(t, nil)
	s.answer = func(string, bson.Raw) (bson.D, error) {
		reply := okReply(bson.E{Key: "n", Value: 1})
		if id := primary.Load(); id != nil {
			reply = append(reply, bson.E{Key: "electionId", Value: *id})
		}
		return reply, nil
	}
	c := connect(t, s.addr(), Options{Timeout: quick})
	b := fullBeat("i-1")
	first, second := bson.NewObjectID(), bson.NewObjectID()
	for _, tt := range []struct {
		name    string
		primary *bson.ObjectID
		last    *Beat
		again   bool
	}{
		{"a server that tells no election", nil, &b, false},
		{"the first that tells one", &first, &b, false},
		{"the same", &first, &b, false},
		{"elected since", &second, &b, true},
		{"the same again", &second, &b, false},
		{"elected since, and all was written", &first, nil, false},
	} {
		primary.Store(tt.primary)
		before := len(s.sent("update"))
		if err := c.Beat(t.Context(), b, tt.last); errors.Is(err, ErrNewPrimary) != tt.again || !tt.again && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if n := len(s.sent("update")) - before; n != 1 {
			t.Errorf("%s: %d updates", tt.name, n)
		}
	}
}

// What is read is what was written, and what a node does not know stays unknown.
func TestBeatRoundTrip(t *testing.T) {
	t.Parallel()
	n := func(i int) *int { return &i }
	rate := func(i int64) *int64 { return &i }
	for _, l := range []Load{
		{},
		fullLoad(),
		{CPU: n(0), Score: n(0), NetRx: rate(0)},
		{GPUs: []GPULoad{{}, {Util: n(0)}, {Enc: n(100)}, {Dec: n(1), Mem: n(254)}}},
		{NetTx: rate(1 << 40), NetRx: rate(-1)},
	} {
		row := raw(t, bson.D{{Key: "_id", Value: "a"}, {Key: "load", Value: l.document()}})
		if diff := cmp.Diff(&l, readNode(row).Load); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	for _, s := range []Sessions{
		{},
		{Publishers: n(0), Viewers: n(0), By: CountedByAMS},
		{Viewers: n(7), By: CountedByConnections},
		{Publishers: n(7)},
	} {
		row := raw(t, bson.D{{Key: "_id", Value: "a"}, {Key: "sessions", Value: s.document()}})
		if diff := cmp.Diff(&s, readNode(row).Sessions); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	row := readNode(raw(t, bson.D{{Key: "_id", Value: "a"}}))
	if row.Load != nil || row.Sessions != nil || row.ClockMS != nil || row.Devices != nil {
		t.Errorf("a row without a beat: %+v", row)
	}
	// Out of range is as near as can be; what another version writes is not read wrong.
	got := unpackGPUs(packGPUs([]GPULoad{{Util: n(300), Enc: n(-3)}}).Data)
	if diff := cmp.Diff([]GPULoad{{Util: n(254), Enc: n(0)}}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := unpackGPUs([]byte{1, 2, 3, 4, 5}); len(got) != 1 {
		t.Errorf("%v", got)
	}
	odd := readNode(raw(t, bson.D{
		{Key: "_id", Value: "a"},
		{Key: "load", Value: bson.D{{Key: "cpu", Value: "7%"}, {Key: "mem", Value: bson.D{}}, {Key: "gpus", Value: bson.A{1}}, {Key: "score", Value: int64(1) << 40}}},
		{Key: "sessions", Value: 3},
		{Key: "gpus", Value: bson.A{"x", 1, "y"}},
		{Key: "clock_ms", Value: "later"},
		{Key: "port", Value: 70000},
		{Key: "serving", Value: bson.D{{Key: "up", Value: "yes"}, {Key: "why", Value: 7}}},
	}))
	want := Node{ID: "a", Load: &Load{CPU: n(7)}, Devices: []string{"x", "", "y"}}
	if diff := cmp.Diff(want, odd); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What changes rarely is written when it changes, and taken away when it is not
// known any more.
func TestBeatWritesDifferences(t *testing.T) {
	t.Parallel()
	step := func(d time.Duration) *time.Duration { return &d }
	keys := func(b Beat, last *Beat) (set, unset string) {
		for _, e := range b.update(last) {
			var names []string
			for _, f := range e.Value.(bson.D) {
				names = append(names, f.Key)
			}
			switch e.Key {
			case "$set":
				set = strings.Join(names, " ")
			case "$unset":
				unset = strings.Join(names, " ")
			case "$currentDate":
				if names[0] != "updated_at" || len(names) != 1 {
					t.Errorf("%v", names)
				}
			default:
				t.Errorf("%s", e.Key)
			}
		}
		return set, unset
	}
	base := fullBeat("a")
	more := 12345
	for _, tt := range []struct {
		name       string
		last       *Beat
		change     func(*Beat)
		set, unset string
	}{
		{"nothing is known of the row", nil, func(*Beat) {}, "seq load sessions interval_ms clock_ms gpus serving", ""},
		{"nothing is known of anything", nil, func(b *Beat) { *b = Beat{ID: "a"} }, "seq load sessions", "interval_ms clock_ms gpus serving"},
		{"nothing changed", &base, func(*Beat) {}, "seq load", ""},
		{"how viewers are counted", &base, func(b *Beat) { b.Sessions.By = CountedByAMS }, "seq load sessions.by", ""},
		{"viewers", &base, func(b *Beat) { b.Sessions.Viewers = &more }, "seq load sessions.viewers", ""},
		{"no sessions any more", &base, func(b *Beat) { b.Sessions = Sessions{} }, "seq load", "sessions.publishers sessions.viewers sessions.by"},
		{"viewers unknown", &base, func(b *Beat) { b.Sessions.Viewers = nil }, "seq load", "sessions.viewers sessions.by"},
		{"interval", &base, func(b *Beat) { b.Interval = time.Second }, "seq load interval_ms", ""},
		{"clock, a little", &base, func(b *Beat) { b.Clock = step(-1499 * time.Millisecond) }, "seq load", ""},
		{"clock", &base, func(b *Beat) { b.Clock = step(time.Minute) }, "seq load clock_ms", ""},
		{"clock unknown", &base, func(b *Beat) { b.Clock = nil }, "seq load", "clock_ms"},
		{"devices", &base, func(b *Beat) { b.Devices = []string{"x"} }, "seq load gpus", ""},
		{"no devices", &base, func(b *Beat) { b.Devices = nil }, "seq load", "gpus"},
		{"serves as before", &base, func(b *Beat) { b.Serving = &Serving{Up: true} }, "seq load", ""},
		{"does not serve", &base, func(b *Beat) { b.Serving = &Serving{Why: "LiveApp fails"} }, "seq load serving", ""},
		{"service unknown", &base, func(b *Beat) { b.Serving = nil }, "seq load", "serving"},
	} {
		b := base
		tt.change(&b)
		if set, unset := keys(b, tt.last); set != tt.set || unset != tt.unset {
			t.Errorf("%s: sets %q, unsets %q", tt.name, set, unset)
		}
	}
	if n, known := (Sessions{Publishers: base.Sessions.Publishers}).Total(); known || n != 0 {
		t.Error("half a count is none")
	}
	if n, known := base.Sessions.Total(); !known || n != 4690 {
		t.Errorf("%d, %t", n, known)
	}
}

// The reason is short in the row, whatever the server said, and goes with the failure.
func TestServingInRow(t *testing.T) {
	t.Parallel()
	row := func(s *Serving) *Serving {
		return readNode(raw(t, bson.D{{Key: "_id", Value: "a"}, {Key: "serving", Value: s.document()}})).Serving
	}
	for _, s := range []*Serving{{Up: true}, {Why: "LiveApp fails"}, {}} {
		if got := row(s); !got.Equal(s) {
			t.Errorf("%+v became %+v", s, got)
		}
	}
	if got := row(&Serving{Up: true, Why: "stale"}); !got.Equal(&Serving{Up: true}) {
		t.Errorf("%+v", got)
	}
	long := row(&Serving{Why: strings.Repeat("\u00e4", maxWhy)})
	if long == nil || len(long.Why) > maxWhy || !strings.HasPrefix(long.Why, "\u00e4\u00e4") {
		t.Errorf("%+v", long)
	}
	if readNode(raw(t, bson.D{{Key: "_id", Value: "a"}})).Serving != nil {
		t.Error("a row of an older agent says nothing of it")
	}
	up, down := &Serving{Up: true}, &Serving{}
	if up.Equal(nil) || (*Serving)(nil).Equal(down) || up.Equal(down) || !(*Serving)(nil).Equal(nil) {
		t.Error("not known, serving and not serving are three different things")
	}
}
