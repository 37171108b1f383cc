// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := DropIn(netip.Addr{}, 0, ""); got != nil {
		t.Errorf("nothing to say, said %q", got)
	}
	if got := string(DropIn(netip.Addr{}, 1500*time.Millisecond, "")); strings.Contains(got, "Environment") || !strings.HasSuffix(got, "[Service]\nTimeoutStopSec=2\n") {
		t.Errorf("without an address: %s", got)
	}
	if got := string(DropIn(netip.MustParseAddr("fd00::5"), 0, "")); strings.Contains(got, "Timeout") || !strings.HasSuffix(got, "=fd00::5\n") {
		t.Errorf("without a timeout: %s", got)
	}
	if StopTimeout(-1) != time.Minute {
		t.Error(StopTimeout(-1))
	}
}

// What we write reads back as the same values, whatever the zone is.
func TestDropInRoundTrip(t *testing.T) {
	for _, program := range []string{"/usr/bin/amsagent", "/opt/a b/$HOME/100%/amsagent", `/o"pt/am\sagent`} {
		got, err := ParseDropIn(DropIn(netip.Addr{}, 0, program))
		if err != nil || got.BeforeStart != program || len(got.Other) > 0 {
			t.Errorf("%s: %+v, %v", program, got, err)
		}
	}
	for _, addr := range []string{"10.0.0.5", "fd00::5", "fe80::1%eth0", `fe80::1%e"t\h%n0`, "fe80::1%a b;c#d'e$f", "fe80::1%\t"} {
		a := netip.MustParseAddr(addr)
		text := DropIn(a, 90*time.Second, "")
		got, err := ParseDropIn(text)
		want := DropInValues{Exists: true, Ours: true, HostAddress: addr, StopTimeout: 90 * time.Second}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s\n%s", addr, err, diff, text)
		}
	}
}

