// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestRounded(t *testing.T) {
	now := time.Date(2026, 7, 3, 12, 0, 0, 0, time.UTC)
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
		must.Equal(t, fmt.Sprint(d), Rounded(d), want)
	}
	for d, want := range map[time.Duration]string{
		0: "just now", 12 * time.Second: "12 s ago", 119 * time.Second: "119 s ago", 5 * time.Minute: "5 min ago",
		3 * time.Hour: "3 h ago", 72 * time.Hour: "3 d ago", -time.Minute: "in 60 s",
	} {
		w := &Text{Now: now}
		must.Equal(t, fmt.Sprint(d), w.Ago(now.Add(-d)), want)
	}
	must.Equal(t, "without a time", (&Text{Now: now}).Ago(time.Time{}), "never")
}

func TestEnvelope(t *testing.T) {
	b, err := Envelope("x", struct{}{})
	if err != nil || string(b) != "{\n  \"schema_version\": 1,\n  \"kind\": \"x\"\n}\n" {
		t.Errorf("%s, %v", b, err)
	}
	b, err = Envelope("x", map[string]any{"a": "<&>"})
	if err != nil || string(b) != "{\n  \"schema_version\": 1,\n  \"kind\": \"x\",\n  \"a\": \"<&>\"\n}\n" {
		t.Errorf("%s, %v", b, err)
	}
	if _, err = Envelope("x", []int{1}); err == nil {
		t.Error("a list is no object")
	}
	if _, err = Envelope("x", func() {}); err == nil {
		t.Error("a function cannot be encoded")
	}
}

func TestTable(t *testing.T) {
	w := &Text{}
	w.Table([][]string{{"a", "bb", ""}, {"ccc", "", "d"}, {"\x1b", "é"}})
	const want = "  a       bb\n  ccc         d\n  \\u001b  é\n"
	must.NoDiff(t, "table", w.String(), want)
	w = &Text{}
	w.Fields("id", "x", "zone", "", "type", "y")
	must.NoDiff(t, "table", w.String(), "  id    x\n  type  y\n")
}

func TestLogForms(t *testing.T) {
	say := func(l *slog.Logger) {
		l.Debug("hidden")
		l.With("cloud", "aws").WithGroup("try").Info("asking", "n", 2, slog.Group("in", "ms", 5))
		l.Warn("odd\nthing", "error", errors.New("two words"))
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
			want: "amsagent: asking (cloud=aws try.n=2 try.in.ms=5)\namsagent: warning: odd; thing (error=\"two words\")\namsagent: error: bad\n",
		},
		{
			name: "systemd", vars: map[string]string{"INVOCATION_ID": "x"},
			want: "level=INFO msg=asking cloud=aws try.n=2 try.in.ms=5\nlevel=WARN msg=\"odd\\nthing\" error=\"two words\"\nlevel=ERROR msg=bad\n",
		},
		{
			name: "journal", vars: map[string]string{"INVOCATION_ID": "x", "JOURNAL_STREAM": "1:2"}, journal: true,
			want: "<6>level=INFO msg=asking cloud=aws try.n=2 try.in.ms=5\n<4>level=WARN msg=\"odd\\nthing\" error=\"two words\"\n<3>level=ERROR msg=bad\n",
		},
		{
			name: "json", form: "json", terminal: true,
			want: `{"time":T,"level":"INFO","msg":"asking","cloud":"aws","try":{"n":2,"in":{"ms":5}}}` + "\n" +
				`{"time":T,"level":"WARN","msg":"odd\nthing","error":"two words"}` + "\n" + `{"time":T,"level":"ERROR","msg":"bad"}` + "\n",
		},
		{
			name: "pipe",
			want: "time=T level=INFO msg=asking cloud=aws try.n=2 try.in.ms=5\ntime=T level=WARN msg=\"odd\\nthing\" error=\"two words\"\ntime=T level=ERROR msg=bad\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // fixes the clock
				var stderr strings.Builder
				p := New(Streams{
					Stdout: io.Discard, Stderr: &stderr, IsTerminal: func(any) bool { return tt.terminal }, Now: time.Now,
					IsJournal: tt.journal && tt.vars["JOURNAL_STREAM"] != "", Getenv: func(name string) string { return tt.vars[name] },
				})
				p.SetForm(tt.form, "never", slog.LevelInfo)
				say(p.Log())
				now := time.Now()
				got := strings.ReplaceAll(stderr.String(), now.Format("2006-01-02T15:04:05.000Z07:00"), "T")
				stamp, err := json.Marshal(now)
				must.OK(t, err)
				if got = strings.ReplaceAll(got, string(stamp), "T"); got != tt.want {
					t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
				}
			})
		})
	}
}
