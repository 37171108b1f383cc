// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/bootstrap/doctor/lint"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	pages "github.com/amsagent/amsagent/docs/errors"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/redact"
	"github.com/amsagent/amsagent/lb"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// examples has an error for every row of the table, as a library returns it.
func examples() map[string]error {
	mongo := func(k cluster.Kind) error {
		return fmt.Errorf("looking at the cluster: %w", &cluster.Error{Kind: k, Op: "reading the nodes", Host: "10.0.0.1:27017", Err: errors.New("words of the driver")})
	}
	meta := func(kind error) error {
		return &metadata.Error{Provider: "aws", Item: "identity document", Kind: kind, Hint: "what to do", Context: context.DeadlineExceeded}
	}
	return map[string]error{
		idInterrupted:        &interruptedError{syscall.SIGTERM},
		idConfigSecret:       &settings.Error{Source: "/c:1", Layer: settings.FromFile, Err: errors.New("x"), Hints: []string{"y"}, ID: settings.IDSecret},
		idUsage:              &settings.Error{Source: "--role", Layer: settings.FromFlag, Err: settings.ValueError{Text: "x", Hints: []string{"y"}}},
		idConfig:             &settings.Error{Source: "AMSAGENT_ROLE", Layer: settings.FromEnv, Err: settings.ValueError{Text: "x", Hints: []string{"y"}}},
		idMongoMissing:       errNoMongo,
		idMongoTooMany:       fmt.Errorf("reading the nodes: %w", cluster.ErrTooMany),
		idMongoDNS:           mongo(cluster.KindDNS),
		idMongoRefused:       mongo(cluster.KindRefused),
		idMongoUnreachable:   mongo(cluster.KindUnreachable),
		idMongoTimeout:       mongo(cluster.KindTimeout),
		idMongoLost:          mongo(cluster.KindLost),
		idMongoTLS:           mongo(cluster.KindTLS),
		idMongoAuth:          mongo(cluster.KindAuth),
		idMongoForbidden:     mongo(cluster.KindForbidden),
		idMongoNotPrimary:    mongo(cluster.KindNotPrimary),
		idMongoUnsupported:   mongo(cluster.KindUnsupported),
		idMongoConfig:        mongo(cluster.KindConfig),
		idMongo:              mongo(cluster.KindOther),
		idOutput:             &output.Error{Err: syscall.ENOSPC},
		idBalanceHeld:        errHeld,
		idBalanceSlots:       fmt.Errorf("%w: backend edge has 3", lb.ErrSlotsFull),
		idBalanceHAProxy:     fmt.Errorf("%w: connection refused", lb.ErrHAProxy),
		idMetadataForbidden:  meta(cloud.ErrForbidden),
		idMetadataWrongCloud: meta(cloud.ErrNotThisCloud),
		idMetadataNotReady:   meta(cloud.ErrNotReady),
		idMetadataNotFound:   meta(cloud.ErrNotFound),
		idMetadataBadAnswer:  meta(cloud.ErrBadAnswer),
		idMetadataUnknown:    fmt.Errorf("%w: x", cloud.ErrUnknownProvider),
		idLocked:             fmt.Errorf("waiting: %w", errors.Join(conf.ErrLocked, context.DeadlineExceeded)),
		idNotSeen:            &bootstrap.NotSeenError{Err: errors.New("not seen")},
		idNotServing:         &bootstrap.NotServingError{Apps: []ams.AppAnswer{{Name: "LiveApp", State: ams.AppStarting}}, Err: context.DeadlineExceeded},
		idService:            ams.ErrNoUnit,
		idNoDaemon:           fmt.Errorf("%w at /run/x.sock: %w", daemon.ErrDown, syscall.ENOENT),
		idOddDaemon:          fmt.Errorf("%w: 404", daemon.ErrVersion),
		idLostDaemon:         fmt.Errorf("%w: %w", daemon.ErrLost, io.EOF),
		idNotNode:            &daemon.Refusal{Code: daemon.RefusedNotMember},
		idRefused:            &daemon.Refusal{Code: daemon.RefusedFailed, Message: "no"},
		idUndrained:          &undrainedError{by: "alice"},
		idEvent:              &eventError{errors.New("the event is empty")},
		bootstrap.IDRoot:     &settings.Error{Source: "/x", Err: fs.ErrPermission},
		bootstrap.IDFileLink: fmt.Errorf("/x: %w", files.ErrLink),
		bootstrap.IDFileSize: fmt.Errorf("/x is %w", files.ErrTooLarge),
		idDiskFull:           &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC},
		idReadOnly:           &fs.PathError{Op: "open", Path: "/x", Err: syscall.EROFS},
		idPermission:         &fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES},
		idTimeout:            fmt.Errorf("waiting: %w", context.DeadlineExceeded),
	}
}

