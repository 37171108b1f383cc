// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
)

const (
	secretAddress = "mongodb://app:hunter22@10.9.9.9/?authSource=admin"
	redacted      = "mongodb://app:***@10.9.9.9/?authSource=admin"
)

// mongoOf runs `config`, and returns its exit code, MongoDB's address with its origin, and standard error. The password is in
// nothing that is printed, also if it is the value of another setting.
func mongoOf(t *testing.T, e *testEnv, args ...string) (code int, mongo, stderr string) {
	t.Helper()
	code = Main(append([]string{"config"}, args...), e.env())
	stdout, stderr := e.stdout.String(), e.stderr.String()
	if strings.Contains(stdout+stderr, "hunter22") {
		t.Errorf("a password is shown:\n%s%s", stdout, stderr)
	}
	if m := regexp.MustCompile(`(?m)^  mongo +(\S+) +(.*)$`).FindStringSubmatch(stdout); m != nil {
		mongo = m[1] + " " + m[2]
	}
	return code, mongo, stderr
}

func TestMongoSources(t *testing.T) {
	type m = map[string]string
	const config, kept = "etc/amsagent/config.yaml", "etc/amsagent/mongo!"
	cred := m{"CREDENTIALS_DIRECTORY": "/cred"}
	tagged := m{"amsagent:mongo": "10.0.0.5"}
	inM := []string{"--mongo", "file:/m"}
	for _, tt := range []struct {
		name              string
		args              []string
		vars, files, tags m
		// want is the address, without its password, and its origin, or the error after "!".
		want, log string
	}{
		{name: "flag", args: []string{"--mongo", "10.0.0.1"}, vars: m{"AMSAGENT_MONGO": "10.0.0.2"}, want: "10.0.0.1 --mongo"},
		{
			name: "variable over credential", vars: m{"AMSAGENT_MONGO": "10.0.0.2", "CREDENTIALS_DIRECTORY": "/cred"}, files: m{"cred/mongo!": "10.0.0.3\n"},
			want: "10.0.0.2 AMSAGENT_MONGO",
		},
		{name: "credential over file", vars: cred, files: m{"cred/mongo!": "10.0.0.3\n", config: "mongo: 10.0.0.4\n"}, want: "10.0.0.3 /cred/mongo, in ROOT/cred/mongo"},
		{
			name: "credential of the machine", vars: cred, files: m{"cred/amsagent.mongo!": "10.0.0.3\n", config: "mongo: 10.0.0.4\n"},
			want: "10.0.0.3 /cred/amsagent.mongo, in ROOT/cred/amsagent.mongo",
		},
		{name: "no such credential", vars: cred, files: m{config: "mongo: 10.0.0.4\n"}, want: "10.0.0.4 ROOT/etc/amsagent/config.yaml:1"},
		{name: "file over tag", files: m{config: "mongo: 10.0.0.4\n"}, tags: tagged, want: "10.0.0.4 ROOT/etc/amsagent/config.yaml:1"},
		{name: "tag", tags: tagged, want: "10.0.0.5 instance tag amsagent:mongo"},
		// Of a node as it is; its tag may name another MongoDB by now.
		{name: "what join kept", files: m{kept: secretAddress + "\n"}, tags: tagged, want: redacted + " /etc/amsagent/mongo, in ROOT/etc/amsagent/mongo"},
		{name: "file:", args: inM, files: m{"m!": secretAddress + "\r\n"}, want: redacted + " --mongo, in ROOT/m"},
		{name: "file: in config.yaml", files: m{config: "mongo: file:/m\n", "m!": "h1,h2:27018"}, want: "h1,h2:27018 ROOT/etc/amsagent/config.yaml:1, in ROOT/m"},
		{name: "file: missing", args: inM, want: "!--mongo: reading the MongoDB address: open ROOT/m: no such file or directory"},
		{name: "file: empty", args: inM, files: m{"m": "\n"}, want: "!--mongo: ROOT/m: the file is empty"},
		{name: "file: nested", args: inM, files: m{"m": "file:/n"}, want: "!--mongo: ROOT/m: a file: inside is not followed"},
		{name: "file: nonsense", args: inM, files: m{"m!": "mongodb://app:hunter22@h:x/"}, want: "!--mongo: ROOT/m: connection string"},
		{name: "file: two lines", args: inM, files: m{"m!": "h1\nh2\n"}, want: "!--mongo: ROOT/m: connection string"},
		{name: "file: a directory", args: inM, files: m{"m/x": ""}, want: "!--mongo: reading the MongoDB address: read ROOT/m: not a regular file"},
		{name: "world-readable with a password", args: inM, files: m{"m": secretAddress}, want: redacted + " --mongo, in ROOT/m", log: "every user can read the MongoDB password"},
		{name: "world-readable without", args: inM, files: m{"m": "10.0.0.1"}, want: "10.0.0.1 --mongo, in ROOT/m"},
		{name: "password on the command line", args: []string{"--mongo", secretAddress}, want: redacted + " --mongo", log: "level=INFO msg=\"other users can read the MongoDB password\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			e := &testEnv{vars: m{"AMSAGENT_ROOT": root, "AMSAGENT_PROVIDER": "generic"}}
			maps.Copy(e.vars, tt.vars)
			if tt.tags != nil {
				e.vars["AMSAGENT_PROVIDER"], e.vars["AMSAGENT_AWS_ENDPOINT"] = "aws", metadataOfAWS(t, func() m { return tt.tags }).URL
			}
			if strings.HasPrefix(tt.want, redacted) {
				e.vars["AMSAGENT_GROUP"] = "hunter22"
			}
			code, mongo, log := mongoOf(t, e, tt.args...)
			log = strings.ReplaceAll(log, root, "ROOT")
			if fails, ok := strings.CutPrefix(tt.want, "!"); ok {
				if code != codeUsage || !strings.HasPrefix(log, "amsagent: error: "+fails) {
					t.Errorf("exit %d, %s", code, log)
				}
				return
			}
			must.Equal(t, "mongo", strings.ReplaceAll(mongo, root, "ROOT"), tt.want)
			if code != codeOK || (tt.log == "") != (log == "") || !strings.Contains(log, tt.log) {
				t.Errorf("exit %d, log %q, want %q", code, log, tt.log)
			}
		})
	}
}

