// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// toy is the provider of a cloud that is not there, with a token, one required and one optional item. Each of its faults is
// one that a provider could have; without any it passes all rules.
type toy struct {
	cloud.Silent
	opts   cloud.Options
	origin string
	// wire makes the requests, or plain where the fault is one of the HTTP client.
	wire   *cloud.Client
	plain  *http.Client
	faults map[string]bool

	mu    sync.Mutex
	token string
}

const (
	toyOrigin = "http://169.254.169.254"
	toyToken  = "/token"
	toyItem   = "/instance"
	toyPublic = "/public"
)

func newToy(faults map[string]bool) func(cloud.Options) (cloud.Provider, error) {
	return func(o cloud.Options) (cloud.Provider, error) {
		o = o.WithDefaults()
		origin, err := o.Endpoint("toy")
		if err != nil && !faults["takes any endpoint"] {
			return nil, err
		}
		if origin == "" {
			origin = toyOrigin
		}
		p := &toy{opts: o, origin: origin, faults: faults}
		quiet := o
		if faults["says nothing of its answers"] {
			quiet.Log = nil
		}
		p.wire = cloud.New(cloud.Client{Provider: "toy"}, quiet)
		transport := &http.Transport{DialContext: o.DialContext}
		if faults["follows redirects"] {
			p.plain = &http.Client{Transport: transport}
		}
		if faults["unbounded, by proxy"] {
			transport.Proxy = http.ProxyFromEnvironment
			p.plain = &http.Client{Transport: transport}
		}
		if faults["asks when it is opened"] {
			_, _ = p.Instance(context.Background())
		}
		return p, nil
	}
}

func (p *toy) Name() string { return "toy" }