func TestEveryRowIsReached(t *testing.T) {
	g := plainGlobals(&testEnv{})
	ex := examples()
	seen := map[string]bool{}
	for _, row := range errorTable(1000) {
		if seen[row.id] {
			t.Errorf("%s is there twice", row.id)
		}
		seen[row.id] = true
		if !regexp.MustCompile(`^(AMS|AGENT)(-[A-Z]+)+$`).MatchString(row.id) {
			t.Errorf("%s is not an id", row.id)
		}
		if !slices.ContainsFunc(exitCodes(), func(c exitCode) bool { return c.code == row.exit }) {
			t.Errorf("%s: exit code %d is in no table", row.id, row.exit)
		}
		err := ex[row.id]
		if err == nil {
			t.Errorf("%s: the test has no example", row.id)
			continue
		}
		g.env.Geteuid = func() int { return map[bool]int{true: 0, false: 1000}[row.id == idPermission] } // of root alone
		// The same alone, wrapped, and as the cause of what a command says.
		for _, e := range []error{err, fmt.Errorf("doing: %w", err), &userError{Msg: "cannot do", Cause: err}, &userError{Msg: "a", Cause: &userError{Msg: "b", Cause: err}}} {
			got := g.explain(e)
			if got.ID != row.id || got.Exit != row.exit {
				t.Errorf("%s: %T is explained as %s, exit %d", row.id, e, got.ID, got.Exit)
			}
			if row.hint != nil && len(got.Hints) == 0 {
				t.Errorf("%s: no hint", row.id)
			}
		}
		// What a command knows better wins.
		own := g.explain(&userError{Msg: "m", Cause: err, Hints: []string{"own"}, Exit: codePreflight, ID: "AMS-OWN", State: "s"})
		if own.ID != "AMS-OWN" || own.Exit != codePreflight || len(own.Hints) != 1 || own.State != "s" {
			t.Errorf("%s: %+v", row.id, own)
		}
	}
	if got := g.explain(errors.New("anything")); got.ID != idFailed || got.Exit != codeFailed || got.Msg != "anything" {
		t.Errorf("%+v", got)
	}
	// Whose rights are missing may be the server's.
	for _, hint := range append(g.explain(ex[idMongoForbidden]).Hints, bootstrap.ReadHint) {
		if !strings.Contains(hint, "serverdb") || !strings.Contains(hint, "--repair-streams") {
			t.Errorf("%q", hint)
		}
	}
}

// TestIDAndCodeAgree: an error in the command line has the id and the code of one, and what came on standard input too.
func TestIDAndCodeAgree(t *testing.T) {
	for _, tt := range []struct {
		args string
		id   string
		exit int
	}{
		{"event --file /nope", "AGENT-USAGE", codeUsage},
		{"event --file /", "AGENT-USAGE", codeUsage},
		{"join --mongo file:- --offline", "AMS-MONGO-MISSING", codeFailed},
		{"nodes --mongo file:-", "AMS-MONGO-MISSING", codeFailed},
	} {
		code, _, stderr := run(t, map[string]string{"AMSAGENT_PROVIDER": "generic"}, strings.Fields(tt.args)...)
		if code != tt.exit || !strings.Contains(stderr, "["+tt.id+"]") || tt.id == "AMS-MONGO-MISSING" && !strings.Contains(stderr, "hint: ") {
			t.Errorf("%s: exit %d\n%s", tt.args, code, stderr)
		}
	}
}

