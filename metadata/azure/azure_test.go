// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	pathInstance = "/metadata/instance"
	hintTags     = "none of the instance's tags is ours; a tag that is set or changed on the scale set reaches a machine when that is " +
		"rebooted, reimaged or gets another disk, not before"
)

func service() metadatatest.Service {
	return metadatatest.Service{
		Origin: "http://169.254.169.254", Protocol: replay.Protocol{Header: [2]string{"Metadata", "true"}}, Required: pathInstance,
		WrongTypes: []string{
			`{"compute":{"vmId":17}}`,
			`{"compute":{"vmId":"5c08b38e"}}`,
			`{"compute":{"vmId":null}}`,
			`{"compute":{"vmId":["5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"]}}`,
			`{"compute":[]}`,
			`{"error":"Bad request"}`, `[]`, `null`, `{}`, `"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"`,
		},
	}
}

// doc is the fixture with changes in its compute, and with these interfaces if any are given.
func doc(tb testing.TB, compute map[string]any, nics ...any) string {
	tb.Helper()
	var fields map[string]any
	must.OK(tb, json.Unmarshal([]byte(metadatatest.Fixture(tb, "instance.json")), &fields))
	c := fields["compute"].(map[string]any)
	for k, v := range compute {
		if v == nil {
			delete(c, k)
			continue
		}
		c[k] = v
	}
	if len(nics) > 0 {
		fields["network"] = map[string]any{"interface": nics}
	}
	b, err := json.Marshal(fields)
	must.OK(tb, err)
	return string(b)
}

// iface is one interface in the metadata; an address with a slash is private/public.
func iface(addresses ...string) map[string]any {
	v4, v6 := []any{}, []any{}
	for _, a := range addresses {
		private, public, _ := strings.Cut(a, "/")
		if strings.Contains(private, ":") {
			v6 = append(v6, map[string]any{"privateIpAddress": private})
			continue
		}
		v4 = append(v4, map[string]any{"privateIpAddress": private, "publicIpAddress": public})
	}
	return map[string]any{"macAddress": "000D3A112233", "ipv4": map[string]any{"ipAddress": v4}, "ipv6": map[string]any{"ipAddress": v6}}
}

func want(change ...func(*cloud.Instance)) cloud.Instance {
	inst := cloud.Instance{
		Provider: "azure", ID: "5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003", IDSource: "vmId of the instance metadata", Name: "edge_3",
		AccountID: "8d10da13-8125-4ba9-a717-bf7490507b3d", Region: "westeurope", Zone: "1", Type: "Standard_D4s_v5",
		LifeCycle: "Regular", Hostname: "edge000003", Group: "edge",
		Address: netip.MustParseAddr("10.1.0.4"), AddressSource: "private address of the only network interface",
		Tags: cloud.Tags{"amsagent-role": "edge", "customer": "Acme; Inc", "env": "prod"}, TagsKnown: true,
	}
	for _, c := range change {
		c(&inst)
	}
	return inst
}

