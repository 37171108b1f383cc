// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import "time"

// progressLog: who waits hears from us often enough to see in a log that nothing hangs.
const progressLog = 30 * time.Second

// progress says one step on stderr, in the form of the log.
func (g *globals) progress(line string) { g.log().Info(oneLine(line)) } //nolint:sloglint // what happens now is the message
