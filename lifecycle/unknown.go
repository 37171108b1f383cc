// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"log/slog"
)

// sourceFunc makes a Source of the watching of one, which only ends with its context.
type sourceFunc func(ctx context.Context, report func(Notice))

// Watch implements Source.
func (f sourceFunc) Watch(ctx context.Context, report func(Notice)) error {
	f(ctx, report)
	return ctx.Err()
}

// unknownSignals says of each signal that this version does not know, once.
type unknownSignals struct {
	log  *slog.Logger
	told map[string]bool
}

func newUnknownSignals(log *slog.Logger) *unknownSignals {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &unknownSignals{log: log, told: map[string]bool{}}
}

func (u *unknownSignals) say(kind, value, text string) {
	if u.told[kind+value] {
		return
	}
	u.told[kind+value] = true
	u.log.Warn("the cloud signals something that this version does not know, and nothing is done about it",
		"signal", kind, "value", value, "text", text)
}
