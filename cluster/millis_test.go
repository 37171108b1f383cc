// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"math"
	"testing"
	"time"
)

// A record has milliseconds, JSON nanoseconds.
func TestMillis(t *testing.T) {
	for m, want := range map[Millis]string{0: "0", 5000: "5000000000", -1: "-1000000", math.MaxInt64: "9223372036854000000", math.MinInt64: "-9223372036854000000"} {
		b, err := json.Marshal(m)
		if err != nil || string(b) != want {
			t.Errorf("%d: %s, %v", m, b, err)
		}
	}
	var m Millis
	if err := json.Unmarshal([]byte("1500000000"), &m); err != nil || m.Duration() != 1500*time.Millisecond {
		t.Errorf("%d, %v", m, err)
	}
	if err := json.Unmarshal([]byte(`"x"`), &m); err == nil {
		t.Error("no number is one")
	}
}
