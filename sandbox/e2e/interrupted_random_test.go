// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestTimeoutsOfJoins is TestTimeoutOfAJoin at 25 random moments.
func TestTimeoutsOfJoins(t *testing.T) {
	t.Parallel()
	moments := make([]time.Duration, 25)
	for i := range moments {
		moments[i] = 20*time.Millisecond + rand.N(3*time.Second)
	}
	interruptJoins(t, moments)
}
