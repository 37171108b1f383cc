// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net"
	"strings"
	"time"
)

// installedProgram is where the packages put this program.
const installedProgram = "/usr/bin/amsagent"

// errNoJournal says that nothing takes lines for the journal of a unit.
var errNoJournal = errors.New("there is no journal")

// journalSocket takes datagrams in journald's own protocol: sd_journal_sendv(3).
const journalSocket = "/run/systemd/journal/socket"

// journalTime bounds the writing of a line: while journald is stopped its socket takes what its queue has room for, and
// the server's start waits.
const journalTime = 200 * time.Millisecond

// journalLine writes a line into the journal of a unit whose output goes elsewhere. journalctl -u shows what root says
// about the unit in OBJECT_SYSTEMD_UNIT: by its process alone it would be told only while that lives.
func journalLine(unit, line string) error { return sendLine(journalSocket, unit, line) }

func sendLine(socket, unit, line string) error {
	line = strings.Join(strings.Fields(line), " ") // a field ends with its line
	return sendDatagram(socket, "MESSAGE="+line+"\nPRIORITY=5\nSYSLOG_IDENTIFIER=amsagent\nOBJECT_SYSTEMD_UNIT="+unit+"\n", journalTime)
}

// sendDatagram writes to a Unix socket. Whoever listens there may have stopped reading: it is waited for as long as most.
func sendDatagram(socket, text string, most time.Duration) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(most)) // fails for no socket of this kind
	_, err = c.Write([]byte(text))
	return errors.Join(err, c.Close())
}
