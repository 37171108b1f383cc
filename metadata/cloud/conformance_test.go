// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	mdtest "github.com/amsagent/amsagent/metadata/metadatatest"
)

const wellBody = "a body that is well"

// served is a service in memory, and a client of it.
func served(t *testing.T, o cloud.Options) (*replay.Service, *cloud.Client) {
	f := replay.New(t, replay.Protocol{Token: [2]string{"X-Token", "X-Ttl"}, Header: [2]string{"X-Mark", "yes"}}, map[string]string{"/latest/item": wellBody})
	if o.Transport == nil {
		o.Transport = fakes.Transport{Handler: f}
	}
	return f, client("http://metadata.test", o)
}

func client(base string, o cloud.Options) *cloud.Client {
	c, err := cloud.New(cloud.Client{
		Provider: "test", Origin: base, Header: map[string]string{"X-Mark": "yes"},
		Token:  &cloud.Token{Path: "/latest/api/token", TTL: "X-Ttl", Header: "X-Token", Lifetime: time.Hour},
		Hints:  map[int]string{0: "unreachable", 401: cloud.HintToken, 403: "off"},
		Silent: "silent", NoTokens: "no tokens",
	}, o)
	if err != nil {
		panic(err) // it gives no endpoint
	}
	return c
}

func wellOnly(b []byte) (string, error) {
	if s := strings.TrimSpace(string(b)); s != wellBody {
		return "", errors.New("not the item")
	}
	return wellBody, nil
}

// item reads the required item, and compares how it ends.
func item(ctx context.Context, t *testing.T, c *cloud.Client, kind error) error {
	t.Helper()
	got, err := cloud.Read(ctx, c, cloud.Item{Name: "thing", Path: "/latest/item", Required: true}, wellOnly)
	if !errors.Is(err, kind) || (got == wellBody) != (kind == nil) {
		t.Fatalf("read %q, %v, want error %v", got, err, kind)
	}
	if e, ok := errors.AsType[*cloud.Error](err); kind != nil && (!ok || e.Provider != "test" || e.Item != "thing" || strings.Contains(err.Error(), "\n")) {
		t.Errorf("error %#v", err)
	}
	return err
}

