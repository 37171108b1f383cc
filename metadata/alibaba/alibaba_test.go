// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	self        = "i-bp13znx0m0me8cq0001"
	latest      = "/latest/"
	metaData    = latest + "meta-data/"
	docPath     = latest + "dynamic/instance-identity/document"
	tokenPath   = latest + "api/token"
	ttlHeader   = "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aliyun-Ecs-Metadata-Token"
	mac         = "00:16:3e:0f:00:01"
	mac2        = "00:16:3e:0f:00:02"
	v6path      = metaData + "network/interfaces/macs/" + mac + "/ipv6s"
	rolePath    = metaData + "ram/security-credentials/"
	spotPath    = metaData + "instance/spot/termination-time"
	eventsPath  = latest + "maintenance/active-system-events"
	gone        = "\x00gone"
)

func service() metadatatest.Service {
	return metadatatest.Service{
		Origin:   "http://100.100.100.200",
		Protocol: replay.Protocol{Token: [2]string{tokenHeader, ttlHeader}},
		Required: docPath, Optional: metaData + "eipv4", Field: "public_address",
		WrongTypes: []string{
			`{"instance-id":["i-bp13znx0m0me8cq0001"],"region-id":"cn-hangzhou"}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":null}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","owner-account-id":1609000000000001}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","private-ipv4":10}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","private-ipv4":"ten"}`,
			`{"instance-id":"iid-nocloud","region-id":"cn-hangzhou"}`,
			`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"../evil"}`,
			`[]`, `null`, `{}`, `"i-bp13znx0m0me8cq0001"`,
		},
	}
}

func bodies(tb testing.TB, more ...map[string]string) map[string]string {
	tb.Helper()
	out := map[string]string{
		docPath:                               metadatatest.Fixture(tb, "document.json"),
		metaData + "instance/instance-name":   "edge-hangzhou-0001",
		metaData + "hostname":                 "iZbp13znx0m0me8cq0001Z",
		metaData + "eipv4":                    "203.0.113.7",
		metaData + "private-ipv4":             "192.168.0.12",
		metaData + "mac":                      mac,
		metaData + "network/interfaces/macs/": mac + "/\n",
		latest + "user-data":                  "#!/bin/sh\n# amsagent-role=edge\n",
		metaData + "instance-id":              "i-bp13znx0m0me8cq0001",
		latest + "meta-data/instance/other":   "x",
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
	s := metadatatest.Fixture(tb, "document.json")
	if !strings.Contains(s, old) {
		tb.Fatalf("the document has no %s", old)
	}
	return strings.Replace(s, old, with, 1)
}

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
		{Name: "dual_stack_array", Bodies: bodies(tb, map[string]string{v6path: `["2408:4001:200::a1","2408:4001:200::a2"]`}), Want: instance(dual)},
		{Name: "dual_stack_lines", Bodies: bodies(tb, map[string]string{v6path: "2408:4001:200::a1\n2408:4001:200::a2\n"}), Want: instance(dual)},
		{Name: "dual_stack_brackets", Bodies: bodies(tb, map[string]string{v6path: "[2408:4001:200::a1]"}), Want: instance(dual)},
		{
			Name: "ipv6_only",
			Bodies: bodies(tb, map[string]string{
				docPath:                   doc(tb, `"192.168.0.12"`, "null"),
				metaData + "private-ipv4": gone, metaData + "eipv4": gone, v6path: "2408:4001:200::a1",
			}),
			Want: instance(dual, func(i *cloud.Instance) {
				i.Address, i.PublicAddress = v6, netip.Addr{}
				i.AddressSource = "first IPv6 address of the first interface, since the instance has no IPv4 address"
			}),
		},
		{
			Name:   "document_without_an_address",
			Bodies: bodies(tb, map[string]string{docPath: doc(tb, `"192.168.0.12"`, `""`)}),
			Want:   instance(func(i *cloud.Instance) { i.AddressSource = "private address of the first interface" }),
		},
		{
			Name:   "document_without_a_mac",
			Bodies: bodies(tb, map[string]string{docPath: doc(tb, `"`+mac+`"`, `""`), v6path: "2408:4001:200::a1"}),
			Want:   instance(dual),
		},
		{
			// The list has no order, and the other interface has an address, too.
			Name: "several_nics",
			Bodies: bodies(tb, map[string]string{
				metaData + "network/interfaces/macs/":                               mac2 + "/\n" + mac + "/\n",
				metaData + "network/interfaces/macs/" + mac2 + "/ipv6s":             "2408:4001:200::ff",
				metaData + "network/interfaces/macs/" + mac2 + "/private-ipv4s":     `["192.168.7.7"]`,
				metaData + "network/interfaces/macs/" + mac + "/primary-ip-address": "192.168.0.12",
				v6path: "2408:4001:200::a1",
			}),
			Want: instance(dual),
		},
		{
			Name:   "no_public_address_no_name",
			Bodies: bodies(tb, map[string]string{metaData + "eipv4": gone, metaData + "instance/instance-name": gone}),
			Want:   instance(func(i *cloud.Instance) { i.PublicAddress, i.Name = netip.Addr{}, "" }),
		},
		{
			Name: "a_name_in_another_script", Bodies: bodies(tb, map[string]string{metaData + "instance/instance-name": "边缘节点 1号"}),
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
	metadatatest.Run(t, metadatatest.Suite{
		Name:     "alibaba",
		Open:     func(o cloud.Options) (cloud.Provider, error) { return New(o) },
		Machines: machines(t), Service: service(),
	})
}

// With a role the tags of the instance count, and the group that ESS set on it; the user data adds the missing tags.
func TestTagsOfTheAPI(t *testing.T) {
	t.Parallel()
	edge, origin := cloud.Tags{"amsagent-role": "edge"}, cloud.Tags{"amsagent-role": "origin"}
	both := cloud.Tags{"amsagent-role": "edge", "amsagent-mongo": "10.0.0.9", tagGroup: group}
	plain := fakes.Fault{Status: http.StatusOK, Body: `{"RequestId":"1","TagResources":[{"TagKey":"amsagent-role","TagValue":"edge"}]}`}
	for _, tt := range []struct {
		name, userData string
		tags           cloud.Tags
		history        history
		want           cloud.Instance // its tags and group
		missing        bool
		hint           string
	}{
		{"of both", "# amsagent-role=origin\n# amsagent-mongo=10.0.0.9\n", edge, history{joins()}, cloud.Instance{Tags: both, TagsKnown: true, Group: group}, false, ""},
		{"none", "", nil, nil, cloud.Instance{Tags: cloud.Tags{}, TagsKnown: true}, false, ""},
		{"a plain list", "", nil, history{fails(plain)}, cloud.Instance{Tags: edge, TagsKnown: true}, false, ""},
		{"denied", "amsagent-role=origin", edge, history{denies(listTags)}, cloud.Instance{Tags: origin}, false, "ecs:ListTagResources"},
		{"unreachable", "", edge, history{fails(fakes.Fault{Reset: true})}, cloud.Instance{}, false, "the ECS API cannot be reached"},
		{"ill", "amsagent-role=origin", edge, history{fails(fakes.Fault{Code: "InternalError"})}, cloud.Instance{Tags: origin}, true, "could not be read"},
	} {
		row(t, tt.name, func(t *testing.T, a *account) {
			a.meta.Update(func(i *fakealibaba.Instance) { i.UserData, i.Tags = tt.userData, tt.tags })
			a.plays(tt.history...)
			inst, err := a.open().Instance(t.Context())
			must.OK(t, err)
			if !strings.Contains(inst.TagsHint, tt.hint) || (inst.TagsHint == "") != tt.want.TagsKnown || slices.Contains(inst.Missing, "tags") != tt.missing {
				t.Errorf("hint %q, missing %v", inst.TagsHint, inst.Missing)
			}
			got := cloud.Instance{Tags: inst.Tags, TagsKnown: inst.TagsKnown, Group: inst.Group}
			must.NoDiff(t, "instance", got, tt.want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
			must.Equal(t, "calls", len(a.called(listTags)), 1)
		})
	}
}

// TestFieldReport07_Tags: a group tags its instances after their start, so the agent reads the tags again.
func TestFieldReport07_Tags(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		p := a.open()
		for _, want := range []string{"", "eu"} {
			a.meta.Update(func(i *fakealibaba.Instance) { fakes.Set(&i.Tags, "amsagent-group", want) })
			inst, err := p.Instance(t.Context())
			if err != nil || !inst.TagsKnown || inst.Tags["amsagent-group"] != want {
				t.Errorf("%+v, %v, want %q", inst, err, want)
			}
		}
	})
}

