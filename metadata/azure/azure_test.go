// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	pathInstance = "/metadata/instance"
	pathBalancer = "/metadata/loadbalancer"
)

func service() metadatatest.Service {
	return metadatatest.Service{
		Origin: azure.Endpoint, Header: [2]string{"Metadata", "true"},
		Required: pathInstance, Optional: pathBalancer, Field: "public_address",
		WrongTypes: []string{
			`{"compute":{"vmId":17}}`,
			`{"compute":{"vmId":"5c08b38e"}}`,
			`{"compute":{"vmId":null}}`,
			`{"compute":{"vmId":["5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"]}}`,
			`{"compute":[]}`,
			`{"compute":{"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003","name":3}}`,
			`{"compute":{"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003","name":"two words"}}`,
			`{"compute":{"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"},"network":{"interface":{}}}`,
			`{"compute":{"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"},"network":{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":10}]}}]}}`,
			`{"compute":{"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"},"network":{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"ten"}]}}]}}`,
			`{"compute":{"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"},"network":{"interface":[{"ipv6":{"ipAddress":[{"privateIpAddress":"10.0.0.1"}]}}]}}`,
			`{"error":"Bad request"}`, `[]`, `null`, `{}`, `"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"`,
		},
	}
}

func fixture(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	must.OK(tb, err)
	return string(b)
}

