// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/gcp"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	pathInstance = "/computeMetadata/v1/instance/"
	pathProject  = "/computeMetadata/v1/project/"
)

func service() metadatatest.Service {
	return metadatatest.Service{
		Origin: gcp.Endpoint,
		Header: [2]string{"Metadata-Flavor", "Google"}, Answer: [2]string{"Metadata-Flavor", "Google"},
		Required: pathInstance, Optional: pathProject, Field: "account_id",
		WrongTypes: []string{
			`{"id":"edge","name":"edge-1","zone":"projects/1/zones/europe-west1-b"}`,
			`{"id":4.56e18,"name":"edge-1","zone":"projects/1/zones/europe-west1-b"}`,
			`{"id":-4567,"name":"edge-1","zone":"projects/1/zones/europe-west1-b"}`,
			`{"id":[4567],"name":"edge-1","zone":"projects/1/zones/europe-west1-b"}`,
			`{"id":null,"name":"edge-1","zone":"projects/1/zones/europe-west1-b"}`,
			`{"id":4567,"name":"edge-1","zone":17}`,
			`{"id":4567,"name":"edge-1","zone":null}`,
			`{"id":4567,"name":"edge-1"}`,
			`{"id":4567,"name":["edge-1"],"zone":"projects/1/zones/europe-west1-b"}`,
			`[]`, `null`, `{}`, `"4567"`, `4567`,
		},
	}
}

func fixture(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	must.OK(tb, err)
	return string(b)
}

// with changes fields of a document; a nil takes the field away.
func with(tb testing.TB, doc string, change map[string]any) string {
	tb.Helper()
	d := json.NewDecoder(strings.NewReader(doc))
	d.UseNumber()
	var fields map[string]any
	must.OK(tb, d.Decode(&fields))
	for k, v := range change {
		if v == nil {
			delete(fields, k)
			continue
		}
		fields[k] = v
	}
	b, err := json.Marshal(fields)
	must.OK(tb, err)
	return string(b)
}

func bodies(tb testing.TB, instance map[string]any) map[string]string {
	return map[string]string{pathInstance: with(tb, fixture(tb, "instance.json"), instance), pathProject: fixture(tb, "project.json")}
}

func instance(change ...func(*cloud.Instance)) cloud.Instance {
	inst := cloud.Instance{
		Provider: "gcp", ID: "4567890123456789012", IDSource: "id of the instance metadata", Name: "edge-mig-x7k2",
		AccountID: "acme-video", Region: "europe-west1", Zone: "europe-west1-b", Type: "n2-standard-4",
		LifeCycle: "spot", StopWindow: 30 * time.Second, Hostname: "edge-mig-x7k2.europe-west1-b.c.acme-video.internal",
		Address: netip.MustParseAddr("10.132.0.5"), AddressSource: "private address of the first network interface",
		PublicAddress: netip.MustParseAddr("203.0.113.7"),
		Tags: cloud.Tags{
			"amsagent-role": "edge", "amsagent-mongo": "mongodb://ams:hunter2@10.132.0.9/?authSource=admin",
			"created-by":        "projects/123456789012/zones/europe-west1-b/instanceGroupManagers/edge-mig",
			"instance-template": "projects/123456789012/global/instanceTemplates/edge-4",
		},
		TagsKnown: true, Group: "edge-mig",
	}
	for _, c := range change {
		c(&inst)
	}
	return inst
}

// nic is one network interface as the metadata has it.
func nic(mac, ip string, more map[string]any) map[string]any {
	n := map[string]any{"mac": mac, "ip": ip, "network": "projects/123456789012/networks/default", "mtu": 1460}
	for k, v := range more {
		n[k] = v
	}
	return n
}

// routed is a machine whose default route leaves by the interface with this hardware address.
func routed(tb testing.TB, mac string) func(*cloud.Options) {
	tb.Helper()
	root := tb.TempDir()
	for name, text := range map[string]string{
		"proc/net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n" +
			"ens5\t00000000\t0100840A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n",
		"sys/class/net/ens5/address": strings.ToUpper(mac) + "\n",
	} {
		path := filepath.Join(root, name)
		must.OK(tb, os.MkdirAll(filepath.Dir(path), 0o755))
		must.OK(tb, os.WriteFile(path, []byte(text), 0o600))
	}
	return func(o *cloud.Options) { o.Root = root }
}

