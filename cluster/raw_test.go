// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
)

func raw(t *testing.T, doc any) bson.Raw {
	t.Helper()
	data, err := bson.Marshal(doc)
	must.OK(t, err)
	return data
}

func TestReadAMSNodeTolerates(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, int(250*time.Millisecond), time.UTC)
	ms := at.UnixMilli()
	oid := bson.NewObjectID()
	tests := []struct {
		name string
		doc  bson.D
		want AMSNode
	}{
		{"as AMS 2.13 and later write it", bson.D{
			{Key: "_id", Value: "0cc175b9c0f1b6a831c399e26977266110.0.0.3"},
			{Key: "_t", Value: "ClusterNode"},
			{Key: "ip", Value: "10.0.0.3"},
			{Key: "lastUpdateTime", Value: ms},
			{Key: "memory", Value: "586/1945"},
			{Key: "cpu", Value: "7"},
			{Key: "dbQueryAveargeTimeMs", Value: int32(3)},
		}, AMSNode{
			ID: "0cc175b9c0f1b6a831c399e26977266110.0.0.3", IP: "10.0.0.3", LastUpdate: at, Memory: "586/1945",
			CPU: new(7.0),
		}},
		{"as AMS 2.0 wrote it", bson.D{
			{Key: "_id", Value: "c6b4..10.0.0.3"},
			{Key: "className", Value: "io.antmedia.cluster.ClusterNode"},
			{Key: "ip", Value: "10.0.0.3"},
			{Key: "lastUpdateTime", Value: ms},
			{Key: "cpu", Value: int32(7)},
		}, AMSNode{ID: "c6b4..10.0.0.3", IP: "10.0.0.3", LastUpdate: at, CPU: new(7.0)}},
		{"empty id", bson.D{{Key: "_id", Value: ""}, {Key: "ip", Value: "10.0.0.3"}}, AMSNode{IP: "10.0.0.3"}},
		{"object id", bson.D{{Key: "_id", Value: oid}}, AMSNode{ID: oid.Hex()}},
		{"number as id", bson.D{{Key: "_id", Value: int32(4)}}, AMSNode{ID: `{"$numberInt":"4"}`}},
		{"nothing", bson.D{}, AMSNode{}},
		{"double time", bson.D{{Key: "lastUpdateTime", Value: float64(ms)}, {Key: "cpu", Value: 7.5}}, AMSNode{LastUpdate: at, CPU: new(7.5)}},
		{"text as a number", bson.D{{Key: "cpu", Value: " 7.5 "}}, AMSNode{CPU: new(7.5)}},
		{"date", bson.D{{Key: "lastUpdateTime", Value: at}, {Key: "cpu", Value: int64(7)}}, AMSNode{LastUpdate: at, CPU: new(7.0)}},
		{"int32 time is what it says", bson.D{{Key: "lastUpdateTime", Value: int32(1000)}}, AMSNode{LastUpdate: time.Unix(1, 0).UTC()}},
		{"null", bson.D{{Key: "lastUpdateTime", Value: nil}, {Key: "cpu", Value: nil}, {Key: "ip", Value: nil}}, AMSNode{}},
		{"nonsense", bson.D{
			{Key: "lastUpdateTime", Value: "yesterday"},
			{Key: "cpu", Value: bson.A{1}},
			{Key: "ip", Value: int32(3)},
			{Key: "memory", Value: bson.D{}},
			{Key: "dbQueryAveargeTimeMs", Value: "x"},
		}, AMSNode{}},
		{"not a number", bson.D{{Key: "lastUpdateTime", Value: math.NaN()}, {Key: "cpu", Value: math.Inf(1)}}, AMSNode{}},
		{"beyond all calendars", bson.D{{Key: "lastUpdateTime", Value: int64(math.MaxInt64)}}, AMSNode{}},
		{"before all calendars", bson.D{{Key: "lastUpdateTime", Value: -1e300}}, AMSNode{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := readAMSNode(raw(t, tt.doc))
			must.NoDiff(t, "node", got, tt.want, cmpopts.IgnoreUnexported(AMSNode{}))
			if _, err := json.Marshal(got); err != nil {
				t.Errorf("it cannot be shown as JSON: %v", err)
			}
		})
	}
}

// FuzzReadDocuments: reading any document does not panic, and the result is printable.
func FuzzReadDocuments(f *testing.F) {
	for _, seed := range []bson.D{
		{
			{Key: "_id", Value: "a"},
			{Key: "ip", Value: "10.0.0.3"},
			{Key: "lastUpdateTime", Value: int64(1)},
			{Key: "state", Value: "active"},
			{Key: "updated_at", Value: time.Unix(0, 0)},
			{Key: "heartbeat", Value: bson.D{{Key: "seq", Value: int64(1)}}},
		},
		{
			{Key: "_id", Value: "i-1"},
			{Key: "drain_request", Value: bson.D{
				{Key: "id", Value: "x"},
				{Key: "deadline_ns", Value: int64(60_000)},
				{Key: "now", Value: true},
				{Key: "repair_streams", Value: true},
				{Key: "reason", Value: "maintenance"},
				{Key: "asked_by", Value: "ann"},
				{Key: "at", Value: time.Unix(0, 0)},
			}},
		},
		{{Key: "updated_at", Value: bson.DateTime(math.MaxInt64)}},
		{{Key: "drain_request", Value: bson.D{{Key: "id", Value: "x"}, {Key: "deadline_ns", Value: math.MaxFloat64}, {Key: "now", Value: "yes"}}}},
		{{Key: "_id", Value: bson.ObjectID{1}}, {Key: "streamId", Value: "stream1"}}, // of broadcast
		{{Key: "_id", Value: bson.D{{Key: "a", Value: 1}}}, {Key: "streamId", Value: bson.A{}}},
		{
			{Key: "node", Value: "i-1"},
			{Key: "kind", Value: "drain"},
			{Key: "at", Value: time.Unix(0, 0)},
		},
	} {
		data, err := bson.Marshal(seed)
		must.OK(f, err)
		f.Add(data)
	}
	f.Add([]byte{5, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if bson.Raw(data).Validate() != nil {
			return // the driver does not return such a document
		}
		for _, v := range []any{readAMSNode(data), decode(data).Node, readEvent(data), readStream(data)} {
			if _, err := json.Marshal(v); err != nil {
				t.Errorf("%#v cannot be shown as JSON: %v", v, err)
			}
		}
	})
}

