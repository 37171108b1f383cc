// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// page is an error page of the server's Tomcat.
func page(why string) string {
	return `<!doctype html><html lang="en"><head><title>HTTP Status 403 – Forbidden</title></head><body>` +
		`<h1>HTTP Status 403 – Forbidden</h1><hr class="line" /><p><b>Type</b> Status Report</p><p><b>Message</b> ` + why + `</p></body></html>`
}

// said is a response of the server; code 0: it hangs.
type said struct {
	code int
	body string
}

// The responses of the real server, to the REST call and to a player, in the order of its start. 2.4.3 refuses with its JWT
// filter's reason until the application is initialized; only a player shows that. An application that was not deployed has
// no REST interface, and its players get an error from 2.16.2 on; one without a REST interface of its own serves players.
func TestCheckServing(t *testing.T) {
	notFound, token := said{404, page("Not Found")}, said{403, page("Invalid Token")}
	waits := said{403, page("Server is getting initialized.")}
	unclaimed := func(path string) string {
		return page("The requested resource [" + strings.ReplaceAll("/LiveApp"+path, "/", "&#47;") + "] is not available")
	}
	noREST := said{404, unclaimed("/rest/v2/broadcasts/amsagent-readiness")}
	for name, c := range map[string]struct {
		app        string
		rest, play said
		want       AppAnswer
	}{
		"waiting":             {"LiveApp", said{403, page("Application is getting initialized")}, notFound, AppAnswer{"LiveApp", AppStarting, 403, ""}},
		"a player waiting":    {"LiveApp", waits, notFound, AppAnswer{"LiveApp", AppStarting, 403, ""}},
		"making its context":  {"LiveApp", said{500, ""}, notFound, AppAnswer{"LiveApp", AppFailing, 500, "it answers 500 Internal Server Error"}},
		"serving":             {"LiveApp", notFound, notFound, AppAnswer{"LiveApp", AppServes, 404, ""}},
		"a stream":            {"LiveApp", said{200, "{}"}, notFound, AppAnswer{"LiveApp", AppServes, 200, ""}},
		"a blank in the name": {"My App", said{200, "{}"}, notFound, AppAnswer{"My App", AppServes, 200, ""}},
		"with JWT":            {"LiveApp", said{403, page("Invalid App JWT Token")}, notFound, AppAnswer{"LiveApp", AppServes, 403, ""}},
		"with an IP filter":   {"LiveApp", said{403, page("Not allowed IP")}, notFound, AppAnswer{"LiveApp", AppServes, 403, ""}},
		"without rights":      {"LiveApp", said{401, ""}, notFound, AppAnswer{"LiveApp", AppServes, 401, ""}},
		"another method":      {"LiveApp", said{405, ""}, notFound, AppAnswer{"LiveApp", AppServes, 405, ""}},
		"to HTTPS":            {"LiveApp", said{302, ""}, notFound, AppAnswer{"LiveApp", AppServes, 302, ""}},
		"a proxy":             {"LiveApp", said{503, ""}, notFound, AppAnswer{"LiveApp", AppFailing, 503, "it answers 503 Service Unavailable"}},
		"the console":         {"root", said{200, "{}"}, said{}, AppAnswer{"root", AppServes, 200, ""}},
		"the console waiting": {"root", said{403, page("Not allowed IP")}, said{}, AppAnswer{"root", AppStarting, 403, ""}},
		"an old console":      {"root", said{404, ""}, said{}, AppAnswer{"root", AppServes, 404, ""}},

		"2.4.3 starts":                      {"LiveApp", token, waits, AppAnswer{"LiveApp", AppStarting, 403, ""}},
		"2.4.3, and players need a token":   {"LiveApp", token, token, AppAnswer{"LiveApp", AppServes, 403, ""}},
		"2.4.3, and only REST needs one":    {"LiveApp", token, notFound, AppAnswer{"LiveApp", AppServes, 403, ""}},
		"not deployed":                      {"LiveApp", noREST, said{500, unclaimed("/streams/amsagent-readiness.m3u8")}, AppAnswer{"LiveApp", AppMissing, 500, ""}},
		"not deployed in 2.10.0":            {"LiveApp", noREST, said{404, unclaimed("/streams/amsagent-readiness.m3u8")}, AppAnswer{"LiveApp", AppServes, 404, ""}},
		"no REST, and players need a token": {"LiveApp", noREST, token, AppAnswer{"LiveApp", AppServes, 404, ""}},
		"no REST, and it hangs":             {"LiveApp", noREST, said{}, AppAnswer{Name: "LiveApp", State: AppSilent}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			rest := "/" + c.app + "/rest/v2/broadcasts/amsagent-readiness"
			if c.app == "root" {
				rest = "/rest/v2/liveness"
			}
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer, asked := map[string]said{rest: c.rest, "/" + c.app + "/streams/amsagent-readiness.m3u8": c.play}[r.URL.Path]
				if !asked || r.Method != http.MethodGet || r.Header.Get("X-Forwarded-For") != "" {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
				}
				if answer.code == 0 {
					cancel()
					<-r.Context().Done()
					return
				}
				w.WriteHeader(answer.code)
				_, _ = io.WriteString(w, answer.body)
			}))
			defer srv.Close()
			must.NoDiff(t, "answer", CheckServing(ctx, nil, srv.URL, c.app), c.want)
		})
	}
}

