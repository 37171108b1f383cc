// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"time"
)

// Who waits hears from us: often at a terminal, and in a log often enough to see that nothing hangs.
const (
	progressTerminal = 5 * time.Second
	progressLog      = 30 * time.Second
)

// waiting says every now and then what a command waits for, until the returned function is called. say is called each
// time and returns one line, "" for nothing to say now; it runs on another goroutine. The first line comes at once.
//
// It must be called with a state that can be looked at any time:
//
//	done := g.waiting(ctx, func() string { return "waiting for AMS to show up in the cluster, " + rounded(left()) + " left" })
//	defer done()
func (g *globals) waiting(ctx context.Context, say func() string) (done func()) {
	every := progressLog
	terminal := g.env.IsTerminal(g.env.Stderr)
	if terminal {
		every = progressTerminal
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	last := ""
	tell := func() {
		// A person sees the same line standing there; a log without a new line looks like a hang.
		if line := say(); line != "" && (line != last || !terminal) {
			last = line
			g.progress(line)
		}
	}
	tell()
	go func() {
		defer close(ended)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				tell()
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// progress says one step on stderr, in the form of the log.
func (g *globals) progress(line string) { g.log().Info(oneLine(line)) } //nolint:sloglint // what happens now is the message
