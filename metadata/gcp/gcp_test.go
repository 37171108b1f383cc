// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
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
		Origin:   "http://169.254.169.254",
		Protocol: replay.Protocol{Header: [2]string{"Metadata-Flavor", "Google"}, Answer: [2]string{"Metadata-Flavor", "Google"}},
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
			`{"id":4567,"name":"edge-1","zone":"projects/1/zones/"}`,
			`[]`, `null`, `{}`, `"4567"`, `4567`,
		},
	}
}

// with changes fields of a document; nil removes the field.
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
	return map[string]string{pathInstance: with(tb, metadatatest.Fixture(tb, "instance.json"), instance), pathProject: metadatatest.Fixture(tb, "project.json")}
}

func instance(change ...func(*cloud.Instance)) cloud.Instance {
	inst := cloud.Instance{
		Provider: "gcp", ID: "4567890123456789012", IDSource: "id of the instance metadata", Name: "edge-mig-x7k2",
		AccountID: "acme-video", Region: "europe-west1", Zone: "europe-west1-b", Type: "n2-standard-4",
		LifeCycle: "spot", StopWindow: seconds.Duration(30 * time.Second), Hostname: "edge-mig-x7k2.europe-west1-b.c.acme-video.internal",
		Address: netip.MustParseAddr("10.132.0.5"), AddressSource: "private address of the only network interface",
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

// nic is one network interface in the metadata.
func nic(ip string, ipv6s ...any) map[string]any {
	return map[string]any{"ip": ip, "ipv6s": ipv6s, "network": "projects/123456789012/networks/default", "mtu": 1460}
}

func machines(tb testing.TB) []metadatatest.Machine {
	v6 := netip.MustParseAddr("2001:db8:1900:4000::7")
	none := func(i *cloud.Instance) { i.PublicAddress = netip.Addr{} }
	return []metadatatest.Machine{
		{Name: "spot", Bodies: bodies(tb, nil), Want: instance()},
		{
			Name: "standard_without_group", Bodies: bodies(tb, map[string]any{
				"scheduling": map[string]any{"automaticRestart": "TRUE", "onHostMaintenance": "MIGRATE", "preemptible": "FALSE"},
				"attributes": map[string]any{"amsagent-role": "origin"},
			}),
			Want: instance(func(i *cloud.Instance) {
				i.LifeCycle, i.StopWindow, i.Group = "standard", seconds.Duration(2*time.Minute), ""
				i.Tags = cloud.Tags{"amsagent-role": "origin", "amsagent-mongo": i.Tags["amsagent-mongo"]}
			}),
		},
		{
			// UNCONFIRMED in the metadata, and the names in the API.
			Name: "provisioning_model", Bodies: bodies(tb, map[string]any{"scheduling": map[string]any{"provisioningModel": "SPOT", "preemptible": false}}),
			Want: instance(),
		},
		{
			Name: "provisioning_model_of_tomorrow", Bodies: bodies(tb, map[string]any{"scheduling": map[string]any{"provisioningModel": "FLEX_START", "preemptible": "FALSE"}}),
			Want: instance(func(i *cloud.Instance) { i.LifeCycle, i.StopWindow = "flex_start", seconds.Duration(2*time.Minute) }),
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
			Name: "dual_stack", Bodies: bodies(tb, map[string]any{"networkInterfaces": []any{nic("10.132.0.5", "fe80::1", "2001:db8:1900:4000::7/96")}}),
			Want: instance(none, func(i *cloud.Instance) { i.IPv6 = v6 }),
		},
		{
			Name: "second_interface_has_the_route", Options: metadatatest.Sends("10.140.0.7", ""),
			Bodies: bodies(tb, map[string]any{"networkInterfaces": []any{nic("10.132.0.5"), nic("10.140.0.7", "2001:db8:1900:4000::7")}}),
			Want: instance(none, func(i *cloud.Instance) {
				i.Address, i.IPv6 = netip.MustParseAddr("10.140.0.7"), v6
				i.AddressSource = "private address of the network interface with the default route"
			}),
		},
		{
			Name: "no_project", Bodies: map[string]string{pathInstance: metadatatest.Fixture(tb, "instance.json")},
			Want: instance(func(i *cloud.Instance) { i.AccountID = ""; delete(i.Tags, "amsagent-mongo") }),
		},
		{
			Name: "id_in_quotes", Bodies: bodies(tb, map[string]any{"id": "4567890123456789012"}), Want: instance(),
		},
		{
			Name: "largest_id", Bodies: bodies(tb, map[string]any{"id": json.Number("18446744073709551615")}),
			Want: instance(func(i *cloud.Instance) { i.ID = "18446744073709551615" }),
		},
		{
			Name: "parts_of_unknown_form", Bodies: bodies(tb, map[string]any{
				"scheduling": "SPOT", "hostname": 7, "machineType": []any{}, "networkInterfaces": map[string]any{}, "attributes": []any{},
			}),
			Want: instance(none, func(i *cloud.Instance) {
				i.LifeCycle, i.Hostname, i.Type, i.Address, i.AddressSource, i.Group = "", "", "", netip.Addr{}, "", ""
				i.Missing = []string{"tags"}
				i.Tags = cloud.Tags{"amsagent-role": "origin", "amsagent-mongo": i.Tags["amsagent-mongo"]}
				i.TagsKnown, i.TagsHint = false, "the attributes of this instance are of no form that is known here"
			}),
		},
		{
			Name: "no_attributes_at_all", Bodies: map[string]string{
				pathInstance: with(tb, metadatatest.Fixture(tb, "instance.json"), map[string]any{"attributes": nil}),
				pathProject:  `{"attributes":{"created-by":"projects/1/zones/z/instanceGroupManagers/other","count":7},"projectId":"acme-video"}`,
			},
			Want: instance(func(i *cloud.Instance) { i.Tags, i.Group = cloud.Tags{}, "" }),
		},
		{
			Name: "odd_attributes", Bodies: bodies(tb, map[string]any{"attributes": map[string]any{
				"amsagent-role": "edge\r\n", "amsagent-group": "", "AMSAGENT-MONGO": "not ours", "startup-script": strings.Repeat("x", 64<<10), "": "?", "count": 7, "amsagent-count": 7,
			}}),
			Want: instance(func(i *cloud.Instance) {
				i.Group, i.Tags = "", cloud.Tags{"amsagent-role": "edge", "amsagent-group": "", "amsagent-mongo": i.Tags["amsagent-mongo"]}
			}),
		},
	}
}

func TestConformance(t *testing.T) {
	metadatatest.Run(t, metadatatest.Suite{
		Name: "gcp", Machines: machines(t), Service: service(), Open: openFaulty,
	})
}

func open(t *testing.T, o cloud.Options) *gcp.Provider {
	t.Helper()
	p, err := gcp.New(o)
	must.OK(t, err)
	return p
}

// An answer without Google's header is not from its service.
func TestMarkIsNeeded(t *testing.T) {
	for _, h := range [][2]string{{}, {"Metadata-Flavor", "Amazon"}} {
		svc := service()
		svc.Answer = h
		f := replay.New(t, svc.Protocol, bodies(t, nil))
		_, err := open(t, cloud.Options{Transport: fakes.Transport{Handler: f}}).Instance(t.Context())
		if !errors.Is(err, cloud.ErrNotThisCloud) || cloud.HintOf(err) == "" || len(f.Seen()) != 1 {
			t.Errorf("header %q: %v (hint %q), asked %d times", h, err, cloud.HintOf(err), len(f.Seen()))
		}
	}
}

// The attributes of a project that cannot be read may name MongoDB: the tags are unknown then.
func TestProjectUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakegcp.New(fakegcp.Options{})
		must.OK(t, s.AddFault(fakes.Fault{Path: "project/", Status: http.StatusServiceUnavailable}))
		inst, err := open(t, cloud.Options{Transport: fakes.Transport{Handler: s}}).Instance(t.Context())
		if err != nil || inst.TagsKnown || inst.TagsHint == "" || inst.Tags["amsagent-role"] != "edge" || inst.AccountID != "" {
			t.Errorf("%+v, %v", inst, err)
		}
	})
}

