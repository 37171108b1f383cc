// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadatatest holds the conformance tests for metadata providers.
//
// A provider's test describes its cloud as a Suite. Faults of the service are tested in package cloud.
package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Suite describes a provider.
type Suite struct {
	Name string
	Open func(cloud.Options) (cloud.Provider, error)
	// The first machine serves tests that need any.
	Machines []Machine
	Service  Service
}

// Service describes the protocol of a metadata service.
type Service struct {
	replay.Protocol
	// Origin is the cloud's own: http://169.254.169.254.
	Origin   string
	Required string
	// Optional is the path of an item that may be absent, Field its JSON name. Both may be empty.
	Optional, Field string
	// WrongTypes are well-formed, but undocumented answers to Required.
	WrongTypes []string
}

// Machine is a machine and its expected Instance.
type Machine struct {
	Name string
	// Bodies are answers by path.
	Bodies  map[string]string
	Options func(*cloud.Options)
	// Want is compared without Notes.
	Want cloud.Instance
}

// Fixture returns a file of testdata.
func Fixture(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name)
	must.OK(tb, err)
	return string(b)
}

// Sends sets Options.Local; "" means none.
func Sends(v4, v6 string) func(*cloud.Options) {
	return func(o *cloud.Options) {
		o.Local = func() (a, b netip.Addr) {
			a, _ = netip.ParseAddr(v4)
			b, _ = netip.ParseAddr(v6)
			return a, b
		}
	}
}

// RoundTrip is an in-memory transport.
type RoundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f RoundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Silent makes no connection.
func Silent(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// Run runs all tests, each in a bubble of synctest.
func Run(t *testing.T, s Suite) {
	run := func(name string, rule func(*testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, rule) })
	}
	for _, m := range s.Machines {
		run("machine/"+m.Name, func(t *testing.T) { s.machine(t, m) })
	}
	run("cancelled", func(t *testing.T) {
		_, p := s.start(t, s.Machines[0], nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Instance(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Instance() with a cancelled context: %v, want context.Canceled", err)
		}
	})
	run("reads_again_on_each_call", func(t *testing.T) {
		f, p := s.start(t, s.Machines[0], nil)
		s.reads(t, p, s.Machines[0])
		s.reads(t, p, s.Machines[0])
		must.Equal(t, "two calls read the required item (times): once each, and none before", f.Count(s.Service.Required), 2)
	})
	run("http_403_is_final", func(t *testing.T) {
		s.fails(t, s.Service.Required, replay.Status(http.StatusForbidden), cloud.ErrForbidden).AskedOnce()
		if s.Service.Token[0] != "" {
			s.fails(t, "/latest/api/token", replay.Status(http.StatusForbidden), cloud.ErrForbidden).AskedOnce()
		}
	})
	run("http_404_of_the_required_item", func(t *testing.T) {
		f := s.fails(t, s.Service.Required, replay.Status(http.StatusNotFound), cloud.ErrNotThisCloud)
		if n := f.Count(s.Service.Required); n < 2 {
			t.Errorf("the required item was asked for %d times: at boot it may come late", n)
		}
	})
	run("wrong_types", func(t *testing.T) {
		for _, body := range append(slices.Clone(s.Service.WrongTypes), "", replay.Page) {
			s.fails(t, s.Service.Required, replay.Body(body), cloud.ErrBadAnswer)
		}
	})
	run("optional_item_broken_is_missing_not_absent", s.optionalBroken)
	run("bad_endpoint_is_refused", s.endpoint)
	run("cancelled_in_the_middle", s.cancelledInTheMiddle)
}

// start allows only the cloud's address.
func (s Suite) start(t *testing.T, m Machine, log *slog.Logger) (*replay.Service, cloud.Provider) {
	t.Helper()
	f := replay.New(t, s.Service.Protocol, m.Bodies)
	o := cloud.Options{Log: log, Transport: RoundTrip(func(req *http.Request) (*http.Response, error) {
		if req.URL.Scheme+"://"+req.URL.Host != s.Service.Origin {
			t.Errorf("asked %s", req.URL)
			return nil, errors.New("no network here")
		}
		return fakes.Transport{Handler: f}.RoundTrip(req)
	})}
	if m.Options != nil {
		m.Options(&o)
	}
	p, err := s.Open(o)
	if err != nil {
		t.Fatalf("opening provider %s: %v", s.Name, err)
	}
	return f, p
}

