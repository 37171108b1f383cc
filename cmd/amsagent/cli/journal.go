// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net"
	"strings"
)

// installedProgram is where the packages put this program.
const installedProgram = "/usr/bin/amsagent"

// errNoJournal says that nothing takes lines for the journal of a unit.
var errNoJournal = errors.New("there is no journal")

// journalSocket takes datagrams in journald's own protocol: sd_journal_sendv(3).
const journalSocket = "/run/systemd/journal/socket"

// journalLine writes a line into the journal of a unit whose output goes elsewhere. journalctl -u shows what root says
// about the unit in OBJECT_SYSTEMD_UNIT: by its process alone it would be told only while that lives.
func journalLine(unit, line string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: journalSocket, Net: "unixgram"})
	if err != nil {
		return err
	}
	line = strings.Join(strings.Fields(line), " ") // a field ends with its line
	_, err = c.Write([]byte("MESSAGE=" + line + "\nPRIORITY=5\nSYSLOG_IDENTIFIER=amsagent\nOBJECT_SYSTEMD_UNIT=" + unit + "\n"))
	return errors.Join(err, c.Close())
}