// TestConformance: the one client that reads all clouds, against a service on the wire that misbehaves. Its names are those of
// the rules of metadatatest for each cloud.
func TestConformance(t *testing.T) {
	run := func(name string, rule func(*testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, rule) })
	}
	status, many := replay.Status, 0 // many: as often as the bound allows
	huge := replay.Body(wellBody + strings.Repeat(" ", 9<<17))
	begun := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
	}
	slowBody := func(w http.ResponseWriter, r *http.Request) {
		begun(w)
		<-r.Context().Done()
	}
	truncated := func(w http.ResponseWriter, _ *http.Request) {
		begun(w)
		panic(http.ErrAbortHandler)
	}
	for _, tt := range []struct {
		name  string
		fault http.HandlerFunc
		n     int // of the first answers; -1 is all
		kind  error
		asked int
	}{
		{"http_401_once", status(401), 1, nil, 2},
		{"http_401_for_good", status(401), -1, cloud.ErrForbidden, 2},
		{"http_403_is_final", status(403), -1, cloud.ErrForbidden, 1},
		{"http_404_at_boot_then_well", status(404), 1, nil, 2},
		{"http_404_of_the_required_item", status(404), -1, cloud.ErrNotThisCloud, 3},
		{"http_410_for_good", status(410), -1, cloud.ErrNotReady, many},
		{"http_429_for_good", status(429), -1, cloud.ErrNotReady, many},
		{"http_500_then_well", status(500), 2, nil, 3},
		{"http_500_for_good", status(500), -1, cloud.ErrNotReady, many},
		{"http_503_then_well", status(503), 2, nil, 3},
		{"slow_then_well", replay.Slow, 1, nil, 2},
		{"slow_for_good", replay.Slow, -1, cloud.ErrNotReady, many},
		{"slow_body_for_good", slowBody, -1, cloud.ErrNotReady, many},
		{"closed_then_well", replay.Closed, 2, nil, 3},
		{"closed_for_good", replay.Closed, -1, cloud.ErrNotReady, many},
		{"truncated_then_well", truncated, 1, nil, 2},
		{"truncated_for_good", truncated, -1, cloud.ErrNotReady, many},
		{"html_then_well", replay.HTML, 1, nil, 2},
		{"html_for_good", replay.HTML, -1, cloud.ErrBadAnswer, 3},
		{"empty_for_good", replay.Body(""), -1, cloud.ErrBadAnswer, 3},
		{"huge_body", huge, -1, cloud.ErrBadAnswer, 3},
	} {
		run(tt.name, func(t *testing.T) {
			f, c := served(t, cloud.Options{})
			f.Break("/latest/item", tt.n, tt.fault)
			ctx, cancel := context.WithTimeout(t.Context(), cloud.Timeout)
			defer cancel()
			err := item(ctx, t, c, tt.kind)
			if n := f.Count("/latest/item"); n != tt.asked && (tt.asked != many || n < 2) {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
			if tt.asked == many && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error does not say that the bound ended it: %v", err)
			}
		})
	}

	run("redirect_is_refused", func(t *testing.T) {
		for _, path := range []string{"/latest/item", "/latest/api/token"} {
			f, c := served(t, cloud.Options{})
			f.Break(path, -1, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://elsewhere.test/elsewhere", http.StatusFound)
			})
			_ = item(t.Context(), t, c, cloud.ErrBadAnswer)
			must.Equal(t, fmt.Sprintf("redirect of %s: followed (times)", path), f.Count("/elsewhere"), 0)
		}
	})

	for name, rows := range map[string][]tokenFault{
		"token_refused_for_good": {{"/latest/item", status(401), -1, cloud.ErrForbidden, "the service refuses session tokens that it has just given out: something between this process and the service changes the requests", 2, 2}},
		"token_never_answered":   {{"/latest/api/token", replay.Slow, -1, cloud.ErrNotReady, "silent", many, 0}},
		"token_lost_once": {
			{"/latest/api/token", replay.Closed, 1, nil, "", 2, 1},
			{"/latest/api/token", status(503), 1, nil, "", 2, 1},
			{"/latest/api/token", status(429), 1, nil, "", 2, 1},
			{"/latest/api/token", replay.Slow, 1, nil, "", 2, 1},
		},
		"token_of_nonsense": { // without a token nothing is asked, whatever answers in its place
			{"/latest/api/token", replay.HTML, -1, cloud.ErrBadAnswer, "", 3, 0},
			{"/latest/api/token", replay.Body(""), -1, cloud.ErrBadAnswer, "", 3, 0},
			{"/latest/api/token", replay.Body("a\nb"), -1, cloud.ErrBadAnswer, "", 3, 0},
			{"/latest/api/token", status(400), -1, cloud.ErrBadAnswer, "", 1, 0},
			{"/latest/api/token", status(403), -1, cloud.ErrForbidden, "off", 1, 0},
			{"/latest/api/token", status(404), -1, cloud.ErrNotThisCloud, "no tokens", 1, 0},
			{"/latest/api/token", status(405), -1, cloud.ErrNotThisCloud, "no tokens", 1, 0},
			{"/latest/api/token", status(501), -1, cloud.ErrNotThisCloud, "no tokens", 1, 0},
		},
	} {
		run(name, func(t *testing.T) {
			for i, tt := range rows {
				f, c := served(t, cloud.Options{})
				f.Break(tt.path, tt.n, tt.fault)
				ctx, cancel := context.WithTimeout(t.Context(), cloud.Timeout)
				defer cancel()
				hint := cloud.HintOf(item(ctx, t, c, tt.kind))
				tokens, items := f.Count("/latest/api/token"), f.Count("/latest/item")
				if hint != tt.hint || items != tt.items || tokens != tt.tokens && (tt.tokens != many || tokens < 2) {
					t.Errorf("row %d: hint %q, %d tokens and %d items asked for", i, hint, tokens, items)
				}
			}
		})
	}
	run("token_asked_once", func(t *testing.T) {
		f, c := served(t, cloud.Options{})
		for range 3 {
			_ = item(t.Context(), t, c, nil)
		}
		must.Equal(t, "session tokens asked for", f.Count("/latest/api/token"), 1)
	})
	// aws-node-termination-handler issues 229 and 668, where a refused token was used for ever.
	run("token_expired_is_refreshed", func(t *testing.T) {
		f, c := served(t, cloud.Options{})
		for range 3 {
			_ = item(t.Context(), t, c, nil)
			f.ExpireTokens()
		}
		must.Equal(t, "session tokens asked for", f.Count("/latest/api/token"), 3)
	})
	// Who comes while a token is being fetched waits for that one.
	run("concurrent_readers", func(t *testing.T) {
		f, c := served(t, cloud.Options{})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if got, err := cloud.Read(t.Context(), c, cloud.Item{Name: "thing", Path: "/latest/item"}, wellOnly); err != nil || got != wellBody {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		all.Wait()
		must.Equal(t, "session tokens asked for", f.Count("/latest/api/token"), 1)
	})

	// The network of a first boot comes, goes and comes again (guest-agent issue 610).
	for name, why := range map[string]error{"not_up_yet_at_boot": syscall.ENETUNREACH, "not_up_yet_and_refused": syscall.ECONNREFUSED, "not_up_at_all": syscall.EHOSTUNREACH} {
		run(name, func(t *testing.T) {
			var f *replay.Service
			var c *cloud.Client
			n := 0
			f, c = served(t, cloud.Options{Transport: mdtest.RoundTrip(func(r *http.Request) (*http.Response, error) {
				if n++; n <= 3 || name == "not_up_at_all" {
					return nil, &net.OpError{Op: "dial", Err: why}
				}
				return fakes.Transport{Handler: f}.RoundTrip(r)
			})})
			if name != "not_up_at_all" {
				_ = item(t.Context(), t, c, nil)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), cloud.Timeout)
			defer cancel()
			if err := item(ctx, t, c, cloud.ErrNotReady); !errors.Is(err, why) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error does not carry its cause and the bound: %v", err)
			}
		})
	}

	var log locked.Buffer
	var f *replay.Service
	synctest.Test(t, func(t *testing.T) {
		var c *cloud.Client
		f, c = served(t, cloud.Options{Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		f.Break("/latest/item", 2, status(500))
		_ = item(t.Context(), t, c, nil)
	})
	var told []string
	answers := map[string]int{}
	for line := range strings.Lines(log.String()) {
		var entry struct {
			Level, Msg, Provider, Method, Path string
			Status, Bytes                      int
		}
		must.OK(t, json.Unmarshal([]byte(line), &entry))
		if entry.Level != "DEBUG" && entry.Provider == "test" {
			told = append(told, entry.Level+" "+entry.Msg)
		}
		if entry.Msg == "metadata answer" && (entry.Status != 200 || entry.Path != "/latest/item" || entry.Bytes == len(wellBody)) {
			answers[entry.Method+" "+entry.Path]++
		}
	}
	// An outage is one warning, however many tries it takes, and one line at its end.
	run("outages_are_logged", func(t *testing.T) {
		want := []string{"WARN metadata service gave no usable answer, trying again", "INFO metadata service answers again"}
		must.NoDiff(t, "warnings of\n"+log.String(), told, want)
	})
	// The log at its finest shows path, status and size of each answer, and nothing of its content.
	run("answers_are_logged", func(t *testing.T) {
		if answers["GET /latest/item"] != 3 || answers["PUT /latest/api/token"] != 1 || len(f.Seen()) != 4 {
			t.Errorf("%v for %d requests", answers, len(f.Seen()))
		}
		if strings.Contains(log.String(), "AQAEA") || strings.Contains(log.String(), wellBody) {
			t.Errorf("the log holds a session token or an answer:\n%s", log.String())
		}
	})
	run("never_forwarded", func(t *testing.T) {
		for _, r := range f.Seen() {
			for h := range r.Header {
				if !slices.Contains([]string{"X-Mark", "X-Token", "X-Ttl", "User-Agent", "Content-Length"}, h) {
					t.Errorf("%s %s carries %s", r.Method, r.URL.Path, h)
				}
			}
		}
	})
	t.Run("proxy_is_ignored", proxyIgnored)
	run("unknown_fields_survive", func(t *testing.T) {
		type doc struct{ ID string }
		got, odd, err := cloud.Decode[doc]([]byte(`{"aFieldOfTomorrow":{"deep":[1,null,{"x":true}]},"id":"i-1"}`))
		if got.ID != "i-1" || odd != nil || err != nil {
			t.Errorf("%+v, %v, %v", got, odd, err)
		}
	})
	run("json", func(t *testing.T) {
		snake := regexp.MustCompile(`^[a-z][a-z0-9_]*(,omitempty|,omitzero)?$`)
		for f := range reflect.TypeFor[cloud.Instance]().Fields() {
			if tag := f.Tag.Get("json"); !snake.MatchString(tag) {
				t.Errorf("field %s is %q in JSON", f.Name, tag)
			}
		}
	})
}

// tokenFault is a fault of the first n answers of a path, -1 of all, and what comes of it: the kind of the error, the hint, and how
// many tokens and items were asked for.
type tokenFault struct {
	path          string
	fault         http.HandlerFunc
	n             int
	kind          error
	hint          string
	tokens, items int
}

func proxyIgnored(t *testing.T) {
	const origin = "http://192.0.2.1" // no machine has it
	var asked atomic.Bool
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer proxy.Close()
	for _, k := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(k, proxy.URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	// net/http reads the environment once in a process, so make sure that it has read this one.
	target, err := url.Parse(origin)
	must.OK(t, err)
	if u, err := http.ProxyFromEnvironment(&http.Request{URL: target}); err != nil || u == nil || u.String() != proxy.URL {
		t.Fatalf("the control failed: Go's default would use proxy %v (%v); has a test of this binary used http.DefaultTransport before?", u, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, _ = cloud.Read(ctx, client(origin, cloud.Options{}), cloud.Item{Path: "/latest/item"}, wellOnly) // no network, or no answer
	if asked.Load() {
		t.Error("the proxy was asked")
	}
}
