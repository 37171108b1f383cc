// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
)

func TestRounded(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0 ms",
		850 * time.Microsecond:   "1 ms",
		850 * time.Millisecond:   "850 ms",
		1200 * time.Millisecond:  "1.2 s",
		2 * time.Second:          "2 s",
		12340 * time.Millisecond: "12 s",
		59700 * time.Millisecond: "60 s",
		90 * time.Second:         "1 min 30 s",
		5 * time.Minute:          "5 min",
		65 * time.Minute:         "1 h 5 min",
		2 * time.Hour:            "2 h",
		-90 * time.Second:        "-1 min 30 s",
	} {
		if got := rounded(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "just now", 12 * time.Second: "12 s ago", 119 * time.Second: "119 s ago", 5 * time.Minute: "5 min ago",
		3 * time.Hour: "3 h ago", 72 * time.Hour: "3 d ago", -time.Minute: "in 60 s",
	} {
		w := &textWriter{now: fixedNow()}
		if got := w.ago(fixedNow().Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	if got := (&textWriter{now: fixedNow()}).ago(time.Time{}); got != "never" {
		t.Errorf("%q", got)
	}
	for d, want := range map[time.Duration]string{5 * time.Minute: "5m", time.Hour: "1h", 90 * time.Minute: "1h30m", time.Second: "1s", 3605 * time.Second: "1h0m5s"} {
		if got := settings.ShortDuration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestEnvelope(t *testing.T) {
	b, err := envelope("x", struct{}{})
	if err != nil || string(b) != "{\n  \"schema_version\": 1,\n  \"kind\": \"x\"\n}\n" {
		t.Errorf("%s, %v", b, err)
	}
	b, err = envelope("x", map[string]any{"a": "<&>"})
	if err != nil || string(b) != "{\n  \"schema_version\": 1,\n  \"kind\": \"x\",\n  \"a\": \"<&>\"\n}\n" {
		t.Errorf("%s, %v", b, err)
	}
	if _, err = envelope("x", []int{1}); err == nil {
		t.Error("a list is no object")
	}
	if _, err = envelope("x", func() {}); err == nil {
		t.Error("a function cannot be encoded")
	}
}

func TestTable(t *testing.T) {
	w := &textWriter{}
	w.table([][]string{{"a", "bb", ""}, {"ccc", "", "d"}, {"\x1b", "é"}})
	const want = "  a       bb\n  ccc         d\n  \\u001b  é\n"
	if got := w.b.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	w = &textWriter{}
	w.fields("id", "x", "zone", "", "type", "y")
	if got := w.b.String(); got != "  id    x\n  type  y\n" {
		t.Errorf("%q", got)
	}
}

func TestColor(t *testing.T) {
	for _, tt := range []struct {
		name     string
		terminal bool
		vars     map[string]string
		args     []string
		want     bool
	}{
		{"pipe", false, nil, nil, false},
		{"terminal", true, nil, nil, true},
		{"dumb", true, map[string]string{"TERM": "dumb"}, nil, false},
		{"NO_COLOR", true, map[string]string{"NO_COLOR": "1"}, nil, false},
		{"--color never", true, nil, []string{"--color", "never"}, false},
		{"--color always", false, nil, []string{"--color", "always"}, true},
		{"--color always -o json", true, nil, []string{"--color", "always", "-o", "json"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &testEnv{vars: tt.vars}
			env := e.env()
			env.IsTerminal = func(any) bool { return tt.terminal }
			args := append([]string{"config", "--offline", "--root", t.TempDir()}, tt.args...)
			if code := Main(args, env); code != 0 {
				t.Fatalf("exit %d: %s", code, e.stderr.String())
			}
			if got := strings.Contains(e.stdout.String(), "\x1b["); got != tt.want {
				t.Errorf("color %t, want %t:\n%s", got, tt.want, e.stdout.String())
			}
		})
	}
}

func TestLogForms(t *testing.T) {
	say := func(l *slog.Logger) {
		l.Debug("hidden")
		l.With("cloud", "aws").WithGroup("try").Info("asking", "n", 2, slog.Group("in", "ms", 5))
		l.Warn("odd\nthing", "err", errors.New("two words"))
		l.Error("bad")
	}
	for _, tt := range []struct {
		name     string
		vars     map[string]string
		terminal bool
		journal  bool
		form     string
		want     string
	}{
		{
			name: "terminal", terminal: true,
			want: "amsagent: asking (cloud=aws try.n=2 try.in.ms=5)\namsagent: warning: odd; thing (err=\"two words\")\namsagent: error: bad\n",
		},
		{
			name: "systemd", vars: map[string]string{"INVOCATION_ID": "x"},
			want: "level=INFO msg=asking cloud=aws try.n=2 try.in.ms=5\nlevel=WARN msg=\"odd\\nthing\" err=\"two words\"\nlevel=ERROR msg=bad\n",
		},
		{
			name: "journal", vars: map[string]string{"INVOCATION_ID": "x", "JOURNAL_STREAM": "1:2"}, journal: true,
			want: "<6>level=INFO msg=asking cloud=aws try.n=2 try.in.ms=5\n<4>level=WARN msg=\"odd\\nthing\" err=\"two words\"\n<3>level=ERROR msg=bad\n",
		},
		{
			name: "json", form: "json", terminal: true,
			want: `{"time":T,"level":"INFO","msg":"asking","cloud":"aws","try":{"n":2,"in":{"ms":5}}}` + "\n" +
				`{"time":T,"level":"WARN","msg":"odd\nthing","err":"two words"}` + "\n" + `{"time":T,"level":"ERROR","msg":"bad"}` + "\n",
		},
		{
			name: "pipe",
			want: "time=T level=INFO msg=asking cloud=aws try.n=2 try.in.ms=5\ntime=T level=WARN msg=\"odd\\nthing\" err=\"two words\"\ntime=T level=ERROR msg=bad\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // fixes the clock
				e := &testEnv{vars: tt.vars}
				env := e.env()
				env.IsTerminal = func(any) bool { return tt.terminal }
				env.IsJournal = tt.journal && tt.vars["JOURNAL_STREAM"] != ""
				g := globalsOf(env)
				g.setForm(tt.form, "never", slog.LevelInfo)
				say(g.log())
				now := time.Now()
				got := strings.ReplaceAll(e.stderr.String(), now.Format("2006-01-02T15:04:05.000Z07:00"), "T")
				stamp, err := json.Marshal(now)
				must.OK(t, err)
				if got = strings.ReplaceAll(got, string(stamp), "T"); got != tt.want {
					t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
				}
			})
		})
	}
}

func TestLogLevels(t *testing.T) {
	for level, want := range map[string]int{"debug": 4, "info": 3, "warn": 2, "error": 1} {
		e := &testEnv{vars: map[string]string{"AMSAGENT_LOG_LEVEL": level}}
		g := loaded(t, e, "--root", t.TempDir())
		g.log().Debug("x")
		g.log().Info("x")
		g.log().Warn("x")
		g.log().Error("x")
		if n := strings.Count(e.stderr.String(), "\n"); n != want {
			t.Errorf("%s: %d lines, want %d", level, n, want)
		}
	}
}

func TestOSEnv(t *testing.T) {
	env := OS()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	must.OK(t, err)
	defer f.Close()
	if env.IsTerminal(f) || env.IsTerminal((*os.File)(nil)) || env.IsTerminal(io.Discard) {
		t.Error("a file is no terminal")
	}
	if master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err == nil {
		defer master.Close()
		if !env.IsTerminal(master) {
			t.Error("a pseudo terminal is a terminal")
		}
	}
}

func TestLeaveTextStartsAServiceCommand(t *testing.T) {
	w := &textWriter{}
	leaveText(w, &bootstrap.LeaveResult{Outcome: bootstrap.OutcomeLeft, Stopped: true}, false, "/opt/ctl.sh")
	if !strings.Contains(w.b.String(), "does not run; start it: /opt/ctl.sh start\n") {
		t.Errorf("got:\n%s", w.b.String())
	}
}
