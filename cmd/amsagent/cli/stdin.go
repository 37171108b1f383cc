// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// Reasons why standard input cannot be read.
var (
	errTerminal  = errors.New("standard input is a terminal")
	errOpenInput = errors.New("standard input was not closed")
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
	select {
	case r := <-done:
		return r.b, r.err
	case <-g.ctx.Done():
		return nil, context.Cause(g.ctx)
	case <-time.After(patience):
		return nil, fmt.Errorf("%w within %s", errOpenInput, settings.ShortDuration(patience))
	}
}

// pipeTime bounds the wait for standard input: a boot must not hang on a pipe that stays open.
const pipeTime = 30 * time.Second

// within is the usual limit of a wait, or --timeout if that is less.
func within(limit time.Duration, usual time.Duration) time.Duration {
	if limit > 0 {
		return min(usual, limit)
	}
	return usual
}