// doc is the fixture with changes in its compute, and with these interfaces where there are any.
func doc(tb testing.TB, compute map[string]any, nics ...any) string {
	tb.Helper()
	var fields map[string]any
	must.OK(tb, json.Unmarshal([]byte(fixture(tb, "instance.json")), &fields))
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

// nic is one interface as the metadata tell of it; an address with a slash is private/public.
func nic(mac string, addresses ...string) map[string]any {
	v4, v6 := []any{}, []any{}
	for _, a := range addresses {
		private, public, _ := strings.Cut(a, "/")
		if strings.Contains(private, ":") {
			v6 = append(v6, map[string]any{"privateIpAddress": private})
			continue
		}
		v4 = append(v4, map[string]any{"privateIpAddress": private, "publicIpAddress": public})
	}
	return map[string]any{"macAddress": mac, "ipv4": map[string]any{"ipAddress": v4}, "ipv6": map[string]any{"ipAddress": v6}}
}

const (
	mac1 = "000D3A112233"
	mac2 = "000D3A445566"
)

func instance(change ...func(*cloud.Instance)) cloud.Instance {
	inst := cloud.Instance{
		Provider: "azure", ID: "5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003", IDSource: "vmId of the instance metadata", Name: "edge_3",
		AccountID: "8d10da13-8125-4ba9-a717-bf7490507b3d", Region: "westeurope", Zone: "1", Type: "Standard_D4s_v5",
		LifeCycle: "Regular", Hostname: "edge000003", Group: "edge",
		Address: netip.MustParseAddr("10.1.0.4"), AddressSource: "private address of the only network interface",
		PublicAddress: netip.MustParseAddr("20.61.7.8"),
		Tags:          cloud.Tags{"amsagent-role": "edge", "customer": "Acme; Inc", "env": "prod"},
		TagsKnown:     true,
	}
	for _, c := range change {
		c(&inst)
	}
	return inst
}

const hintTags = "none of the instance's tags is ours; a tag that is set or changed on the scale set reaches a machine when that is " +
	"rebooted, reimaged or gets another disk, not before"

func machines(tb testing.TB) []metadatatest.Machine {
	balancer := fixture(tb, "loadbalancer.json")
	with := func(body string) map[string]string {
		return map[string]string{pathInstance: body, pathBalancer: balancer}
	}
	private := func(i *cloud.Instance) { i.PublicAddress = netip.Addr{} }
	return []metadatatest.Machine{
		{
			Name: "behind_a_load_balancer", Bodies: with(fixture(tb, "instance.json")),
			// Without the balancer it has no public address.
			Want: instance(),
		},
		{
			Name: "public_address_of_its_own", Bodies: with(doc(tb, nil, nic(mac1, "10.1.0.4/20.61.7.77"))),
			Want: instance(func(i *cloud.Instance) { i.PublicAddress = netip.MustParseAddr("20.61.7.77") }),
		},
		{Name: "private", Bodies: map[string]string{pathInstance: doc(tb, nil)}, Want: instance(private)},
		{
			Name: "a_load_balancer_for_others", Bodies: with(doc(tb, nil, nic(mac1, "10.1.0.5"))),
			Want: instance(private, func(i *cloud.Instance) { i.Address = netip.MustParseAddr("10.1.0.5") }),
		},
		{
			Name: "dual_stack", Bodies: with(doc(tb, nil, nic(mac1, "10.1.0.4", "fe80::1", "2603:1020::4"))),
			Want: instance(func(i *cloud.Instance) { i.IPv6 = netip.MustParseAddr("2603:1020::4") }),
		},
		{
			Name: "ipv6_only", Bodies: with(doc(tb, nil, nic(mac1, "2603:1020::4"))),
			Want: instance(private, func(i *cloud.Instance) {
				i.Address, i.IPv6 = netip.MustParseAddr("2603:1020::4"), netip.MustParseAddr("2603:1020::4")
				i.AddressSource = "IPv6 address of the only network interface, since it has no IPv4 address"
			}),
		},
		{
			// Which one the default route leaves by is not known below this root; see TestNIC.
			Name: "several_nics_and_no_route", Bodies: with(doc(tb, nil, nic(mac2, "10.1.0.4"), nic(mac1, "10.9.0.4"))),
			Options: func(o *cloud.Options) { o.Root = "testdata/nowhere" },
			Want: instance(func(i *cloud.Instance) {
				i.AddressSource = "private address of the first of 2 network interfaces"
			}),
		},
		{
			Name: "spot_in_a_flexible_set", Bodies: with(doc(tb, map[string]any{
				"priority": "Spot", "evictionPolicy": "Delete", "name": "edge_1f2e3d4c", "vmScaleSetName": "", "zone": "",
				"virtualMachineScaleSet": map[string]any{"id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/acme-video/providers/Microsoft.Compute/virtualMachineScaleSets/edge-flex"},
			})),
			Want: instance(func(i *cloud.Instance) {
				i.LifeCycle, i.Name, i.Group, i.Zone = "Spot", "edge_1f2e3d4c", "edge-flex", ""
			}),
		},
		{
			Name: "a_machine_in_no_set", Bodies: with(doc(tb, map[string]any{"vmScaleSetName": "", "name": "origin-vm", "priority": "", "vmId": "5C08B38E-4D1B-4F0A-9E6C-3B2A1C0D0003"})),
			Want: instance(func(i *cloud.Instance) { i.Group, i.Name, i.LifeCycle = "", "origin-vm", "" }),
		},
		{
			Name: "no_tags", Bodies: with(doc(tb, map[string]any{"tags": "", "tagsList": []any{}})),
			Want: instance(func(i *cloud.Instance) { i.Tags, i.TagsHint = cloud.Tags{}, hintTags }),
		},
		{
			Name: "tags_in_no_form_that_we_know", Bodies: with(doc(tb, map[string]any{"tags": nil, "tagsList": nil})),
			Want: instance(func(i *cloud.Instance) { i.Tags, i.TagsKnown, i.TagsHint = nil, false, hintTags }),
		},
		{
			// The other form of the same tags cannot be taken apart for sure.
			Name: "odd_but_legal_tags", Bodies: with(doc(tb, map[string]any{
				"tags": "amsagent:role:edge;odd:a;b:c", "tagsList": []any{
					map[string]any{"name": "amsagent:role", "value": "edge"}, map[string]any{"name": "odd", "value": "aaaa;b:cccc"}, map[string]any{"name": "Größe", "value": ""},
				},
			})),
			Want: instance(func(i *cloud.Instance) {
				i.Tags = cloud.Tags{"amsagent:role": "edge", "odd": "aaaa;b:cccc", "Größe": ""}
			}),
		},
		{
			Name: "malformed_tags", Bodies: with(doc(tb, map[string]any{"tagsList": []any{
				map[string]any{"name": "amsagent-role", "value": "edge"}, map[string]any{"name": "", "value": "nobody"}, map[string]any{"name": "line", "value": "one\ntwo"},
			}})),
			Want: instance(func(i *cloud.Instance) { i.Tags = cloud.Tags{"amsagent-role": "edge"} }),
		},
		{
			Name: "malformed_list_of_tags", Bodies: with(doc(tb, map[string]any{"tags": "amsagent-role:edge;env:prod", "tagsList": map[string]any{"amsagent-role": "edge"}})),
			Want: instance(func(i *cloud.Instance) { i.Tags, i.TagsKnown, i.TagsHint = nil, false, hintTags }),
		},
		{
			Name: "no_address", Bodies: with(doc(tb, nil, nic(mac1))),
			Want: instance(private, func(i *cloud.Instance) { i.Address, i.AddressSource = netip.Addr{}, "" }),
		},
	}
}

func TestConformance(t *testing.T) {
	svc := service()
	metadatatest.Run(t, metadatatest.Suite{
		Name: "azure", Service: &svc, Machines: machines(t),
		// Its rules make many requests and are about other things than the pace: that is TestPace's.
		Open: func(o cloud.Options) (cloud.Provider, error) { return azure.NewUnpaced(o) },
	})
}

// TestInstanceFacts: what the suite does not compare.
func TestInstanceFacts(t *testing.T) {
	svc := service()
	f := metadatatest.NewFake(t, svc, map[string]string{pathInstance: doc(t, map[string]any{"name": ""}, nic(mac2, "10.1.0.4"), nic(mac1, "10.9.0.4"))})
	inst := read(t, cloud.Options{Root: t.TempDir(), Endpoints: map[string]string{"azure": f.URL()}})
	text := strings.Join(inst.Notes, "\n")
	for _, want := range []string{"of the 2 network interfaces in the metadata the first was taken", "--address", "no name of this machine"} {
		if !strings.Contains(text, want) {
			t.Errorf("no note says %q: %s", want, text)
		}
	}
	for _, r := range f.Seen() {
		if r.Path == pathInstance && !strings.Contains(r.Query, "extended=true") {
			t.Errorf("a part of the answer would do: %s", r.Query)
		}
	}
}

func read(t *testing.T, o cloud.Options) cloud.Instance {
	t.Helper()
	p, err := azure.New(o)
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	return inst
}

// TestNIC: the interface is that of the default route, wherever the metadata list it.
func TestNIC(t *testing.T) {
	const header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
	route := func(name string, metric int) string {
		return fmt.Sprintf("%s\t00000000\t0100010A\t0003\t0\t0\t%d\t00000000\t0\t0\t0\n", name, metric)
	}
	for _, tt := range []struct {
		name   string
		files  map[string]string
		list   []netip.Addr
		want   string
		source string
		noted  bool
	}{
		{
			name:  "the mac of the route's",
			files: map[string]string{"proc/net/route": header + route("eth1", 200) + route("eth0", 100), "sys/class/net/eth0/address": "00:0d:3a:44:55:66\n", "sys/class/net/eth1/address": "00:0d:3a:11:22:33\n"},
			want:  "10.9.0.4", source: "MAC of eth0",
		},
		{
			name:  "the other one",
			files: map[string]string{"proc/net/route": header + route("eth1", 50) + route("eth0", 100), "sys/class/net/eth0/address": "00:0d:3a:44:55:66\n", "sys/class/net/eth1/address": "00:0D:3A:11:22:33\n"},
			want:  "10.1.0.4", source: "MAC of eth1",
		},
		{
			name: "by the route of IPv6",
			files: map[string]string{
				"proc/net/route":             header,
				"proc/net/ipv6_route":        strings.Repeat("0", 32) + " 00 " + strings.Repeat("0", 32) + " 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n",
				"sys/class/net/eth0/address": "00:0d:3a:44:55:66\n",
			},
			want: "10.9.0.4", source: "MAC of eth0",
		},
		{
			name:  "a bridge in front",
			files: map[string]string{"proc/net/route": header + route("br0", 0), "sys/class/net/br0/address": "02:00:00:00:00:01\n"},
			list:  []netip.Addr{netip.MustParseAddr("10.9.0.4")}, want: "10.9.0.4", source: "address of br0",
		},
		{
			name:  "none of them",
			files: map[string]string{"proc/net/route": header + route("tun0", 0), "sys/class/net/tun0/address": "\n"},
			list:  []netip.Addr{netip.MustParseAddr("172.16.0.1")}, want: "10.1.0.4", source: "first of 2", noted: true,
		},
		{name: "no route", files: map[string]string{"proc/net/route": header}, want: "10.1.0.4", source: "first of 2", noted: true},
		{name: "a name that is a path", files: map[string]string{"proc/net/route": header + route("../../x", 0)}, want: "10.1.0.4", source: "first of 2", noted: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				must.OK(t, os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755))
				must.OK(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
			}
			for _, turned := range []bool{false, true} {
				nics := []any{nic(mac1, "10.1.0.4/20.0.0.1"), nic(mac2, "10.9.0.4/20.0.0.2")}
				if turned && !tt.noted {
					slices.Reverse(nics)
				}
				f := metadatatest.NewFake(t, service(), map[string]string{pathInstance: doc(t, nil, nics...)})
				inst := read(t, cloud.Options{
					Root: root, Endpoints: map[string]string{"azure": f.URL()},
					Interfaces: func(string) ([]netip.Addr, error) { return tt.list, nil },
				})
				if inst.Address.String() != tt.want || !strings.Contains(inst.AddressSource, tt.source) || (len(inst.Notes) > 0) != tt.noted {
					t.Errorf("%s: %s, notes %q", inst.Address, inst.AddressSource, inst.Notes)
				}
				if f.Count(pathBalancer) != 0 {
					t.Error("the load balancer was asked although the interface has a public address")
				}
			}
		})
	}
}

