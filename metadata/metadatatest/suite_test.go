// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// toy is the provider of an invented cloud with one required and one optional item. Each of its faults is one that a
// provider could have; without any it passes all rules.
type toy struct {
	cloud.Silent
	opts   cloud.Options
	items  *cloud.Client
	faults map[string]bool
}

const (
	toyOrigin = "http://169.254.169.254"
	toyItem   = "/instance"
	toyPublic = "/public"
	hint      = "look at the firewall"
)

func newToy(faults map[string]bool) func(cloud.Options) (cloud.Provider, error) {
	return func(o cloud.Options) (cloud.Provider, error) {
		o = o.WithDefaults()
		if faults["takes any endpoint"] && strings.Contains(o.Endpoints["toy"], "@") {
			o.Endpoints = nil
		}
		p := &toy{opts: o, faults: faults}
		wired := o
		wired.Transport = &wire{faults, o.Transport}
		c := cloud.Client{Provider: "toy", Origin: toyOrigin, Foreign: hint, Hints: map[int]string{http.StatusForbidden: hint}}
		if faults["no hint"] {
			c.Foreign, c.Hints = "", nil
		}
		var err error
		if p.items, err = cloud.New(c, wired); err != nil {
			return nil, err
		}
		if faults["asks when it is opened"] {
			_, _ = p.Instance(context.Background())
		}
		return p, nil
	}
}

// wire has the faults of requests.
type wire struct {
	faults map[string]bool
	next   http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if w.faults["says who it is"] {
		req.Header.Set("Authorization", "Bearer me")
	}
	resp, err := w.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusForbidden && w.faults["asks who refuses again"] {
		resp.StatusCode = http.StatusServiceUnavailable
	}
	return resp, err
}

func (p *toy) Name() string { return "toy" }

func (p *toy) Instance(ctx context.Context) (cloud.Instance, error) {
	if p.faults["ignores the context"] {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, cloud.Timeout)
	defer cancel()
	type document struct {
		ID            string
		Address, IPv6 netip.Addr
		Group         string
		Tags          map[string]string
		Tagless       bool
	}
	parse := func(b []byte) (d document, err error) {
		if err := json.Unmarshal(b, &d); !p.faults["believes anything"] && (err != nil || d.ID == "") {
			return d, errors.New("no id")
		}
		return d, nil
	}
	item := cloud.Item{Name: "instance", Path: toyItem, Required: !p.faults["gives up at once"]}
	doc, err := cloud.Read(ctx, p.items, item, parse)
	if p.faults["asks twice"] {
		doc, err = cloud.Read(ctx, p.items, item, parse)
	}
	if err != nil {
		if p.faults["errors without a name"] {
			err = errors.New("it did not work")
		}
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{Provider: "toy", ID: doc.ID, IDSource: "the toy's document", Group: doc.Group, Tags: doc.Tags, TagsKnown: !doc.Tagless}
	if doc.Tagless && !p.faults["says not why"] {
		inst.TagsHint = "switch them on"
	}
	unread := &inst
	if p.faults["absent is the same as missing"] {
		unread = &cloud.Instance{}
	}
	public := cloud.Optional(ctx, p.items, unread, "public_address", cloud.Item{Name: "public address", Path: toyPublic}, cloud.ParseAddresses)
	var v6 []netip.Addr
	if doc.IPv6.IsValid() {
		v6 = []netip.Addr{doc.IPv6}
	}
	inst.Reached(doc.Address, "document", public, v6)
	return inst, cloud.Left(ctx, "toy")
}

func toySuite(faults map[string]bool) metadatatest.Suite {
	want := cloud.Instance{
		Provider: "toy", ID: "i-0abc1234567890def", IDSource: "the toy's document", Address: netip.MustParseAddr("10.0.1.23"), AddressSource: "document",
		PublicAddress: netip.MustParseAddr("52.1.2.3"), Tags: cloud.Tags{"amsagent:role": "edge"}, TagsKnown: true, Group: "edges",
	}
	v6 := netip.MustParseAddr("2600:1f18::a1")
	dual, only := want, want
	dual.IPv6, dual.Group, dual.Tags = v6, "", cloud.Tags{}
	only.Address, only.AddressSource = v6, "first IPv6 address of the first interface, since the instance has no IPv4 address"
	only.IPv6, only.PublicAddress, only.Tags, only.TagsKnown, only.TagsHint, only.Group = v6, netip.Addr{}, nil, false, "switch them on", ""
	doc := func(more string) map[string]string {
		return map[string]string{toyItem: `{"id":"i-0abc1234567890def",` + more + `}`, toyPublic: "52.1.2.3"}
	}
	s := metadatatest.Suite{
		Name: "toy", Open: newToy(faults),
		Service: metadatatest.Service{
			Origin:   toyOrigin,
			Required: toyItem, Optional: toyPublic, Field: "public_address", WrongTypes: []string{`{}`, `[]`, `{"id":7}`},
		},
		Machines: []metadatatest.Machine{
			{Name: "plain", Bodies: doc(`"address":"10.0.1.23","group":"edges","tags":{"amsagent:role":"edge"}`), Want: want},
			{Name: "dual", Bodies: doc(`"address":"10.0.1.23","ipv6":"2600:1f18::a1","tags":{}`), Want: dual},
			{Name: "v6", Bodies: map[string]string{toyItem: `{"id":"i-0abc1234567890def","ipv6":"2600:1f18::a1","tagless":true}`}, Want: only},
		},
	}
	return s
}

const toyFault = "AMSAGENT_TEST_TOY_FAULT"

// TestToy runs the rules over the toy: over the well one here, and over a faulty one in the child that the test below starts.
func TestToy(t *testing.T) {
	metadatatest.Run(t, toySuite(map[string]bool{os.Getenv(toyFault): true}))
}

// A rule that cannot fail is useless. Each fault must be found by the rules that are named for it.
func TestRulesFindFaults(t *testing.T) {
	if os.Getenv(toyFault) != "" {
		t.Skip("this is the child")
	}
	for fault, rules := range map[string]string{
		"takes any endpoint":            "bad_endpoint_is_refused",
		"asks when it is opened":        "reads_again_on_each_call",
		"ignores the context":           "cancelled cancelled_in_the_middle",
		"believes anything":             "wrong_types",
		"asks twice":                    "machine/plain reads_again_on_each_call",
		"errors without a name":         "http_404_of_the_required_item",
		"says not why":                  "machine/v6",
		"absent is the same as missing": "optional_item_broken_is_missing_not_absent",
		"asks who refuses again":        "http_403_is_final",
		"no hint":                       "http_403_is_final http_404_of_the_required_item",
		"gives up at once":              "http_404_of_the_required_item",
		"says who it is":                "machine/plain",
	} {
		t.Run(strings.ReplaceAll(fault, " ", "_"), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			tops := regexp.MustCompile(`/\S*`).ReplaceAllString(rules, "")
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run=^TestToy$/^("+strings.ReplaceAll(tops, " ", "|")+")$")
			cmd.Env = append(os.Environ(), toyFault+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("no rule finds it:\n%s", out)
			}
			for r := range strings.FieldsSeq(rules) {
				if !regexp.MustCompile(`(?m)^ *--- FAIL: TestToy/` + regexp.QuoteMeta(r) + ` `).Match(out) {
					t.Errorf("rule %s does not find it:\n%s", r, out)
				}
			}
		})
	}
}