func (p *toy) Instance(ctx context.Context) (cloud.Instance, error) {
	if p.faults["ignores the context"] {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	var doc struct {
		ID      string            `json:"id"`
		Address *netip.Addr       `json:"address"`
		IPv6    *netip.Addr       `json:"ipv6"`
		Group   string            `json:"group"`
		Tags    map[string]string `json:"tags"`
		Tagless bool              `json:"tagless"`
	}
	read := func() (bool, error) {
		body, err := p.get(ctx, toyItem, true, func(b []byte) error {
			d := json.NewDecoder(bytes.NewReader(b))
			if p.faults["knows all fields"] {
				d.DisallowUnknownFields()
			}
			doc.ID = ""
			if err := d.Decode(&doc); err != nil {
				return err
			}
			if doc.ID == "" && !p.faults["believes anything"] {
				return errors.New("no id")
			}
			return nil
		})
		return body != nil, err
	}
	_, err := read()
	if p.faults["asks twice"] && err == nil {
		_, err = read()
	}
	if err != nil {
		var e *cloud.Error
		if errors.As(err, &e) && errors.Is(err, cloud.ErrNotFound) {
			e.Kind = cloud.ErrNotThisCloud
		}
		if p.faults["errors without a name"] {
			return cloud.Instance{}, errors.New("it did not work")
		}
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{Provider: "toy", ID: doc.ID, IDSource: "the toy's document", Group: doc.Group, Tags: doc.Tags, TagsKnown: !doc.Tagless}
	if doc.Tagless && !p.faults["says not why"] {
		inst.TagsHint = "switch them on"
	}
	if doc.IPv6 != nil {
		inst.IPv6 = *doc.IPv6
		inst.Address, inst.AddressSource = inst.IPv6, "document"
	}
	if doc.Address != nil {
		inst.Address, inst.AddressSource = *doc.Address, "document"
	}
	public, err := p.get(ctx, toyPublic, false, func(b []byte) error {
		_, err := netip.ParseAddr(string(b))
		return err
	})
	switch {
	case errors.Is(err, cloud.ErrNotFound):
	case err != nil && ctx.Err() == nil && p.faults["absent is the same as missing"]:
	case err != nil:
		if ctx.Err() != nil {
			return cloud.Instance{}, err
		}
		inst.Missing, inst.Notes = []string{"public_address"}, []string{err.Error()}
	default:
		inst.PublicAddress, _ = netip.ParseAddr(string(public))
	}
	return inst, nil
}

// get reads one item through the loop that all providers use.
func (p *toy) get(ctx context.Context, path string, required bool, check func([]byte) error) ([]byte, error) {
	o := p.opts
	if p.faults["says nothing of its retries"] {
		o.Log = nil
	}
	c := cloud.New(cloud.Client{Provider: "toy", Ask: p.ask, Judge: func(e *cloud.Error) {
		if e.Status == http.StatusForbidden && p.faults["asks who refuses again"] {
			e.Kind = cloud.ErrNotReady
		}
		if e.Hint = "look at the firewall"; p.faults["no hint"] {
			e.Hint = ""
		}
	}}, o)
	item := cloud.Item{Name: strings.Trim(path, "/"), Path: path, Required: required}
	if p.faults["gives up at once"] {
		_, body, err := p.ask(ctx, path)
		if err == nil {
			err = check(body)
		}
		return body, err
	}
	return cloud.Read(ctx, c, item, func(b []byte) ([]byte, error) { return b, check(b) })
}

func (p *toy) ask(ctx context.Context, path string) (http.Header, []byte, error) {
	token, err := p.session(ctx)
	if err != nil {
		return nil, nil, err
	}
	body, err := p.request(ctx, http.MethodGet, path, token)
	if e, ok := errors.AsType[*cloud.Error](err); ok && e.Status == http.StatusUnauthorized && !p.faults["keeps a refused token"] {
		p.mu.Lock()
		p.token = ""
		p.mu.Unlock()
	}
	return nil, body, err
}

func (p *toy) session(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token != "" && !p.faults["asks for a token each time"] {
		return p.token, nil
	}
	if p.faults["goes on without a token"] {
		bound, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if _, err := p.request(bound, http.MethodPut, toyToken, ""); err != nil {
			return "none", nil
		}
	}
	body, err := p.request(ctx, http.MethodPut, toyToken, "")
	if err != nil {
		return "", err
	}
	token := string(body)
	if token == "" || strings.ContainsAny(token, "<>\n ") {
		if !p.faults["takes anything for a token"] {
			return "", &cloud.Error{Kind: cloud.ErrBadAnswer, Status: http.StatusOK, Cause: errors.New("no token")}
		}
		token = strings.NewReplacer("\n", "", "\r", "").Replace(token) + "<"
	}
	p.token = token
	return token, nil
}

func (p *toy) request(ctx context.Context, method, path, token string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.origin+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	if method == http.MethodPut {
		req.Header.Set("X-Toy-Ttl", "60")
	} else {
		req.Header.Set("X-Toy-Token", token)
	}
	if p.faults["says who it is"] {
		req.Header.Set("Authorization", "Bearer me")
	}
	if p.plain == nil {
		_, body, err := p.wire.Do(req)
		return body, err
	}
	req.Header.Set("User-Agent", cloud.UserAgent)
	resp, err := p.plain.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return body, err
}

func toySuite(faults map[string]bool) metadatatest.Suite {
	want := cloud.Instance{
		Provider: "toy", ID: "i-0abc1234567890def", IDSource: "the toy's document", Address: netip.MustParseAddr("10.0.1.23"), AddressSource: "document",
		PublicAddress: netip.MustParseAddr("52.1.2.3"), Tags: cloud.Tags{"amsagent:role": "edge"}, TagsKnown: true, Group: "edges",
	}
	doc := func(more string) map[string]string {
		return map[string]string{toyItem: `{"id":"i-0abc1234567890def",` + more + `}`, toyPublic: "52.1.2.3"}
	}
	with := func(change func(*cloud.Instance)) cloud.Instance {
		i := want
		change(&i)
		return i
	}
	lacks := map[string]string{"addresses_several_nics": "a toy has one", "tags_malformed": "a toy's are well"}
	if faults["leaves a topic out"] {
		lacks = nil
	}
	return metadatatest.Suite{
		Name: "toy", Open: newToy(faults), Lacks: lacks,
		Service: &metadatatest.Service{
			Origin: toyOrigin, Token: &metadatatest.Token{Path: toyToken, TTLHeader: "X-Toy-Ttl", Header: "X-Toy-Token"},
			Required: toyItem, Optional: toyPublic, Field: "public_address", WrongTypes: []string{`{}`, `[]`, `{"id":7}`},
		},
		Machines: []metadatatest.Machine{
			{Name: "plain", Bodies: doc(`"address":"10.0.1.23","group":"edges","tags":{"amsagent:role":"edge"}`), Want: want},
			{
				Name: "dual", Bodies: doc(`"address":"10.0.1.23","ipv6":"2600:1f18::a1","tags":{}`),
				Want: with(func(i *cloud.Instance) {
					i.IPv6, i.Group, i.Tags = netip.MustParseAddr("2600:1f18::a1"), "", cloud.Tags{}
				}),
			},
			{
				Name: "v6", Bodies: map[string]string{toyItem: `{"id":"i-0abc1234567890def","ipv6":"2600:1f18::a1","tagless":true}`},
				Want: with(func(i *cloud.Instance) {
					i.Address, i.IPv6, i.PublicAddress = netip.MustParseAddr("2600:1f18::a1"), netip.MustParseAddr("2600:1f18::a1"), netip.Addr{}
					i.Tags, i.TagsKnown, i.TagsHint, i.Group = nil, false, "switch them on", ""
				}),
			},
		},
	}
}

const toyFault = "AMSAGENT_TEST_TOY_FAULT"

// TestToy runs the rules over the toy: over the well one here, and over a faulty one in the child that the test below starts.
func TestToy(t *testing.T) {
	faults := map[string]bool{}
	if f := os.Getenv(toyFault); f != "" {
		faults[f] = true
	}
	metadatatest.Run(t, toySuite(faults))
}

// A rule that cannot fail is none. Each fault must be found by the rules that are named for it; that the toy without a fault
// passes them is TestToy.
func TestRulesFindFaults(t *testing.T) {
	if os.Getenv(toyFault) != "" {
		t.Skip("this is the child")
	}
	for fault, rules := range map[string][]string{
		"takes any endpoint":            {"bad_endpoint_is_refused"},
		"follows redirects":             {"redirect_is_refused"},
		"unbounded, by proxy":           {"proxy_is_ignored", "huge_body"},
		"asks when it is opened":        {"opening_asks_nothing"},
		"ignores the context":           {"cancelled", "cancelled_in_the_middle"},
		"knows all fields":              {"unknown_fields_survive"},
		"believes anything":             {"wrong_types"},
		"asks twice":                    {"nothing_asked_twice"},
		"errors without a name":         {"http_500_for_good", "slow_for_good", "http_401_for_good", "http_410_for_good", "not_up_at_all"},
		"says not why":                  {"machine/v6"},
		"absent is the same as missing": {"optional_item_broken_is_missing_not_absent"},
		"asks who refuses again":        {"http_403_is_final"},
		"no hint":                       {"http_403_is_final", "token_never_answered"},
		"says nothing of its retries":   {"retries_are_logged"},
		"says nothing of its answers":   {"answers_are_logged"},
		"gives up at once": {
			"http_401_once", "http_404_at_boot_then_well", "http_410_then_well", "http_429_then_well", "http_500_then_well", "http_503_then_well",
			"slow_then_well", "closed_then_well", "truncated_then_well", "html_then_well", "not_up_yet_at_boot", "not_up_yet_and_refused",
			"not_up_yet_in_all_ways", "token_lost_once",
		},
		"keeps a refused token":      {"token_expired_is_refreshed", "token_refused_for_good"},
		"asks for a token each time": {"token_asked_once"},
		"goes on without a token":    {"token_never_answered"},
		"takes anything for a token": {"token_of_nonsense"},
		"says who it is":             {"never_forwarded"},
		"leaves a topic out":         {"covers/addresses_several_nics", "covers/tags_malformed"},
	} {
		t.Run(strings.ReplaceAll(fault, " ", "_"), func(t *testing.T) {
			t.Parallel()
			var tops []string
			for _, r := range rules {
				top, _, _ := strings.Cut(r, "/")
				if !slices.Contains(tops, top) {
					tops = append(tops, top)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run=^TestToy$/^("+strings.Join(tops, "|")+")$")
			cmd.Env = append(os.Environ(), toyFault+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("no rule finds it:\n%s", out)
			}
			for _, r := range rules {
				if !regexp.MustCompile(`(?m)^ *--- FAIL: TestToy/` + regexp.QuoteMeta(r) + ` `).Match(out) {
					t.Errorf("rule %s does not find it:\n%s", r, out)
				}
			}
		})
	}
}

// What a provider that asks no network must not do.
func TestRuleOfNoNetwork(t *testing.T) {
	if os.Getenv(toyFault) != "" {
		t.Skip("this is the child")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^TestTalkative$/^asks_no_network$")
	cmd.Env = append(os.Environ(), toyFault+"=talkative")
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("dialled tcp 192.0.2.1:80")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// talkative asks somebody although it should ask nobody.
type talkative struct {
	cloud.Silent
	opts cloud.Options
}

func (talkative) Name() string { return "talkative" }

func (p talkative) Instance(ctx context.Context) (cloud.Instance, error) {
	dial := p.opts.DialContext
	if dial == nil {
		dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") }
	}
	if c, err := dial(ctx, "tcp", "192.0.2.1:80"); err == nil {
		_ = c.Close()
	}
	return cloud.Instance{Provider: "talkative", ID: "x", IDSource: "y", TagsHint: "z"}, ctx.Err()
}

func TestTalkative(t *testing.T) {
	if os.Getenv(toyFault) != "talkative" {
		t.Skip("for TestRuleOfNoNetwork")
	}
	metadatatest.Run(t, metadatatest.Suite{
		Name: "talkative", Open: func(o cloud.Options) (cloud.Provider, error) { return talkative{opts: o}, nil },
		Machines: []metadatatest.Machine{{Name: "one", Want: cloud.Instance{Provider: "talkative", ID: "x", IDSource: "y", TagsHint: "z"}}},
	})
}