func machines(tb testing.TB) []metadatatest.Machine {
	const mac, mac2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
	v6 := netip.MustParseAddr("2001:db8:1900:4000::7")
	two := []any{nic(mac, "10.132.0.5", nil), nic(mac2, "10.140.0.7", map[string]any{"ipv6s": []any{"2001:db8:1900:4000::7"}})}
	none := func(i *cloud.Instance) { i.PublicAddress = netip.Addr{} }
	return []metadatatest.Machine{
		{Name: "spot", Bodies: bodies(tb, nil), Want: instance()},
		{
			Name: "standard_without_group", Bodies: bodies(tb, map[string]any{
				"scheduling": map[string]any{"automaticRestart": "TRUE", "onHostMaintenance": "MIGRATE", "preemptible": "FALSE"},
				"attributes": map[string]any{"amsagent-role": "origin"},
			}),
			Want: instance(func(i *cloud.Instance) {
				i.LifeCycle, i.StopWindow, i.Group = "standard", 2*time.Minute, ""
				i.Tags = cloud.Tags{"amsagent-role": "origin", "amsagent-mongo": i.Tags["amsagent-mongo"]}
			}),
		},
		{
			// UNCONFIRMED in the metadata, and what the API calls it.
			Name: "provisioning_model", Bodies: bodies(tb, map[string]any{"scheduling": map[string]any{"provisioningModel": "SPOT", "preemptible": false}}),
			Want: instance(),
		},
		{
			Name: "provisioning_model_of_tomorrow", Bodies: bodies(tb, map[string]any{"scheduling": map[string]any{"provisioningModel": "FLEX_START", "preemptible": "FALSE"}}),
			Want: instance(func(i *cloud.Instance) { i.LifeCycle, i.StopWindow = "flex_start", 2*time.Minute }),
		},
		{
			Name: "scheduling_not_told", Bodies: bodies(tb, map[string]any{"scheduling": nil}),
			Want: instance(func(i *cloud.Instance) { i.LifeCycle = "" }),
		},
		{
			Name: "regional_group", Bodies: bodies(tb, map[string]any{"attributes": map[string]any{
				"created-by": "projects/123456789012/regions/europe-west1/instanceGroupManagers/edge-regional",
			}}),
			Want: instance(func(i *cloud.Instance) {
				i.Group = "edge-regional"
				i.Tags = cloud.Tags{
					"created-by":     "projects/123456789012/regions/europe-west1/instanceGroupManagers/edge-regional",
					"amsagent-mongo": i.Tags["amsagent-mongo"], "amsagent-role": "origin",
				}
			}),
		},
		{
			Name: "created_by_another_tool", Bodies: bodies(tb, map[string]any{"attributes": map[string]any{"created-by": "terraform", "amsagent-role": "edge"}}),
			Want: instance(func(i *cloud.Instance) {
				i.Group = ""
				i.Tags = cloud.Tags{"created-by": "terraform", "amsagent-role": "edge", "amsagent-mongo": i.Tags["amsagent-mongo"]}
			}),
		},
		{
			Name: "dual_stack", Bodies: bodies(tb, map[string]any{"networkInterfaces": []any{
				nic(mac, "10.132.0.5", map[string]any{"ipv6s": []any{"fe80::1", "2001:db8:1900:4000::7"}}),
			}}),
			Want: instance(none, func(i *cloud.Instance) { i.IPv6 = v6 }),
		},
		{
			// UNCONFIRMED form.
			Name: "ipv6_as_text", Bodies: bodies(tb, map[string]any{"networkInterfaces": []any{
				nic(mac, "10.132.0.5", map[string]any{"ipv6s": "2001:db8:1900:4000::7/96"}),
			}}),
			Want: instance(none, func(i *cloud.Instance) { i.IPv6 = v6 }),
		},
		{
			Name: "ipv6_only", Bodies: bodies(tb, map[string]any{"networkInterfaces": []any{
				nic(mac, "", map[string]any{"ipv6s": []any{"2001:db8:1900:4000::7"}}),
			}}),
			Want: instance(none, func(i *cloud.Instance) {
				i.IPv6, i.Address = v6, v6
				i.AddressSource = "IPv6 address of the first network interface, since it has no IPv4 address"
			}),
		},
		{
			Name: "second_interface_has_the_route", Options: routed(tb, mac2), Bodies: bodies(tb, map[string]any{"networkInterfaces": two}),
			Want: instance(none, func(i *cloud.Instance) {
				i.Address, i.IPv6 = netip.MustParseAddr("10.140.0.7"), v6
				i.AddressSource = "private address of the network interface with the default route"
			}),
		},
		{
			Name: "interfaces_the_other_way_round", Options: routed(tb, mac2), Bodies: bodies(tb, map[string]any{"networkInterfaces": []any{
				nic(mac, "10.140.0.7", map[string]any{"ipv6s": []any{"2001:db8:1900:4000::7"}}), nic(mac2, "10.132.0.5", nil),
			}}),
			Want: instance(none, func(i *cloud.Instance) {
				i.AddressSource = "private address of the network interface with the default route"
			}),
		},
		{
			Name: "no_interface_of_the_route", Options: routed(tb, "42:01:0a:84:ff:ff"), Bodies: bodies(tb, map[string]any{"networkInterfaces": two}),
			Want: instance(none),
		},
		{
			Name: "id_in_quotes", Bodies: bodies(tb, map[string]any{"id": "4567890123456789012"}), Want: instance(),
		},
		{
			Name: "largest_id", Bodies: bodies(tb, map[string]any{"id": json.Number("18446744073709551615")}),
			Want: instance(func(i *cloud.Instance) { i.ID = "18446744073709551615" }),
		},
		{
			Name: "unknown_fields", Bodies: bodies(tb, map[string]any{"fieldOfTomorrow": map[string]any{"a": []any{1}}}), Want: instance(),
		},
		{
			Name: "parts_of_unknown_form", Bodies: bodies(tb, map[string]any{
				"scheduling": "SPOT", "hostname": 7, "machineType": []any{}, "networkInterfaces": map[string]any{}, "attributes": []any{},
			}),
			Want: instance(none, func(i *cloud.Instance) {
				i.LifeCycle, i.Hostname, i.Type, i.Address, i.AddressSource, i.Group = "", "", "", netip.Addr{}, "", ""
				i.Missing = []string{"address", "hostname", "life_cycle", "tags", "type"}
				i.Tags = cloud.Tags{"amsagent-role": "origin", "amsagent-mongo": i.Tags["amsagent-mongo"]}
				i.TagsKnown, i.TagsHint = false, "the attributes of this instance are of no form that is known here"
			}),
		},
		{
			Name: "no_attributes_at_all", Bodies: map[string]string{
				pathInstance: with(tb, fixture(tb, "instance.json"), map[string]any{"attributes": nil}),
				pathProject:  `{"attributes":{},"numericProjectId":123456789012,"projectId":"acme-video"}`,
			},
			Want: instance(func(i *cloud.Instance) { i.Tags, i.Group = cloud.Tags{}, "" }),
		},
		{
			Name: "odd_attributes", Bodies: bodies(tb, map[string]any{"attributes": map[string]any{
				"amsagent-role": "edge\r\n", "amsagent-group": "", "AMSAGENT-MONGO": "not ours", "amsagent-script": strings.Repeat("x", 64<<10), "": "?", "count": 7,
			}}),
			Want: instance(func(i *cloud.Instance) {
				i.Group, i.Tags = "", cloud.Tags{"amsagent-role": "edge", "amsagent-group": "", "amsagent-mongo": i.Tags["amsagent-mongo"]}
			}),
		},
	}
}

