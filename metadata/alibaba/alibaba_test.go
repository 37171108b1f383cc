// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba_test

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	latest   = "/latest/"
	meta     = latest + "meta-data/"
	document = latest + "dynamic/instance-identity/document"
	mac      = "00:16:3e:0f:00:01"
	mac2     = "00:16:3e:0f:00:02"
	v6path   = meta + "network/interfaces/macs/" + mac + "/ipv6s"
	roles    = meta + "ram/security-credentials/"
	gone     = "\x00gone"
)

func service() metadatatest.Service {
	return metadatatest.Service{
		Origin: alibaba.Endpoint,
		Token: &metadatatest.Token{
			Path: "/latest/api/token", TTLHeader: "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds", Header: "X-Aliyun-Ecs-Metadata-Token",
		},
		Required: document, Optional: meta + "eipv4", Field: "public_address",
		WrongTypes: []string{
			`{"instance-id":["i-bp13znx0m0me8cq0001"],"region-id":"cn-hangzhou"}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":null}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","owner-account-id":1609000000000001}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","private-ipv4":10}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","private-ipv4":"ten"}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","mac":"a mac"}`,
			`{"instance-id":"iid-nocloud","region-id":"cn-hangzhou"}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"../evil"}`,
			`[]`, `null`, `{}`, `"i-bp13znx0m0me8cq0001"`,
		},
	}
}

func bodies(tb testing.TB, more ...map[string]string) map[string]string {
	tb.Helper()
	out := map[string]string{
		document:                            fixture(tb, "document.json"),
		meta + "instance/instance-name":     "edge-hangzhou-0001",
		meta + "hostname":                   "iZbp13znx0m0me8cq0001Z",
		meta + "eipv4":                      "203.0.113.7",
		meta + "private-ipv4":               "192.168.0.12",
		meta + "mac":                        mac,
		meta + "network/interfaces/macs/":   mac + "/\n",
		latest + "user-data":                "#!/bin/sh\n# amsagent-role=edge\n",
		meta + "instance-id":                "i-bp13znx0m0me8cq0001",
		latest + "meta-data/instance/other": "x",
	}
	for _, m := range more {
		for k, v := range m {
			if out[k] = v; v == gone {
				delete(out, k)
			}
		}
	}
	return out
}

func doc(tb testing.TB, old, with string) string {
	tb.Helper()
	s := fixture(tb, "document.json")
	if !strings.Contains(s, old) {
		tb.Fatalf("the document has no %s", old)
	}
	return strings.Replace(s, old, with, 1)
}

const hintTags = "the metadata of Alibaba Cloud show no tags: give the instance a RAM role that may ecs:ListTagResources, write a line " +
	"such as amsagent-role=edge into the user data, or give role and group by flag, environment or configuration file"

func instance(change ...func(*cloud.Instance)) cloud.Instance {
	inst := cloud.Instance{
		Provider: "alibaba", ID: "i-bp13znx0m0me8cq0001", IDSource: "instance id of the identity document",
		Name: "edge-hangzhou-0001", AccountID: "1609000000000001", Region: "cn-hangzhou", Zone: "cn-hangzhou-i", Type: "ecs.g7.xlarge",
		Hostname: "iZbp13znx0m0me8cq0001Z",
		Address:  netip.MustParseAddr("192.168.0.12"), AddressSource: "private address of the identity document",
		PublicAddress: netip.MustParseAddr("203.0.113.7"),
		Tags:          cloud.Tags{"amsagent-role": "edge"}, TagsKnown: true,
	}
	for _, c := range change {
		c(&inst)
	}
	return inst
}

