// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// red5.properties belongs to the server's user: for any content, root connects only to the port of its host, and uses no
// more of the URL.
func FuzzServerFile(f *testing.F) {
	for _, seed := range []string{
		"http.host=0.0.0.0\nhttp.port=5080\n", "http.host=::1", "http.host=ams.example", "http.port=99999", "http.host=*\nhttp.port=-1",
		"http.host=127.0.0.1/x?", "http.host=a:b@127.0.0.1:22/", "http.host=fe80\\:\\:1%eth0", "http.host=[\u003a:1]", "http.host=\\u0000", "http.host=:",
		"http.host=example.org#\nnodeGroup=a\\\n b\nuseGlobalIp=TRUE",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &Installation{Root: t.TempDir(), Ports: defaultPorts()}
		in.readServer(b)
		u, err := url.Parse(in.BaseURL())
		if err != nil {
			t.Fatalf("http.host=%q: %v", in.HTTPHost, err)
		}
		if u.Scheme != "http" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Port() != strconv.Itoa(in.Ports.HTTP) {
			t.Errorf("http.host=%q makes %s", in.HTTPHost, u)
		}
		if in.Ports.HTTP < 1 || in.Ports.HTTP > 65535 {
			t.Errorf("port %d", in.Ports.HTTP)
		}
	})
}

// FuzzServerSettings: ports and the key of the REST calls come from this file. Ports are valid, and the secret appears
// only as a signature.
func FuzzServerSettings(f *testing.F) {
	for _, seed := range []string{
		"http.port=5080\nhttps.port=0\nrtmp.port=70000\nserver.srt_port=-1\nserver.origin_port= 5000 \n", "rtmps.enabled=on\nrtmps.port=443",
		"server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=a-long-secret-of-the-server\n",
		"server.jwtServerControlEnabled=1\nserver.jwtServerSecretKey=${x}", "server.jwtServerControlEnabled=yes\nserver.jwtServerSecretKey=a\\\n b\nserver.jwksURL=u",
		"http.port=\\u0030", "rtmps.enabled=true\\u",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &Installation{Root: t.TempDir(), Server: File{Path: "/red5.properties"}, Ports: defaultPorts()}
		must.OK(t, os.WriteFile(in.Root+in.Server.Path, b, 0o600))
		in.readServer(b)
		p, err := in.Ports, in.ServerErr
		for _, n := range []int{p.HTTP, p.HTTPS, p.RTMP, p.RTMPS, p.SRT, p.Origin} {
			if n < 0 || n > 65535 || err != nil && p != defaultPorts() {
				t.Errorf("%+v, %v", p, err)
			}
		}
		if p.HTTP == 0 || p.RTMP == 0 {
			t.Errorf("%+v", p)
		}
		token, err := in.ServerToken(time.Unix(1, 0))
		must.Equal(t, fmt.Sprintf("%q, %v", token, err), err == nil, token != "")
		props, perr := conf.ParseProperties(b)
		if perr != nil {
			return
		}
		secret, _ := props.Get("server.jwtServerSecretKey")
		if len(secret) >= 16 && strings.Contains(fmt.Sprint(token, err), secret) {
			t.Errorf("the secret %q is shown: %s, %v", secret, token, err)
		}
	})
}

// FuzzAnswers parses responses of the server, or of another program on its port.
func FuzzAnswers(f *testing.F) {
	recorded, err := os.ReadFile("testdata/sessions/system-resources.json")
	must.OK(f, err)
	for _, seed := range []string{
		string(recorded), `{"host":"h","status":"ok"}`, `{"host":1}`, "[]", "null", `{"cpuUsage":{"systemCPULoad":1e99},"localHLSViewers":"-3"}`,
		`{"localLiveStreams":"0x7fffffffffffffff","localDASHViewers":2147483648}`,
	} {
		f.Add(http.StatusOK, []byte(seed))
	}
	f.Add(http.StatusForbidden, []byte("Application is getting initialized"))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		s, err := parseStatistics(body)
		figures := []*int{s.Streams, s.Viewers}
		known := 0
		for _, n := range figures {
			if n == nil {
				continue
			}
			if known++; *n < 0 {
				t.Errorf("a count of %d", *n)
			}
		}
		must.Equal(t, fmt.Sprintf("%d figures and %v", known, err), err == nil, known > 0)
		l := answer(reply{code: code, body: body})
		if l.State == Live && code != http.StatusOK {
			t.Errorf("%d is live", code)
		}
	})
}

// FuzzParseStat: a process controls its name, and with it its stat.
func FuzzParseStat(f *testing.F) {
	const rest = " S 1 812 812 0 -1 4194304 95000 0 12 0 40000 8000 0 0 20 0 120 0 "
	for _, name := range []string{"java", "", "a) S 1 2", "((", "))", "x\ny", "\x00\xff"} {
		f.Add(name, uint64(3400))
	}
	f.Add(") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 (", uint64(99_999_999_999))
	f.Add("a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 ", uint64(3400))
	f.Fuzz(func(t *testing.T, name string, ticks uint64) {
		is := statLine.FindStringSubmatch(fmt.Sprintf("812 (%s)%s%d 5000000000 250000\n", name, rest, ticks))
		if ticks > 99_999_999_999 { // 31 years
			return
		}
		if is == nil || is[1] != name || is[2] != strconv.FormatUint(ticks, 10) {
			t.Errorf("%q; want %q, %d", is, name, ticks)
		}
	})
}
