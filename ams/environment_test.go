// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/conf"
)

// systemd answers for Environment= alone, and a file counts more than that.
func TestUnitEnvironmentFiles(t *testing.T) {
	dir := t.TempDir()
	a, b, gone := filepath.Join(dir, "a.env"), filepath.Join(dir, "b.env"), filepath.Join(dir, "gone")
	err := errors.Join(
		os.WriteFile(a, []byte("SECRET=hush\n AMS_HOST_ADDRESS = 10.0.0.6 \n"), 0o600),
		os.WriteFile(b, []byte("# AMS_HOST_ADDRESS=10.0.0.8\nX=1 \\\nAMS_HOST_ADDRESS=10.0.0.9\nY=\"1\nAMS_HOST_ADDRESS=10.0.0.9\"\nZ=\"1\\\n2\"\n"+
			"AMS_HOST_ADDRESS='10.0.0.7'\nANTMEDIA_HOME=\"/srv/antmedia\"\n"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	many := filepath.Join(dir, "many")
	err = os.Mkdir(many, 0o755)
	for i := range maxEnvironmentFiles + 1 {
		err = errors.Join(err, os.WriteFile(filepath.Join(many, fmt.Sprintf("%d.env", i)), []byte("AMS_HOST_ADDRESS=10.0.0.6\n"), 0o600))
	}
	large := filepath.Join(dir, "large")
	if err = errors.Join(err, os.WriteFile(large, make([]byte, conf.MaxSettings+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	unit := []string{"AMS_HOST_ADDRESS=10.0.0.5", "ANTMEDIA_HOME=/usr/local/antmedia"}
	for _, tt := range []struct {
		name          string
		files         [][]any
		address, file string
		home          string
		unread        string
	}{
		{"none", nil, "10.0.0.5", "", "/usr/local/antmedia", ""},
		{"one", [][]any{{a, false}}, "10.0.0.6", a, "/usr/local/antmedia", ""},
		{"the last counts", [][]any{{a, false}, {b, true}}, "10.0.0.7", b, "/srv/antmedia", ""},
		{"a pattern", [][]any{{filepath.Join(dir, "*.env"), false}}, "10.0.0.7", b, "/srv/antmedia", ""},
		{"a pattern of nothing", [][]any{{filepath.Join(dir, "*.no"), true}, {filepath.Join(gone, "*"), true}}, "10.0.0.5", "", "/usr/local/antmedia", ""},
		{"a pattern of nothing that is missing", [][]any{{filepath.Join(dir, "*.no"), false}}, "10.0.0.5", "", "/usr/local/antmedia", "*.no"},
		{"a pattern of too many", [][]any{{filepath.Join(many, "*"), true}}, "10.0.0.5", "", "/usr/local/antmedia", "many"},
		{"a pattern of folders", [][]any{{filepath.Join(dir, "*/1.env"), true}}, "10.0.0.5", "", "/usr/local/antmedia", "a pattern for folders"},
		{"a large one", [][]any{{large, true}, {a, false}}, "10.0.0.6", a, "/usr/local/antmedia", large},
		{"one that may be missing", [][]any{{gone, true}}, "10.0.0.5", "", "/usr/local/antmedia", ""},
		{"one that is missing", [][]any{{gone, false}}, "10.0.0.5", "", "/usr/local/antmedia", gone},
		{"a folder", [][]any{{dir, true}, {a, false}}, "10.0.0.6", a, "/usr/local/antmedia", dir},
		{"what no systemd says", [][]any{{}, {1, 2}, {"[", false}}, "10.0.0.5", "", "/usr/local/antmedia", "["},
	} {
		st := unitState(map[string]any{"Environment": unit, "EnvironmentFiles": tt.files})
		if st.HostAddress != tt.address || st.HostAddressFile != tt.file {
			t.Errorf("%s: %s of %q, want %s of %q", tt.name, st.HostAddress, st.HostAddressFile, tt.address, tt.file)
		}
		if !slices.ContainsFunc(st.Homes, func(h Home) bool { return h.Dir == tt.home }) {
			t.Errorf("%s: homes %v, want %s", tt.name, st.Homes, tt.home)
		}
		if unread := strings.Join(st.EnvironmentUnread, " "); (unread == "") != (tt.unread == "") || !strings.Contains(unread, tt.unread) {
			t.Errorf("%s: unread %q, want %q", tt.name, unread, tt.unread)
		}
	}
}

// Lines that systemd counts, and lines that it takes for a part of others.
func TestFileAssignments(t *testing.T) {
	const ours = "AMS_HOST_ADDRESS=10.0.0.9"
	for _, tt := range []struct {
		name, before string
		counts       bool
	}{
		{"nothing before", "", true},
		{"a comment continued, as before systemd 254", "# x \\\n", true},
		{"the same of the other kind", "; x \\\n", true},
		{"a quote in a comment", "# X=\"1\n", true},
		{"a quote in a comment of the other kind", "; X='1\n", true},
		{"no assignment, continued", "x \\\n", true},
		{"a backslash that is escaped", "X=1\\\\\n", true},
		{"a quote within a value", "X=it's\n", true},
		{"a closed quote", "X='1\\'\n", true},
		{"a line end of Windows", "X=1\r", true},
		{"a value continued", "X=1 \\\n", false},
		{"a value continued behind its quote", "X=\"1\" \\\n", false},
		{"a quote", "X='1\n", false},
		{"a quote behind an escaped one", `X="1\"2` + "\n", false},
		{"a second quote", "X=\"1\"'2\n", false},
		{"a comment on the same line", "# ", false},
	} {
		got := fileAssignments(tt.before+ours+"\n", HostAddressVariable)
		if counts := slices.Equal(got, []string{ours}); counts != tt.counts || !counts && len(got) > 0 {
			t.Errorf("%s: %q, counts %v", tt.name, got, tt.counts)
		}
	}
}
