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
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/files"
)

// HostAddressVariable overrides the server's detected node address (2.5 and later).
const HostAddressVariable = "AMS_HOST_ADDRESS"

// DropInPath is the agent's drop-in for the vendor's unit. Upgrades keep drop-ins.
const DropInPath = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"

const dropInMark = "# Written by amsagent"

// StopTimeout lets the server stop its applications one by one, up to about 17 seconds each with streams. The vendor's unit
// kills it after 10 seconds; its streams then stay "broadcasting".
func StopTimeout(apps int) time.Duration {
	return time.Duration(60+20*max(apps, 0)) * time.Second
}

// DropIn returns the text, nil if all arguments are zero. program is the agent's path.
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
		fmt.Fprintf(&b, "TimeoutStopSec=%d\n", int64(math.Ceil(stopTimeout.Seconds())))
	}
	if program != "" {
		// "-": its failure does not prevent the start. "+": as root, regardless of User=. systemd before 231 ignores it.
		fmt.Fprintf(&b, "ExecStartPre=-+%s converge --before-start\n", quoteUnit(strings.ReplaceAll(program, "$", "$$")))
	}
	return b.Bytes()
}

var plainWord = regexp.MustCompile(`^[0-9A-Za-z_=.:%/-]*$`)

// A percent sign begins a specifier.
func quoteUnit(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if plainWord.MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}

// DropInValues are the agent's settings in a drop-in.
type DropInValues struct {
	Exists      bool
	Ours        bool // has the agent's mark
	HostAddress string
	StopTimeout time.Duration
	Program     string // the agent's path
}

// ReadDropIn reads the agent's drop-in below root. A missing file is no error.
func ReadDropIn(root string) (DropInValues, error) {
	b, _, err := files.Root{Path: root}.Read(DropInPath, maxSystemFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return DropInValues{}, nil
	case err != nil:
		return DropInValues{}, fmt.Errorf("reading %s: %w", filepath.Join(root, DropInPath), unreadable(err))
	}
	return ParseDropIn(b), nil
}

var (
	addressLine = regexp.MustCompile(`(?m)^Environment="?` + HostAddressVariable + `=([^"\s]+)"?$`)
	timeoutLine = regexp.MustCompile(`(?m)^TimeoutStopSec=([0-9]{1,9})$`)
	programLine = regexp.MustCompile(`(?m)^ExecStartPre=-\+(.+) converge --before-start$`)
)

// ParseDropIn parses the lines that [DropIn] writes. [State] has the effect of all drop-ins.
func ParseDropIn(b []byte) DropInValues {
	v := DropInValues{Exists: true, Ours: bytes.HasPrefix(b, []byte(dropInMark))}
	if m := addressLine.FindSubmatch(b); m != nil {
		v.HostAddress = strings.ReplaceAll(string(m[1]), "%%", "%")
	}
	if m := timeoutLine.FindSubmatch(b); m != nil {
		seconds, _ := strconv.Atoi(string(m[1]))
		v.StopTimeout = time.Duration(seconds) * time.Second
	}
	if m := programLine.FindSubmatch(b); m != nil {
		v.Program = string(m[1])
		if text, err := strconv.Unquote(v.Program); err == nil {
			v.Program = text
		}
		v.Program = strings.NewReplacer("%%", "%", "$$", "$").Replace(v.Program)
	}
	return v
}
