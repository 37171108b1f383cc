// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"math"
	"strconv"
	"time"
)

// Millis is a duration in milliseconds, as in MongoDB. In JSON it is in nanoseconds.
type Millis int64

// MillisOf truncates a duration to milliseconds.
func MillisOf(d time.Duration) Millis { return Millis(d.Milliseconds()) }

// Duration converts m, at most 292 years.
func (m Millis) Duration() time.Duration {
	const most = math.MaxInt64 / int64(time.Millisecond)
	return time.Duration(min(max(int64(m), -most), most)) * time.Millisecond
}

// MarshalJSON implements json.Marshaler.
func (m Millis) MarshalJSON() ([]byte, error) {
	return strconv.AppendInt(nil, int64(m.Duration()), 10), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Millis) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(string(b), 10, 64)
	*m = MillisOf(time.Duration(n))
	return err
}
