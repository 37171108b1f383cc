// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// installedProgram is where the packages put this program.
const installedProgram = "/usr/bin/amsagent"

// errNoJournal says that nothing takes lines for the journal of a unit.
var errNoJournal = errors.New("there is no journal")

// journalTime bounds the writing of a line: a journald that is stopped takes none, and the server's start waits.
const journalTime = 200 * time.Millisecond

// journalLine writes a line into the journal of a unit whose output goes elsewhere: journalctl -u shows what root writes
// about the unit in OBJECT_SYSTEMD_UNIT.
func journalLine(unit, line string) error {
	sent := make(chan error, 1)
	go func() {
		sent <- journal.Send(strings.Join(strings.Fields(line), " "), journal.PriNotice, map[string]string{
			"SYSLOG_IDENTIFIER": "amsagent", "OBJECT_SYSTEMD_UNIT": unit,
		})
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(journalTime):
		return errNoJournal
	}
}
