// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

const someBroadcast = "/rest/v2/broadcasts/nothing"

// The timeline of the real server: see the recorded start of each release.
func TestApplicationsStartLast(t *testing.T) {
	t.Parallel()
	m := mongo1(t, mongod.Options{})
	tr := install(t, tree.Options{Apps: []string{"WebRTCApp"}})
	join(t, tr, m.Addr())
	o := quick(tr)
	o.AppStart = 2 * time.Second
	s := start(t, o)
	answer := func(path string) string {
		status, body := request(t, "GET", "http://"+s.HTTPAddr()+path)
		_, body, _ = strings.Cut(body, "<b>Message</b> ")
		body, _, _ = strings.Cut(body, "</p>")
		return strings.TrimSpace(http.StatusText(status) + " " + body)
	}
	await(t, "ready", s.Ready())
	if got := liveness(t, s); got != 200 {
		t.Errorf("liveness before the applications serve: %d", got)
	}
	if got, want := answer("/LiveApp"+someBroadcast), "Forbidden Application is getting initialized"; got != want {
		t.Errorf("REST before LiveApp serves: %q, want %q", got, want)
	}
	if got, want := answer("/LiveApp/streams/s.m3u8"), "Forbidden Server is getting initialized."; got != want {
		t.Errorf("a player before LiveApp serves: %q, want %q", got, want)
	}
	eventually(t, "WebRTCApp to serve", func() bool { return answer("/WebRTCApp"+someBroadcast) == "Not Found Not Found" })
	if got := answer("/LiveApp" + someBroadcast); strings.HasPrefix(got, "Not Found") {
		t.Errorf("LiveApp serves as soon as WebRTCApp: %q", got)
	}
	await(t, "all to serve", s.Serving())
	if got := answer("/LiveApp" + someBroadcast); got != "Not Found Not Found" {
		t.Errorf("after the start: %q", got)
	}
	if got := answer("/none" + someBroadcast); !strings.HasPrefix(got, "Not Found The requested") {
		t.Errorf("an application that is not there: %q", got)
	}

	// While MongoDB is away neither REST nor a player gets an answer.
	if err := m.Faults().Set(mongod.Fault{Mode: mongod.Refuse}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if got := answer("/LiveApp" + someBroadcast); got != "Internal Server Error" || time.Since(began) < time.Second {
		t.Errorf("with MongoDB away: %q after %v", got, time.Since(began))
	}
}

// 2.4.3 tells players alone that they are early: seen on the real one.
func TestApplicationsStartOld(t *testing.T) {
	t.Parallel()
	o := quick(install(t, tree.Options{}))
	o.Release, o.AppStart = "2.4.3", time.Minute
	s := start(t, o)
	await(t, "ready", s.Ready())
	base := "http://" + s.HTTPAddr()
	for path, want := range map[string]string{
		"/LiveApp" + someBroadcast:                 "Invalid JWT Token",
		"/LiveApp/streams/amsagent-readiness.m3u8": "Server is getting initialized.",
	} {
		if status, body := request(t, "GET", base+path); status != 403 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q, want %q", path, status, body, want)
		}
	}
	if a := ams.CheckServing(t.Context(), nil, base, "LiveApp"); a.State != ams.AppStarting {
		t.Errorf("the agent takes it for %+v", a)
	}
}

func TestApplicationBehaviours(t *testing.T) {
	t.Parallel()
	o := quick(install(t, tree.Options{}))
	o.Control = "127.0.0.1:0"
	s := start(t, o)
	await(t, "all to serve", s.Serving())
	control := func(method, call string) {
		t.Helper()
		if status, body := request(t, method, "http://"+s.ControlAddr()+call); status != 200 {
			t.Errorf("%s %s: %d %s", method, call, status, body)
		}
	}
	expect := func(app string, want int, text string) {
		t.Helper()
		if status, body := request(t, "GET", "http://"+s.HTTPAddr()+"/"+app+someBroadcast); status != want || !strings.Contains(body, text) {
			t.Errorf("%s: %d %q, want %d %q", app, status, body, want, text)
		}
	}
	expect("LiveApp", 404, "")
	control("POST", "/application?app=LiveApp&serving=false")
	expect("LiveApp", 403, "getting initialized")
	control("POST", "/application?app=LiveApp&serving=true")
	expect("LiveApp", 404, "")
	control("POST", "/behaviour?applications=500")
	expect("LiveApp", 500, "")
	control("POST", "/behaviour?applications=0&app_jwt=true")
	expect("LiveApp", 403, "Invalid App JWT Token")
	control("POST", "/behaviour?app_jwt=false&app_ip_filter=true")
	expect("LiveApp", 403, "Not allowed IP")
	control("POST", "/behaviour?app_ip_filter=false")
	control("PUT", "/application?app=shop")
	expect("shop", 404, "Not Found")
	control("DELETE", "/application?app=shop")
	if _, err := os.Stat(filepath.Join(o.Root, "webapps", "shop")); !os.IsNotExist(err) {
		t.Errorf("the folder of an application that was deleted: %v", err)
	}

	control("POST", "/behaviour?hang=true")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		resp, err := http.Get("http://" + s.HTTPAddr() + "/rest/v2/liveness")
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	select {
	case <-answered:
		t.Error("a server that hangs answers")
	case <-time.After(200 * time.Millisecond):
	}
	control("POST", "/behaviour?hang=false")
	await(t, "the answer", answered)
}

