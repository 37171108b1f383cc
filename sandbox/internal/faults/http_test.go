// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	const several = "several kinds"
	for _, tt := range []struct {
		fault faults.HTTP
		own   []bool
		want  string
	}{
		{fault: faults.HTTP{Status: 503, Delay: time.Second, Times: 2}},
		{fault: faults.HTTP{Delay: time.Second}},
		{fault: faults.HTTP{Truncate: true}},
		{fault: faults.HTTP{Huge: true}},
		{fault: faults.HTTP{Hang: true}},
		{fault: faults.HTTP{Reset: true}},
		{own: []bool{false, true}},
		{want: "a fault that does nothing"},
		{fault: faults.HTTP{Body: "x"}, want: "a fault that does nothing"},
		{own: []bool{false}, want: "a fault that does nothing"},
		{fault: faults.HTTP{Delay: -1}, want: "a fault that does nothing"},
		{fault: faults.HTTP{Hang: true, Delay: -1}, want: "negative number in a fault"},
		{fault: faults.HTTP{Hang: true, Times: -1}, want: "negative number in a fault"},
		{fault: faults.HTTP{Hang: true, Reset: true}, want: several},
		{fault: faults.HTTP{Status: 500, Huge: true}, want: several},
		{fault: faults.HTTP{Truncate: true}, own: []bool{true}, want: several},
		{own: []bool{true, true}, want: several},
		{fault: faults.HTTP{Status: 199}, want: "status 199 is none"},
		{fault: faults.HTTP{Status: 600}, want: "status 600 is none"},
	} {
		got := ""
		if err := tt.fault.Validate(several, tt.own...); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v with %v: %q, want %q", tt.fault, tt.own, got, tt.want)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "", true},
		{"", "a/b", true},
		{"a/b", "a/b", true},
		{"a/b", "a/bc", false},
		{"a/b", "a", false},
		{"a/*", "a/b/c", true},
		{"a/*", "a/", true},
		{"a/*", "a", false},
		{"*", "", true},
	} {
		if got := faults.Covers(tt.pattern, tt.name); got != tt.want {
			t.Errorf("%q covers %q: %v", tt.pattern, tt.name, got)
		}
	}
}

// service answers "right" with 200.
type service struct{ list faults.List[faults.HTTP] }

func (s *service) Faults() []faults.HTTP { return s.list.All() }
func (s *service) ClearFaults()          { s.list.Clear() }

func (s *service) AddFault(f faults.HTTP) error {
	return s.list.Add(f, f.Times, func() error { return f.Validate("a fault has one kind") })
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault, healed := s.list.Strike(func(faults.HTTP) bool { return true })
	reply := func(status int, body string) { faults.Write(w, status, body) }
	if !fault.Instead(w, r, healed, reply) {
		fault.Answer(w, http.StatusOK, "right", reply)
	}
}

// ask gives the status and the body, as far as they came.
func ask(ctx context.Context, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	// A connection of its own: one that was used before is tried again when it fails.
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, b), err
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault faults.HTTP
		want  string
		err   error
	}{
		"status":    {fault: faults.HTTP{Status: 503}, want: "503 Service Unavailable"},
		"body":      {fault: faults.HTTP{Status: 200, Body: "<html>"}, want: "200 <html>"},
		"truncated": {fault: faults.HTTP{Truncate: true}, want: "200 ri", err: io.ErrUnexpectedEOF},
		"huge":      {fault: faults.HTTP{Huge: true}, want: "200 right" + strings.Repeat(" ", 2<<20)},
		"reset":     {fault: faults.HTTP{Reset: true}, err: syscall.ECONNRESET},
		"late":      {fault: faults.HTTP{Delay: 20 * time.Millisecond}, want: "200 right"},
		"late 500":  {fault: faults.HTTP{Delay: 20 * time.Millisecond, Status: 500}, want: "500 Internal Server Error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s service
			server := httptest.NewServer(&s)
			defer server.Close()
			tt.fault.Times = 1
			if err := s.AddFault(tt.fault); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			got, err := ask(t.Context(), server.URL)
			if got != tt.want || !errors.Is(err, tt.err) || time.Since(began) < tt.fault.Delay {
				t.Errorf("%.40q (%d bytes), %v, after %v", got, len(got), err, time.Since(began))
			}
			if got, err = ask(t.Context(), server.URL); got != "200 right" || err != nil {
				t.Errorf("afterwards: %.40q, %v", got, err)
			}
		})
	}
}

// TestHeal lets go of what is held back: a late answer comes, and what hangs is cut.
func TestHeal(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault faults.HTTP
		want  string
		err   error
	}{
		"late": {fault: faults.HTTP{Delay: time.Hour}, want: "200 right"},
		"hang": {fault: faults.HTTP{Hang: true}, err: io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s service
			server := httptest.NewServer(&s)
			defer server.Close()
			tt.fault.Times = 1 // it is out of the list when it has struck
			if err := s.AddFault(tt.fault); err != nil {
				t.Fatal(err)
			}
			type answer struct {
				text string
				err  error
			}
			came := make(chan answer, 1)
			go func() {
				text, err := ask(t.Context(), server.URL)
				came <- answer{text, err}
			}()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for len(s.Faults()) > 0 {
				<-tick.C
			}
			select {
			case a := <-came:
				t.Fatalf("before it was healed: %q, %v", a.text, a.err)
			default:
			}
			s.ClearFaults()
			if a := <-came; a.text != tt.want || !errors.Is(a.err, tt.err) {
				t.Errorf("healed: %q, %v", a.text, a.err)
			}
		})
	}
}

// TestGone lets go of the request of a client that waits no longer: the server could
// not be closed otherwise.
func TestGone(t *testing.T) {
	t.Parallel()
	for _, f := range []faults.HTTP{{Delay: time.Hour}, {Hang: true}} {
		var s service
		server := httptest.NewServer(&s)
		if err := s.AddFault(f); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if got, err := ask(ctx, server.URL); err == nil {
			t.Errorf("%+v: %q", f, got)
		}
		cancel()
		server.Close()
	}
}

func TestHandle(t *testing.T) {
	t.Parallel()
	var s service
	mux := http.NewServeMux()
	faults.Handle(mux, &s, func(q url.Values) (faults.HTTP, error) {
		var f faults.HTTP
		err := control.Decode(q, map[string]any{"status": &f.Status, "hang": &f.Hang})
		return f, err
	})
	for _, step := range []struct {
		method, query string
		status        int
		want          []faults.HTTP
		says          string
	}{
		{method: "GET", status: 200, want: []faults.HTTP{}},
		{method: "POST", query: "status=503", status: 200, want: []faults.HTTP{{Status: 503}}},
		{method: "POST", query: "hang=true", status: 200, want: []faults.HTTP{{Status: 503}, {Hang: true}}},
		{method: "POST", query: "statsu=503", status: 400, says: "parameter statsu: unknown\n"},
		{method: "POST", query: "", status: 400, says: "adding a fault: a fault that does nothing\n"},
		{method: "GET", status: 200, want: []faults.HTTP{{Status: 503}, {Hang: true}}},
		{method: "DELETE", status: 200, want: []faults.HTTP{}},
		{method: "GET", status: 200, want: []faults.HTTP{}},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), step.method, "/fault?"+step.query, nil))
		text := w.Body.String()
		if w.Code != step.status || step.says != "" && text != step.says {
			t.Errorf("%s %s: %d %s", step.method, step.query, w.Code, text)
		}
		if step.says != "" {
			continue
		}
		var got []faults.HTTP
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%s %s: %v in %s", step.method, step.query, err, text)
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", step.method, step.query, diff)
		}
	}
}