// TestFieldReport13_probe: Google Cloud is detected by its firmware, not by a probe of the network, whose timeout can sometimes
// cause a wrong result (googleapis/google-cloud-go#194: a probe with 750 ms).
func TestFieldReport13_probe(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "sys/class/dmi/id")
	must.OK(t, os.MkdirAll(dir, 0o755))
	must.OK(t, os.WriteFile(filepath.Join(dir, "product_name"), []byte("Google Compute Engine\n"), 0o600))
	d, err := metadata.Detect(metadata.Options{Root: root, Transport: metadatatest.RoundTrip(func(*http.Request) (*http.Response, error) {
		t.Error("the network was asked")
		return nil, errors.New("no network here")
	})})
	if err != nil || d.Provider != "gcp" {
		t.Errorf("%+v, %v", d, err)
	}
	// A service that takes 900 ms to answer is still accepted.
	synctest.Test(t, func(t *testing.T) {
		s := fakegcp.New(fakegcp.Options{})
		must.OK(t, s.AddFault(fakes.Fault{Delay: 900 * time.Millisecond}))
		inst, err := open(t, cloud.Options{Transport: fakes.Transport{Handler: s}}).Instance(t.Context())
		if err != nil || inst.AccountID == "" || len(s.Requests()) != 2 {
			t.Errorf("%+v, %v", inst, err)
		}
	})
}

// TestFieldReport14_vanishes: the first boot sets up the interface again, and the service disappears for about 300 ms after it
// has worked (GoogleCloudPlatform/guest-agent#610).
func TestFieldReport14_vanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := fakes.Transport{Handler: fakegcp.New(fakegcp.Options{})}
		var gone time.Time // the end of the outage
		p := open(t, cloud.Options{Transport: metadatatest.RoundTrip(func(req *http.Request) (*http.Response, error) {
			if time.Now().Before(gone) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETUNREACH}
			}
			if req.URL.Path == pathInstance {
				gone = time.Now().Add(500 * time.Millisecond) // between the first request and the second
			}
			return service.RoundTrip(req)
		})})
		want, err := open(t, cloud.Options{Transport: service}).Instance(t.Context())
		must.OK(t, err)
		for range 2 {
			inst, err := p.Instance(t.Context())
			must.OK(t, err)
			must.NoDiff(t, "instance", inst, want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
			gone = time.Now().Add(400 * time.Millisecond) // before the next reading
		}
	})
}

func TestNoHooks(t *testing.T) {
	p := open(t, cloud.Options{})
	_, hooks := cloud.Provider(p).(cloud.Hooks)
	if c, err := p.Check(t.Context(), nil); hooks || c.Without == "" || err != nil {
		t.Errorf("%v, %+v, %v", hooks, c, err)
	}
}