// TestMongoFromStdin: a pipe from a cloud's vault. TestWaitForTags asks for it several times.
func TestMongoFromStdin(t *testing.T) {
	for _, tt := range []struct {
		name, in, fails string
		terminal        bool
		variable        string
	}{
		{name: "a line", in: secretAddress + "\n"},
		{name: "without an end of line", in: secretAddress},
		{name: "a failed command before the pipe", in: "\n", fails: "look whether the command before the pipe failed"},
		{name: "a terminal", terminal: true, fails: "is a terminal"},
		{name: "too much", in: strings.Repeat("x", settings.MaxSmallFile+1), fails: "more than 256 KiB"},
		{name: "a file: inside", in: "file:/etc/shadow", fails: "is not followed"},
		{name: "no address", in: "mongodb://", fails: "standard input"},
		{name: "in the environment", in: secretAddress, variable: "file:-", fails: "only on the command line"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &testEnv{stdin: strings.NewReader(tt.in), tty: tt.terminal, vars: map[string]string{"AMSAGENT_MONGO": tt.variable}}
			args := []string{"--offline", "--mongo", "file:-"}
			if tt.variable != "" {
				args = args[:1]
			}
			code, mongo, stderr := mongoOf(t, e, args...)
			if tt.fails == "" {
				must.Equal(t, "mongo", mongo, redacted+" --mongo")
			} else if code == codeOK || mongo != "" || !strings.Contains(stderr, tt.fails) {
				t.Errorf("exit %d, %s", code, stderr)
			}
		})
	}
}

// open is a standard input without data that is not closed.
type open struct{ end chan struct{} }

func (o open) Read([]byte) (int, error) {
	<-o.end
	return 0, io.EOF
}

