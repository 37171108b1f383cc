// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

const serverSecret = "0123456789abcdef0123456789abcdef"

// properties appends lines to the server's settings; the last of a key counts.
func properties(t *testing.T, tr tree.Tree, lines string) {
	t.Helper()
	f, err := os.OpenFile(tr.Conf("red5.properties"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\n" + lines); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func secured(t *testing.T, tr tree.Tree) {
	t.Helper()
	properties(t, tr, "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey="+serverSecret+"\n")
}

// token is HS256 by the book.
func token(secret, claims string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64([]byte(claims))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}

// ask asks for the statistics.
func ask(t *testing.T, s *fakeams.Server, token string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.HTTPAddr()+"/rest/v2/system-resources", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("ProxyAuthorization", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var told map[string]any
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&told); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, told
}

func TestServerTokenBySettings(t *testing.T) {
	t.Parallel()
	// The secret and the token of the vendor's documentation.
	const secret, documented = "cizvvh7f6ys0w3x0s1gzg6c2qzpk0gb9", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.tA6sZwz_MvD9Nocf3Xv_DXhJaeTNgfsHPlg3RHEoZRk"
	const on = "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey="
	for name, tt := range map[string]struct {
		settings, release string
		want              int
	}{
		"as shipped":       {"", "", 403},
		"with a secret":    {on + secret + "\n", "", 200},
		"of two the last":  {on + "old\nserver.jwtServerSecretKey=" + secret + "\n", "", 200},
		"another secret":   {on + "another\n", "", 403},
		"a blank after it": {on + secret + " \n", "", 403},
		"no secret":        {on + "\n", "", 500},
		"a JWKS URL wins":  {on + secret + "\nserver.jwksURL=https\\://example.org/\n", "", 403},
		"off":              {"server.jwtServerControlEnabled=false\nserver.jwtServerSecretKey=" + secret + "\n", "", 403},
		"before there was": {on + secret + "\n", "2.3.0", 403},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := install(t, tree.Options{})
			properties(t, tr, tt.settings)
			o := quick(tr)
			o.Release = tt.release
			s := start(t, o)
			await(t, "ready", s.Ready())
			if got, _ := ask(t, s, documented); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
			if got, _ := ask(t, s, ""); got != 403 {
				t.Errorf("without a token: %d", got)
			}
		})
	}
}

func TestServerTokenRefused(t *testing.T) {
	t.Parallel()
	tr := install(t, tree.Options{})
	secured(t, tr)
	o := quick(tr)
	o.Control = "127.0.0.1:0"
	o.Behaviour.SlowStart = 3 * time.Second
	s := start(t, o)
	expires := func(in time.Duration) string { return fmt.Sprintf(`{"exp":%d}`, time.Now().Add(in).Unix()) }
	good := token(serverSecret, expires(time.Minute))
	if got, _ := ask(t, s, good); got != 403 {
		t.Errorf("while it starts: %d", got)
	}
	await(t, "ready", s.Ready())
	if got, _ := ask(t, s, good); got != 200 {
		t.Errorf("once it is up: %d", got)
	}
	head, rest, _ := strings.Cut(good, ".")
	for name, tok := range map[string]string{
		"none": "", "blank": " ", "nonsense": "x", "expired": token(serverSecret, expires(-2*time.Second)),
		"from the future": token(serverSecret, fmt.Sprintf(`{"iat":%d}`, time.Now().Add(time.Minute).Unix())),
		"cut":             good[:len(good)-1], "of no algorithm": "eyJhbGciOiJub25lIn0." + rest,
		"no claims": head + ".." + good[strings.LastIndex(good, ".")+1:], "no JSON": token(serverSecret, "x"),
	} {
		if got, _ := ask(t, s, tok); got != 403 {
			t.Errorf("%s: %d", name, got)
		}
	}
	// A wrong token is worse than none where none is needed.
	for token, want := range map[string]int{"": 200, "x": 403, good: 200} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.HTTPAddr()+"/rest/v2/liveness", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("ProxyAuthorization", token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("liveness with token %q: %d, want %d", token, resp.StatusCode, want)
		}
	}
	for status, want := range map[string]int{"500": 500, "404": 404, "0": 200} {
		if got, body := request(t, "POST", "http://"+s.ControlAddr()+"/behaviour?statistics="+status); got != 200 {
			t.Fatal(body)
		}
		if got, _ := ask(t, s, good); got != want {
			t.Errorf("statistics=%s: %d", status, got)
		}
	}
}