func TestConformance(t *testing.T) {
	svc := service()
	metadatatest.Run(t, metadatatest.Suite{
		Name: "gcp", Machines: machines(t), Service: &svc,
		Open: func(o cloud.Options) (cloud.Provider, error) {
			p, err := gcp.New(o)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	})
}

func open(t *testing.T, o cloud.Options) *gcp.Provider {
	t.Helper()
	p, err := gcp.New(o)
	must.OK(t, err)
	return p
}

// What is in the attributes beside ours is a key, a script or a password, and stays where it is.
func TestAttributesOfOthersAreNotKept(t *testing.T) {
	f := metadatatest.NewFake(t, service(), bodies(t, nil))
	inst, err := open(t, cloud.Options{Endpoints: map[string]string{"gcp": f.URL()}}).Instance(t.Context())
	must.OK(t, err)
	for k, v := range inst.Tags {
		if strings.Contains(v, "secret") || strings.Contains(k, "ssh") || strings.Contains(k, "script") || strings.Contains(k, "user-data") {
			t.Errorf("tag %s = %s", k, v)
		}
	}
	if s := fmt.Sprintf("%v", inst.Tags); strings.Contains(s, "hunter2") {
		t.Errorf("printed: %s", s)
	}
}

// An answer without Google's mark is somebody else's, however well it looks.
func TestMarkIsNeeded(t *testing.T) {
	all := bodies(t, nil)
	for name, h := range map[string]string{"none": "", "another": "Amazon"} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if h != "" {
					w.Header().Set("Metadata-Flavor", h)
				}
				_, _ = w.Write([]byte(all[r.URL.Path]))
			}))
			defer s.Close()
			_, err := open(t, cloud.Options{Endpoints: map[string]string{"gcp": s.URL}}).Instance(t.Context())
			if !errors.Is(err, cloud.ErrNotThisCloud) || cloud.HintOf(err) == "" || asked.Load() != 1 {
				t.Errorf("%v (hint %q), asked %d times", err, cloud.HintOf(err), asked.Load())
			}
		})
	}
}

