// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package seconds has a duration that is a number of seconds in JSON. Its API is not stable.
package seconds

import (
	"encoding/json"
	"math"
	"strconv"
	"time"
)

// Duration is in nanoseconds, as [time.Duration], also in BSON. In JSON it is a number of seconds, with a fraction.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON implements [json.Marshaler].
func (d Duration) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(d).Seconds(), 'f', -1, 64), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (d *Duration) UnmarshalJSON(text []byte) error {
	var s float64
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	*d = Duration(math.Round(s * float64(time.Second)))
	return nil
}