func machines(tb testing.TB) []metadatatest.Machine {
	with := func(compute map[string]any, nics ...any) map[string]string {
		return map[string]string{pathInstance: doc(tb, compute, nics...)}
	}
	two := []any{iface("10.1.0.4"), iface("10.9.0.4/20.61.7.8", "2603:1020::4")}
	second := want(func(i *cloud.Instance) {
		i.Address, i.PublicAddress, i.IPv6 = netip.MustParseAddr("10.9.0.4"), netip.MustParseAddr("20.61.7.8"), netip.MustParseAddr("2603:1020::4")
		i.AddressSource = "private address of the network interface with the default route"
	})
	return []metadatatest.Machine{
		{Name: "uniform_set", Bodies: map[string]string{pathInstance: metadatatest.Fixture(tb, "instance.json")}, Want: want()},
		{
			Name: "public_address", Bodies: with(nil, iface("10.1.0.4/20.61.7.77")),
			Want: want(func(i *cloud.Instance) { i.PublicAddress = netip.MustParseAddr("20.61.7.77") }),
		},
		{
			Name: "dual_stack", Bodies: with(nil, iface("10.1.0.4", "fe80::1", "2603:1020::4")),
			Want: want(func(i *cloud.Instance) { i.IPv6 = netip.MustParseAddr("2603:1020::4") }),
		},
		{
			Name: "ipv6_only", Bodies: with(nil, iface("2603:1020::4")),
			Want: want(func(i *cloud.Instance) {
				i.Address, i.IPv6 = netip.MustParseAddr("2603:1020::4"), netip.MustParseAddr("2603:1020::4")
				i.AddressSource = "IPv6 address of the only network interface, since it has no IPv4 address"
			}),
		},
		{Name: "second_interface_has_the_route", Bodies: with(nil, two...), Options: metadatatest.Sends("10.9.0.4", ""), Want: second},
		{Name: "second_interface_has_the_route_of_ipv6", Bodies: with(nil, two...), Options: metadatatest.Sends("", "2603:1020::4"), Want: second},
		{
			Name: "several_interfaces_and_none_has_the_route", Bodies: with(nil, two...), Options: metadatatest.Sends("172.17.0.1", ""),
			Want: want(func(i *cloud.Instance) { i.AddressSource = "private address of the first of 2 network interfaces" }),
		},
		{
			Name: "several_interfaces_and_no_route", Bodies: with(nil, iface(), iface("10.9.0.4")), Options: metadatatest.Sends("", ""),
			Want: want(func(i *cloud.Instance) { i.Address, i.AddressSource = netip.Addr{}, "" }),
		},
		{
			Name: "spot_in_a_flexible_set", Bodies: with(map[string]any{
				"priority": "Spot", "evictionPolicy": "Delete", "name": "edge_1f2e3d4c", "vmScaleSetName": "", "zone": "",
				"virtualMachineScaleSet": map[string]any{"id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/acme-video/providers/Microsoft.Compute/virtualMachineScaleSets/edge-flex"},
			}),
			Want: want(func(i *cloud.Instance) {
				i.LifeCycle, i.Name, i.Group, i.Zone = "Spot", "edge_1f2e3d4c", "edge-flex", ""
			}),
		},
		{
			Name: "no_set", Bodies: with(map[string]any{"vmScaleSetName": "", "name": "origin-vm", "priority": "", "vmId": "5C08B38E-4D1B-4F0A-9E6C-3B2A1C0D0003"}),
			Want: want(func(i *cloud.Instance) { i.Group, i.Name, i.LifeCycle = "", "origin-vm", "" }),
		},
		{
			Name: "no_tags", Bodies: with(map[string]any{"tags": "", "tagsList": []any{}}),
			Want: want(func(i *cloud.Instance) { i.Tags, i.TagsHint = cloud.Tags{}, hintTags }),
		},
		{
			Name: "no_list_of_tags", Bodies: with(map[string]any{"tags": nil, "tagsList": nil}),
			Want: want(func(i *cloud.Instance) { i.Tags, i.TagsKnown, i.TagsHint = cloud.Tags{}, false, hintTags }),
		},
		{
			// The other form of the same tags cannot be split reliably.
			Name: "odd_but_legal_tags", Bodies: with(map[string]any{
				"tags": "amsagent:role:edge;odd:a;b:c", "tagsList": []any{
					map[string]any{"name": "amsagent:role", "value": "edge"}, map[string]any{"name": "odd", "value": "aaaa;b:cccc"}, map[string]any{"name": "Größe", "value": ""},
				},
			}),
			Want: want(func(i *cloud.Instance) {
				i.Tags = cloud.Tags{"amsagent:role": "edge", "odd": "aaaa;b:cccc", "Größe": ""}
			}),
		},
		{
			Name: "malformed_tags", Bodies: with(map[string]any{"tagsList": []any{
				map[string]any{"name": "amsagent-role", "value": "edge"}, map[string]any{"name": "", "value": "x"}, map[string]any{"name": "line", "value": "one\ntwo"},
			}}),
			Want: want(func(i *cloud.Instance) { i.Tags = cloud.Tags{"amsagent-role": "edge"} }),
		},
		{
			Name: "malformed_list_of_tags", Bodies: with(map[string]any{"tags": "amsagent-role:edge;env:prod", "tagsList": map[string]any{"amsagent-role": "edge"}}),
			Want: want(func(i *cloud.Instance) { i.Tags, i.TagsKnown, i.TagsHint = cloud.Tags{}, false, hintTags }),
		},
		{
			Name: "parts_of_unknown_form", Bodies: with(map[string]any{"name": 3, "zone": []any{}, "osProfile": "edge"}, "eth0", iface("10.1.0.4")),
			Options: metadatatest.Sends("10.1.0.4", ""),
			Want: want(func(i *cloud.Instance) {
				i.Name, i.Zone, i.Hostname, i.AddressSource = "", "", "", "private address of the network interface with the default route"
			}),
		},
		{
			Name: "no_address", Bodies: with(nil, iface("ten", "127.0.0.1")),
			Want: want(func(i *cloud.Instance) { i.Address, i.AddressSource = netip.Addr{}, "" }),
		},
	}
}