func TestCheckServingNoAnswer(t *testing.T) {
	l, err := net.Listen("tcp", ownPort)
	must.OK(t, err)
	base := "http://" + l.Addr().String()
	ask := func(app string, limit time.Duration) AppAnswer {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return CheckServing(ctx, nil, base, app)
	}
	if got, want := ask("LiveApp", 100*time.Millisecond), "LiveApp does not answer"; got.String() != want || got.Serves() {
		t.Errorf("a port that is open alone: %q", got)
	}
	must.OK(t, l.Close())
	if got, want := ask("live", time.Minute), "live is not reachable"; got.String() != want || got.State != AppRefused {
		t.Errorf("a port that is closed: %q", got)
	}
}

// Any program on the server's port controls the length of a response.
func TestAnswerBound(t *testing.T) {
	long := strings.Repeat("\x01", 60_000)
	var conns ConnCount
	for what, said := range map[string]string{
		"a header":      "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", 128<<10) + "\r\n\r\n",
		"no status":     long + "\r\n\r\n",
		"a status":      "HTTP/1.1 418 " + long + "\r\n\r\n",
		"a broken":      "HTTP/1.1 500 " + long + "\r\n\r\n",
		"a place":       "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + strings.Repeat("%zz", 20_000) + "\r\n\r\n",
		"a body":        "HTTP/1.1 200 OK\r\n\r\n" + `{"host":"` + strings.Repeat("h", 60_000) + `","status":"` + strings.Repeat("s", 1000) + `"}`,
		"a chunked one": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("x", 4000) + "\r\n\r\n",
	} {
		base := answering(t, said)
		for name, client := range map[string]*http.Client{"one call": NewHTTPClient(nil), "polling": NewHTTPClient(&conns)} {
			if a := CheckServing(t.Context(), client, base, "LiveApp"); len(a.Detail) > 256 || what == "no status" && a.State != AppFailing {
				t.Errorf("%s, %s: %.300q of %d bytes", what, name, a, len(a.Detail))
			}
			l := CheckLiveness(t.Context(), client, base)
			if len(l.Detail) > 768 || len(l.Host) > 256 || len(l.Status) > 256 || what == "a body" && l.State != Live {
				t.Errorf("%s, %s: %.300q of %d bytes", what, name, l, len(l.Detail)+len(l.Host)+len(l.Status))
			}
			if _, err := ReadStatistics(t.Context(), client, base, ""); err == nil || len(err.Error()) > 512 {
				t.Errorf("%s, %s: %.300q", what, name, err)
			}
		}
	}
}

// answering returns the address of a server with one fixed response.
func answering(t *testing.T, said string) string {
	t.Helper()
	l, err := net.Listen("tcp", ownPort)
	must.OK(t, err)
	var calls sync.WaitGroup
	calls.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			calls.Go(func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, said)
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); calls.Wait() })
	return "http://" + l.Addr().String()
}

