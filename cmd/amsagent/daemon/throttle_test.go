// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// A cause that is put in other words at each try is reported once a minute.
func TestThrottle(t *testing.T) {
	var log throttle
	at, lines := time.Unix(1_800_000_000, 0), 0
	for i := range 120 {
		if log.allows(fmt.Sprint("try ", i), at.Add(time.Duration(i)*time.Second)) {
			lines++
		}
	}
	must.Equal(t, "lines in two minutes", lines, 2)
	if log.allows("try 60", at.Add(time.Hour)) {
		t.Error("the same words again")
	}
}