func TestAMSNodeFresh(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for age, want := range map[time.Duration]bool{
		0: true, 20 * time.Second: true, 20*time.Second + time.Millisecond: false,
		time.Hour: false, -10 * time.Minute: true, // for AMS, a time in the future is fresh, too
	} {
		must.Equal(t, fmt.Sprintf("age %s: Fresh", age), (AMSNode{LastUpdate: now.Add(-age)}).Fresh(now), want)
	}
	if (AMSNode{}).Fresh(time.Time{}) {
		t.Error("a node without a time is fresh")
	}
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"10.0.0.3", "10.0.0.3", true},
		{"10.0.0.3", "10.0.0.30", false},
		{"10.0.0.3", "::ffff:10.0.0.3", true},
		{"fd00::1", "fd00:0:0:0:0:0:0:1", true},
		{"fd00::1", "FD00::1", true},
		{"fe80::1", "fe80:0:0:0:0:0:0:1%eth0", true},
		{"node-1", "node-1", true},
		{"node-1", "NODE-1", false},
		{"", "", true},
		{"", "10.0.0.3", false},
	} {
		must.Equal(t, fmt.Sprintf("SameAddress(%q, %q)", tt.a, tt.b), SameAddress(tt.a, tt.b), tt.same)
	}
	for address, want := range map[string]string{
		"10.0.0.3":           `{"ip": {"$in": ["10.0.0.3"]}}`,
		"node-1":             `{"ip": {"$in": ["node-1"]}}`,
		"fd00::1":            `{"ip": {"$in": ["fd00:0:0:0:0:0:0:1","fd00::1"]}}`,
		"fd00:0:0:0:0:0:0:1": `{"ip": {"$in": ["fd00:0:0:0:0:0:0:1","fd00::1"]}}`,
	} {
		must.NoDiff(t, address, raw(t, addressFilter("ip", address)).String(), want)
	}
}

func TestWaitErrorTexts(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ours := func(age time.Duration) AMSNode { return AMSNode{ID: "a", IP: "10.0.0.3", LastUpdate: now.Add(-age)} }
	docker := AMSNode{ID: "b", IP: "172.17.0.1", LastUpdate: now}
	tests := []struct {
		name      string
		seen      AMSNotSeenError
		before    []AMSNode
		elsewhere bool
		text      string
	}{
		{
			"never read",
			AMSNotSeenError{Last: &Error{Kind: KindRefused, Op: "reading", Host: "h:1"}},
			nil, false,
			"MongoDB could not be read; the last reading failed: reading: MongoDB at h:1 refused the connection",
		},
		{
			"nothing",
			AMSNotSeenError{Reads: 3},
			nil, false,
			"no document of this address appeared",
		},
		{
			"it stopped",
			AMSNotSeenError{Reads: 3, Ours: []AMSNode{ours(10 * time.Minute)}},
			nil, false,
			"it wrote its document and stopped, the last time at 2026-03-01T11:50:00Z; the local clock is at 2026-03-01T12:00:00Z",
		},
		{
			"docker0, and an old document of ours",
			AMSNotSeenError{Reads: 3, Ours: []AMSNode{ours(time.Hour)}, Local: []AMSNode{docker}},
			[]AMSNode{ours(time.Hour)},
			true,
			"it registered as 172.17.0.1, which is another address of this machine",
		},
		{
			"others",
			AMSNotSeenError{Reads: 3, Appeared: []AMSNode{docker, docker, {IP: "10.0.0.9"}}},
			nil, false,
			"no document of this address; these appeared meanwhile and may be it under a wrong address: 172.17.0.1, 10.0.0.9",
		},
		{
			"a clock that is ahead",
			AMSNotSeenError{Reads: 3, Ours: []AMSNode{ours(-67 * time.Second)}},
			[]AMSNode{ours(-67 * time.Second)},
			false,
			"its document was not written since, the last time at 2026-03-01T12:01:07Z; the local clock is at 2026-03-01T12:00:00Z",
		},
		{
			"without a time",
			AMSNotSeenError{Reads: 3, Ours: []AMSNode{{ID: "a", IP: "10.0.0.3"}}},
			nil, false,
			"its document has no readable lastUpdateTime",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.seen
			e.text = e.judge(tt.before, now)
			must.Equal(t, "elsewhere", e.Elsewhere, tt.elsewhere)
			must.Equal(t, "text", e.Error(), tt.text)
		})
	}
	var many []AMSNode
	for i := range 200 {
		many = append(many, AMSNode{IP: fmt.Sprintf("10.0.0.%d", i)})
	}
	if got := addresses(many); !strings.HasPrefix(got, "10.0.0.0, 10.0.0.1, ") || len(got) > maxText {
		t.Errorf("addresses: %s", got)
	}
}