// What the server makes of an application's file is the same settings in another
// order and other escapes, and of the console's nothing.
func TestSavesSettingsAtStart(t *testing.T) {
	t.Parallel()
	m := mongo1(t, mongod.Options{})
	tr := install(t, tree.Options{})
	join(t, tr, "mongodb://"+m.Addr()+"/?appName=a=b")
	console, err := os.ReadFile(tr.App("root"))
	if err != nil {
		t.Fatal(err)
	}
	o := quick(tr)
	o.SaveAtStart = true
	s := start(t, o)
	await(t, "all to serve", s.Serving())
	saved, err := os.ReadFile(tr.App("LiveApp"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(saved), "\n")
	if _, err := time.Parse("#Mon Jan 02 15:04:05 UTC 2006", lines[0]); err != nil {
		t.Errorf("the first line: %v", err)
	}
	if want := `db.host=mongodb\://` + strings.ReplaceAll(m.Addr(), ":", `\:`) + `/?appName\=a\=b`; !strings.Contains(string(saved), "\n"+want+"\n") {
		t.Errorf("no line %q in\n%s", want, saved)
	}
	if len(lines) < 220 {
		t.Errorf("%d lines: the server adds its own", len(lines))
	}
	if after, err := os.ReadFile(tr.App("root")); err != nil || string(after) != string(console) {
		t.Errorf("the console's file was written: %v", err)
	}

	if err := s.SaveSettings(t.Context(), "LiveApp", map[string]string{"webhook": "Grüße: #1"}); err != nil {
		t.Fatal(err)
	}
	changed, err := os.ReadFile(tr.App("LiveApp"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `webhook=Gr\u00FC\u00DFe\: \#1`; !strings.Contains(string(changed), "\n"+want+"\n") {
		t.Errorf("no line %q", want)
	}
	for _, l := range lines[1:] {
		if !strings.Contains(string(changed), l+"\n") {
			t.Errorf("a setting was lost: %q", l)
		}
	}
}

// A question in the middle of a start takes the settings of an application, and of no other; a release that does not
// filter then keeps them.
func TestAskedInItsStart(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]string{"2.16.2": "", "2.16.1": "LiveApp"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			m := mongo1(t, mongod.Options{})
			tr := install(t, tree.Options{Apps: []string{"WebRTCApp"}})
			join(t, tr, m.Addr())
			o := quick(tr)
			o.SaveAtStart, o.AppStart, o.Release = true, 2*time.Second, release
			s := start(t, o)
			eventually(t, "LiveApp to make its context", func() bool {
				status, _ := request(t, "GET", "http://"+s.HTTPAddr()+"/LiveApp/rest/v2/version")
				return status == http.StatusInternalServerError
			})
			await(t, "all to serve", s.Serving())
			for app, want := range map[string]string{"LiveApp": want, "WebRTCApp": "WebRTCApp"} {
				saved, err := os.ReadFile(tr.App(app))
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(string(saved), "\nappName="+want+"\n") {
					t.Errorf("%s is not named %q", app, want)
				}
			}
		})
	}
}

// Java itself writes the same bytes.
func TestWritesAsJavaDoes(t *testing.T) {
	t.Parallel()
	java, err := exec.LookPath("java")
	if err != nil {
		if os.Getenv("REQUIRE_JAVA") != "" {
			t.Fatal(err)
		}
		t.Skip("no java here")
	}
	tr := install(t, tree.Options{})
	s := start(t, quick(tr))
	nasty := map[string]string{
		"a b": " lead and trail ", "k=v": "a:b=c#d!e\\f", "tab\t": "\t\n\r\f", "ä": "€ 😀", "empty": "", "u": "${java.home}#{1+1}",
	}
	if err := s.SaveSettings(t.Context(), "LiveApp", nasty); err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(tr.App("LiveApp"))
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "Store.java")
	if err := os.WriteFile(source, []byte(`
public class Store {
	public static void main(String[] args) throws Exception {
		var p = new java.util.Properties();
		try (var in = new java.io.FileInputStream(args[0])) { p.load(in); }
		p.store(System.out, null);
	}
}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	theirs, err := exec.CommandContext(t.Context(), java, source, tr.App("LiveApp")).Output()
	if err != nil {
		t.Fatal(err)
	}
	// Without the date, and sorted: keys of one bucket are in the order of their making.
	body := func(b []byte) []string { return slices.Sorted(slices.Values(strings.Split(string(b), "\n")[1:])) }
	if diff := cmp.Diff(body(theirs), body(ours)); diff != "" {
		t.Errorf("java.util.Properties (-) and the stand-in (+):\n%s", diff)
	}
}

func TestCommunityEdition(t *testing.T) {
	t.Parallel()
	tr := install(t, tree.Options{Apps: []string{"WebRTCApp"}})
	secured(t, tr)
	o := quick(tr)
	o.Community = true
	s := start(t, o)
	await(t, "ready", s.Ready())
	status, said := ask(t, s, token(serverSecret, "{}"))
	// One for each application but the console.
	if want := float64(1 - len(tr.Apps)); status != 200 || said["localWebRTCLiveStreams"] != want {
		t.Errorf("%d %v", status, said)
	}
}
