// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/plain"
)

// Several releases of AMS, later versions of the agent and operators write these documents. A field of an unexpected type must
// not hide a node from the list: every field is read by itself, and is missing if it cannot be read.

// field returns the value of a top-level field, or a zero value.
func field(doc bson.Raw, key string) bson.RawValue {
	v, err := doc.LookupErr(key)
	if err != nil {
		return bson.RawValue{}
	}
	return v
}

// Bounds in bytes. Every program with the same login may write these documents, and a document may have 16 MB.
const (
	maxText    = 256 // a longer text is cut, with … at its end
	maxMessage = 1024
	maxKept    = 1024 // of a value that is kept as stored
)

func textField(doc bson.Raw, key string) string { return boundedText(field(doc, key), maxText) }

// boundedText reads a text of at most most bytes, without copying the rest.
func boundedText(v bson.RawValue, most int) string {
	const head, tail = 4, 1 // the length before the text, the NUL after it
	if v.Type != bson.TypeString && v.Type != bson.TypeSymbol || len(v.Value) < head+tail {
		return ""
	}
	text := v.Value[head : len(v.Value)-tail]
	// One more byte makes Truncate mark the cut.
	return plain.Truncate(string(text[:min(len(text), most+1)]), most)
}

// keep copies a value that is used in a filter later. A value larger than AMS or the agent writes is treated as missing.
func keep(v bson.RawValue) bson.RawValue {
	if len(v.Value) > maxKept {
		return bson.RawValue{}
	}
	return bson.RawValue{Type: v.Type, Value: bytes.Clone(v.Value)}
}

// idText returns an _id of any type as text.
func idText(v bson.RawValue) string {
	if v.Type == bson.TypeString {
		return boundedText(v, maxText)
	}
	if id, ok := v.ObjectIDOK(); ok {
		return id.Hex()
	}
	if len(v.Value) > maxText {
		return "…"
	}
	return v.String()
}

// numberField reads a number of any type, or a number in a text.
func numberField(doc bson.Raw, key string) (float64, bool) {
	v := field(doc, key)
	var f float64
	switch {
	case v.Type == bson.TypeInt32:
		f = float64(v.Int32())
	case v.Type == bson.TypeInt64:
		f = float64(v.Int64())
	case v.Type == bson.TypeDouble:
		f = v.Double()
	case v.Type == bson.TypeDecimal128:
		parsed, err := strconv.ParseFloat(v.Decimal128().String(), 64)
		if err != nil {
			return 0, false
		}
		f = parsed
	default:
		s := strings.TrimSuffix(strings.TrimSpace(textField(doc, key)), "%")
		parsed, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
		if err != nil {
			return 0, false
		}
		f = parsed
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}

// int64Field reads a whole number that fits.
func int64Field(doc bson.Raw, key string) (int64, bool) {
	if v := field(doc, key); v.Type == bson.TypeInt64 {
		return v.Int64(), true
	}
	f, ok := numberField(doc, key)
	if !ok || math.Abs(f) >= 1<<63 {
		return 0, false
	}
	return int64(f), true
}

// timeField reads a date, a timestamp, or a number of milliseconds since 1970. A time outside the years 1 to 9999 is missing,
// because JSON cannot hold it.
func timeField(doc bson.Raw, key string) time.Time {
	var t time.Time
	v := field(doc, key)
	switch {
	case v.Type == bson.TypeDateTime:
		t = time.UnixMilli(v.DateTime())
	case v.Type == bson.TypeTimestamp:
		seconds, _ := v.Timestamp()
		t = time.Unix(int64(seconds), 0)
	default:
		ms, ok := int64Field(doc, key)
		if !ok {
			return time.Time{}
		}
		t = time.UnixMilli(ms)
	}
	if t = t.UTC(); t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}
