// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "log/slog"

// unknownSignals says of each signal that this version does not know, once.
type unknownSignals struct {
	log  *slog.Logger
	told map[string]bool
}

func newUnknownSignals(log *slog.Logger) *unknownSignals {
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
