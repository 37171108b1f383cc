// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// loaded makes globals as a command gets them.
func loaded(t *testing.T, e *testEnv, args ...string) *globals {
	t.Helper()
	g := globalsOf(e.env())
	g.out.SetForm("text", "auto", slog.LevelInfo)
	root := newRootCommand(g)
	cmd, rest, err := root.Find(append([]string{"config"}, args...))
	must.OK(t, err)
	must.OK(t, cmd.ParseFlags(rest))
	must.OK(t, g.load(cmd))
	return g
}

func TestMongoSources(t *testing.T) {
	const secret = "mongodb://app:hunter22@10.9.9.9/?authSource=admin"
	for _, tt := range []struct {
		name  string
		args  []string
		vars  map[string]string
		files map[string]string
		tags  map[string]string
		// want is the redacted address, or the error after "!".
		want, from, file string
		log              string
	}{
		{name: "nothing", want: "!no MongoDB address is known"},
		{name: "flag", args: []string{"--mongo", "10.0.0.1"}, vars: map[string]string{"AMSAGENT_MONGO": "10.0.0.2"}, want: "10.0.0.1", from: "--mongo"},
		{
			name: "variable over credential", vars: map[string]string{"AMSAGENT_MONGO": "10.0.0.2", "CREDENTIALS_DIRECTORY": "/cred"},
			files: map[string]string{"cred/mongo!": "10.0.0.3\n"}, want: "10.0.0.2", from: "AMSAGENT_MONGO",
		},
		{
			name: "credential over file", vars: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			files: map[string]string{"cred/mongo!": "10.0.0.3\n", "etc/amsagent/config.yaml": "mongo: 10.0.0.4\n"},
			want:  "10.0.0.3", from: "/cred/mongo", file: "/cred/mongo",
		},
		{
			name: "credential of the machine", vars: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			files: map[string]string{"cred/amsagent.mongo!": "10.0.0.3\n", "etc/amsagent/config.yaml": "mongo: 10.0.0.4\n"},
			want:  "10.0.0.3", from: "/cred/amsagent.mongo", file: "/cred/amsagent.mongo",
		},
		{
			name: "no such credential", vars: map[string]string{"CREDENTIALS_DIRECTORY": "/cred"},
			files: map[string]string{"etc/amsagent/config.yaml": "mongo: 10.0.0.4\n"}, want: "10.0.0.4", from: "ROOT/etc/amsagent/config.yaml:1",
		},
		{
			name: "file over tag", files: map[string]string{"etc/amsagent/config.yaml": "mongo: 10.0.0.4\n"},
			tags: map[string]string{"amsagent:mongo": "10.0.0.5"}, want: "10.0.0.4", from: "ROOT/etc/amsagent/config.yaml:1",
		},
		{
			name: "tag over what join kept", files: map[string]string{"etc/amsagent/mongo!": secret + "\n"},
			tags: map[string]string{"amsagent:mongo": "10.0.0.5"}, want: "10.0.0.5", from: "instance tag amsagent:mongo",
		},
		{
			name: "what join kept", files: map[string]string{"etc/amsagent/mongo!": secret + "\n"},
			want: "mongodb://app:***@10.9.9.9/?authSource=admin", from: "/etc/amsagent/mongo", file: "/etc/amsagent/mongo",
		},
		{
			name: "file:", args: []string{"--mongo", "file:/run/secrets/m"}, files: map[string]string{"run/secrets/m!": secret + "\r\n"},
			want: "mongodb://app:***@10.9.9.9/?authSource=admin", from: "--mongo", file: "/run/secrets/m",
		},
		{
			name: "file: in config.yaml", files: map[string]string{"etc/amsagent/config.yaml": "mongo: file:/m\n", "m!": "h1,h2:27018"},
			want: "h1,h2:27018", from: "ROOT/etc/amsagent/config.yaml:1", file: "/m",
		},
		{name: "file: missing", args: []string{"--mongo", "file:/m"}, want: "!--mongo: reading the MongoDB address: open ROOT/m: no such file or directory"},
		{name: "file: empty", args: []string{"--mongo", "file:/m"}, files: map[string]string{"m": "\n"}, want: "!--mongo: ROOT/m: the file is empty"},
		{name: "file: nested", args: []string{"--mongo", "file:/m"}, files: map[string]string{"m": "file:/n"}, want: "!--mongo: ROOT/m: a file: inside is not followed"},
		{name: "file: nonsense", args: []string{"--mongo", "file:/m"}, files: map[string]string{"m!": "mongodb://app:hunter22@h:x/"}, want: "!--mongo: ROOT/m: connection string"},
		{name: "file: two lines", args: []string{"--mongo", "file:/m"}, files: map[string]string{"m!": "h1\nh2\n"}, want: "!--mongo: ROOT/m: connection string"},
		{name: "file: a directory", args: []string{"--mongo", "file:/d"}, files: map[string]string{"d/x": ""}, want: "!--mongo: reading the MongoDB address: read ROOT/d: not a regular file"},
		{
			name: "world-readable with a password", args: []string{"--mongo", "file:/m"}, files: map[string]string{"m": secret},
			want: "mongodb://app:***@10.9.9.9/?authSource=admin", from: "--mongo", file: "/m", log: "every user can read the MongoDB password",
		},
		{name: "world-readable without", args: []string{"--mongo", "file:/m"}, files: map[string]string{"m": "10.0.0.1"}, want: "10.0.0.1", from: "--mongo", file: "/m"},
		{
			name: "password on the command line", args: []string{"--mongo", secret},
			want: "mongodb://app:***@10.9.9.9/?authSource=admin", from: "--mongo", log: "level=INFO msg=\"other users can read the MongoDB password\"",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			e := &testEnv{vars: tt.vars}
			g := loaded(t, e, append([]string{"--root", root}, tt.args...)...)
			must.OK(t, g.use(machine{Instance: metadata.Instance{Tags: tt.tags, TagsKnown: true}}))
			inRoot := func(s string) string { return strings.ReplaceAll(s, "ROOT", root) }
			src, err := g.mongo()
			if want, ok := strings.CutPrefix(tt.want, "!"); ok {
				if err == nil || !strings.HasPrefix(err.Error(), inRoot(want)) || strings.Contains(err.Error(), "hunter22") {
					t.Errorf("error %v, want %s", err, inRoot(want))
				}
				return
			}
			must.OK(t, err)
			wantFile := ""
			if tt.file != "" {
				wantFile = filepath.Join(root, tt.file)
			}
			if src.Target.Redacted() != tt.want || src.Origin.String() != inRoot(tt.from) || src.File != wantFile {
				t.Errorf("%s from %q in %q, want %s from %q in %q", src.Target.Redacted(), src.Origin, src.File, tt.want, inRoot(tt.from), wantFile)
			}
			log := e.stderr.String()
			if (tt.log == "") != (log == "") || !strings.Contains(log, tt.log) || strings.Contains(log, "hunter22") {
				t.Errorf("log %q, want %q", log, tt.log)
			}
			if _, err := g.mongo(); err != nil || e.stderr.String() != log {
				t.Errorf("%v, asked again it says more: %q", err, e.stderr.String())
			}
			if strings.Contains(src.Target.Redacted(), "***") && g.out.Redact("the word hunter22 here") != "the word *** here" {
				t.Error("the password is not known as a secret")
			}
		})
	}
}

