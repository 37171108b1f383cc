// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/port"
)

type parameters struct {
	Text string
	Yes  bool
	N    int
	Code int32
	List []string
	Time time.Duration
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for query, c := range map[string]struct {
		want parameters
		err  string // what the error names; empty: there is none
	}{
		"":                  {},
		"text=a%20b&yes=1":  {want: parameters{Text: "a b", Yes: true}},
		"n=-3&code=91":      {want: parameters{N: -3, Code: 91}},
		"list=a,b&time=500": {want: parameters{List: []string{"a", "b"}, Time: 500 * time.Millisecond}},
		"txet=a":            {err: "parameter txet: unknown"},
		"n=3s":              {err: "parameter n"},
		"code=4294967296":   {err: "parameter code"},
		"yes=perhaps":       {err: "parameter yes"},
		"time=5s":           {err: "parameter time"},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		var got parameters
		err = control.Decode(q, map[string]any{
			"text": &got.Text, "yes": &got.Yes, "n": &got.N, "code": &got.Code, "list": &got.List, "time": &got.Time,
		})
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v, want an error of %q", query, err, c.err)
			}
		case err != nil:
			t.Errorf("%q: %v", query, err)
		default:
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%q (-want +got):\n%s", query, diff)
			}
		}
	}
}

func TestPatch(t *testing.T) {
	t.Parallel()
	it := parameters{Text: "a", N: 1}
	h := control.Patch("the thing", func() parameters { return it }, func(change func(*parameters)) { change(&it) })
	for _, step := range []struct {
		body   string
		status int
		want   parameters
		says   string
	}{
		{body: `{"N": 2, "Yes": true}`, status: 200, want: parameters{Text: "a", N: 2, Yes: true}},
		{body: `{"Txet": "b"}`, status: 400, want: parameters{Text: "a", N: 2, Yes: true}, says: `reading the thing: json: unknown field "Txet"`},
		{body: ``, status: 400, want: parameters{Text: "a", N: 2, Yes: true}, says: "reading the thing: EOF"},
		{body: `{}`, status: 200, want: parameters{Text: "a", N: 2, Yes: true}},
	} {
		w := httptest.NewRecorder()
		h(w, httptest.NewRequestWithContext(t.Context(), http.MethodPatch, "/", strings.NewReader(step.body)))
		if diff := cmp.Diff(step.want, it); diff != "" || w.Code != step.status {
			t.Errorf("%s: status %d (-want +got):\n%s", step.body, w.Code, diff)
		}
		if step.says != "" {
			if got := strings.TrimSpace(w.Body.String()); got != step.says {
				t.Errorf("%s: it says %q, want %q", step.body, got, step.says)
			}
			continue
		}
		var got parameters
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || !cmp.Equal(got, step.want) {
			t.Errorf("%s: answered %+v, %v", step.body, got, err)
		}
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	var s *control.Server
	if s.Addr() != "" || s.Close() != nil {
		t.Errorf("a server that was not started: at %q, closed: %v", s.Addr(), s.Close())
	}
}

func TestServeBoth(t *testing.T) {
	t.Parallel()
	says := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	}
	ask := func(s *control.Server) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr(), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	s, c, err := control.ServeBoth(t.Context(), "", says("service"), "127.0.0.1:0", says("control"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = s.Close(), c.Close() }()
	if service, beside := ask(s), ask(c); service != "service" || beside != "control" || !strings.HasPrefix(s.Addr(), "127.0.0.1:") {
		t.Errorf("at %s says %q, at %s says %q", s.Addr(), service, c.Addr(), beside)
	}
	free, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(free))
	alone, none, err := control.ServeBoth(t.Context(), address, says("alone"), "", says("nothing"))
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(alone); got != "alone" || none != nil {
		t.Errorf("alone it says %q; beside it: %v", got, none)
	}
	if err := alone.Close(); err != nil {
		t.Fatal(err)
	}
	if s, c, err := control.ServeBoth(t.Context(), address, says(""), c.Addr(), says("")); err == nil || s != nil || c != nil {
		t.Errorf("with a control port that is taken: %v, %v, %v", s, c, err)
	}
	// The service that was started first is gone again.
	again, err := control.Serve(t.Context(), address, says("again"))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