// script answers with one status after the other, and then with the body.
type script struct {
	body func(at time.Duration) (int, string)
	mu   sync.Mutex
	from time.Time
	at   []time.Time
}

// RoundTrip implements http.RoundTripper.
func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from.IsZero() {
		s.from = time.Now()
	}
	s.at = append(s.at, time.Now())
	code, text := s.body(time.Since(s.from))
	rec := httptest.NewRecorder()
	rec.WriteHeader(code)
	_, _ = rec.WriteString(text)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// TestFieldReport09_Gone: a 410 was taken for the end, and a machine came up without its metadata. Azure asks for 70 s of
// patience.
func TestFieldReport09_Gone(t *testing.T) {
	body := fixture(t, "instance.json")
	for _, tt := range []struct {
		gone time.Duration
		ok   bool
	}{{time.Second, true}, {69 * time.Second, true}, {10 * time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{body: func(at time.Duration) (int, string) {
				if at < tt.gone {
					return http.StatusGone, ""
				}
				return http.StatusOK, body
			}}
			p, err := azure.New(cloud.Options{Transport: s, Root: "testdata/nowhere"})
			must.OK(t, err)
			began := time.Now()
			m, err := p.Machine(t.Context())
			took := time.Since(began)
			if tt.ok && (err != nil || m.Name != "edge_3" || took > tt.gone+3*time.Second) {
				t.Errorf("gone for %v: %+v, %v after %v", tt.gone, m, err, took)
			}
			if !tt.ok && (!errors.Is(err, cloud.ErrNotReady) || took > 100*time.Second || cloud.HintOf(err) == "") {
				t.Errorf("gone for good: %v after %v", err, took)
			}
		})
	}
	// A service that is not there at all is not waited for that long.
	synctest.Test(t, func(t *testing.T) {
		p, err := azure.New(cloud.Options{Transport: &script{body: func(time.Duration) (int, string) { return http.StatusInternalServerError, "" }}})
		must.OK(t, err)
		began := time.Now()
		if _, err := p.Machine(t.Context()); !errors.Is(err, cloud.ErrNotReady) || time.Since(began) > cloud.DefaultTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestFieldReport10_FirstCalls: the service refuses, drops and forgets the first calls after a boot.
func TestFieldReport10_FirstCalls(t *testing.T) {
	f := metadatatest.NewFake(t, service(), map[string]string{pathInstance: fixture(t, "instance.json")})
	for _, fault := range []metadatatest.Fault{
		metadatatest.Closed(), metadatatest.Status(http.StatusNotFound), metadatatest.Closed(), metadatatest.Status(http.StatusGone),
		metadatatest.Status(http.StatusTooManyRequests), metadatatest.Status(http.StatusInternalServerError), metadatatest.Truncated(),
	} {
		f.Break(pathInstance, 1, fault)
	}
	inst := read(t, cloud.Options{Endpoints: map[string]string{"azure": f.URL()}, RetryWait: time.Millisecond, Root: t.TempDir()})
	if inst.Name != "edge_3" {
		t.Errorf("%+v", inst)
	}
}

// TestFieldReport15_BeforeDHCP: the agent ran before the network did, and another address of Azure's was closed to it by
// a firewall. One address is asked, and it is asked until it is there.
func TestFieldReport15_BeforeDHCP(t *testing.T) {
	f := metadatatest.NewFake(t, service(), map[string]string{pathInstance: fixture(t, "instance.json")})
	var (
		mu      sync.Mutex
		dialled []string
	)
	inst := read(t, cloud.Options{
		Root: "testdata/nowhere", RetryWait: 10 * time.Millisecond,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			dialled = append(dialled, addr)
			n := len(dialled)
			mu.Unlock()
			if n < 6 {
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ENETUNREACH}
			}
			return (&net.Dialer{}).DialContext(ctx, network, f.Addr())
		},
	})
	if inst.Name != "edge_3" || len(dialled) < 6 {
		t.Errorf("%+v after %d dials", inst, len(dialled))
	}
	for _, addr := range dialled {
		if addr != "169.254.169.254:80" {
			t.Errorf("dialled %s", addr)
		}
	}
}