// TestMongoFromStdin: a pipe from a cloud's vault, read once.
func TestMongoFromStdin(t *testing.T) {
	const secret = "mongodb://app:hunter22@10.9.9.9/?authSource=admin"
	for _, tt := range []struct {
		name, in, fails string
		terminal        bool
		vars            map[string]string
	}{
		{name: "a line", in: secret + "\n"},
		{name: "without an end of line", in: secret},
		{name: "a failed command before the pipe", in: "\n", fails: "look whether the command before the pipe failed"},
		{name: "a terminal", terminal: true, fails: "is a terminal"},
		{name: "too much", in: strings.Repeat("x", settings.MaxSmallFile+1), fails: "more than 256 KiB"},
		{name: "a file: inside", in: "file:/etc/shadow", fails: "is not followed"},
		{name: "no address", in: "mongodb://", fails: "standard input"},
		{name: "in the environment", in: secret, vars: map[string]string{"AMSAGENT_MONGO": "file:-"}, fails: "only on the command line"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &testEnv{stdin: strings.NewReader(tt.in), tty: tt.terminal}
			args := []string{"--mongo", "file:-"}
			if tt.vars != nil {
				e.vars, args = tt.vars, nil
			}
			g := loaded(t, e, args...)
			for range 2 { // it is read once
				src, err := g.mongo()
				switch {
				case tt.fails != "":
					if err == nil || !strings.Contains(err.Error(), tt.fails) || strings.Contains(err.Error(), "hunter22") {
						t.Fatalf("%v", err)
					}
				case err != nil:
					t.Fatal(err)
				case src.Target.Redacted() != "mongodb://app:***@10.9.9.9/?authSource=admin" || src.Origin.Name != "--mongo":
					t.Errorf("%s from %s", src.Target.Redacted(), src.Origin.Name)
				}
			}
		})
	}
}