func TestConformance(t *testing.T) {
	metadatatest.Run(t, metadatatest.Suite{
		Name: "azure", Service: service(), Machines: machines(t), Open: func(o cloud.Options) (cloud.Provider, error) { return azure.New(o) },
	})
}

func open(t testing.TB, o cloud.Options) *azure.Provider {
	t.Helper()
	p, err := azure.New(o)
	must.OK(t, err)
	return p
}

// TestInstanceFacts: fields that the suite does not compare.
func TestInstanceFacts(t *testing.T) {
	f := replay.New(t, service().Protocol, map[string]string{pathInstance: doc(t, map[string]any{
		"name": "", "tagsList": []any{map[string]any{"name": "line", "value": "one\ntwo"}}, "zone": 1,
	}, iface("10.1.0.4"), iface("10.9.0.4"))})
	o := cloud.Options{Transport: fakes.Transport{Handler: f}}
	metadatatest.Sends("", "")(&o)
	inst, err := open(t, o).Instance(t.Context())
	must.OK(t, err)
	text := strings.Join(inst.Notes, "\n")
	must.Contain(t, "notes", text, "of the 2 network interfaces in the metadata the first was taken", "--address", "no name of this machine", `tag "line"`, "compute.zone")
	must.Contain(t, "the query asks for a part of the answer", f.Seen()[0].URL.RawQuery, "extended=true")
}

// TestFieldReport09_Gone: a program treated a 410 as final, and the machine started without its metadata. Azure asks clients to
// retry for 70 s.
func TestFieldReport09_Gone(t *testing.T) {
	for _, tt := range []struct {
		status     int
		away, most time.Duration
		ok         bool
	}{
		{http.StatusGone, time.Second, 4 * time.Second, true},
		{http.StatusGone, 69 * time.Second, 72 * time.Second, true},
		{http.StatusGone, 10 * time.Minute, 100 * time.Second, false},
		{http.StatusInternalServerError, 10 * time.Minute, cloud.Timeout, false}, // does not document that it comes back
	} {
		bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
			begin := time.Now()
			w.fault(fakes.Fault{Status: tt.status})
			time.AfterFunc(tt.away, w.ClearFaults)
			inst, err := w.provider().Instance(t.Context())
			took := time.Since(begin)
			if tt.ok != (err == nil) || tt.ok != (inst.Name == "edge_3") || !tt.ok && !errors.Is(err, cloud.ErrNotReady) || took > tt.most {
				t.Errorf("HTTP %d for %s: %+v, %v after %s", tt.status, tt.away, inst, err, took)
			}
		})
	}
}

// TestFieldReport10_FirstCalls: the service refuses, drops or ignores the first calls after a boot.
func TestFieldReport10_FirstCalls(t *testing.T) {
	bubble(t, fakeazure.Options{DropCalls: 2}, func(t *testing.T, w *world) {
		for _, status := range []int{http.StatusNotFound, http.StatusGone, http.StatusTooManyRequests, http.StatusInternalServerError} {
			w.fault(fakes.Fault{Status: status, Times: 1})
		}
		w.fault(fakes.Fault{Truncate: true, Times: 1})
		inst, err := w.provider().Instance(t.Context())
		if err != nil || inst.Name != "edge_3" {
			t.Errorf("%+v, %v", inst, err)
		}
	})
}

// TestFieldReport15_BeforeDHCP: the agent ran before the network was up, and a firewall blocked another address of Azure. The
// agent retries one address until it answers.
func TestFieldReport15_BeforeDHCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := replay.New(t, service().Protocol, map[string]string{pathInstance: metadatatest.Fixture(t, "instance.json")})
		asked := 0
		inst, err := open(t, cloud.Options{Transport: metadatatest.RoundTrip(func(r *http.Request) (*http.Response, error) {
			must.Equal(t, "host of "+r.URL.String(), r.URL.Host, "169.254.169.254")
			if asked++; asked < 6 {
				return nil, &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
			}
			return fakes.Transport{Handler: f}.RoundTrip(r)
		})}).Instance(t.Context())
		if err != nil || inst.Name != "edge_3" || asked < 6 {
			t.Errorf("%+v, %v after %d requests", inst, err, asked)
		}
	})
}