// Every id that a command prints has its page. That every page has an id is a test of docs/errors.
func TestErrorPages(t *testing.T) {
	ids := slices.Concat([]string{idFailed, idPreflight}, doctor.IDs(), lint.IDs())
	for _, row := range errorTable(1000) {
		ids = append(ids, row.id)
	}
	have := pages.IDs()
	for _, id := range ids {
		if !slices.Contains(have, id) {
			t.Errorf("%s has no page in docs/errors", id)
		}
	}
}

// The lines are an interface of the README, and the object is one of programs. Of several problems each has its own lines
// together; a hint of all stands once, at the end.
func TestErrorLines(t *testing.T) {
	refused := &cluster.Error{Kind: cluster.KindRefused, Op: "asking MongoDB", Host: "10.0.1.7:27017", Err: errors.New("dial tcp 10.0.1.7:27017: connect: connection refused")}
	notReady := &metadata.Error{Provider: "aws", Item: "x", Kind: cloud.ErrNotReady, Cause: errors.New("y"), Context: context.DeadlineExceeded}
	checks := cannot("join", &bootstrap.PreflightError{Findings: []bootstrap.Finding{
		{ID: "AMS-A", Text: "first\nits detail", Hint: "for a"}, {ID: "AMS-B", Text: "second", Hint: "for both"}, {ID: "AMS-C", Text: "third", Hint: "for both"}, {ID: "AMS-D", Text: "fourth"},
	}})
	for _, tt := range []struct {
		name string
		json bool
		err  error
		exit int
		want string
	}{
		{
			name: "one cause", exit: codePreflight,
			err: &userError{
				Msg: "cannot switch to cluster mode", Cause: refused, Hints: []string{"the security group of the database must admit port 27017 from this subnet"},
				State: "nothing was changed on this machine", Exit: codePreflight,
			},
			want: `amsagent: error: cannot switch to cluster mode: MongoDB at 10.0.1.7:27017 refused the connection [AMS-MONGO-REFUSED]
amsagent: cause: dial tcp 10.0.1.7:27017: connect: connection refused
amsagent: hint: the security group of the database must admit port 27017 from this subnet
amsagent: nothing was changed on this machine
`,
		},
		{
			name: "several causes", exit: codePreflight,
			err: &userError{Msg: "2 checks failed", Cause: errors.Join(errors.New("first\nand more"), fmt.Errorf("x: %w", errors.New("second"))), Exit: codePreflight},
			want: `amsagent: error: 2 checks failed [AGENT-FAILED]
amsagent: cause: first
amsagent: cause:   and more
amsagent: cause: x: second
amsagent: nothing was changed on this machine
`,
		},
		{
			name: "a cause that wraps several things below its own text", exit: codeFailed,
			err: &userError{Msg: "m", Cause: errors.Join(notReady, errors.Join(errors.New("z"))), ID: "AMS-X", Hints: []string{"h"}},
			want: `amsagent: error: m [AMS-X]
amsagent: cause: ` + notReady.Error() + `
amsagent: cause: z
amsagent: hint: h
`,
		},
		{
			name: "hints of several causes", exit: codePreflight, err: checks,
			want: `amsagent: error: cannot join: 4 checks failed [AGENT-PREFLIGHT]
amsagent: cause: AMS-A: first
amsagent: cause:   its detail
amsagent: hint: for a
amsagent: cause: AMS-B: second
amsagent: cause: AMS-C: third
amsagent: hint: for both
amsagent: cause: AMS-D: fourth
amsagent: nothing was changed on this machine
`,
		},
		{
			name: "the same as JSON", exit: codePreflight, err: checks, json: true,
			want: `{"schema_version":1,"kind":"error","error":{"id":"AGENT-PREFLIGHT","message":"cannot join: 4 checks failed",` +
				`"cause":"AMS-A: first\nits detail\nAMS-B: second\nAMS-C: third\nAMS-D: fourth","hints":["for a","for both"],` +
				`"state":"nothing was changed on this machine","exit_code":3}}` + "\n",
		},
		{
			name: "secrets in JSON", exit: codeUnknown, json: true,
			err:  &userError{Msg: "m hunter22", Cause: errors.New("c <&> hunter22"), Hints: []string{"h hunter22"}, State: "s hunter22", Exit: codeUnknown, ID: "AMS-X"},
			want: `{"schema_version":1,"kind":"error","error":{"id":"AMS-X","message":"m ***","cause":"c <&> ***","hints":["h ***"],"state":"s ***","exit_code":4}}` + "\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &testEnv{}
			g := plainGlobals(e)
			if tt.json {
				g.out.SetForm("json", "always", 0)
			}
			g.out.AddSecrets("hunter22")
			must.Equal(t, "exit", report(t.Context(), g, tt.err), tt.exit)
			must.NoDiff(t, "stderr", e.stderr.String(), tt.want)
		})
	}
}

