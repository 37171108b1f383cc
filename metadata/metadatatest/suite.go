// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

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
	// Service is nil for a provider without requests.
	Service *Service
}

// Machine is a machine and its expected Instance.
type Machine struct {
	Name string
	Root string
	// Bodies are answers by path.
	Bodies  map[string]string
	Options func(*cloud.Options)
	// Want is compared without Notes.
	Want    cloud.Instance
	WantErr error
}

// Run runs all tests.
func Run(t *testing.T, s Suite) {
	for _, m := range s.Machines {
		t.Run("machine/"+m.Name, func(t *testing.T) { s.machine(t, m) })
	}
	t.Run("cancelled", s.cancelled)
	if s.Service == nil {
		return // the other tests need a service
	}
	for _, rule := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"reads_again_on_each_call", s.readsAgain},
		{"http_403_is_final", s.forbidden},
		{"http_404_of_the_required_item", s.requiredNotFound},
		{"wrong_types", s.wrongTypes},
		{"optional_item_broken_is_missing_not_absent", s.optionalBroken},
		{"bad_endpoint_is_refused", s.endpoint},
		{"cancelled_in_the_middle", s.cancelledInTheMiddle},
	} {
		t.Run(rule.name, rule.run)
	}
}

func (s Suite) open(t *testing.T, o cloud.Options) cloud.Provider {
	t.Helper()
	p, err := s.Open(o)
	if err != nil {
		t.Fatalf("opening provider %s: %v", s.Name, err)
	}
	return p
}

// at allows only the cloud's address, with bounds for a loaded machine.
func (s Suite) at(t *testing.T, f *Fake, m Machine) cloud.Options {
	o := cloud.Options{Root: m.Root, AttemptTimeout: 500 * time.Millisecond, Timeout: 20 * time.Second, RetryWait: time.Millisecond}
	o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if f == nil || "http://"+addr != s.Service.Origin+":80" {
			t.Errorf("dialled %s", addr)
			return nil, errors.New("no network here")
		}
		return (&net.Dialer{}).DialContext(ctx, network, f.Addr())
	}
	if f == nil {
		o.Timeout = time.Second
	}
	if m.Options != nil {
		m.Options(&o)
	}
	return o
}

func (s Suite) fake(t *testing.T, m Machine) *Fake {
	t.Helper()
	if s.Service == nil {
		return nil
	}
	return NewFake(t, *s.Service, m.Bodies)
}

// start takes AttemptTimeout and Timeout as bounds.
func (s Suite) start(t *testing.T, bounds ...time.Duration) (*Fake, cloud.Provider) {
	t.Helper()
	f := s.fake(t, s.Machines[0])
	o := s.at(t, f, s.Machines[0])
	if len(bounds) > 0 {
		o.AttemptTimeout, o.Timeout = bounds[0], bounds[1]
	}
	return f, s.open(t, o)
}

func (s Suite) reads(t *testing.T, p cloud.Provider) {
	t.Helper()
	got, err := p.Instance(t.Context())
	must.OK(t, err)
	s.same(t, got, s.Machines[0].Want)
}

func (s Suite) fails(t *testing.T, p cloud.Provider, kind error) error {
	t.Helper()
	_, err := p.Instance(t.Context())
	e, ok := errors.AsType[*cloud.Error](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("Instance() error = %v (%T), want a *cloud.Error that is %q", err, err, kind)
	}
	if e.Provider != s.Name || e.Item == "" {
		t.Errorf("the error names provider %q and item %q", e.Provider, e.Item)
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
		t.Errorf("the error is not one line: %q", err)
	}
	return err
}

func (s Suite) machine(t *testing.T, m Machine) {
	f := s.fake(t, m)
	p := s.open(t, s.at(t, f, m))
	got, err := p.Instance(t.Context())
	if m.WantErr != nil {
		if !errors.Is(err, m.WantErr) {
			t.Fatalf("Instance() error = %v, want %v", err, m.WantErr)
		}
		return
	}
	must.OK(t, err)
	s.same(t, got, m.Want)
	if got.Provider != s.Name || p.Name() != s.Name {
		t.Errorf("Provider = %q, Name() = %q, want %q", got.Provider, p.Name(), s.Name)
	}
	if got.IDSource == "" || got.Address.IsValid() && got.AddressSource == "" {
		t.Error("an id or an address without its source")
	}
	if !got.TagsKnown && got.TagsHint == "" {
		t.Error("tags are not known and there is no hint")
	}
	if f != nil && len(m.Want.Missing) == 0 { // missing items are retried
		f.AskedOnce(m.Name)
	}
}

