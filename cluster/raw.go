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

// Releases of AMS write numbers as text, int32, int64 or double. Every field is read by itself, and is missing if it cannot be
// read: it must not hide a node from the list.

// Bounds in bytes: any program with the same login may write these documents.
const (
	maxText    = 256
	maxMessage = 1024
)

// field returns the value of a top-level field, or a zero value.
func field(doc bson.Raw, key string) bson.RawValue {
	v, _ := doc.LookupErr(key)
	return v
}

// keep copies a value that is used in a filter later.
func keep(v bson.RawValue) bson.RawValue {
	return bson.RawValue{Type: v.Type, Value: bytes.Clone(v.Value)}
}

func text(v bson.RawValue, limit int) string {
	s, _ := v.StringValueOK()
	return plain.Truncate(s, limit)
}

func textField(doc bson.Raw, key string) string { return text(field(doc, key), maxText) }

// idText returns an _id of any type as text.
func idText(v bson.RawValue) string {
	if id, ok := v.ObjectIDOK(); ok {
		return id.Hex()
	}
	if v.Type == bson.TypeString {
		return text(v, maxText)
	}
	return plain.Truncate(v.String(), maxText)
}

// numberField reads a number of any type, or a number in a text.
func numberField(doc bson.Raw, key string) (float64, bool) {
	v := field(doc, key)
	f, ok := v.AsFloat64OK()
	if !ok {
		var err error
		f, err = strconv.ParseFloat(strings.TrimSpace(text(v, maxText)), 64)
		ok = err == nil
	}
	return f, ok && !math.IsNaN(f) && !math.IsInf(f, 0)
}

// timeField reads a date, or a number of milliseconds since 1970. A time outside the years 1 to 9999 is missing, because JSON
// cannot hold it.
func timeField(doc bson.Raw, key string) time.Time {
	v := field(doc, key)
	ms, ok := v.DateTimeOK()
	if !ok {
		ms, ok = v.AsInt64OK()
	}
	t := time.UnixMilli(ms).UTC()
	if !ok || t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}
