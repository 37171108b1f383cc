// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Suite describes a provider to the rules.
type Suite struct {
	// Name of the provider.
	Name string
	// Open opens it.
	Open func(cloud.Options) (cloud.Provider, error)
	// Machines are machines and what is to be said about them. The first is used where any machine will do.
	Machines []Machine
	// Service is nil for a provider that asks no network.
	Service *Service
	// Lacks names what this cloud does not have, by the name of the rule or of the topic (see coverage.go), and why. What it
	// names is skipped with that reason, so that nothing is silently absent.
	Lacks map[string]string
}

// Machine is one machine and what is to be said about it.
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
	// WantErr, where it is not nil, is what Instance must fail with.
	WantErr error
}

// Run tries all rules.
func Run(t *testing.T, s Suite) {
	t.Run("name", func(t *testing.T) {
		p := s.open(t, cloud.Options{Root: t.TempDir()})
		if p.Name() != s.Name {
			t.Errorf("Name() = %q, want %q", p.Name(), s.Name)
		}
	})
	for _, m := range s.Machines {
		t.Run("machine/"+m.Name, func(t *testing.T) { s.machine(t, m) })
	}
	t.Run("covers", s.covers)
	t.Run("cancelled", s.cancelled)
	t.Run("json", s.json)
	if s.Service == nil {
		t.Run("asks_no_network", s.noNetwork)
		return // the other rules are about the service that it asks
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
		{"http_401_once", s.recovers(Status(http.StatusUnauthorized), 1)},
		{"http_401_for_good", s.refused(http.StatusUnauthorized)},
		{"http_403_is_final", s.forbidden},
		{"http_404_of_the_required_item", s.requiredNotFound},
		{"http_404_of_an_optional_item", s.optionalNotFound},
		{"http_404_at_boot_then_well", s.recovers(Status(http.StatusNotFound), 1)},
		{"http_410_for_good", s.bounded(Status(http.StatusGone), cloud.ErrNotReady)},
		{"http_410_then_well", s.recovers(Status(http.StatusGone), 2)},
		{"http_429_then_well", s.recovers(Status(http.StatusTooManyRequests), 2)},
		{"http_500_then_well", s.recovers(Status(http.StatusInternalServerError), 2)},
		{"http_503_then_well", s.recovers(Status(http.StatusServiceUnavailable), 2)},
		{"http_500_for_good", s.bounded(Status(http.StatusInternalServerError), cloud.ErrNotReady)},
		{"http_429_for_good", s.bounded(Status(http.StatusTooManyRequests), cloud.ErrNotReady)},
		{"slow_then_well", s.recovers(Slow(), 1)},
		{"slow_for_good", s.bounded(Slow(), cloud.ErrNotReady)},
		{"slow_body_for_good", s.bounded(SlowBody(), cloud.ErrNotReady)},
		{"closed_then_well", s.recovers(Closed(), 2)},
		{"closed_for_good", s.bounded(Closed(), cloud.ErrNotReady)},
		{"truncated_then_well", s.recovers(Truncated(), 1)},
		{"truncated_for_good", s.bounded(Truncated(), cloud.ErrNotReady)},
		{"html_then_well", s.recovers(HTML(), 1)},
		{"html_for_good", s.bounded(HTML(), cloud.ErrBadAnswer)},
		{"empty_for_good", s.bounded(Body(""), cloud.ErrBadAnswer)},
		{"wrong_types", s.wrongTypes},
		{"huge_body", s.bounded(Huge(), cloud.ErrBadAnswer)},
		{"redirect_is_refused", s.redirect},
		{"optional_item_broken_is_missing_not_absent", s.optionalBroken},
		{"not_up_yet_at_boot", s.notUpYet(syscall.ENETUNREACH)},
		{"not_up_yet_and_refused", s.notUpYet(syscall.ECONNREFUSED)},
		{"not_up_yet_in_all_ways", s.coldBoot},
		{"not_up_at_all", s.notUp},
		{"retries_are_logged", s.retriesLogged},
		{"answers_are_logged", s.answersLogged},
		{"proxy_is_ignored", s.proxyIgnored},
		{"never_forwarded", s.neverForwarded},
		{"bad_endpoint_is_refused", s.badEndpoint},
		{"concurrent_readers", s.concurrent},
		{"cancelled_in_the_middle", s.cancelledInTheMiddle},
		{"unknown_fields_survive", s.unknownFields},
	} {
		t.Run(rule.name, s.skippable(rule.name, rule.run))
	}
}