func machines(tb testing.TB) []metadatatest.Machine {
	v6 := netip.MustParseAddr("2408:4001:200::a1")
	untagged := func(i *cloud.Instance) { i.Tags, i.TagsKnown, i.TagsHint = nil, false, hintTags }
	dual := func(i *cloud.Instance) { i.IPv6 = v6 }
	return []metadatatest.Machine{
		{Name: "ipv4", Bodies: bodies(tb), Want: instance()},
		{
			Name: "spot", Bodies: bodies(tb, map[string]string{meta + "instance/spot/termination-time": "2026-11-20T17:03:00Z"}),
			Want: instance(func(i *cloud.Instance) { i.LifeCycle = "spot" }),
		},
		{Name: "dual_stack_array", Bodies: bodies(tb, map[string]string{v6path: `["2408:4001:200::a1","2408:4001:200::a2"]`}), Want: instance(dual)},
		{Name: "dual_stack_lines", Bodies: bodies(tb, map[string]string{v6path: "2408:4001:200::a1\n2408:4001:200::a2\n"}), Want: instance(dual)},
		{Name: "dual_stack_brackets", Bodies: bodies(tb, map[string]string{v6path: "[2408:4001:200::a1]"}), Want: instance(dual)},
		{
			Name: "ipv6_only",
			Bodies: bodies(tb, map[string]string{
				document:              doc(tb, `"192.168.0.12"`, "null"),
				meta + "private-ipv4": gone, meta + "eipv4": gone, v6path: "2408:4001:200::a1",
			}),
			Want: instance(dual, func(i *cloud.Instance) {
				i.Address, i.PublicAddress = v6, netip.Addr{}
				i.AddressSource = "first IPv6 address of the first interface, since the instance has no IPv4 address"
			}),
		},
		{
			Name:   "document_without_an_address",
			Bodies: bodies(tb, map[string]string{document: doc(tb, `"192.168.0.12"`, `""`)}),
			Want:   instance(func(i *cloud.Instance) { i.AddressSource = "private address of the first interface" }),
		},
		{
			Name:   "document_without_a_mac",
			Bodies: bodies(tb, map[string]string{document: doc(tb, `"`+mac+`"`, `""`), v6path: "2408:4001:200::a1"}),
			Want:   instance(dual),
		},
		{
			// The list is in no order, and the other interface has an address, too.
			Name: "several_nics",
			Bodies: bodies(tb, map[string]string{
				meta + "network/interfaces/macs/":                               mac2 + "/\n" + mac + "/\n",
				meta + "network/interfaces/macs/" + mac2 + "/ipv6s":             "2408:4001:200::ff",
				meta + "network/interfaces/macs/" + mac2 + "/private-ipv4s":     `["192.168.7.7"]`,
				meta + "network/interfaces/macs/" + mac + "/primary-ip-address": "192.168.0.12",
				v6path: "2408:4001:200::a1",
			}),
			Want: instance(dual),
		},
		{
			Name:   "no_public_address_no_name",
			Bodies: bodies(tb, map[string]string{meta + "eipv4": gone, meta + "instance/instance-name": gone}),
			Want:   instance(func(i *cloud.Instance) { i.PublicAddress, i.Name = netip.Addr{}, "" }),
		},
		{
			Name: "a_name_in_another_script", Bodies: bodies(tb, map[string]string{meta + "instance/instance-name": "边缘节点 1号"}),
			Want: instance(func(i *cloud.Instance) { i.Name = "边缘节点 1号" }),
		},
		{Name: "no_user_data", Bodies: bodies(tb, map[string]string{latest + "user-data": gone}), Want: instance(untagged)},
		{Name: "malformed_user_data", Bodies: bodies(tb, map[string]string{latest + "user-data": "\x1f\x8b\x08\x00amsagent-role=\xff"}), Want: instance(untagged)},
		{
			Name:   "group_in_the_user_data_alone",
			Bodies: bodies(tb, map[string]string{latest + "user-data": "#cloud-config\n# amsagent:group: eu\n# amsagent:mongo: mongodb://u:hunter2@10.0.0.9/\n"}),
			Want: instance(func(i *cloud.Instance) {
				i.Tags = cloud.Tags{"amsagent:group": "eu", "amsagent:mongo": "mongodb://u:hunter2@10.0.0.9/"}
			}),
		},
	}
}

func TestConformance(t *testing.T) {
	svc := service()
	metadatatest.Run(t, metadatatest.Suite{
		Name:     "alibaba",
		Open:     func(o cloud.Options) (cloud.Provider, error) { return metadata.Open("alibaba", o) },
		Machines: machines(t), Service: &svc,
		Lacks: map[string]string{"group_present": "the metadata name no group: the API does, see TestTagsOfTheAPI"},
	})
}

// A token is asked for with the longest life, and not once more while it lasts.
func TestTokenLife(t *testing.T) {
	t.Parallel()
	f := metadatatest.NewFake(t, service(), bodies(t))
	p := open(t, f, nil)
	if _, err := p.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Seen() {
		if r.Path == "/latest/api/token" && (r.Method != http.MethodPut || r.Header.Get("X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds") != "21600") {
			t.Errorf("%s with %v", r.Method, r.Header)
		}
	}
}

func open(t *testing.T, f *metadatatest.Fake, change func(*cloud.Options)) *alibaba.Provider {
	t.Helper()
	o := cloud.Options{Endpoints: map[string]string{"alibaba": f.URL()}, RetryWait: time.Millisecond, Timeout: time.Minute}
	if change != nil {
		change(&o)
	}
	p, err := alibaba.New(o)
	must.OK(t, err)
	return p
}

// Without a token nothing is asked, whatever the token request says.
func TestNoPlainFallback(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault metadatatest.Fault
		want  error
	}{
		{"404", metadatatest.Status(http.StatusNotFound), cloud.ErrNotThisCloud},
		{"405", metadatatest.Status(http.StatusMethodNotAllowed), cloud.ErrNotThisCloud},
		{"403", metadatatest.Status(http.StatusForbidden), cloud.ErrForbidden},
		{"500", metadatatest.Status(http.StatusInternalServerError), cloud.ErrNotReady},
		{"html", metadatatest.HTML(), cloud.ErrBadAnswer},
	} {
		f := metadatatest.NewFake(t, service(), bodies(t))
		f.Break("/latest/api/token", -1, tt.fault)
		// A service of before hardened mode wants no token.
		f.Break(document, -1, metadatatest.Body(fixture(t, "document.json")))
		limit := time.Minute
		if errors.Is(tt.want, cloud.ErrNotReady) {
			limit = time.Second // is waited out
		}
		p := open(t, f, func(o *cloud.Options) { o.Timeout = limit })
		_, err := p.Identity(deadline(t, limit))
		if !errors.Is(err, tt.want) || cloud.HintOf(err) == "" && tt.name != "500" && tt.name != "html" {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if n := f.Count(document); n > 0 {
			t.Errorf("%s: asked %d times without a token", tt.name, n)
		}
		if n := f.Count("/latest/api/token"); tt.name == "403" && n != 1 {
			t.Errorf("a service that is off was asked %d times for a token", n)
		}
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestDisabled(t *testing.T) {
	t.Parallel()
	if _, err := alibaba.New(cloud.Options{Disabled: []string{"alibaba"}}); !errors.Is(err, cloud.ErrForbidden) || cloud.HintOf(err) == "" {
		t.Errorf("error = %v, hint = %q", err, cloud.HintOf(err))
	}
}