// Publishers are what package cluster counts, and viewers what the server tells.
func TestSessions(t *testing.T) {
	t.Parallel()
	m := mongo1(t, mongod.Options{})
	tr := install(t, tree.Options{})
	join(t, tr, m.Addr())
	secured(t, tr)
	o := quick(tr)
	o.Control = "127.0.0.1:0"
	s := start(t, o)
	await(t, "ready", s.Ready())
	target, err := cluster.ParseTarget(m.URI())
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Connect(t.Context(), target, cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	call := func(method, path string, want int) {
		t.Helper()
		if got, body := request(t, method, "http://"+s.ControlAddr()+path); got != want {
			t.Fatalf("%s %s: %d %s", method, path, got, body)
		}
	}
	expect := func(publishers, webrtc, hls, dash int) {
		t.Helper()
		streams, err := c.LocalStreams(t.Context(), []string{"liveapp"}, s.Address(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if got := len(streams[0].IDs); got != publishers {
			t.Fatalf("%d publishers by the database, want %d", got, publishers)
		}
		status, told := ask(t, s, token(serverSecret, "{}"))
		if status != 200 {
			t.Fatal(status)
		}
		for key, want := range map[string]int{
			"localLiveStreams": publishers, "localWebRTCViewers": webrtc, "localHLSViewers": hls, "localDASHViewers": dash,
		} {
			if told[key] != float64(want) {
				t.Errorf("%s is %v, want %d", key, told[key], want)
			}
		}
	}

	expect(0, 0, 0, 0)
	call("POST", "/stream?app=LiveApp&id=s1&announced=true", 200)
	call("POST", "/stream?app=LiveApp&id=s2&webrtc=1", 200)
	expect(2, 1, 0, 0)
	call("POST", "/viewers?app=LiveApp&stream=s1", 200)
	call("POST", "/viewers?app=LiveApp&stream=s1&kind=hls&n=5", 200)
	call("POST", "/viewers?app=LiveApp&stream=s1&kind=rtmp&n=2", 200)
	call("POST", "/viewers?app=LiveApp&stream=of-another-node&kind=dash&n=3", 200)
	expect(2, 2, 5, 3)

	// The document counts the viewers too, until its stream is finished.
	var doc struct {
		Status string
		HLS    int32 `bson:"hlsViewerCount"`
		Zombi  bool
	}
	find := func() {
		t.Helper()
		if err := database(t, m.URI(), "liveapp").Collection("broadcast").FindOne(t.Context(), bson.M{"streamId": "s1"}).Decode(&doc); err != nil {
			t.Fatal(err)
		}
	}
	if find(); doc.Status != "broadcasting" || doc.HLS != 5 || doc.Zombi {
		t.Errorf("%+v", doc)
	}
	call("DELETE", "/viewers?app=LiveApp&stream=s1&kind=hls&n=2", 200)
	call("DELETE", "/viewers?app=LiveApp&stream=s1&kind=hls&n=4", 400) // there are three
	expect(2, 2, 3, 3)
	call("DELETE", "/viewers?app=LiveApp&stream=s1&kind=hls", 200)
	call("DELETE", "/viewers?app=LiveApp&stream=s1&kind=hls", 400) // nobody is left
	call("DELETE", "/viewers?app=LiveApp&stream=of-another-node&kind=dash", 200)
	call("DELETE", "/stream?app=LiveApp&id=s2", 200)
	expect(1, 1, 0, 0)
	call("DELETE", "/stream?app=LiveApp&id=s1", 200)
	if find(); doc.Status != "finished" || doc.HLS != 0 {
		t.Errorf("%+v", doc)
	}
	expect(0, 1, 0, 0)

	for _, path := range []string{
		"/viewers?app=Nobody&stream=s1", "/viewers?app=LiveApp", "/viewers?app=LiveApp&stream=s1&kind=tv",
		"/viewers?app=LiveApp&stream=s1&n=0", "/viewers?app=LiveApp&stream=s1&n=-1", "/viewers?app=LiveApp&stream=s1&m=1",
		"/viewers?app=LiveApp&stream=s1&connect=true&from=nowhere",
	} {
		call("POST", path, 400)
	}
	want := fakeams.Stats{
		State: fakeams.Up, Live: fakeams.Counts{Viewers: 3},
		Served: fakeams.Counts{Publishers: 2, Viewers: 12}, Left: fakeams.Counts{Publishers: 2, Viewers: 9},
	}
	if diff := cmp.Diff(want, s.Stats()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Viewers with a connection are counted while it is open, and cut at the end.
func TestViewersWithConnections(t *testing.T) {
	t.Parallel()
	tr := install(t, tree.Options{Apps: []string{"My App"}})
	o := quick(tr)
	o.Stats = filepath.Join(t.TempDir(), "stats.json")
	s := start(t, o)
	await(t, "all to serve", s.Serving())
	v := fakeams.Viewers{App: "My App", Stream: "a b", Kind: fakeams.HLS, N: 4, Connect: true, From: "127.0.0.9"}
	if err := s.AddViewers(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := s.AddViewers(t.Context(), fakeams.Viewers{App: "My App", Stream: "a b", Kind: fakeams.HLS, N: 2}); err != nil {
		t.Fatal(err)
	}
	want := []fakeams.Viewers{
		{App: "My App", Stream: "a b", Kind: fakeams.HLS, N: 2},
		{App: "My App", Stream: "a b", Kind: fakeams.HLS, N: 4, Connect: true},
	}
	if diff := cmp.Diff(want, s.Audience()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Those without a connection go first.
	if err := s.RemoveViewers(t.Context(), fakeams.Viewers{App: "My App", Stream: "a b", Kind: fakeams.HLS, N: 3}); err != nil {
		t.Fatal(err)
	}
	want = []fakeams.Viewers{{App: "My App", Stream: "a b", Kind: fakeams.HLS, N: 3, Connect: true}}
	if diff := cmp.Diff(want, s.Audience()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// One of another process, which leaves by itself.
	conn, err := net.Dial("tcp", s.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /LiveApp/play/s1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 15)
	if _, err := io.ReadFull(conn, head); err != nil || string(head) != "HTTP/1.1 200 OK" {
		t.Fatalf("%q, %v", head, err)
	}
	if got := s.Stats().Live.Viewers; got != 4 {
		t.Errorf("%d viewers", got)
	}
	_ = conn.Close()
	eventually(t, "the viewer gone", func() bool { return s.Stats().Live.Viewers == 3 })

	for path, want := range map[string]int{"/Nobody/play/s": 404, "/LiveApp/play/s?kind=tv": 400} {
		if got, _ := request(t, "GET", "http://"+s.HTTPAddr()+path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}

	stay, err := net.Dial("tcp", s.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer stay.Close()
	if _, err := fmt.Fprintf(stay, "GET /LiveApp/play/s1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the viewer come", func() bool { return s.Stats().Live.Viewers == 4 })
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = stay.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadAll(stay); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the viewer was not cut: %v", err)
	}
	got, err := fakeams.ReadStats(o.Stats)
	if err != nil {
		t.Fatal(err)
	}
	wantStats := fakeams.Stats{
		State: fakeams.Stopped, Served: fakeams.Counts{Viewers: 8}, Left: fakeams.Counts{Viewers: 4}, Cut: fakeams.Counts{Viewers: 4},
	}
	if diff := cmp.Diff(wantStats, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// How a server ends decides what was cut, also where it could not say so.
func TestCutSessions(t *testing.T) {
	t.Parallel()
	one := fakeams.Counts{Publishers: 1, Viewers: 2}
	for name, tt := range map[string]struct {
		end  func(*testing.T, *fakeams.Server, string)
		want fakeams.Stats
	}{
		"stopped": {func(t *testing.T, s *fakeams.Server, _ string) {
			if err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}, fakeams.Stats{State: fakeams.Stopped, Served: one, Cut: one}},
		"drained, then stopped": {func(t *testing.T, s *fakeams.Server, _ string) {
			err := errors.Join(s.EndStream(t.Context(), "LiveApp", "s1"),
				s.RemoveViewers(t.Context(), fakeams.Viewers{App: "LiveApp", Stream: "s1"}), s.Stop(t.Context()))
			if err != nil {
				t.Error(err)
			}
		}, fakeams.Stats{State: fakeams.Stopped, Served: one, Left: one}},
		"ended while it stopped": {func(t *testing.T, s *fakeams.Server, _ string) {
			s.SetBehaviour(func(b *fakeams.Behaviour) { b.SlowStop = 300 * time.Millisecond })
			done := make(chan error, 1)
			go func() { done <- s.Stop(t.Context()) }()
			eventually(t, "stopping", func() bool { return s.State() == fakeams.Stopping })
			err := errors.Join(s.EndStream(t.Context(), "LiveApp", "s1"), <-done)
			if err != nil {
				t.Error(err)
			}
		}, fakeams.Stats{State: fakeams.Stopped, Served: one, Left: fakeams.Counts{Publishers: 1}, Cut: fakeams.Counts{Viewers: 2}}},
		"crashed": {func(_ *testing.T, s *fakeams.Server, _ string) { s.Crash() }, fakeams.Stats{State: fakeams.Crashed, Served: one, Cut: one}},
		"killed": {func(t *testing.T, s *fakeams.Server, file string) {
			b, err := os.ReadFile(file) // as it was when the kill came
			s.Crash()
			if err == nil {
				err = os.WriteFile(file, b, 0o644)
			}
			if err != nil {
				t.Error(err)
			}
		}, fakeams.Stats{State: fakeams.Killed, Served: one, Cut: one}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := quick(install(t, tree.Options{}))
			o.Stats = filepath.Join(t.TempDir(), "stats.json")
			s := start(t, o)
			await(t, "ready", s.Ready())
			err := errors.Join(s.AddStream(t.Context(), fakeams.Stream{App: "LiveApp", ID: "s1"}),
				s.AddViewers(t.Context(), fakeams.Viewers{App: "LiveApp", Stream: "s1", N: 2}))
			if err != nil {
				t.Fatal(err)
			}
			tt.end(t, s, o.Stats)
			got, err := fakeams.ReadStats(o.Stats)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tt.want.State != fakeams.Killed {
				if diff := cmp.Diff(tt.want, s.Stats()); diff != "" {
					t.Errorf("by itself (-want +got):\n%s", diff)
				}
			}
			if err := s.AddStream(t.Context(), fakeams.Stream{App: "LiveApp", ID: "s2"}); err == nil {
				t.Error("a stream begins after the end")
			}
			if err := s.AddViewers(t.Context(), fakeams.Viewers{App: "LiveApp", Stream: "s1"}); err == nil {
				t.Error("a viewer comes after the end")
			}
		})
	}
	if _, err := fakeams.ReadStats(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var syntax *json.SyntaxError
	if _, err := fakeams.ReadStats(bad); !errors.As(err, &syntax) {
		t.Errorf("cut file: %v", err)
	}
}
