// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Suite describes a provider to the rules. Faults of the service are tested on [cloud.Client], which all providers use.
type Suite struct {
	// Name of the provider.
	Name string
	// Open opens it.
	Open func(cloud.Options) (cloud.Provider, error)
	// Machines are machines and the instances that must be read from them. The first is used if any machine will do.
	Machines []Machine
	// Service is nil for a provider that makes no requests.
	Service *Service
	// Lacks names the rules and topics (coverage.go) that do not apply to this cloud, with the reason. They are skipped.
	Lacks map[string]string
}

// Machine is one machine and the instance that must be read from it.
type Machine struct {
	Name string
	// Root is the tree of a provider that reads files.
	Root string
	// Bodies are the answers of a provider's service by path.
	Bodies map[string]string
	// Options may add settings.
	Options func(*cloud.Options)
	// Want is the instance. Want.Notes is not compared.
	Want cloud.Instance
	// WantErr, if it is not nil, is the error of Instance.
	WantErr error
}

// Run tries all rules.
func Run(t *testing.T, s Suite) {
	t.Run("name", func(t *testing.T) {
		if p := s.open(t, cloud.Options{Root: t.TempDir()}); p.Name() != s.Name {
			t.Errorf("Name() = %q, want %q", p.Name(), s.Name)
		}
	})
	for _, m := range s.Machines {
		t.Run("machine/"+m.Name, func(t *testing.T) { s.machine(t, m) })
	}
	t.Run("covers", s.covers)
	t.Run("cancelled", s.cancelled)
	if s.Service == nil {
		t.Run("asks_no_network", s.noNetwork)
		return // the other rules need a service
	}
	for _, rule := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"opening_asks_nothing", s.openingAsksNothing},
		{"nothing_asked_twice", s.nothingAskedTwice},
		{"reads_again_on_each_call", s.readsAgain},
		{"token_asked_once", s.tokenOnce},
		{"token_expired_is_refreshed", s.tokenExpired},
		{"token_refused_for_good", s.tokenRefused},
		{"token_never_answered", s.tokenUnanswered},
		{"token_lost_once", s.tokenLost},
		{"token_of_nonsense", s.tokenNonsense},
		{"http_403_is_final", s.forbidden},
		{"http_404_of_the_required_item", s.requiredNotFound},
		{"wrong_types", s.wrongTypes},
		{"optional_item_broken_is_missing_not_absent", s.optionalBroken},
		{"not_up_yet_in_all_ways", s.coldBoot},
		{"bad_endpoint_is_refused", s.endpoint},
		{"concurrent_readers", s.concurrent},
		{"cancelled_in_the_middle", s.cancelledInTheMiddle},
	} {
		t.Run(rule.name, func(t *testing.T) {
			if why, ok := s.Lacks[rule.name]; ok {
				t.Skip(why)
			}
			rule.run(t)
		})
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

// at returns options for a machine whose service is the fake, with bounds that a loaded machine keeps. The provider must dial
// the address of its cloud.
func (s Suite) at(t *testing.T, f *Fake, m Machine) cloud.Options {
	o := cloud.Options{Root: m.Root, AttemptTimeout: 500 * time.Millisecond, Timeout: 20 * time.Second, RetryWait: time.Millisecond}
	if f != nil {
		o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if "http://"+addr != s.Service.Origin+":80" {
				t.Errorf("dialled %s, want %s", addr, s.Service.Origin)
			}
			return (&net.Dialer{}).DialContext(ctx, network, f.Addr())
		}
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

// start returns the first machine's service and a provider that asks it, with other bounds of a request and of a reading if they
// are given.
func (s Suite) start(t *testing.T, bounds ...time.Duration) (*Fake, cloud.Provider) {
	t.Helper()
	f := s.fake(t, s.Machines[0])
	o := s.at(t, f, s.Machines[0])
	if len(bounds) > 0 {
		o.AttemptTimeout, o.Timeout = bounds[0], bounds[1]
	}
	return f, s.open(t, o)
}

// reads fails unless the provider reads the first machine.
func (s Suite) reads(t *testing.T, p cloud.Provider) {
	t.Helper()
	got, err := p.Instance(t.Context())
	must.OK(t, err)
	s.same(t, got, s.Machines[0].Want)
}

// fails fails unless Instance fails in this way.
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
	got, err := s.open(t, s.at(t, s.fake(t, m), m)).Instance(t.Context())
	if m.WantErr != nil {
		if !errors.Is(err, m.WantErr) {
			t.Fatalf("Instance() error = %v, want %v", err, m.WantErr)
		}
		return
	}
	must.OK(t, err)
	s.same(t, got, m.Want)
	if got.Provider != s.Name {
		t.Errorf("Provider = %q, want %q", got.Provider, s.Name)
	}
	if got.IDSource == "" || got.Address.IsValid() && got.AddressSource == "" {
		t.Error("an id or an address without its source")
	}
	if !got.TagsKnown && got.TagsHint == "" {
		t.Error("tags are not known and there is no hint")
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

func (s Suite) noNetwork(t *testing.T) {
	for _, m := range s.Machines {
		o := s.at(t, nil, m)
		o.Timeout = time.Second
		o.DialContext = func(_ context.Context, network, addr string) (net.Conn, error) {
			t.Errorf("%s: dialled %s %s", m.Name, network, addr)
			return nil, errors.New("no network here")
		}
		if _, err := s.open(t, o).Instance(t.Context()); err != nil && m.WantErr == nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
}

func (s Suite) openingAsksNothing(t *testing.T) {
	f, _ := s.start(t)
	if n := len(f.Seen()); n != 0 {
		t.Errorf("%d requests before anything was read", n)
	}
}

func (s Suite) nothingAskedTwice(t *testing.T) {
	for _, m := range s.Machines {
		if m.WantErr != nil || len(m.Want.Missing) > 0 {
			continue // asked again because the answer was of no use
		}
		f := s.fake(t, m)
		if _, err := s.open(t, s.at(t, f, m)).Instance(t.Context()); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		f.AskedOnce(m.Name)
	}
}

func (s Suite) readsAgain(t *testing.T) {
	f, p := s.start(t)
	s.reads(t, p)
	s.reads(t, p)
	if n := f.Count(s.Service.Required); n != 2 {
		t.Errorf("two calls read the required item %d times: a change would not be seen", n)
	}
}

func (s Suite) needToken(t *testing.T) *Token {
	t.Helper()
	if s.Service.Token == nil {
		t.Skip("this cloud has no session tokens")
	}
	return s.Service.Token
}

func (s Suite) tokenOnce(t *testing.T) {
	tok := s.needToken(t)
	f, p := s.start(t)
	for range 3 {
		s.reads(t, p)
	}
	if n := f.Count(tok.Path); n != 1 {
		t.Errorf("%d session tokens asked for, want 1", n)
	}
	for _, r := range f.Seen() {
		if r.Path != tok.Path && len(r.Header.Values(tok.Header)) != 1 {
			t.Errorf("%s %s carries %d tokens, want 1", r.Method, r.Path, len(r.Header.Values(tok.Header)))
		}
	}
}

// tokenExpired: aws-node-termination-handler issues 229 and 668, where a refused token was used for ever.
func (s Suite) tokenExpired(t *testing.T) {
	tok := s.needToken(t)
	f, p := s.start(t)
	s.reads(t, p)
	f.Expire()
	s.reads(t, p)
	if n := f.Count(tok.Path); n != 2 {
		t.Errorf("%d session tokens asked for, want 2", n)
	}
	// And in the middle of a reading.
	var once sync.Once
	f.OnRequest(func(seen Seen) {
		if seen.Path == s.Service.Optional {
			once.Do(f.Expire)
		}
	})
	s.reads(t, p)
	if n := f.Count(tok.Path); n != 3 {
		t.Errorf("%d session tokens asked for, want 3", n)
	}
}

func (s Suite) tokenRefused(t *testing.T) {
	tok := s.needToken(t)
	f, p := s.start(t)
	f.Break("*", -1, Status(http.StatusUnauthorized))
	if err := s.fails(t, p, cloud.ErrForbidden); cloud.HintOf(err) == "" {
		t.Error("no hint")
	}
	if n, tokens := f.Count(s.Service.Required), f.Count(tok.Path); n != 2 || tokens != 2 {
		t.Errorf("%d refused requests and %d tokens, want 2: again with a new token", n, tokens)
	}
}

func (s Suite) tokenUnanswered(t *testing.T) {
	tok := s.needToken(t)
	f, p := s.start(t, 250*time.Millisecond, 900*time.Millisecond)
	f.Break(tok.Path, -1, Slow())
	if err := s.fails(t, p, cloud.ErrNotReady); cloud.HintOf(err) == "" {
		t.Error("no hint; the usual reason is a hop limit that keeps the answer from a container")
	}
	if n := f.Count(s.Service.Required); n != 0 {
		t.Errorf("%d requests without a token", n)
	}
}

// tokenLost: the answer with the token gets lost on its way.
func (s Suite) tokenLost(t *testing.T) {
	tok := s.needToken(t)
	for _, fault := range []Fault{Closed(), Status(http.StatusServiceUnavailable), Status(http.StatusTooManyRequests), Slow()} {
		f, p := s.start(t)
		f.Break(tok.Path, 1, fault)
		s.reads(t, p)
	}
}

// tokenNonsense: without a token nothing is asked, whatever answers in its place.
func (s Suite) tokenNonsense(t *testing.T) {
	tok := s.needToken(t)
	for name, tt := range map[string]struct {
		fault Fault
		kind  error
	}{
		"page": {HTML(), cloud.ErrBadAnswer}, "empty": {Body(""), cloud.ErrBadAnswer}, "two lines": {Body("a\nb"), cloud.ErrBadAnswer},
		"400": {Status(http.StatusBadRequest), cloud.ErrBadAnswer}, "404": {Status(http.StatusNotFound), cloud.ErrNotThisCloud},
		"405": {Status(http.StatusMethodNotAllowed), cloud.ErrNotThisCloud}, "501": {Status(http.StatusNotImplemented), cloud.ErrNotThisCloud},
	} {
		f, p := s.start(t)
		f.Break(tok.Path, -1, tt.fault)
		err := s.fails(t, p, tt.kind)
		tokens := f.Count(tok.Path)
		if other := len(f.Seen()) - tokens; other != 0 {
			t.Errorf("%s: %d requests without a token", name, other)
		}
		if errors.Is(tt.kind, cloud.ErrNotThisCloud) && (!strings.Contains(cloud.HintOf(err), "session token") || tokens != 1) {
			t.Errorf("%s: %d requests for a token, hint %q", name, tokens, cloud.HintOf(err))
		}
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

// wrongTypes: what is not the cloud's document is not read as one, a page or an empty body for example.
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

// coldBoot is a whole bad boot: no network, then no listener, then one bad answer after the other.
func (s Suite) coldBoot(t *testing.T) {
	f := s.fake(t, s.Machines[0])
	faults := []Fault{
		Status(http.StatusServiceUnavailable), Status(http.StatusGone), Closed(), Status(http.StatusTooManyRequests), Truncated(),
		Status(http.StatusInternalServerError), HTML(), Status(http.StatusNotFound), Status(http.StatusUnauthorized),
	}
	for _, fault := range faults {
		f.Break(s.Service.Required, 1, fault)
	}
	o := s.at(t, f, s.Machines[0])
	var mu sync.Mutex
	reasons := []error{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ECONNREFUSED, syscall.ECONNRESET}
	o.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(reasons) > 0 {
			why := reasons[0]
			reasons = reasons[1:]
			return nil, &net.OpError{Op: "dial", Net: network, Err: why}
		}
		return (&net.Dialer{}).DialContext(ctx, network, f.Addr())
	}
	s.reads(t, s.open(t, o))
	if n := f.Count(s.Service.Required); n < len(faults)+1 {
		t.Errorf("the required item was asked for %d times after %d faults", n, len(faults))
	}
}

// cancelledInTheMiddle: a cancelled call ends at once, however slow the service is, and logs no warning.
func (s Suite) cancelledInTheMiddle(t *testing.T) {
	for _, at := range []int32{1, 2} { // at the first item, and at a later one
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
		// A busy machine may be slow; waiting for the bound of 10 s is something else.
		if took := time.Since(cut); took > o.AttemptTimeout/2 {
			t.Errorf("ended %v after the context", took)
		}
		if log.String() != "" {
			t.Errorf("cancelled at item %d, it logs %s", at, log.String())
		}
	}
}

// endpoint: an endpoint in the options is asked in place of the cloud's, or refused (all forms: TestEndpoint of package cloud).
func (s Suite) endpoint(t *testing.T) {
	f := s.fake(t, s.Machines[0])
	s.reads(t, s.open(t, cloud.Options{Endpoints: map[string]string{s.Name: f.URL()}}))
	if _, err := s.Open(cloud.Options{Endpoints: map[string]string{s.Name: "http://u:secret@127.0.0.1"}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("endpoint with a password: %v", err)
	}
}

func (s Suite) concurrent(t *testing.T) {
	_, p := s.start(t)
	errs := make(chan error, 8)
	for i := range cap(errs) {
		go func() {
			got, err := p.Instance(t.Context())
			if err == nil && got.ID != s.Machines[0].Want.ID {
				err = fmt.Errorf("reader %d got id %q", i, got.ID)
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