func TestParseDropIn(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want DropInValues
	}{
		"empty":   {"", DropInValues{}},
		"foreign": {"[Service]\nNice=5\nEnvironment=SECRET=hush\n[Unit]\nAfter=x\n", DropInValues{Other: []string{"Service.Nice", "Service.Environment SECRET", "Unit.After"}}},
		"several words, the last counts": {
			"[Service]\nEnvironment=AMS_HOST_ADDRESS=1.1.1.1 'AMS_HOST_ADDRESS=2.2.2.2'\nEnvironment = \"AMS_HOST_ADDRESS=3.3.3.3\"\n",
			DropInValues{HostAddress: "3.3.3.3"},
		},
		"taken back":      {"[Service]\nEnvironment=AMS_HOST_ADDRESS=1.1.1.1\nEnvironment=\n", DropInValues{}},
		"another section": {"[Unit]\nEnvironment=AMS_HOST_ADDRESS=1.1.1.1\n", DropInValues{Other: []string{"Unit.Environment"}}},
		"continued, with a comment between": {
			"[Service]\nEnvironment=A=1 \\\n# no\n ; nor this\n  AMS_HOST_ADDRESS=1.1.1.1\nTimeoutStopSec=1min \\\n30s\n",
			DropInValues{HostAddress: "1.1.1.1", StopTimeout: 90 * time.Second, Other: []string{"Service.Environment A"}},
		},
		"CR LF":   {"[Service]\r\nTimeoutStopSec=5\r\n", DropInValues{StopTimeout: 5 * time.Second}},
		"escapes": {`[Service]` + "\n" + `Environment=AMS_HOST_ADDRESS=\x31\060\s\u00e4%%`, DropInValues{HostAddress: "10 ä%"}},
		"endless": {"[Service]\nTimeoutStopSec=infinity\n", DropInValues{StopTimeout: Endless}},
		"reset":   {"[Service]\nTimeoutStopSec=5\nTimeoutStopSec=\n", DropInValues{}},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Exists = true
			got, err := ParseDropIn([]byte(c.text))
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	for text, want := range map[string]string{
		"[Service]\nnonsense\n":                               "line 2",
		"[Service]\n\nTimeoutStopSec=soon\n":                  "line 3",
		"[Service]\nA=1 \\\n2\nTimeoutStopSec=5 fortnights\n": `line 4: reading TimeoutStopSec: "5 fortnights" is no time span: unknown unit "fortnights"`,
		"[Service]\nEnvironment=\"A=1\n":                      "a quote is not closed",
		"[Service]\nEnvironment=A=\\q\n":                      `\q is no escape`,
		"[Service]\nEnvironment=A=\\x0\n":                     `\x is no escape`,
	} {
		if _, err := ParseDropIn([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParseSpan(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"90": 90 * time.Second, "1min 30s": 90 * time.Second, "1min30s": 90 * time.Second, "1.5h": 90 * time.Minute, "500 ms": 500 * time.Millisecond, "2 weeks": 14 * 24 * time.Hour,
		"0": Endless, "infinity": Endless, "": 0, "99999999999999 weeks": Endless,
	} {
		if got, err := parseSpan(in); err != nil || got != want {
			t.Errorf("parseSpan(%q) = %s, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"s", "-5", "1..2", "5 5x", "∞"} {
		if got, err := parseSpan(in); err == nil {
			t.Errorf("parseSpan(%q) = %s", in, got)
		}
	}
}

func TestReadDropIn(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.5")
	none := plant(t, nil)
	v, err := ReadDropIn(none)
	if err != nil || v.Exists {
		t.Errorf("%+v, %v", v, err)
	}
	edited := strings.Replace(string(DropIn(addr, time.Minute, "")), "10.0.0.5", "10.0.0.9\nNice=3", 1)
	for text, want := range map[string]DropInValues{
		string(DropIn(addr, time.Minute, "")): {Exists: true, Ours: true, HostAddress: "10.0.0.5", StopTimeout: time.Minute},
		string(DropIn(addr, 0, "")):           {Exists: true, Ours: true, HostAddress: "10.0.0.5"},
		edited:                                {Exists: true, Ours: true, HostAddress: "10.0.0.9", StopTimeout: time.Minute, Other: []string{"Service.Nice"}},
		"[Service]\nTimeoutStopSec=60\nEnvironment=AMS_HOST_ADDRESS=10.0.0.5\n": {Exists: true, HostAddress: "10.0.0.5", StopTimeout: time.Minute},
	} {
		// Behind an absolute link, as a configuration management may have it.
		v, err := ReadDropIn(plant(t, map[string]string{DropInPath: "-> /srv/dropin", "srv/dropin": text}))
		if diff := cmp.Diff(want, v); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	if v, err := ReadDropIn(plant(t, map[string]string{DropInPath: "[Service]\nx\n"})); err == nil || !v.Exists || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%+v, %v", v, err)
	}
	pipe := plant(t, nil)
	if err := os.MkdirAll(filepath.Dir(filepath.Join(pipe, DropInPath)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(pipe, DropInPath), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDropIn(pipe); !errors.Is(err, ErrUnreadable) {
		t.Errorf("%v", err)
	}
}

func FuzzParseDropIn(f *testing.F) {
	f.Add(DropIn(netip.MustParseAddr("10.0.0.5"), time.Minute, ""))
	f.Add([]byte("[Service]\nEnvironment=\"a\\x41\" 'b' \\\n# x\nTimeoutStopSec=1.5h 3us\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseDropIn(b)
		if !v.Exists || v.StopTimeout < 0 {
			t.Errorf("%+v, %v", v, err)
		}
	})
}

// Any zone must come through systemd's quoting as it was.
func FuzzDropInZone(f *testing.F) {
	f.Add("eth0")
	f.Add(`e"t\h%n0`)
	f.Add("\x01\x7f\xff é")
	f.Fuzz(func(t *testing.T, zone string) {
		if zone == "" || strings.ContainsRune(zone, 0) {
			t.Skip()
		}
		a := netip.MustParseAddr("fe80::1").WithZone(zone)
		v, err := ParseDropIn(DropIn(a, 0, ""))
		if err != nil || v.HostAddress != a.String() || v.Other != nil {
			t.Errorf("%q came back as %q, %v, %v", a, v.HostAddress, v.Other, err)
		}
	})
}
