// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func count(n int) *int { return &n }

func TestReadStatistics(t *testing.T) {
	recorded, err := os.ReadFile("testdata/sessions/system-resources.json")
	must.OK(t, err)
	full := Statistics{Streams: count(3), Viewers: count(151), Complete: true}
	for name, c := range map[string]struct {
		code int
		body string
		want Statistics
		err  string
		text string
	}{
		"current":         {200, string(recorded), full, "", ""},
		"old, no DASH":    {200, `{"cpuUsage":12,"localLiveStreams":1,"localWebRTCViewers":4,"localHLSViewers":5}`, Statistics{Streams: count(1), Viewers: count(9)}, "", ""},
		"as text":         {200, `{"localLiveStreams":"7","localHLSViewers":" 8 ","localDASHViewers":2.0}`, Statistics{Streams: count(7), Viewers: count(10)}, "", ""},
		"not measured":    {200, `{"localLiveStreams":0,"localHLSViewers":-1,"localDASHViewers":null,"localWebRTCViewers":{"LiveApp":3},"cpuUsage":{"systemCPULoad":-1}}`, Statistics{Streams: count(0)}, "", ""},
		"nonsense figure": {200, `{"localLiveStreams":2,"totalLiveStreamSize":1,"localHLSViewers":"NaN","localDASHViewers":true,"localWebRTCViewers":1e300}`, Statistics{Streams: count(2)}, "", ""},
		"no viewers":      {200, `{"localWebRTCViewers":0,"localHLSViewers":0,"localDASHViewers":0}`, Statistics{Viewers: count(0), Complete: true}, "", ""},
		"one kind":        {200, `{"localHLSViewers":2}`, Statistics{Viewers: count(2)}, "", ""},
		"wrong token":     {403, "Invalid Server JWT Token", Statistics{}, "not the server's statistics", "403"},
		"login":           {401, "", Statistics{}, "not the server's statistics", "401"},
		"older release":   {404, "", Statistics{}, "not the server's statistics", "404"},
		"its fault":       {500, "", Statistics{}, "not the server's statistics", "500"},
		"elsewhere":       {302, "", Statistics{}, "not the server's statistics", "302"},
		"empty":           {200, "", Statistics{}, "not the server's statistics", ""},
		"nginx":           {200, "<html>welcome</html>", Statistics{}, "not the server's statistics", ""},
		"cut":             {200, string(recorded[:len(recorded)/2]), Statistics{}, "not the server's statistics", ""},
		"a list":          {200, "[]", Statistics{}, "not the server's statistics", ""},
		"other JSON":      {200, `{"status":"ok"}`, Statistics{}, "not the server's statistics", ""},
		"nothing":         {200, "null", Statistics{}, "not the server's statistics", ""},
		"endless":         {200, `{"localLiveStreams":3}` + strings.Repeat(" ", 64<<10), Statistics{}, "not the server's statistics", "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/rest/v2/system-resources" || r.Header.Get("X-Forwarded-For") != "" {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
				}
				must.Equal(t, "token", r.Header.Get("ProxyAuthorization"), "to.k.en")
				if c.code == 302 {
					w.Header().Set("Location", "/elsewhere")
				}
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			// A redirect is not followed: the token must not go with it.
			got, err := ReadStatistics(t.Context(), nil, srv.URL, "to.k.en")
			if (err != nil) != (c.err != "") {
				t.Fatalf("%v", err)
			}
			if err != nil && (!says(err, c.err) || !says(err, c.text) || strings.Contains(err.Error(), "to.k.en")) {
				t.Errorf("%v", err)
			}
			must.NoDiff(t, "statistics", got, c.want)
		})
	}
}

func TestReadStatisticsNoAnswer(t *testing.T) {
	l, err := net.Listen("tcp", ownPort)
	must.OK(t, err)
	_ = l.Close()
	if _, err := ReadStatistics(t.Context(), nil, "http://"+l.Addr().String(), "to.k.en"); !errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "to.k.en") {
		t.Errorf("refused: %v", err)
	}
	if _, err := ReadStatistics(t.Context(), nil, "http://%", "to.k.en"); err == nil {
		t.Error("no address, no error")
	}

	ctx, cancel := context.WithCancel(t.Context())
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() }))
	defer hang.Close()
	if _, err := ReadStatistics(ctx, nil, hang.URL, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("our own end: %v", err)
	}
}

// transport responds from memory, with any delay.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The rest of an answer is not waited for.
func TestReadStatisticsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		halfAnAnswer := transport(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(readUntil{r.Context()}), Request: r}, nil
		})
		begin := time.Now()
		_, err := ReadStatistics(t.Context(), &http.Client{Transport: halfAnAnswer}, "http://127.0.0.1:5080", "")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}

// readUntil is a body that never comes.
type readUntil struct{ ctx context.Context }

func (r readUntil) Read([]byte) (int, error) { <-r.ctx.Done(); return 0, r.ctx.Err() }