func TestApplications(t *testing.T) {
	const webapps = "usr/local/antmedia/webapps/"
	files := map[string]string{webapps + "empty/": "", webapps + "linked": "-> live", webapps + "link\xe9d": "-> live"}
	for _, name := range []string{"root", "LiveApp", "live", "My App", "caf\xe9"} {
		files[webapps+name+"/WEB-INF/red5-web.properties"] = ""
	}
	root := plant(t, files)
	if _, err := Applications(t.TempDir(), "", nil); err == nil {
		t.Error("no installation, no error")
	}
	for _, c := range []struct {
		patterns, want []string
	}{
		{nil, []string{"LiveApp", "My App", "linked", "live"}},
		{[]string{"Live*", "live"}, []string{"LiveApp", "live"}},
		{[]string{"none"}, []string{"root"}},
	} {
		apps, err := Applications(root, "", c.patterns)
		must.OK(t, err)
		must.NoDiff(t, fmt.Sprint(c.patterns), apps, c.want)
	}
}

func TestInitialized(t *testing.T) {
	started := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	const before, at, after = -time.Second, 0, time.Millisecond
	var never time.Duration = 1 << 40
	for name, tt := range map[string]struct {
		app              string
		marks            []string
		folder, settings time.Duration // their change times, relative to the start
		want             bool
	}{
		"the first start":                 {"LiveApp", nil, after, before, false},
		"after a stop":                    {"LiveApp", []string{".initialized", ".closed"}, before, before, false},
		"stopping":                        {"LiveApp", []string{".initialized", ".closed"}, after, after, false},
		"made, and not deployed":          {"LiveApp", []string{".closed"}, before, before, false},
		"started":                         {"LiveApp", []string{".initialized"}, after, before, true},
		"started, by a coarse clock":      {"LiveApp", []string{".initialized"}, at, before, true},
		"after a kill":                    {"LiveApp", []string{".initialized"}, before, before, false},
		"after a kill, saved":             {"LiveApp", []string{".initialized"}, before, after, true},
		"after a kill, without settings":  {"LiveApp", []string{".initialized"}, before, never, true},
		"the console":                     {"root", nil, before, before, true},
		"the console without its folders": {"root", nil, never, never, true},
	} {
		t.Run(name, func(t *testing.T) {
			folder := "ams/webapps/" + tt.app
			settings := folder + "/WEB-INF/red5-web.properties"
			files := map[string]string{}
			for _, mark := range tt.marks {
				files[folder+"/"+mark] = ""
			}
			if tt.settings != never {
				files[settings] = ""
			}
			root := plant(t, files)
			for name, when := range map[string]time.Duration{folder: tt.folder, settings: tt.settings} {
				if when != never {
					must.OK(t, os.Chtimes(filepath.Join(root, name), started.Add(when), started.Add(when)))
				}
			}
			in := &Installation{Root: root, Dir: "/ams"}
			must.Equal(t, "initialized", in.Initialized(tt.app, started), tt.want)
			// If the start time is not known, only the marks decide.
			want := tt.want || len(tt.marks) == 1 && tt.marks[0] == InitializedName
			must.Equal(t, "without the time of the start", in.Initialized(tt.app, time.Time{}), want)
			for version, want := range map[string]bool{"2.10.0": true, "2.11.0": tt.want, "3.0.3": tt.want} {
				in.Release = Release{Version: version}
				must.Equal(t, version, in.Initialized(tt.app, started), want)
			}
		})
	}
}

func TestMadeSince(t *testing.T) {
	const file = "ams/webapps/LiveApp/WEB-INF/web.xml"
	root, now := plant(t, map[string]string{file: ""}), time.Now()
	must.OK(t, os.Chtimes(filepath.Join(root, file), time.Time{}, now.Add(-2*time.Hour)))
	in := &Installation{Root: root, Dir: "/ams"}
	if in.MadeSince("live", now.Add(-time.Hour)) {
		t.Error("one that is not there was made")
	}
	for age, want := range map[time.Duration]bool{time.Hour: true, -time.Hour: false} {
		must.Equal(t, fmt.Sprintf("made in the last %s, although its archive is old", age), in.MadeSince("LiveApp", now.Add(-age)), want)
	}
}