// The first signal and --timeout end the wait for standard input.
func TestStdinWaits(t *testing.T) {
	const address, userData = "config --offline --mongo file:-", "doctor --user-data -"
	for _, tt := range []struct {
		command string
		signal  time.Duration
		took    time.Duration
		code    int
		said    string
	}{
		{address + " --timeout 3s", 0, 3 * time.Second, codeFailed, "standard input was not closed within 3s"},
		{address, 0, 30 * time.Second, codeFailed, "standard input was not closed within 30s"},
		{address, time.Second, time.Second, codeInterrupted, "[AGENT-INTERRUPTED]"},
		{userData, 0, 30 * time.Second, codeUsage, "standard input was not closed within 30s"},
		{userData, time.Second, time.Second, codeInterrupted, "[AGENT-INTERRUPTED]"},
		{"event --timeout 20s", 0, 20 * time.Second, codeUsage, "the event is missing: standard input is open and said nothing for 20 s"},
		{"event", 0, 30 * time.Second, codeUsage, "said nothing for 30 s"},
		{"event", time.Second, time.Second, codeInterrupted, "[AGENT-INTERRUPTED]"},
	} {
		synctest.Test(t, func(t *testing.T) {
			stdin, sig := open{make(chan struct{})}, fakeSignals{make(chan os.Signal, 1)}
			defer close(stdin.end)
			e := &testEnv{stdin: stdin}
			env := e.env()
			env.Signals = sig.source
			if tt.signal > 0 {
				time.AfterFunc(tt.signal, func() { sig.ch <- syscall.SIGTERM })
			}
			begin := time.Now()
			must.Equal(t, tt.command+": exit", Main(strings.Fields(tt.command), env), tt.code)
			must.Equal(t, tt.command+" took", time.Since(begin), tt.took)
			must.Contain(t, tt.command, e.stderr.String(), tt.said)
		})
	}
}

// A daemon that drains because the machine shuts down connects after the signal, too.
func TestMongoFileAfterSignal(t *testing.T) {
	g := plainGlobals(&testEnv{})
	must.OK(t, os.WriteFile(filepath.Join(g.settings.Root, "mongo"), []byte("10.0.2.4\n"), 0o600))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(&interruptedError{syscall.SIGTERM})
	g.ctx = ctx
	g.signals.onHangup()
	g.settings.Values[settings.KeyMongo] = settings.Value{Text: "file:/mongo", Origin: settings.Origin{Layer: settings.FromFlag, Name: "--mongo"}}
	if target, err := (&daemonAdapter{g: g}).mongo(context.WithoutCancel(ctx)); err != nil || !strings.Contains(target.String(), "10.0.2.4") {
		t.Errorf("MongoDB is at %v: %v", target, err)
	}
}

// If another user can change the file, that user decides where root connects to.
func TestMongoFileOwner(t *testing.T) {
	for _, tt := range []struct {
		mode    os.FileMode
		foreign string // what belongs to another user
		want    string
	}{
		{0o600, "", ""},
		{0o644, "", ""},
		{0o646, "", "may write to"},
		{0o600, "a/b/mongo", "a/b/mongo belongs to uid 12345"},
		{0o600, "a/b", "a/b belongs to uid 12345"},
		{0o600, "a", "a belongs to uid 12345"},
	} {
		root := tree(t, map[string]string{"a/b/mongo": "10.0.2.4\n"})
		must.OK(t, os.Chmod(filepath.Join(root, "a/b/mongo"), tt.mode))
		if tt.foreign != "" {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file to another user")
			}
			must.OK(t, os.Chown(filepath.Join(root, tt.foreign), 12345, 0))
		}
		e := &testEnv{vars: map[string]string{"AMSAGENT_ROOT": root}}
		code, _, log := mongoOf(t, e, "--offline", "--mongo", "file:/a/b/mongo")
		warned := strings.Count(log, "another user can change the file with the MongoDB address") == 1
		if code != codeOK || warned != (tt.want != "") || !strings.Contains(log, tt.want) {
			t.Errorf("%04o, %q: exit %d, %q", tt.mode, tt.foreign, code, log)
		}
	}
}

// MongoDB has one error for a user without the right and for no user at all; the hints differ.
func TestForbiddenHint(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.2.4":                 "put the login into the address",
		"mongodb://u:pw@10.0.2.4/": "grant the user readWrite",
	} {
		e := &testEnv{}
		g := plainGlobals(e)
		g.settings.Values[settings.KeyMongo] = settings.Value{Text: address, Origin: settings.Origin{Layer: settings.FromEnv, Name: "AMSAGENT_MONGO"}}
		u := g.explain(&cluster.Error{Op: "reading", Kind: cluster.KindForbidden, Err: errors.New("code 13")})
		if len(u.Hints) != 1 || !strings.Contains(u.Hints[0], want) || strings.Contains(u.Hints[0], "pw") {
			t.Errorf("%s: %q", address, u.Hints)
		}
	}
}
