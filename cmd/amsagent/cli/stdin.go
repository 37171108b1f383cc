// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"time"
)

// How a standard input is of no use.
var (
	errTerminal = errors.New("standard input is a terminal")
	// errOpenInput: whoever is to write keeps it open.
	errOpenInput = errors.New("standard input was not closed in time")
)

// readStdin reads standard input, at most one byte beyond limit, until a signal or for patience: the pipe may stay open. It
// returns errTerminal, errOpenInput, the signal, or the error of reading.
func (g *globals) readStdin(limit int, patience time.Duration) ([]byte, error) {
	if g.env.IsTerminal(g.env.Stdin) {
		return nil, errTerminal
	}
	type read struct {
		b   []byte
		err error
	}
	done := make(chan read, 1)
	go func() { // a read cannot be stopped: it ends with the process
		b, err := io.ReadAll(io.LimitReader(g.env.Stdin, int64(limit)+1))
		done <- read{b, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.b, r.err
	case <-g.ctx.Done():
		return nil, context.Cause(g.ctx)
	case <-timer.C:
		return nil, errOpenInput
	}
}

// pipeTime bounds the waiting for standard input. Nobody types there, and a boot must not
// hang on a pipe that nobody closes.
const pipeTime = 30 * time.Second

// within is how long something is waited for: usual, or --timeout where that is less.
func within(limit time.Duration, usual time.Duration) time.Duration {
	if limit > 0 {
		return min(usual, limit)
	}
	return usual
}

// piped is what came on standard input.
type piped struct {
	text []byte
	err  error
}
