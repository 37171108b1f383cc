// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestDropIn(t *testing.T) {
	const want = `# Written by amsagent: the address under which this node registers in
# its cluster, time to end its streams when it stops, and the command that puts
# the node's settings right before it starts. 'amsagent leave' removes this file;
# until then 'amsagent join' puts back what is changed here. To override it, add a
# file with a later name, as 60-local.conf.
[Service]
Environment=AMS_HOST_ADDRESS=10.0.0.5
TimeoutStopSec=140
ExecStartPre=-+/usr/bin/amsagent converge --before-start
`
	got := string(DropIn(netip.MustParseAddr("10.0.0.5"), StopTimeout(4), "/usr/bin/amsagent"))
	must.NoDiff(t, "drop-in", got, want)
	if got := DropIn(netip.Addr{}, 0, ""); got != nil {
		t.Errorf("nothing to say, said %q", got)
	}
	if got := string(DropIn(netip.Addr{}, 1500*time.Millisecond, "")); strings.Contains(got, "Environment") || !strings.HasSuffix(got, "[Service]\nTimeoutStopSec=2\n") {
		t.Errorf("without an address: %s", got)
	}
	if got := string(DropIn(netip.MustParseAddr("fd00::5"), 0, "")); strings.Contains(got, "Timeout") || !strings.HasSuffix(got, "=fd00::5\n") {
		t.Errorf("without a timeout: %s", got)
	}
	must.Equal(t, "stop timeout", StopTimeout(-1), time.Minute)
}

// systemd reads a quoted value unchanged.
func TestDropInQuotes(t *testing.T) {
	for program, want := range map[string]string{
		"/opt/a b/$HOME/100%/amsagent": `ExecStartPre=-+"/opt/a b/$$HOME/100%%/amsagent" converge`,
		`/o"pt/am\sagent`:              `ExecStartPre=-+"/o\"pt/am\\sagent" converge`,
		"/opt/\x01\x7f/amsagent":       `ExecStartPre=-+"/opt/\x01\x7f/amsagent" converge`,
	} {
		text := DropIn(netip.Addr{}, 0, program)
		if got := ParseDropIn(text); !strings.Contains(string(text), want) || got.Program != program {
			t.Errorf("%s: %s, want %s; read as %q", program, text, want, got.Program)
		}
	}
	for _, addr := range []string{"10.0.0.5", "fd00::5", "fe80::1%eth0", "fe80::1%br-4.100"} {
		text := DropIn(netip.MustParseAddr(addr), 90*time.Second, "")
		must.Equal(t, fmt.Sprintf("%s of %s", addr, text), ParseDropIn(text), DropInValues{Exists: true, Ours: true, HostAddress: addr, StopTimeout: 90 * time.Second})
	}
}

func TestReadDropIn(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.5")
	none := plant(t, nil)
	v, err := ReadDropIn(none)
	if err != nil || v.Exists {
		t.Errorf("%+v, %v", v, err)
	}
	program := string(DropIn(addr, 0, "/usr/bin/amsagent"))
	edited := strings.Replace(string(DropIn(addr, time.Minute, "")), "10.0.0.5", "10.0.0.9\nNice=3", 1)
	for text, want := range map[string]DropInValues{
		string(DropIn(addr, time.Minute, "")): {Exists: true, Ours: true, HostAddress: "10.0.0.5", StopTimeout: time.Minute},
		string(DropIn(addr, 0, "")):           {Exists: true, Ours: true, HostAddress: "10.0.0.5"},
		program:                               {Exists: true, Ours: true, HostAddress: "10.0.0.5", Program: "/usr/bin/amsagent"},
		edited:                                {Exists: true, Ours: true, HostAddress: "10.0.0.9", StopTimeout: time.Minute},
		"[Service]\nTimeoutStopSec=60\nEnvironment=AMS_HOST_ADDRESS=10.0.0.5\n": {Exists: true, HostAddress: "10.0.0.5", StopTimeout: time.Minute},
	} {
		// Behind an absolute link, as from configuration management.
		v, err := ReadDropIn(plant(t, map[string]string{DropInPath: "-> /srv/dropin", "srv/dropin": text}))
		must.OK(t, err)
		must.Equal(t, text, v, want)
	}
	pipe := plant(t, nil)
	must.OK(t, os.MkdirAll(filepath.Dir(filepath.Join(pipe, DropInPath)), 0o755))
	must.OK(t, syscall.Mkfifo(filepath.Join(pipe, DropInPath), 0o600))
	if _, err := ReadDropIn(pipe); !says(err, "unreadable: ") {
		t.Errorf("%v", err)
	}
}