func TestParseUserData(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, body string
		want       cloud.Tags
	}{
		{"a script", "#!/bin/sh\n# amsagent-role=edge\nyum install -y amsagent\n", cloud.Tags{"amsagent-role": "edge"}},
		{"a cloud-config", "#cloud-config\n#amsagent:role: origin\n  # amsagent:group = \"eu\"\npackages: [x]\n", cloud.Tags{"amsagent:role": "origin", "amsagent:group": "eu"}},
		{"bare lines", "amsagent-role=edge\r\namsagent-mongo='mongodb://u:p@h/?x=1'\r\n", cloud.Tags{"amsagent-role": "edge", "amsagent-mongo": "mongodb://u:p@h/?x=1"}},
		{"double slash, semicolon", "// amsagent-role: edge\n; amsagent-group: g\n", cloud.Tags{"amsagent-role": "edge", "amsagent-group": "g"}},
		{"the first counts", "amsagent-role=edge\namsagent-role=origin\n", cloud.Tags{"amsagent-role": "edge"}},
		{"what follows is a remark", "amsagent-role=edge # for now\n", cloud.Tags{"amsagent-role": "edge"}},
		{"not at the beginning of the line", "echo amsagent-role=edge\n", nil},
		{"a command", "amsagent join --role edge\namsagent --role=edge\namsagent.service=x", nil},
		{"no value", "amsagent-role=\namsagent-role\namsagent-=x\namsagent:role: ''\n", nil},
		{"not text", "\x1f\x8b\x08amsagent-role=edge\n\xff", nil},
		{"a long heading", "##### amsagent-role=edge\n", nil},
		{"empty", "", nil},
	} {
		must.NoDiff(t, tt.name, ParseUserData([]byte(tt.body)), tt.want, cmpopts.EquateEmpty())
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(metadatatest.Fixture(f, "document.json")))
	f.Add([]byte(`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","private-ipv4":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		id, err := parseIdentity(body)
		if err == nil && (!strings.HasPrefix(id.InstanceID, "i-") || id.Region == "" || strings.ContainsAny(id.InstanceID+id.Region, " \n/&?.")) {
			t.Errorf("%+v", id)
		}
	})
}

func FuzzParseUserData(f *testing.F) {
	f.Add([]byte("# amsagent-role=edge\namsagent:mongo: 'mongodb://u:p@h'"))
	f.Fuzz(func(t *testing.T, body []byte) {
		tags := ParseUserData(body)
		for k, v := range tags {
			if !strings.HasPrefix(k, "amsagent") || v == "" || len(k) > 64 || strings.ContainsAny(v, "\r\n\x00") || len(tags) > 16 {
				t.Errorf("%q = %q", k, v)
			}
		}
	})
}
