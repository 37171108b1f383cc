// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestConfigFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		text string
		// want are key=value@line, or the errors after "!".
		want string
	}{
		{"empty", "", ""},
		{"comments", "# nothing\n\n", ""},
		{"document mark only", "---\n", ""},
		{"plain", "role: edge\ngroup: \"edges in eu\"\n", "group=edges in eu@2 role=edge@1"},
		{"words stay words", "role: 0123\nmongo: 10.0.2.4\ntimeout: 1h\n", "mongo=10.0.2.4@2 role=0123@1 timeout=1h@3"},
		{"no value", "role:\ngroup: ~\n", ""},
		{"windows", "\ufeffrole: edge\r\ngroup: x\r\n", "group=x@2 role=edge@1"},
		{"unknown", "roel: edge\n", "!/c:1: unknown key \"roel\" [did you mean `role`?]"},
		{"dashes", "service-command: x\n", "!/c:1: unknown key \"service-command\" [did you mean `service_command`?]"},
		{"capitals", "\nRole: x\n", "!/c:2: unknown key \"Role\" [did you mean `role`?]"},
		{"far off", "xyzzy: 1\n", "!/c:1: unknown key \"xyzzy\" [`amsagent help config` lists the keys]"},
		{"not here", "root: /mnt\n", "!/c:1: root cannot be set in this file [use --root or AMSAGENT_ROOT]"},
		{"twice", "role: a\nrole: b\n", "role=a@1 !/c:2: role is set a second time, first in line 1 []"},
		{"list", "role: [a]\n", "!/c:1: role must be one plain value"},
		{"map", "role:\n  x: y\n", "!/c:2: role must be one plain value"},
		{"lists as YAML has them", "serving: [LiveApp, 'live*']\nhooks:\n  - a\n  - b\n", "hooks=a,b@3 serving=LiveApp,live*@1"},
		{"a list of lists", "serving: [[LiveApp]]\n", "!/c:1: serving must be one plain value, or a list of such"},
		{"a map in a list", "hooks: {a: b}\n", "!/c:1: hooks must be one plain value, or a list of such"},
		{"a comma in an entry", "serving: ['a,b']\n", "!/c:1: serving must be one plain value, or a list of such"},
		{"alias", "role: &a edge\ngroup: *a\n", "role=edge@1 !/c:2: group must be one plain value"},
		{"key is a list", "? [a]\n: b\n", "!/c:1: a key that is not a word"},
		{"merge", "<<: {role: x}\n", `!/c:1: unknown key "<<"`},
		{"no settings", "- role\n", "!/c:1: not a list of settings"},
		{"a word", "role\n", "!/c:1: not a list of settings"},
		{"two documents", "role: a\n---\nrole: b\n", "role=a@1 !/c:"},
		{"broken", "role: 'a\n", "!/c:"},
		{"tab", "role: a\n\tgroup: b\n", "!/c:"},
		{"shell form", "role=edge\n", "!/c:1: not a list of settings"},
		{"password", "# db\nmongo: mongodb://u:hunter22@h/\n", "!/c:2: a password does not belong in this file: every user can read it [put it into a file of its own"},
		{"password without scheme", "mongo: u:hunter22@h\n", "!/c:1: a password does not belong"},
		{"option is a password", "mongo: mongodb://h/?tlsCertificateKeyFilePassword=hunter22\n", "!/c:1: a password does not belong"},
		{"user alone", "mongo: mongodb://u@h/?authMechanism=MONGODB-X509&tls=true\n", "mongo=mongodb://u@h/?authMechanism=MONGODB-X509&tls=true@1"},
		{"in a file", "mongo: file:/etc/amsagent/mongo\n", "mongo=file:/etc/amsagent/mongo@1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := parseConfigFile("/c", []byte(tt.text))
			var got []string
			for _, row := range Table() {
				if v, ok := c.values[row.Key]; ok {
					got = append(got, row.Key+"="+v.text+"@"+string(rune('0'+v.line)))
				}
			}
			slices.Sort(got)
			for _, err := range c.errs {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("%T", err)
				}
				got = append(got, "!"+err.Error()+" ["+strings.Join(e.AllHints(), "; ")+"]")
			}
			text := strings.Join(got, " ")
			if text != tt.want && (!strings.Contains(tt.want, "!") || !strings.HasPrefix(text, tt.want)) {
				t.Errorf("got  %s\nwant %s", text, tt.want)
			}
			if strings.Contains(text, "hunter22") {
				t.Error("the password is shown")
			}
		})
	}
}

func TestReadConfigFile(t *testing.T) {
	root := t.TempDir()
	path := func(name string) string { return filepath.Join(root, name) }
	must.OK(t, errors.Join(
		os.MkdirAll(path("etc/amsagent"), 0o755), os.WriteFile(path("etc/amsagent/config.yaml"), []byte("role: edge\n"), 0o644),
		os.Symlink("/etc/amsagent/config.yaml", path("link.yaml")), os.Symlink("../../../../../../etc/amsagent/config.yaml", path("up.yaml")),
		syscall.Mkfifo(path("fifo"), 0o644), os.WriteFile(path("big"), make([]byte, MaxSmallFile+1), 0o644),
	))
	for _, tt := range []struct {
		path, fails string
	}{
		{path: "/etc/amsagent/config.yaml"},
		{path: "/link.yaml"},
		{path: "/up.yaml"}, // as inside a chroot
		{path: "/none.yaml", fails: "AMSAGENT_CONFIG: reading the settings: open "},
		{path: "/etc", fails: "not a regular file"},
		{path: "/fifo", fails: "not a regular file"}, // at once, without a wait
		{path: "/big", fails: "larger than 256 KiB"},
	} {
		s, err := Read(Sources{LookupEnv: lookup(map[string]string{"AMSAGENT_ROOT": root, "AMSAGENT_CONFIG": tt.path}), Environ: func() []string { return nil }}, true)
		switch {
		case tt.fails != "":
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: %v", tt.path, err)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.path, err)
		default:
			must.Equal(t, tt.path, s.Role+" of "+s.Origin(KeyRole).Name, "edge of "+path("etc/amsagent/config.yaml"))
		}
	}
	s, err := Read(Sources{LookupEnv: lookup(map[string]string{"AMSAGENT_ROOT": t.TempDir()}), Environ: func() []string { return nil }}, true)
	must.OK(t, err) // without the default file
	must.Equal(t, "role", s.Role, "")
}

// Each content gives values or errors with the file's name, never a crash.
func FuzzConfigFile(f *testing.F) {
	for _, s := range []string{"", "role: edge\n", "a: [b\n", "? x\n", "role: &a b\ngroup: *a\n", "mongo: mongodb://u:p@h\n", "---\n---\n", "\x00", "\ufeff", "<<: *x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := parseConfigFile("/c", []byte(s))
		for _, err := range c.errs {
			if !strings.HasPrefix(err.Error(), "/c") {
				t.Errorf("no source: %v", err)
			}
		}
		for key, v := range c.values {
			if _, ok := ByKey(key); !ok || v.line < 1 {
				t.Errorf("%q in line %d", key, v.line)
			}
		}
	})
}
