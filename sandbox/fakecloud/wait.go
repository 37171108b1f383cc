// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"fmt"
	"slices"
)

// waitFor waits until the books of a cloud hold an entry that fits. follow gives
// them, and what is closed when there is more.
func waitFor(ctx context.Context, title string, follow func() ([]Entry, <-chan struct{}), fits func(Entry) bool) (Entry, error) {
	for {
		entries, more := follow()
		if i := slices.IndexFunc(entries, fits); i >= 0 {
			return entries[i], nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Entry{}, fmt.Errorf("waiting for an entry in the books of %s: %w", title, ctx.Err())
		}
	}
}
