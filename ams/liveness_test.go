// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCheckLiveness(t *testing.T) {
	for name, c := range map[string]struct {
		code int
		body string
		want Liveness
	}{
		"live":            {200, `{"host":"node-1","status":"alive"}`, Liveness{State: Live, Code: 200, Host: "node-1", Status: "alive"}},
		"other fields":    {200, `{"host":7,"x":[]}`, Liveness{State: Live, Code: 200}},
		"somebody else":   {200, "<html>welcome to nginx</html>", Liveness{State: LiveUnknown, Code: 200, Detail: "it answers 200, but not as Ant Media Server does"}},
		"endless":         {200, `{"host":"` + strings.Repeat("x", livenessBody) + `"}`, Liveness{State: LiveUnknown, Code: 200, Detail: "it answers 200, but not as Ant Media Server does"}},
		"console not up":  {403, "", Liveness{State: LiveStarting, Code: 403, Detail: "it answers 403 Forbidden"}},
		"unavailable":     {503, "", Liveness{State: LiveStarting, Code: 503, Detail: "it answers 503 Service Unavailable"}},
		"no own hostname": {500, "", Liveness{State: LiveBroken, Code: 500, Detail: "it answers 500 Internal Server Error: its own hostname does not resolve"}},
		"old release":     {404, "", Liveness{State: LiveNoEndpoint, Code: 404, Detail: "it answers, without a liveness call"}},
		"redirect":        {302, "", Liveness{State: LiveUnknown, Code: 302, Detail: "it answers 302 Found, leading to https://elsewhere/"}},
		"login":           {401, "", Liveness{State: LiveUnknown, Code: 401, Detail: "it answers 401 Unauthorized"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/rest/v2/liveness" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Via") != "" {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
				}
				if c.code == 302 {
					w.Header().Set("Location", "https://elsewhere/")
				}
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			// Whatever the environment says about proxies.
			t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
			if diff := cmp.Diff(c.want, CheckLiveness(t.Context(), nil, srv.URL+"/")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckLivenessNoAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + l.Addr().String()
	_ = l.Close()
	if got := CheckLiveness(t.Context(), nil, base); got.State != LiveStarting || got.Detail != "nobody listens yet" {
		t.Errorf("refused: %+v", got)
	}

	hangup := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = c.Close()
		}
	}))
	defer hangup.Close()
	if got := CheckLiveness(t.Context(), nil, hangup.URL); got.State != LiveStarting {
		t.Errorf("hung up: %+v", got)
	}

	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"host":`)
	}))
	defer cut.Close()
	if got := CheckLiveness(t.Context(), nil, cut.URL); got.State != LiveStarting {
		t.Errorf("cut: %+v", got)
	}

	for _, bad := range []string{"", "://", "127.0.0.1:5080", "http://127.0.0.1:99999"} {
		if got := CheckLiveness(t.Context(), nil, bad); got.State != LiveUnknown || got.Detail == "" {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// answers is a server whose answers are written down: each from its time on.
type answers struct {
	began time.Time
	list  []timedAnswer
	calls int
}

type timedAnswer struct {
	from time.Duration
	code int // 0 = refused, -1 = silence
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.calls++
	code := 0
	for _, t := range a.list {
		if time.Since(a.began) >= t.from {
			code = t.code
		}
	}
	switch code {
	case 0:
		return nil, &net.OpError{Op: "dial", Err: errRefused}
	case -1:
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return &http.Response{
		StatusCode: code, Status: fmt.Sprintf("%d %s", code, http.StatusText(code)), Header: http.Header{},
		Body: io.NopCloser(strings.NewReader(`{"host":"h","status":"s"}`)), Request: r,
	}, nil
}

func TestWaitLive(t *testing.T) {
	const s = time.Second
	old, modern := Release{Version: "2.4.3"}, Release{Version: "3.0.3"}
	for _, c := range []struct {
		name    string
		answers []timedAnswer
		release Release
		limit   time.Duration
		after   time.Duration
		state   LivenessState
		want    error
		told    []string // state at seconds since the start
	}{
		{"at once", []timedAnswer{{0, 200}}, modern, time.Minute, 0, Live, nil, []string{"0 live"}},
		{
			"a usual start",
			[]timedAnswer{{0, 0}, {5 * s, 404}, {7 * s, 403}, {20 * s, 200}},
			modern, time.Minute, 20 * s, Live, nil,
			[]string{"0 starting", "5 no-endpoint", "7 starting", "20 live"},
		},
		{"a moment of 500", []timedAnswer{{0, 0}, {2 * s, 500}, {5 * s, 200}}, modern, time.Minute, 5 * s, Live, nil, []string{"0 starting", "2 broken", "5 live"}},
		{"500 for good", []timedAnswer{{0, 500}}, modern, time.Minute, 4 * s, LiveBroken, ErrBroken, []string{"0 broken"}},
		{"an old release", []timedAnswer{{0, 0}, {3 * s, 404}}, old, time.Minute, 3 * s, LiveNoEndpoint, nil, []string{"0 starting", "3 no-endpoint"}},
		{"nobody knows the release", []timedAnswer{{0, 0}, {3 * s, 404}}, Release{}, time.Minute, 7 * s, LiveNoEndpoint, nil, []string{"0 starting", "3 no-endpoint"}},
		{"404 for good", []timedAnswer{{0, 404}}, modern, 20 * s, 20 * s, LiveNoEndpoint, context.DeadlineExceeded, []string{"0 no-endpoint", "15 no-endpoint"}},
		{"never", []timedAnswer{{0, 0}}, modern, 40 * s, 40 * s, LiveStarting, context.DeadlineExceeded, []string{"0 starting", "15 starting", "30 starting"}},
		{"silent", []timedAnswer{{0, -1}, {10 * s, 200}}, modern, time.Minute, 12 * s, Live, nil, []string{"3 unknown", "12 live"}},
		{"silent to the end", []timedAnswer{{0, -1}}, modern, 2 * s, 2 * s, LiveUnknown, context.DeadlineExceeded, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.limit)
				defer cancel()
				begin := time.Now()
				var told []string
				got, err := WaitLive(ctx, &http.Client{Transport: &answers{began: begin, list: c.answers}}, "http://127.0.0.1:5080", WaitOptions{
					Release: c.release,
					Progress: func(l Liveness, since time.Duration) {
						told = append(told, fmt.Sprintf("%.0f %s", since.Seconds(), l.State))
					},
				})
				if !errors.Is(err, c.want) || got.State != c.state || time.Since(begin) != c.after {
					t.Errorf("got %+v, %v after %s", got, err, time.Since(begin))
				}
				if diff := cmp.Diff(c.told, told); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestWaitLiveServiceDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		died := &UnstableError{Service: "antmedia.service", State: State{Activity: ActivityFailed}}
		_, err := WaitLive(t.Context(), &http.Client{Transport: &answers{began: begin}}, "http://127.0.0.1:5080", WaitOptions{Alive: func(context.Context) error {
			if time.Since(begin) >= 3*time.Second {
				return died
			}
			return nil
		}})
		if !errors.Is(err, ErrUnstable) || time.Since(begin) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}

func TestWaitLiveInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		a := &answers{began: time.Now()}
		// However short it is asked to be, it is no storm.
		if _, err := WaitLive(ctx, &http.Client{Transport: a}, "http://127.0.0.1:5080", WaitOptions{Interval: 1}); !errors.Is(err, context.DeadlineExceeded) || a.calls > 101 {
			t.Errorf("%d calls, %v", a.calls, err)
		}
	})
}
