// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
	mdtest "github.com/amsagent/amsagent/metadata/metadatatest"
)

// status makes a try of fn look as if the service had answered so.
type status int

// RoundTrip implements http.RoundTripper.
func (s status) RoundTrip(*http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	w.WriteHeader(int(s))
	_, err := w.WriteString("x")
	return w.Result(), err
}

// opened is a client of a service that answers so.
func opened(rt http.RoundTripper, o cloud.Options) *cloud.Client {
	o.Transport = rt
	c, err := cloud.New(cloud.Client{Provider: "test", Origin: "http://metadata.example/"}, o)
	if err != nil {
		panic(err) // it gives no endpoint
	}
	return c
}

func read(ctx context.Context, c *cloud.Client, required bool) (string, error) {
	return cloud.Read(ctx, c, cloud.Item{Name: "thing", Path: "x", Required: required}, func(b []byte) (string, error) { return string(b), nil })
}

func TestVerdicts(t *testing.T) {
	refused := mdtest.RoundTrip(func(*http.Request) (*http.Response, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	})
	for _, tt := range []struct {
		name  string
		rt    http.RoundTripper
		kind  error
		tries int
		text  string
	}{
		{"400", status(400), cloud.ErrBadAnswer, 1, "unusable answer from the metadata service (HTTP 400)"},
		{"401 is tried twice", status(401), cloud.ErrForbidden, 2, "the metadata service refuses (HTTP 401)"},
		{"404", status(404), cloud.ErrNotFound, 1, "not set in the metadata (HTTP 404)"},
		{"408", status(408), cloud.ErrNotReady, 3, "(HTTP 408)"},
		{"599", status(599), cloud.ErrNotReady, 3, "(HTTP 599)"},
		{"307", status(307), cloud.ErrBadAnswer, 1, "a redirect (HTTP 307), which is not followed"},
		{"refused", refused, cloud.ErrNotReady, 5, "dial tcp: connection refused"},
		{"silent", mdtest.RoundTrip(mdtest.Silent), cloud.ErrNotReady, 5, "no connection in time"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				c := opened(mdtest.RoundTrip(func(req *http.Request) (*http.Response, error) {
					n++
					return tt.rt.RoundTrip(req)
				}), cloud.Options{})
				_, err := read(t.Context(), c, false)
				if !errors.Is(err, tt.kind) {
					t.Errorf("error = %v, want %v", err, tt.kind)
				}
				must.Equal(t, "tries", n, tt.tries)
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error = %v, want %q in it", err, tt.text)
				}
			})
		})
	}
}

// Waits double from the first to the longest, each shortened at random by up to a half.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var at []time.Time
		c := opened(mdtest.RoundTrip(func(req *http.Request) (*http.Response, error) {
			at = append(at, time.Now())
			return status(500).RoundTrip(req)
		}), cloud.Options{})
		_, err := read(ctx, c, true)
		if !errors.Is(err, cloud.ErrNotReady) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v, want both not ready and the deadline", err)
		}
		want := 250 * time.Millisecond
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < want/2 || d > want {
				t.Errorf("wait %d was %v, want between %v and %v", i, d, want/2, want)
			}
			want = min(2*want, 2*time.Second)
		}
		// A minute holds 30 to 60 waits of the longest kind: kind to the service, and soon there when it comes up.
		if len(at) < 30 || len(at) > 66 {
			t.Errorf("%d tries in a minute", len(at))
		}
		if took := time.Since(at[0]); took > time.Minute {
			t.Errorf("took %v, beyond the bound", took)
		}
	})
}

// The last complete try gives the reason, although the time ran out in the middle of the next one.
func TestCauseOfATryThatIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n := 0
		c := opened(mdtest.RoundTrip(func(req *http.Request) (*http.Response, error) {
			if n++; n > 1 {
				return mdtest.Silent(req)
			}
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}), cloud.Options{})
		_, err := read(ctx, c, true)
		if !errors.Is(err, cloud.ErrNotReady) || !errors.Is(err, syscall.ECONNREFUSED) || !errors.Is(err, context.DeadlineExceeded) || n != 2 {
			t.Errorf("%d tries, error %v", n, err)
		}
	})
}

// Bad answers count by themselves: what came before them was another failure.
func TestBadAnswersAfterOtherFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := served(t, cloud.Options{})
		f.Break("/latest/item", 4, replay.Status(http.StatusInternalServerError))
		f.Break("/latest/item", 2, replay.HTML)
		_ = item(t.Context(), t, c, nil)
	})
}

// endless is a service, and the body of its answer.
type endless struct{ sent int }

// Read implements io.Reader.
func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	e.sent += len(p)
	return len(p), nil
}

// Close implements io.Closer.
func (e *endless) Close() error { return nil }

// RoundTrip implements http.RoundTripper.
func (e *endless) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: e, Header: http.Header{}, Request: req}, nil
}

func TestBodyBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := &endless{}
		_, err := read(t.Context(), opened(body, cloud.Options{}), true)
		if !errors.Is(err, cloud.ErrBadAnswer) {
			t.Fatalf("error = %v", err)
		}
		must.Contain(t, "error", err.Error(), "the answer is larger than 1048576 bytes (tried 3 times)")
		if most := 3 * (cloud.MaxBody + 1); body.sent > most {
			t.Errorf("read %d bytes in three tries, want at most %d", body.sent, most)
		}
	})
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "http://127.0.0.1:1338": "http://127.0.0.1:1338", "http://127.0.0.1:1338/": "http://127.0.0.1:1338",
		"http://[fd00:ec2::254]": "http://[fd00:ec2::254]", "https://metadata.example": "https://metadata.example",
		"127.0.0.1:1338": "!", "http://x/latest": "!", "http://u:secret@x": "!", "http://": "!", "http://x?y": "!", "http://x#y": "!", "unix:///x": "!",
	} {
		got, err := cloud.Options{Endpoints: map[string]string{"aws": in}}.Endpoint("aws")
		if want == "!" {
			if err == nil || strings.Contains(err.Error(), "secret") {
				t.Errorf("Endpoint(%q) = %q, %v", in, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("Endpoint(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestTagsRedacted(t *testing.T) {
	for in, want := range map[string]string{
		"edge":                                    "edge",
		"10.0.2.4":                                "10.0.2.4",
		"10.0.2.4,10.0.2.5:27017":                 "10.0.2.4,10.0.2.5:27017",
		"mongodb://10.0.2.4/?replicaSet=rs0":      "mongodb://10.0.2.4/?***",
		"mongodb://u:p@10.0.2.4/?authSource=x":    "mongodb://***@10.0.2.4/?***",
		"mongodb://u:p@ss@h/db":                   "mongodb://***@h/db",
		"mongodb://u:p/w?x@h/db":                  "mongodb://***@h/db",
		"u:p@h1,h2/?replicaSet=rs0":               "***@h1,h2/?***",
		"someone@example.com":                     "***@example.com",
		"https://example.com/?token=abc":          "https://example.com/?***",
		"what? no":                                "what? no",
		"mongodb+srv://u:p%40ss@h/?x=1&y=u2:p2@z": "mongodb+srv://***@z",
	} {
		must.Equal(t, fmt.Sprintf("redacted %q", in), (cloud.Tags{"k": in}).Redacted()["k"], want)
	}
	tags := cloud.Tags{"b": "mongodb://u:hunter2@h", "a": "x"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "tags", tags)
	js, err := json.Marshal(tags)
	must.OK(t, err)
	inst := cloud.Instance{Tags: tags}
	all, err := json.Marshal(inst)
	must.OK(t, err)
	for _, out := range []string{
		fmt.Sprint(tags), fmt.Sprintf("%+v %#v %s", tags, tags, tags), log.String(), string(js), fmt.Sprintf("%v %+v %#v", inst, inst, inst), string(all),
	} {
		if strings.Contains(out, "hunter2") {
			t.Errorf("shows the password: %s", out)
		}
	}
	must.Equal(t, "String()", tags.String(), `map[a:x b:mongodb://***@h]`)
}

func TestInstanceJSON(t *testing.T) {
	address := netip.MustParseAddr("10.0.0.1")
	for want, i := range map[string]cloud.Instance{
		`{"provider":"generic","id":"x","tags_known":false}`: {Provider: "generic", ID: "x"},
		`{"provider":"p","id":"i","id_source":"is","name":"n","account_id":"a","region":"r","zone":"z","type":"t","life_cycle":"lc","hostname":"h",` +
			`"address":"10.0.0.1","address_source":"as","ipv6":"10.0.0.1","public_address":"10.0.0.1","tags":{"k":"v"},"tags_known":true,"tags_hint":"th",` +
			`"group":"g","stop_window_seconds":30,"missing":["m"],"notes":["n"]}`: {
			Provider: "p", ID: "i", IDSource: "is", Name: "n", AccountID: "a", Region: "r", Zone: "z", Type: "t", LifeCycle: "lc", Hostname: "h",
			Address: address, AddressSource: "as", IPv6: address, PublicAddress: address, Tags: cloud.Tags{"k": "v"}, TagsKnown: true, TagsHint: "th",
			Group: "g", StopWindow: seconds.Duration(30 * time.Second), Missing: []string{"m"}, Notes: []string{"n"},
		},
	} {
		b, err := json.Marshal(i)
		must.OK(t, err)
		must.Equal(t, "JSON", string(b), want)
	}
}

// Each request names the agent (clouds C11), in front of the name of a library.
func TestUserAgent(t *testing.T) {
	var agents []string
	rt := mdtest.RoundTrip(func(req *http.Request) (*http.Response, error) {
		agents = append(agents, req.UserAgent())
		return status(http.StatusOK).RoundTrip(req)
	})
	_, err := read(t.Context(), opened(rt, cloud.Options{}), true)
	must.OK(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://metadata.example/x", http.NoBody)
	must.OK(t, err)
	req.Header.Set("User-Agent", "aws-sdk-go-v2/1")
	api, err := cloud.Options{APITransport: rt}.API("test")
	must.OK(t, err)
	resp, err := api.HTTP.Do(req)
	must.OK(t, err)
	_ = resp.Body.Close()
	if want := []string{"amsagent", "amsagent aws-sdk-go-v2/1"}; !slices.Equal(agents, want) || req.UserAgent() != "aws-sdk-go-v2/1" {
		t.Errorf("%q, want %q; the request itself says %q", agents, want, req.UserAgent())
	}
}
