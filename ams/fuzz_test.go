// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"net/http"
	"net/url"
	"os"
	"strconv"
	"testing"
)

// red5.properties belongs to the server's user: whatever it says, root asks nobody but
// the port of a host that it names, and never more of the URL than that.
func FuzzServerFile(f *testing.F) {
	for _, seed := range []string{
		"http.host=0.0.0.0\nhttp.port=5080\n", "http.host=::1", "http.host=ams.example", "http.port=99999", "http.host=*\nhttp.port=-1",
		"http.host=127.0.0.1/x?", "http.host=a:b@127.0.0.1:22/", "http.host=fe80\\:\\:1%eth0", "http.host=[\u003a:1]", "http.host=\\u0000", "http.host=:",
		"http.host=example.org#\nnodeGroup=a\\\n b\nuseGlobalIp=TRUE",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &Installation{Root: t.TempDir(), HTTPPort: DefaultHTTPPort}
		in.readServer(b)
		u, err := url.Parse(in.BaseURL())
		if err != nil {
			t.Fatalf("http.host=%q: %v", in.HTTPHost, err)
		}
		if u.Scheme != "http" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Port() != strconv.Itoa(in.HTTPPort) {
			t.Errorf("http.host=%q makes %s", in.HTTPHost, u)
		}
		if in.HTTPPort < 1 || in.HTTPPort > 65535 {
			t.Errorf("port %d", in.HTTPPort)
		}
	})
}

// FuzzAnswers reads what the server, or whoever listens in its place, answers.
func FuzzAnswers(f *testing.F) {
	recorded, err := os.ReadFile("testdata/sessions/system-resources.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(recorded), `{"host":"h","status":"ok"}`, `{"host":1}`, "[]", "null", `{"cpuUsage":{"systemCPULoad":1e99},"localHLSViewers":"-3"}`,
		`{"localLiveStreams":"0x7fffffffffffffff","localDASHViewers":2147483648}`,
	} {
		f.Add(http.StatusOK, []byte(seed))
	}
	f.Add(http.StatusForbidden, []byte("Application is getting initialized"))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		s, err := parseStatistics(body)
		figures := []*int{s.LocalStreams, s.LocalWebRTCStreams, s.WebRTCViewers, s.HLSViewers, s.DASHViewers, s.CPU, s.ProcessCPU, s.EncodersBlocked}
		known := 0
		for _, n := range figures {
			if n == nil {
				continue
			}
			if known++; *n < 0 {
				t.Errorf("a count of %d", *n)
			}
		}
		if (err == nil) != (known > 0) {
			t.Errorf("%d figures and %v", known, err)
		}
		l := answer(reply{code: code, body: body})
		if l.State == Live && code != http.StatusOK {
			t.Errorf("%d is live", code)
		}
	})
}