// sayEverywhere sends a text by each way out.
func sayEverywhere(t *testing.T, g *globals, text string) {
	t.Helper()
	report(t.Context(), g, &userError{Msg: "m " + text, Cause: errors.New("c " + text), Hints: []string{"h " + text}, State: "s " + text})
	l := g.out.Log().With("with", text).WithGroup("g")
	l.Debug("m "+text, "string", text, "error", errors.New(text), "list", []string{text}, "struct", struct{ A string }{text}) //nolint:sloglint // the message has the text, too
	g.out.Progress("p " + text)
	must.OK(t, g.result("x", map[string]any{"v": text, "n": 1}, func(w *output.Text) { w.Line("%s", text) }))
}

// A password comes through in no spelling and in no form of output.
func TestNoSecretComesThrough(t *testing.T) {
	const password = `p@:/?#%&\"ä ß`
	target, err := cluster.ParseTarget("mongodb://app:" + strings.ReplaceAll(url.QueryEscape(password), "+", "%20") + "@10.0.0.1/")
	must.OK(t, err)
	uri := target.URI().Reveal()
	quoted, err := json.Marshal(password)
	must.OK(t, err)
	leaks := []string{password, uri, strings.TrimPrefix(uri, "mongodb://"), strings.Trim(string(quoted), `"`), fmt.Sprintf("%+q", password)}
	for _, form := range []string{"text", "json"} {
		for _, terminal := range []bool{false, true} {
			e := &testEnv{}
			env := e.env()
			env.IsTerminal = func(any) bool { return terminal }
			g := globalsOf(env)
			g.out.SetForm(form, "auto", -4)
			g.out.AddSecrets(target.Secrets()...)
			for _, leak := range leaks {
				sayEverywhere(t, g, leak)
			}
			g.out.Log().Debug("m", "uri", target)
			all := e.stdout.String() + e.stderr.String()
			for _, leak := range []string{password, `p%40`, `p@:`, `p\u0040`} {
				if strings.Contains(all, leak) {
					t.Errorf("%s, terminal %t: %q comes through:\n%s", form, terminal, leak, all)
				}
			}
			must.Contain(t, "all that was printed", all, "***")
		}
	}
}

// A password that is a word of ours must not break the object that it is kept out of.
func TestRedactedJSONStaysJSON(t *testing.T) {
	for _, password := range []string{"kind", "1", "true", `"`, `\`, "schema_version", "null", "a"} {
		e := &testEnv{}
		g := plainGlobals(e)
		g.out.SetForm("json", "never", 0)
		g.out.AddSecrets(redact.Secret(password))
		must.OK(t, g.result("kind", map[string]any{"value": "x " + password + " y", "n": 1, "null": nil, "true": true}, nil))
		var got map[string]any
		if err := json.Unmarshal([]byte(e.stdout.String()), &got); err != nil {
			t.Fatalf("password %q: %v in\n%s", password, err, e.stdout.String())
		}
		if got["schema_version"] != 1.0 || got["true"] != true || got["value"] != "x *** y" {
			t.Errorf("password %q: %v", password, got)
		}
	}
}
