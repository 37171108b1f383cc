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

// Releases of AMS write numbers as text, int32, int64 or double. An unreadable field must not hide a node.

// In bytes: any program with the same login may write these documents.
const (
	maxText    = 256
	maxMessage = 1024
)

func field(doc bson.Raw, key string) bson.RawValue {
	v, _ := doc.LookupErr(key)
	return v
}

// keep copies a value that outlives its document.
func keep(v bson.RawValue) bson.RawValue {
	return bson.RawValue{Type: v.Type, Value: bytes.Clone(v.Value)}
}

func text(v bson.RawValue, limit int) string {
	s, _ := v.StringValueOK()
	return plain.Truncate(s, limit)
}

func textField(doc bson.Raw, key string) string { return text(field(doc, key), maxText) }

func idText(v bson.RawValue) string {
	if id, ok := v.ObjectIDOK(); ok {
		return id.Hex()
	}
	if v.Type == bson.TypeString {
		return text(v, maxText)
	}
	return plain.Truncate(v.String(), maxText)
}

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

// timeField reads a date or milliseconds since 1970. JSON holds only the years 1 to 9999.
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