func (s Suite) same(t *testing.T, got, want cloud.Instance) {
	t.Helper()
	got.Notes, want.Notes = nil, nil
	if d := gocmp.Diff(want, got, gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("Instance() differs (-want +got):\n%s", d)
	}
}

func (s Suite) cancelled(t *testing.T) {
	_, p := s.start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Instance(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Instance() with a cancelled context: %v, want context.Canceled", err)
	}
}

func (s Suite) readsAgain(t *testing.T) {
	f, p := s.start(t)
	s.reads(t, p)
	s.reads(t, p)
	if n := f.Count(s.Service.Required); n != 2 {
		t.Errorf("two calls read the required item %d times: once each, and none before", n)
	}
}

func (s Suite) forbidden(t *testing.T) {
	paths := []string{"*"}
	if s.Service.Token != nil {
		paths = append(paths, s.Service.Token.Path)
	}
	for _, path := range paths {
		f, p := s.start(t, time.Second, 5*time.Second)
		f.Break(path, -1, Status(http.StatusForbidden))
		if err := s.fails(t, p, cloud.ErrForbidden); cloud.HintOf(err) == "" {
			t.Errorf("403 of %s: no hint", path)
		}
		f.AskedOnce("403 of " + path)
	}
}

func (s Suite) requiredNotFound(t *testing.T) {
	f, p := s.start(t)
	f.Break(s.Service.Required, -1, Status(http.StatusNotFound))
	if err := s.fails(t, p, cloud.ErrNotThisCloud); cloud.HintOf(err) == "" {
		t.Error("no hint")
	}
	if n := f.Count(s.Service.Required); n < 2 {
		t.Errorf("the required item was asked for %d times: at boot it may come late", n)
	}
}

func (s Suite) wrongTypes(t *testing.T) {
	for _, body := range append(slices.Clone(s.Service.WrongTypes), "", page) {
		f, p := s.start(t)
		f.Break(s.Service.Required, -1, Body(body))
		if got, err := p.Instance(t.Context()); !errors.Is(err, cloud.ErrBadAnswer) {
			t.Errorf("answer %s: error = %v, want ErrBadAnswer (got %+v)", body, err, got)
		}
	}
}

func (s Suite) optionalBroken(t *testing.T) {
	if s.Service.Optional == "" {
		t.Skip("one item has everything")
	}
	for name, fault := range map[string]Fault{"500": Status(http.StatusInternalServerError), "html": HTML()} {
		f, p := s.start(t)
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
	for _, at := range []int32{1, 2} { // the first item, and a later one
		f := s.fake(t, s.Machines[0])
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var n atomic.Int32
		var cut time.Time
		f.OnRequest(func(seen Seen) {
			if s.Service.Token != nil && seen.Path == s.Service.Token.Path || n.Add(1) != at {
				return
			}
			f.Break("*", -1, Slow())
			cut = time.Now()
			cancel()
		})
		var log locked.Buffer
		o := s.at(t, f, s.Machines[0])
		o.AttemptTimeout, o.Timeout = 10*time.Second, 10*time.Second
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		_, err := s.open(t, o).Instance(ctx)
		if n.Load() < at && err == nil {
			continue // one item has everything
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Instance() error = %v, want context.Canceled", err)
		}
		// Generous for a busy machine, far from the bound of 10 s.
		if took := time.Since(cut); took > o.AttemptTimeout/2 {
			t.Errorf("ended %v after the context", took)
		}
		if log.String() != "" {
			t.Errorf("cancelled at item %d, it logs %s", at, log.String())
		}
	}
}

// All forms are in TestEndpoint of package cloud.
func (s Suite) endpoint(t *testing.T) {
	f := s.fake(t, s.Machines[0])
	s.reads(t, s.open(t, cloud.Options{Endpoints: map[string]string{s.Name: f.URL()}}))
	if _, err := s.Open(cloud.Options{Endpoints: map[string]string{s.Name: "http://u:secret@127.0.0.1"}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("endpoint with a password: %v", err)
	}
}