// The two requests that a machine takes, by their addresses.
func TestAsksTwice(t *testing.T) {
	var asked []string
	all := bodies(t, nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RequestURI())
		w.Header().Set("Metadata-Flavor", "Google")
		_, _ = w.Write([]byte(all[r.URL.Path]))
	}))
	defer s.Close()
	if _, err := open(t, cloud.Options{Endpoints: map[string]string{"gcp": s.URL}}).Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{pathInstance + "?recursive=true&alt=json", pathProject + "?recursive=true&alt=json"}
	if d := cmp.Diff(want, asked); d != "" {
		t.Error(d)
	}
}

// A project that cannot be read may be where MongoDB is told: that there is none must not be believed.
func TestProjectUnread(t *testing.T) {
	f := metadatatest.NewFake(t, service(), bodies(t, nil))
	f.Break(pathProject, -1, metadatatest.Status(http.StatusServiceUnavailable))
	p := open(t, cloud.Options{Endpoints: map[string]string{"gcp": f.URL()}, RetryWait: time.Millisecond})
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if inst.TagsKnown || inst.TagsHint == "" || inst.Tags["amsagent-role"] != "edge" || inst.AccountID != "" {
		t.Errorf("%+v", inst)
	}
	// Not set is not unread.
	f = metadatatest.NewFake(t, service(), map[string]string{pathInstance: fixture(t, "instance.json")})
	inst, err = open(t, cloud.Options{Endpoints: map[string]string{"gcp": f.URL()}}).Instance(t.Context())
	if err != nil || !inst.TagsKnown || len(inst.Missing) > 0 {
		t.Errorf("%+v, %v", inst, err)
	}
}

// TestFieldReport13_probe: a machine that its firmware names is not asked by the network, so that no time limit of a
// probe can make Google Cloud something else now and then (googleapis/google-cloud-go#194: a probe with 750 ms).
func TestFieldReport13_probe(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) {
		t.Error("the network was asked")
		return nil, errors.New("no network here")
	}
	for name, dmi := range map[string]map[string]string{
		"product name":                {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
		"the short one":               {"product_name": "Google"},
		"a name that is not promised": {"product_name": "Something New", "product_serial": "GoogleCloud-0123456789ABCDEF"},
	} {
		root := t.TempDir()
		dir := filepath.Join(root, "sys/class/dmi/id")
		must.OK(t, os.MkdirAll(dir, 0o755))
		for k, v := range dmi {
			must.OK(t, os.WriteFile(filepath.Join(dir, k), []byte(v+"\n"), 0o600))
		}
		d, err := metadata.Detect(t.Context(), metadata.Options{Root: root, DialContext: dial})
		if err != nil || d.Provider != "gcp" {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	// And a service that takes 900 ms to answer is no other cloud's, and is waited for.
	f := metadatatest.NewFake(t, service(), bodies(t, nil))
	f.Delay(900 * time.Millisecond)
	inst, err := open(t, cloud.Options{Endpoints: map[string]string{"gcp": f.URL()}}).Instance(t.Context())
	if err != nil || inst.AccountID == "" {
		t.Errorf("%+v, %v", inst, err)
	}
}

// TestFieldReport14_vanishes: the interface is set up once more at the first boot, and takes the service away for some
// 300 ms after it has worked (GoogleCloudPlatform/guest-agent#610).
func TestFieldReport14_vanishes(t *testing.T) {
	f := metadatatest.NewFake(t, service(), bodies(t, nil))
	var log bytes.Buffer
	var gone atomic.Int64 // until when, in ns of the wall clock
	away := func() bool { return time.Now().UnixNano() < gone.Load() }
	o := cloud.Options{
		Endpoints: map[string]string{"gcp": f.URL()}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away() {
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ENETUNREACH}
			}
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			return &shaky{Conn: c, away: away}, err
		},
	}
	p := open(t, o)
	// It goes between the first request and the second.
	f.Break(pathInstance, 1, func(_ *metadatatest.Fake, w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(fixture(t, "instance.json")))
		gone.Store(time.Now().Add(500 * time.Millisecond).UnixNano())
	})
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if d := cmp.Diff(instance(), inst, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("(-want +got)\n%s\n%s", d, log.String())
	}
	// And before a reading that is not the first.
	gone.Store(time.Now().Add(400 * time.Millisecond).UnixNano())
	if _, err := p.Instance(t.Context()); err != nil {
		t.Error(err)
	}
}

// shaky is a connection that is of no use while the network is away.
type shaky struct {
	net.Conn
	away func() bool
}

func (s *shaky) Write(b []byte) (int, error) {
	if s.away() {
		_ = s.Close()
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.ENETUNREACH}
	}
	return s.Conn.Write(b)
}