func (s Suite) machine(t *testing.T, m Machine) {
	f, p := s.start(t, m, nil)
	got := s.reads(t, p, m)
	if got.Provider != s.Name || p.Name() != s.Name {
		t.Errorf("Provider = %q, Name() = %q, want %q", got.Provider, p.Name(), s.Name)
	}
	if !got.TagsKnown && got.TagsHint == "" {
		t.Error("tags are not known and there is no hint")
	}
	if len(m.Want.Missing) == 0 { // missing items are retried
		f.AskedOnce()
	}
}

func (s Suite) reads(t *testing.T, p cloud.Provider, m Machine) cloud.Instance {
	t.Helper()
	got, err := p.Instance(t.Context())
	must.OK(t, err)
	bare, want := got, m.Want
	bare.Notes, want.Notes = nil, nil
	must.NoDiff(t, "Instance()", bare, want, gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
	return got
}

// fails reads the first machine while a path is broken.
func (s Suite) fails(t *testing.T, path string, fault http.HandlerFunc, kind error) *replay.Service {
	t.Helper()
	f, p := s.start(t, s.Machines[0], nil)
	f.Break(path, -1, fault)
	got, err := p.Instance(t.Context())
	e, ok := errors.AsType[*cloud.Error](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("%s: Instance() = %+v, %v (%T), want a *cloud.Error that is %q", path, got, err, err, kind)
	}
	if e.Provider != s.Name || e.Item == "" {
		t.Errorf("the error names provider %q and item %q", e.Provider, e.Item)
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
		t.Errorf("the error is not one line: %q", err)
	}
	if e.Hint == "" && !errors.Is(kind, cloud.ErrBadAnswer) {
		t.Errorf("%s: no hint: %v", path, err)
	}
	return f
}

func (s Suite) optionalBroken(t *testing.T) {
	if s.Service.Optional == "" {
		t.Skip("one item has everything")
	}
	for name, fault := range map[string]http.HandlerFunc{"500": replay.Status(http.StatusInternalServerError), "html": replay.HTML} {
		f, p := s.start(t, s.Machines[0], nil)
		f.Break(s.Service.Optional, -1, fault)
		got, err := p.Instance(t.Context())
		must.OK(t, err)
		if !slices.Contains(got.Missing, s.Service.Field) || len(got.Notes) == 0 {
			t.Errorf("%s: Missing = %v, want %s in it; notes %q", name, got.Missing, s.Service.Field, got.Notes)
		}
		if n := f.Count(s.Service.Optional); n > 3 {
			t.Errorf("%s: an optional item was asked for %d times", name, n)
		}
	}
}

// A canceled call ends at once and logs no warning.
func (s Suite) cancelledInTheMiddle(t *testing.T) {
	for _, path := range []string{s.Service.Required, s.Service.Optional} {
		if path == "" {
			continue // one item has everything
		}
		var log locked.Buffer
		f, p := s.start(t, s.Machines[0], slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cut := make(chan time.Time, 1)
		f.Break(path, 1, func(w http.ResponseWriter, r *http.Request) {
			cut <- time.Now()
			cancel()
			replay.Slow(w, r)
		})
		if _, err := p.Instance(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("Instance() error = %v, want context.Canceled", err)
		}
		if took := time.Since(<-cut); took > 0 {
			t.Errorf("ended %v after the context", took)
		}
		must.Equal(t, fmt.Sprintf("cancelled at %s, it logs", path), log.String(), "")
	}
}

// All forms are in TestEndpoint of package cloud.
func (s Suite) endpoint(t *testing.T) {
	m := s.Machines[0]
	s.Service.Origin = "http://127.0.0.1:1338"
	m.Options = func(o *cloud.Options) { o.Endpoints = map[string]string{s.Name: s.Service.Origin} }
	_, p := s.start(t, m, nil)
	s.reads(t, p, m)
	if _, err := s.Open(cloud.Options{Endpoints: map[string]string{s.Name: "http://u:secret@127.0.0.1"}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("endpoint with a password: %v", err)
	}
}
