// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestCrashKillClouds kills the daemon up to three times at random moments of drains on each cloud: no viewer is cut, the answer
// of the agent comes after the stop and has its effect once, and the record is right in the end. CLOUD_DRAINS is the number of drains on each cloud
// (`make prove-drains`: 500), CLOUD_SEED repeats the moments of a run.
func TestCrashKillClouds(t *testing.T) {
	drains := envInt("CLOUD_DRAINS", 8)
	seed := uint64(envInt("CLOUD_SEED", int(time.Now().UnixNano())))
	t.Logf("CLOUD_SEED=%d", seed)
	for _, c := range cloudStories() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := newDatabase(t)
			numbers := make(chan int)
			var machines sync.WaitGroup
			for range 4 {
				machines.Go(func() {
					for n := range numbers {
						t.Run(strconv.Itoa(n), func(t *testing.T) {
							c.killedAnywhere(t, newOnCloud(t, db, newCloud(t, c.name, c.patient), n), rand.New(rand.NewPCG(seed, uint64(n))))
						})
					}
				})
			}
			for n := range drains {
				numbers <- n + 1
			}
			close(numbers)
			machines.Wait()
		})
	}
}

func (c cloudStory) killedAnywhere(t *testing.T, h *onCloud, random *rand.Rand) {
	p := h.Serving()
	h.Viewers(1)
	h.touched = h.Touches()
	begin := time.Now()
	must.OK(t, h.cloud.ScaleIn(h.ID))
	moment := func(most time.Duration) time.Duration { return time.Duration(random.Int64N(int64(most))) }
	leaves := moment(3 * time.Second)
	var kills []time.Duration
	for range 1 + random.IntN(3) {
		kills = append(kills, moment(6*time.Second))
	}
	slices.Sort(kills)
	t.Logf("the viewer leaves after %s, kills after %v", leaves, kills)
	gone := false
	goes := func() {
		wait(time.Until(begin.Add(leaves)))
		h.ViewersGo()
		gone = true
	}
	for _, at := range kills {
		if !gone && leaves < at {
			goes()
		}
		wait(time.Until(begin.Add(at)))
		p.End(syscall.SIGKILL)
		p = h.Daemon()
	}
	if !gone {
		goes()
	}
	c.leaves(t, h, p, 0, 1+len(kills))
}
