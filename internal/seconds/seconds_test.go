// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package seconds

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", time.Minute: "60", 1500 * time.Millisecond: "1.5", -time.Second: "-1", 3: "0.000000003"} {
		text, err := json.Marshal(Duration(d))
		must.OK(t, err)
		var back Duration
		must.OK(t, json.Unmarshal(text, &back))
		if string(text) != want || back != Duration(d) {
			t.Errorf("%s: %s, and %s again", d, text, back)
		}
	}
	if err := json.Unmarshal([]byte(`"5s"`), new(Duration)); err == nil {
		t.Error("a text")
	}
}