// skippable skips a rule that a cloud says it has no use for.
func (s Suite) skippable(name string, run func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		if why, ok := s.Lacks[name]; ok {
			t.Skip(why)
		}
		run(t)
	}
}

// quick are bounds that make a test with a broken service short and still leave a loaded machine time for the healthy
// parts of it.
func quick(o cloud.Options) cloud.Options {
	o.AttemptTimeout, o.Timeout, o.RetryWait = 250*time.Millisecond, 900*time.Millisecond, time.Millisecond
	return o
}

// patient are bounds for a service that is expected to answer in the end, where the machine has none of its own.
func patient(o cloud.Options) cloud.Options {
	o.AttemptTimeout = cmp.Or(o.AttemptTimeout, 500*time.Millisecond)
	o.Timeout = cmp.Or(o.Timeout, 20*time.Second)
	o.RetryWait = cmp.Or(o.RetryWait, time.Millisecond)
	return o
}

func (s Suite) open(t *testing.T, o cloud.Options) cloud.Provider {
	t.Helper()
	p, err := s.Open(o)
	if err != nil {
		t.Fatalf("opening provider %s: %v", s.Name, err)
	}
	return p
}

// at returns options that lead to the fake, or to the machine's tree.
func (s Suite) at(f *Fake, m Machine) cloud.Options {
	o := cloud.Options{Root: m.Root}
	if f != nil {
		o.Endpoints = map[string]string{s.Name: f.URL()}
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

func (s Suite) machine(t *testing.T, m Machine) {
	p := s.open(t, patient(s.at(s.fake(t, m), m)))
	got, err := p.Instance(t.Context())
	if m.WantErr != nil {
		if !errors.Is(err, m.WantErr) {
			t.Fatalf("Instance() error = %v, want %v", err, m.WantErr)
		}
		return
	}
	if err != nil {
		t.Fatalf("Instance(): %v", err)
	}
	s.same(t, got, m.Want)
}

func (s Suite) same(t *testing.T, got, want cloud.Instance) {
	t.Helper()
	got.Notes, want.Notes = nil, nil
	if d := gocmp.Diff(want, got, gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("Instance() differs (-want +got):\n%s", d)
	}
}

func (s Suite) cancelled(t *testing.T) {
	m := s.Machines[0]
	p := s.open(t, patient(s.at(s.fake(t, m), m)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Instance(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Instance() with a cancelled context: %v, want context.Canceled", err)
	}
}

var snake = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func (s Suite) json(t *testing.T) {
	m := s.Machines[0]
	p := s.open(t, patient(s.at(s.fake(t, m), m)))
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	b, err := json.Marshal(inst)
	must.OK(t, err)
	var fields map[string]any
	must.OK(t, json.Unmarshal(b, &fields))
	for k := range fields {
		if !snake.MatchString(k) {
			t.Errorf("JSON field %q is not in snake_case", k)
		}
	}
	for _, k := range []string{"provider", "id", "tags_known"} {
		if _, ok := fields[k]; !ok {
			t.Errorf("JSON has no %q: %s", k, b)
		}
	}
	if inst.Provider != s.Name {
		t.Errorf("Provider = %q, want %q", inst.Provider, s.Name)
	}
	if inst.Address.IsValid() && inst.AddressSource == "" {
		t.Error("an address without a word on where it comes from")
	}
	if inst.IDSource == "" {
		t.Error("an id without a word on where it comes from")
	}
	if !inst.TagsKnown && inst.TagsHint == "" {
		t.Error("tags are not known and there is no hint what to do about it")
	}
}

func (s Suite) noNetwork(t *testing.T) {
	for _, m := range s.Machines {
		o := s.at(nil, m)
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
	m := s.Machines[0]
	f := s.fake(t, m)
	s.open(t, s.at(f, m))
	if n := len(f.Seen()); n != 0 {
		t.Errorf("%d requests before anything was read", n)
	}
}

func (s Suite) nothingAskedTwice(t *testing.T) {
	for _, m := range s.Machines {
		if m.WantErr != nil || len(m.Want.Missing) > 0 {
			// Asked again because the answer was of no use.
			continue
		}
		f := s.fake(t, m)
		if _, err := s.open(t, patient(s.at(f, m))).Instance(t.Context()); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		seen := map[string]int{}
		for _, r := range f.Seen() {
			seen[r.Method+" "+r.Path+"?"+r.Query]++
		}
		for what, n := range seen {
			if n > 1 {
				t.Errorf("%s: %s asked %d times", m.Name, what, n)
			}
		}
	}
}

func (s Suite) readsAgain(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	p := s.open(t, patient(s.at(f, m)))
	for range 2 {
		if _, err := p.Instance(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Count(s.Service.Required); n != 2 {
		t.Errorf("two calls read the required item %d times: what has changed would not be seen", n)
	}
}

func (s Suite) tokenOnce(t *testing.T) {
	tok := s.needToken(t)
	m := s.Machines[0]
	f := s.fake(t, m)
	p := s.open(t, patient(s.at(f, m)))
	for range 3 {
		if _, err := p.Instance(t.Context()); err != nil {
			t.Fatal(err)
		}
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

func (s Suite) needToken(t *testing.T) *Token {
	t.Helper()
	if s.Service.Token == nil {
		t.Skip("this cloud has no session tokens")
	}
	return s.Service.Token
}

// tokenExpired: aws-node-termination-handler issues 229 and 668, where a refused token was used for ever.
func (s Suite) tokenExpired(t *testing.T) {
	tok := s.needToken(t)
	m := s.Machines[0]
	f := s.fake(t, m)
	p := s.open(t, patient(s.at(f, m)))
	if _, err := p.Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Expire()
	got, err := p.Instance(t.Context())
	if err != nil {
		t.Fatalf("after the token expired: %v", err)
	}
	s.same(t, got, m.Want)
	if n := f.Count(tok.Path); n != 2 {
		t.Errorf("%d session tokens asked for, want 2", n)
	}
	// And in the middle of a reading, while several requests are under way.
	f.Break(s.Service.Optional, 1, ExpireThenServe())
	if got, err = p.Instance(t.Context()); err != nil {
		t.Fatalf("when the token expired in the middle: %v", err)
	}
	s.same(t, got, m.Want)
}

func (s Suite) tokenRefused(t *testing.T) {
	tok := s.needToken(t)
	m := s.Machines[0]
	f := s.fake(t, m)
	f.Break("*", -1, Status(http.StatusUnauthorized))
	_, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
	s.wantError(t, err, cloud.ErrForbidden)
	if n := f.Count(s.Service.Required); n != 2 {
		t.Errorf("the refused request was made %d times, want 2: once more with a new token", n)
	}
	if n := f.Count(tok.Path); n != 2 {
		t.Errorf("%d session tokens asked for, want 2", n)
	}
}

func (s Suite) tokenUnanswered(t *testing.T) {
	tok := s.needToken(t)
	m := s.Machines[0]
	f := s.fake(t, m)
	f.Break(tok.Path, -1, Slow())
	_, err := s.open(t, quick(s.at(f, m))).Instance(t.Context())
	s.wantError(t, err, cloud.ErrNotReady)
	if cloud.HintOf(err) == "" {
		t.Error("no hint; the usual reason is a hop limit that keeps the answer from a container")
	}
	if n := f.Count(s.Service.Required); n != 0 {
		t.Errorf("%d requests without a token", n)
	}
}

// refused: the service says for good that it will not answer us. It is asked twice at most.
func (s Suite) refused(status int) func(*testing.T) {
	return func(t *testing.T) {
		m := s.Machines[0]
		f := s.fake(t, m)
		f.Break(s.Service.Required, -1, Status(status))
		o := patient(s.at(f, m))
		o.Timeout = 5 * time.Second
		_, err := s.open(t, o).Instance(t.Context())
		s.wantError(t, err, cloud.ErrForbidden)
		if n := f.Count(s.Service.Required); n > 2 {
			t.Errorf("the refused request was made %d times", n)
		}
	}
}

// tokenLost: the answer with the token gets lost on its way, or comes cut.
func (s Suite) tokenLost(t *testing.T) {
	tok := s.needToken(t)
	m := s.Machines[0]
	for name, fault := range map[string]Fault{
		"closed": Closed(), "503": Status(http.StatusServiceUnavailable), "429": Status(http.StatusTooManyRequests), "slow": Slow(),
	} {
		f := s.fake(t, m)
		f.Break(tok.Path, 1, fault)
		got, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.same(t, got, m.Want)
	}
}

// tokenNonsense: what answers in the place of the token is none, and is sent to nobody.
func (s Suite) tokenNonsense(t *testing.T) {
	tok := s.needToken(t)
	m := s.Machines[0]
	for name, fault := range map[string]Fault{"page": HTML(), "empty": Body(""), "two lines": Body("a\nb")} {
		f := s.fake(t, m)
		f.Break(tok.Path, -1, fault)
		_, err := s.open(t, quick(s.at(f, m))).Instance(t.Context())
		if !errors.Is(err, cloud.ErrBadAnswer) && !errors.Is(err, cloud.ErrNotReady) && !errors.Is(err, cloud.ErrForbidden) {
			t.Errorf("%s: error = %v", name, err)
		}
		for _, r := range f.Seen() {
			if v := r.Header.Get(tok.Header); strings.ContainsAny(v, "<>\n") {
				t.Errorf("%s: %s %s carries %q as its token", name, r.Method, r.Path, v)
			}
		}
	}
}

// recovers: the first n answers of the required item go wrong, the reading succeeds nevertheless.
func (s Suite) recovers(fault Fault, n int) func(*testing.T) {
	return func(t *testing.T) {
		m := s.Machines[0]
		f := s.fake(t, m)
		f.Break(s.Service.Required, n, fault)
		got, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
		if err != nil {
			t.Fatalf("Instance(): %v", err)
		}
		s.same(t, got, m.Want)
		if got := f.Count(s.Service.Required); got != n+1 {
			t.Errorf("the required item was asked for %d times, want %d", got, n+1)
		}
	}
}

// bounded: the required item never comes right; the reading ends in time and says which kind of failure it was.
func (s Suite) bounded(fault Fault, kind error) func(*testing.T) {
	return func(t *testing.T) {
		m := s.Machines[0]
		f := s.fake(t, m)
		f.Break(s.Service.Required, -1, fault)
		o := quick(s.at(f, m))
		if errors.Is(kind, cloud.ErrBadAnswer) {
			o = patient(s.at(f, m)) // the number of tries is its bound
		}
		begin := time.Now()
		_, err := s.open(t, o).Instance(t.Context())
		s.wantError(t, err, kind)
		// The machine of a test may be busy, and an unbounded reading would not end at all.
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("took %v with a bound of %v", took, o.Timeout)
		}
	}
}

func (s Suite) wantError(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("Instance() error = %v, want one that is %q", err, kind)
	}
	e, ok := errors.AsType[*cloud.Error](err)
	if !ok {
		t.Fatalf("Instance() error is a %T, want a *cloud.Error: %v", err, err)
	}
	if e.Provider != s.Name || e.Item == "" {
		t.Errorf("the error names provider %q and item %q", e.Provider, e.Item)
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
		t.Errorf("the error is no line for a person: %q", err)
	}
}

func (s Suite) forbidden(t *testing.T) {
	m := s.Machines[0]
	for _, path := range []string{"*", s.tokenPath()} {
		if path == "" {
			continue
		}
		f := s.fake(t, m)
		f.Break(path, -1, Status(http.StatusForbidden))
		o := patient(s.at(f, m))
		o.Timeout = 5 * time.Second
		_, err := s.open(t, o).Instance(t.Context())
		s.wantError(t, err, cloud.ErrForbidden)
		if cloud.HintOf(err) == "" {
			t.Errorf("403 of %s: no hint", path)
		}
		counts := map[string]int{}
		for _, r := range f.Seen() {
			counts[r.Path]++
		}
		for p, n := range counts {
			if n > 1 {
				t.Errorf("403 of %s: %s was asked %d times; asking again cannot help", path, p, n)
			}
		}
	}
}

func (s Suite) tokenPath() string {
	if s.Service.Token == nil {
		return ""
	}
	return s.Service.Token.Path
}

func (s Suite) requiredNotFound(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	f.Unset(s.Service.Required)
	_, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
	s.wantError(t, err, cloud.ErrNotThisCloud)
}

func (s Suite) optionalNotFound(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	f.Unset(s.Service.Optional)
	got, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
	must.OK(t, err)
	if len(got.Missing) != 0 {
		t.Errorf("Missing = %v; an item that is not set is absent, not missing", got.Missing)
	}
	if n := f.Count(s.Service.Optional); n != 1 {
		t.Errorf("an item that is not set was asked for %d times", n)
	}
}

func (s Suite) optionalBroken(t *testing.T) {
	m := s.Machines[0]
	for name, fault := range map[string]Fault{"500": Status(http.StatusInternalServerError), "html": HTML(), "closed": Closed(), "huge": Huge()} {
		f := s.fake(t, m)
		f.Break(s.Service.Optional, -1, fault)
		got, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Contains(got.Missing, s.Service.Field) {
			t.Errorf("%s: Missing = %v, want %s in it", name, got.Missing, s.Service.Field)
		}
		if len(got.Notes) == 0 {
			t.Errorf("%s: no note about it", name)
		}
		// Not counted where the connection is closed: net/http by itself asks again on each connection that was used before.
		if n := f.Count(s.Service.Optional); n > 3 && name != "closed" {
			t.Errorf("%s: an optional item was asked for %d times", name, n)
		}
	}
}

func (s Suite) wrongTypes(t *testing.T) {
	m := s.Machines[0]
	for _, body := range s.Service.WrongTypes {
		f := s.fake(t, m)
		f.Set(s.Service.Required, body)
		got, err := s.open(t, quick(s.at(f, m))).Instance(t.Context())
		if !errors.Is(err, cloud.ErrBadAnswer) {
			t.Errorf("answer %s: error = %v, want ErrBadAnswer (got %+v)", body, err, got)
		}
	}
}

func (s Suite) redirect(t *testing.T) {
	m := s.Machines[0]
	for _, path := range []string{s.Service.Required, s.tokenPath()} {
		if path == "" {
			continue
		}
		elsewhere := s.fake(t, m)
		f := s.fake(t, m)
		f.Break(path, -1, Redirect(elsewhere.URL()+path))
		_, err := s.open(t, quick(s.at(f, m))).Instance(t.Context())
		s.wantError(t, err, cloud.ErrBadAnswer)
		if n := len(elsewhere.Seen()); n != 0 {
			t.Errorf("redirect of %s: followed %d times", path, n)
		}
	}
}

// notUpYet: the network of a first boot comes, goes and comes again (guest-agent issue 610).
func (s Suite) notUpYet(why error) func(*testing.T) {
	return func(t *testing.T) {
		m := s.Machines[0]
		f := s.fake(t, m)
		o := patient(s.at(f, m))
		var mu sync.Mutex
		n := 0
		o.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			mu.Lock()
			n++
			refuse := n <= 3
			mu.Unlock()
			if refuse {
				return nil, &net.OpError{Op: "dial", Net: network, Err: why}
			}
			return (&net.Dialer{}).DialContext(ctx, network, f.Addr())
		}
		got, err := s.open(t, o).Instance(t.Context())
		must.OK(t, err)
		s.same(t, got, m.Want)
	}
}

// coldBoot is a whole bad boot: no network, then nobody there, then one answer after the other that is none.
func (s Suite) coldBoot(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	for _, fault := range []Fault{
		Status(http.StatusServiceUnavailable), Status(http.StatusGone), Closed(), Status(http.StatusTooManyRequests), Truncated(),
		Status(http.StatusInternalServerError),
	} {
		f.Break(s.Service.Required, 1, fault)
	}
	o := patient(s.at(f, m))
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
	got, err := s.open(t, o).Instance(t.Context())
	must.OK(t, err)
	s.same(t, got, m.Want)
}

// cancelledInTheMiddle: a cancelled call ends at once, however slow the service is, and logs no warning.
func (s Suite) cancelledInTheMiddle(t *testing.T) {
	for _, at := range []string{"the first item", "a later item"} {
		m := s.Machines[0]
		f := s.fake(t, m)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var cut time.Time
		var once sync.Once
		f.OnRequest(func(seen Seen) {
			if s.Service.Token != nil && seen.Path == s.Service.Token.Path || at == "a later item" && seen.Path == s.Service.Required {
				return
			}
			once.Do(func() {
				f.Break("*", -1, Slow())
				cut = time.Now()
				cancel()
			})
		})
		var log locked.Buffer
		o := patient(s.at(f, m))
		o.AttemptTimeout, o.Timeout = 10*time.Second, 10*time.Second
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		_, err := s.open(t, o).Instance(ctx)
		ended := time.Now()
		if cut.IsZero() && err == nil {
			continue // one item has everything
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Instance() error = %v, want context.Canceled", err)
		}
		// A busy machine may take its time; a bound of 10 s that is sat out is something else.
		if took := ended.Sub(cut); took > o.AttemptTimeout/2 {
			t.Errorf("ended %v after the context", took)
		}
		if said := log.String(); said != "" {
			t.Errorf("cancelled at %s, it says %s", at, said)
		}
	}
}

// unknownFields: a later version of the service has a field more.
func (s Suite) unknownFields(t *testing.T) {
	m := s.Machines[0]
	body := m.Bodies[s.Service.Required]
	at := strings.Index(body, "{")
	if at < 0 || !json.Valid([]byte(body)) {
		t.Skip("the required item is no JSON object")
	}
	f := s.fake(t, m)
	f.Set(s.Service.Required, body[:at+1]+`"aFieldOfTomorrow":{"deep":[1,null,{"x":true}]},`+body[at+1:])
	got, err := s.open(t, patient(s.at(f, m))).Instance(t.Context())
	must.OK(t, err)
	s.same(t, got, m.Want)
}

func (s Suite) notUp(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	o := quick(s.at(f, m))
	o.DialContext = func(_ context.Context, network, _ string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	_, err := s.open(t, o).Instance(t.Context())
	s.wantError(t, err, cloud.ErrNotReady)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the error does not carry its cause: %v", err)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error does not say that the bound ended it: %v", err)
	}
}

func (s Suite) retriesLogged(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	f.Break(s.Service.Required, 2, Status(http.StatusInternalServerError))
	var log locked.Buffer
	o := patient(s.at(f, m))
	o.Log = slog.New(slog.NewJSONHandler(&log, nil))
	if _, err := s.open(t, o).Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(log.String()) {
		var entry map[string]any
		must.OK(t, json.Unmarshal([]byte(line), &entry))
		if entry["level"] == "WARN" && entry["provider"] == s.Name && entry["attempt"] != nil {
			lines++
		}
		if tok := s.Service.Token; tok != nil && strings.Contains(line, "token-") {
			t.Errorf("the log holds a session token: %s", line)
		}
	}
	if lines != 2 {
		t.Errorf("%d lines for 2 retries:\n%s", lines, log.String())
	}
}

// answersLogged: the log at its finest shows path, status and size of each answer, and nothing of what is in it.
func (s Suite) answersLogged(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	var log locked.Buffer
	o := patient(s.at(f, m))
	o.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if _, err := s.open(t, o).Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	answers := map[string]int{}
	for line := range strings.Lines(log.String()) {
		var entry struct {
			Msg, Method, Path string
			Status, Bytes     int
		}
		must.OK(t, json.Unmarshal([]byte(line), &entry))
		if entry.Msg != "metadata answer" {
			continue
		}
		answers[entry.Method+" "+entry.Path]++
		if want := len(m.Bodies[entry.Path]); entry.Status == http.StatusOK && want > 0 && entry.Bytes != want {
			t.Errorf("%s: %d bytes logged, want %d", entry.Path, entry.Bytes, want)
		}
	}
	for _, r := range f.Seen() {
		if answers[r.Method+" "+r.Path] == 0 {
			t.Errorf("no line for %s %s", r.Method, r.Path)
		}
	}
	if tok := s.Service.Token; tok != nil && strings.Contains(log.String(), "token-") {
		t.Errorf("the log holds a session token:\n%s", log.String())
	}
	for path, body := range m.Bodies {
		if len(body) > 24 && strings.Contains(log.String(), body) {
			t.Errorf("the log holds the answer of %s:\n%s", path, log.String())
		}
	}
}

// proxyIgnored asks the provider's real address with a proxy in the environment, and looks whom it dials.
func (s Suite) proxyIgnored(t *testing.T) {
	const proxy = "192.0.2.1:3128"
	for _, k := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(k, "http://"+proxy)
	}
	for _, k := range []string{"NO_PROXY", "no_proxy"} {
		t.Setenv(k, "")
	}
	// net/http reads the environment once in a process, so make sure that it is this one it has read.
	origin, err := url.Parse(s.Service.Origin)
	must.OK(t, err)
	if u, err := http.ProxyFromEnvironment(&http.Request{URL: origin}); err != nil || u == nil || u.Host != proxy {
		t.Fatalf("the control failed: Go's default would use proxy %v (%v); has a test of this binary used http.DefaultTransport before?", u, err)
	}

	m := s.Machines[0]
	f := s.fake(t, m)
	o := s.at(f, m)
	o.Endpoints = nil
	o = patient(o)
	var mu sync.Mutex
	var dialled []string
	o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		dialled = append(dialled, addr)
		mu.Unlock()
		return (&net.Dialer{}).DialContext(ctx, network, f.Addr())
	}
	got, err := s.open(t, o).Instance(t.Context())
	must.OK(t, err)
	s.same(t, got, m.Want)
	want := origin.Host
	if origin.Port() == "" {
		want = net.JoinHostPort(origin.Hostname(), "80")
	}
	for _, addr := range dialled {
		if addr != want {
			t.Errorf("dialled %s, want only %s", addr, want)
		}
	}
}

func (s Suite) neverForwarded(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	if _, err := s.open(t, patient(s.at(f, m))).Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Seen() {
		for _, h := range []string{"X-Forwarded-For", "Forwarded", "Via", "Authorization", "Cookie"} {
			if v := r.Header.Values(h); len(v) > 0 {
				t.Errorf("%s %s carries %s", r.Method, r.Path, h)
			}
		}
	}
}

func (s Suite) badEndpoint(t *testing.T) {
	for _, e := range []string{"127.0.0.1:1338", "http://", "ftp://127.0.0.1", "http://127.0.0.1/latest", "http://u:p@127.0.0.1", "http://127.0.0.1?x", "://"} {
		_, err := s.Open(cloud.Options{Endpoints: map[string]string{s.Name: e}})
		if err == nil {
			t.Errorf("endpoint %q was accepted", e)
			continue
		}
		if strings.Contains(err.Error(), "u:p") {
			t.Errorf("the error shows a password: %v", err)
		}
	}
}

func (s Suite) concurrent(t *testing.T) {
	m := s.Machines[0]
	f := s.fake(t, m)
	p := s.open(t, patient(s.at(f, m)))
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for i := range cap(errs) {
		wg.Go(func() {
			got, err := p.Instance(t.Context())
			if err == nil && got.ID != m.Want.ID {
				err = fmt.Errorf("reader %d got id %q", i, got.ID)
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}