// TestPace: five requests a second is what a machine has. Whatever is asked at once, and of whichever part.
func TestPace(t *testing.T) {
	body := fixture(t, "instance.json")
	synctest.Test(t, func(t *testing.T) {
		s := &script{body: func(time.Duration) (int, string) { return http.StatusOK, body }}
		reader, err := azure.New(cloud.Options{Transport: s, Timeout: time.Minute, Root: "testdata/nowhere"})
		must.OK(t, err)
		watcher, err := azure.New(cloud.Options{Transport: s, Timeout: time.Minute})
		must.OK(t, err)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := reader.Machine(t.Context()); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() { _, _ = watcher.Events(t.Context()) })
			wg.Go(func() {
				if err := watcher.Start(t.Context(), "1"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		most := 0
		for i, from := range s.at {
			n := 0
			for _, at := range s.at[i:] {
				if at.Sub(from) < time.Second {
					n++
				}
			}
			most = max(most, n)
		}
		if most > 5 || most < 4 {
			t.Errorf("%d requests in a second", most)
		}
		if len(s.at) != 60 {
			t.Errorf("%d requests", len(s.at))
		}
	})
}

func TestDisabled(t *testing.T) {
	if _, err := azure.New(cloud.Options{Disabled: []string{"azure"}}); !errors.Is(err, cloud.ErrForbidden) || cloud.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}
