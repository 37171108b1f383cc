// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/files"
)

// HostAddressVariable is the environment variable with the server's node address (2.5 and later). It precedes any
// address that a release detects itself.
const HostAddressVariable = "AMS_HOST_ADDRESS"

// DropInPath is the agent's drop-in for the vendor's unit. Upgrades overwrite the unit file but keep drop-ins.
const DropInPath = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"

// RuntimeDropInPath is a drop-in that no reboot keeps. A file of the same name in /etc overrides it.
const RuntimeDropInPath = "/run/systemd/system/antmedia.service.d/50-amsagent.conf"

// dropInMark begins the agent's drop-in and identifies it.
const dropInMark = "# Written by amsagent"

// StopTimeout is the time that a server with so many applications may need to stop in order. It ends them one after the
// other, up to about 17 seconds each if streams run; the vendor's unit kills it after 10 seconds, and its streams stay
// "broadcasting" in the database.
func StopTimeout(apps int) time.Duration {
	return time.Duration(60+20*max(apps, 0)) * time.Second
}

// DropIn returns the drop-in's text. An invalid address, a timeout of 0 and an empty program omit their line; without
// any line the result is nil. program is the agent's path.
func DropIn(address netip.Addr, stopTimeout time.Duration, program string) []byte {
	if !address.IsValid() && stopTimeout <= 0 && program == "" {
		return nil
	}
	var b bytes.Buffer
	b.WriteString(dropInMark + `: the address under which this node registers in
# its cluster, time to end its streams when it stops, and the command that puts
# the node's settings right before it starts. 'amsagent leave' removes this file;
# until then 'amsagent join' puts back what is changed here. To override it, add a
# file with a later name, as 60-local.conf.
[Service]
`)
	if address.IsValid() {
		fmt.Fprintf(&b, "Environment=%s\n", quoteUnit(HostAddressVariable+"="+address.String()))
	}
	if stopTimeout > 0 {
		// Whole seconds, rounded up.
		fmt.Fprintf(&b, "TimeoutStopSec=%d\n", int64(math.Ceil(stopTimeout.Seconds())))
	}
	if program != "" {
		// "-": its failure does not prevent the server's start. "+": as root, regardless of User=; systemd before 231
		// ignores the line.
		fmt.Fprintf(&b, "ExecStartPre=-+%s converge --before-start\n", quoteUnit(strings.ReplaceAll(program, "$", "$$")))
	}
	return b.Bytes()
}

// plainWord needs no quotes in a unit file.
var plainWord = regexp.MustCompile(`^[0-9A-Za-z_=.:%/-]*$`)

// quoteUnit quotes a word of a unit file: a percent sign begins a specifier, other special characters need quotes, with
// escapes that Go has, too.
func quoteUnit(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if plainWord.MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}

// DropInValues are the agent's settings in a drop-in. One that is not in the form of [DropIn] is zero.
type DropInValues struct {
	Exists      bool
	Ours        bool   // it has the agent's mark
	HostAddress string // AMS_HOST_ADDRESS
	StopTimeout time.Duration
}

// ReadDropIn reads the agent's drop-in below root. A missing file is no error.
func ReadDropIn(root string) (DropInValues, error) {
	b, _, err := files.Root{Path: root}.Read(DropInPath, maxSystemFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return DropInValues{}, nil
	case err != nil:
		return DropInValues{}, fmt.Errorf("reading %s: %w", shown(root, DropInPath), unreadable(err))
	}
	return ParseDropIn(b), nil
}

var (
	addressLine = regexp.MustCompile(`(?m)^Environment="?` + HostAddressVariable + `=([^"\s]+)"?$`)
	timeoutLine = regexp.MustCompile(`(?m)^TimeoutStopSec=([0-9]{1,9})$`)
)

// ParseDropIn parses the lines that [DropIn] writes. [State] has the effect of all drop-ins together.
func ParseDropIn(b []byte) DropInValues {
	v := DropInValues{Exists: true, Ours: bytes.HasPrefix(b, []byte(dropInMark))}
	if m := addressLine.FindSubmatch(b); m != nil {
		v.HostAddress = strings.ReplaceAll(string(m[1]), "%%", "%")
	}
	if m := timeoutLine.FindSubmatch(b); m != nil {
		seconds, _ := strconv.Atoi(string(m[1])) // at most nine digits
		v.StopTimeout = time.Duration(seconds) * time.Second
	}
	return v
}
