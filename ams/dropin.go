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
)

// HostAddressVariable is the environment variable from which the server takes
// its node address (2.5 and later). In every release it comes before whatever
// that release would find out by itself.
const HostAddressVariable = "AMS_HOST_ADDRESS"

// DropInPath is our drop-in for the vendor's unit. The unit file itself is
// written anew by every upgrade; a drop-in stays.
const DropInPath = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"

// RuntimeDropInPath is where a drop-in lies that no reboot keeps. Of two with one
// name the one in /etc counts.
const RuntimeDropInPath = "/run/systemd/system/antmedia.service.d/50-amsagent.conf"

// dropInMark begins our drop-in; by it we know our own again.
const dropInMark = "# Written by amsagent"

// StopTimeout is how long a server with so many applications may need to stop
// in order. It ends them one after the other, up to about 17 seconds each where
// streams run; the vendor's unit gives 10 seconds for all of them, kills it, and
// its streams stay "broadcasting" in the database.
func StopTimeout(apps int) time.Duration {
	return time.Duration(60+20*max(apps, 0)) * time.Second
}

// BeforeStart is what the agent is called with just before each start of the server.
const BeforeStart = "converge --before-start"

// DropIn is the text of our drop-in. An address that is not valid, a timeout of 0
// and a program "" leave their line out; without all there is nothing to say, and
// the result is nil. program is the agent's own path.
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
		// Whole seconds, and never less than was asked for.
		fmt.Fprintf(&b, "TimeoutStopSec=%d\n", int64(math.Ceil(stopTimeout.Seconds())))
	}
	if program != "" {
		// "-": its failure does not keep the server from starting. "+": as root, whatever User= says; systemd 231 and later.
		// Older ones ignore the line.
		fmt.Fprintf(&b, "ExecStartPre=-+%s %s\n", quoteUnit(strings.ReplaceAll(program, "$", "$$")), BeforeStart)
	}
	return b.Bytes()
}

// quoteUnit makes one word of a unit file: a percent sign begins a specifier,
// and what is not plain stands in quotes with C escapes.
func quoteUnit(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	plain := !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_=.:%-/", r)
	})
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// DropInValues is what a drop-in sets of the things that concern us.
type DropInValues struct {
	Exists      bool          `json:"exists"`
	Ours        bool          `json:"ours"`                      // it begins as ours do
	HostAddress string        `json:"host_address,omitempty"`    // AMS_HOST_ADDRESS; "" = not set as we write it
	StopTimeout time.Duration `json:"stop_timeout_ns,omitempty"` // 0 = not set as we write it
}

// ReadDropIn reads our drop-in below root. That there is none is no error.
func ReadDropIn(root string) (DropInValues, error) {
	b, _, err := readBelow(root, DropInPath, maxConfigSize)
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

// ParseDropIn finds the lines that [DropIn] writes. What systemd makes of all drop-ins together is in [State].
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
