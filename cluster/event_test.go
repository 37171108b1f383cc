// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
)

// FuzzReadEvent: any program with the same login may write events. Reading one does not panic, and the result is within the
// bounds and printable.
func FuzzReadEvent(f *testing.F) {
	huge := strings.Repeat("ä", 2000)
	many := bson.D{{Key: huge, Value: "x"}}
	for i := range 64 {
		many = append(many, bson.E{Key: strings.Repeat("k", i), Value: huge})
	}
	for _, doc := range []bson.D{
		{
			{Key: "at", Value: time.Unix(1772366400, 0)},
			{Key: "node", Value: "i-1"},
			{Key: "kind", Value: "leave"},
			{Key: "who", Value: "root"},
			{Key: "why", Value: "scale in"},
			{Key: "cut", Value: int64(3)},
			{Key: "details", Value: bson.D{{Key: "hook", Value: "h"}, {Key: "n", Value: int32(1)}, {Key: "", Value: bson.Symbol("s")}}},
		},
		{
			{Key: "at", Value: "1e300"},
			{Key: "node", Value: huge},
			{Key: "kind", Value: bson.A{"join"}},
			{Key: "who", Value: bson.D{}},
			{Key: "why", Value: huge},
			{Key: "cut", Value: 9.3e18},
			{Key: "details", Value: many},
		},
		{
			{Key: "at", Value: bson.Timestamp{T: 1<<32 - 1}},
			{Key: "kind", Value: "\x00\xff\x1b[2J"},
			{Key: "cut", Value: "-3 %"},
			{Key: "details", Value: bson.A{"a"}},
		},
		{{Key: "details", Value: bson.D{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}}}},
		{{Key: "at", Value: int64(253402300800000)}}, // the year 10000
		{},
	} {
		data, err := bson.Marshal(doc)
		must.OK(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bson.Raw(data).Validate() != nil {
			return // the driver does not return such a document
		}
		e := readEvent(data)
		if len(data) > maxRecord && e.Kind != "unreadable" {
			t.Errorf("an event of %d bytes is shown", len(data))
		}
		// encoding/json refuses times outside these years.
		if y := e.At.Year(); y < 1 || y > 9999 {
			t.Errorf("the year %d", y)
		}
		if _, err := json.Marshal(e); err != nil {
			t.Errorf("%#v cannot be shown as JSON: %v", e, err)
		}
		if again := readEvent(data); !reflect.DeepEqual(e, again) {
			t.Errorf("%#v, and read again %#v", e, again)
		}
	})
}
