// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/azure"
)

func TestParseDocument(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 8, 5, 0, 0, time.UTC)
	one := func(fields string) string { return `{"DocumentIncarnation":1,"Events":[{` + fields + `}]}` }
	for _, tt := range []struct {
		name, body string
		want       azure.Document
		err        string
	}{
		{"the fixture", fixture(t, "scheduledevents.json"), azure.Document{Events: []azure.Event{
			{
				ID: "602d9444-d2cd-49c7-8624-8643e7171297", Type: "Terminate", Status: "Scheduled", ResourceType: "VirtualMachine", Resources: []string{"edge_3"},
				NotBefore: at, Description: "The virtual machine is being deleted because of a scale-in of its set.", Source: "User", Duration: -1,
			},
			{
				ID: "7B4B6E2F-1D0C-44A5-9D4E-0B1A8F1C2D3E", Type: "Freeze", Status: "Started", ResourceType: "VirtualMachine", Resources: []string{"edge_0", "EDGE_3", "edge_5"},
				Description: "Host server is undergoing maintenance.", Source: "Platform", Duration: 5 * time.Second,
			},
		}}, ""},
		{"nothing is scheduled", `{"DocumentIncarnation":1,"Events":[]}`, azure.Document{}, ""},
		{
			"fields of tomorrow", one(`"EventId":"1","EventType":"Terminate","Resources":["a"],"Severity":{"level":3},"NotBefore":null,"DurationInSeconds":"5","ResourceType":7`),
			azure.Document{Events: []azure.Event{{ID: "1", Type: "Terminate", Resources: []string{"a"}, Duration: -1}}},
			"",
		},
		{
			"one day of the month", one(`"EventId":"1","EventType":"Reboot","NotBefore":"Fri, 6 Nov 2026 08:05:00 GMT"`),
			azure.Document{Events: []azure.Event{{ID: "1", Type: "Reboot", Resources: nil, NotBefore: time.Date(2026, 11, 6, 8, 5, 0, 0, time.UTC), Duration: -1}}},
			"",
		},
		{
			"a time that is none", one(`"EventId":"1","EventType":"Reboot","NotBefore":"soon"`),
			azure.Document{Events: []azure.Event{{ID: "1", Type: "Reboot", Duration: -1}}},
			`"soon" is no time`,
		},
		{
			"twice the same", `{"Events":[{"EventId":"1","EventType":"Reboot"},{"EventId":"1","EventType":"Freeze"}]}`,
			azure.Document{Events: []azure.Event{{ID: "1", Type: "Reboot", Duration: -1}}},
			"",
		},
		{
			"one that cannot be read among others", `{"Events":[{"EventId":1},[],{"EventId":"2","EventType":"Freeze"},{"EventId":"","EventType":"Freeze"},{"EventId":"3","EventType":"two words"}]}`,
			azure.Document{Events: []azure.Event{{ID: "2", Type: "Freeze", Duration: -1}}},
			"not the JSON expected",
		},
		{"no events", `{"DocumentIncarnation":1}`, azure.Document{}, "no Events"},
		{"null", `null`, azure.Document{}, "no Events"},
		{"events that are no list", `{"Events":{}}`, azure.Document{}, "not the JSON expected"},
		{"a page", `<html>`, azure.Document{}, "not the JSON expected"},
		{"nothing", ``, azure.Document{}, "not the JSON expected"},
		{"too many", `{"Events":[` + strings.Repeat(`{},`, 2000) + `{}]}`, azure.Document{}, "2001 scheduled events"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := azure.ParseDocument([]byte(tt.body))
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEvent(t *testing.T) {
	t.Parallel()
	e := azure.Event{Type: "TERMINATE", Status: "started", Resources: []string{"Edge_3", "edge_4", "EDGE_4", "edge_5"}}
	if !e.Is(azure.EventTerminate) || !e.Started() || !e.About("edge_3") || e.About("edge") || e.About("") {
		t.Errorf("%+v", e)
	}
	if d := cmp.Diff([]string{"edge_4", "edge_5"}, e.Others("edge_3")); d != "" {
		t.Error(d)
	}
}

func TestParseLoadBalancer(t *testing.T) {
	t.Parallel()
	list, err := azure.ParseLoadBalancer([]byte(`{"loadbalancer":{"publicIpAddresses":[{"frontendIpAddress":"[2603:1020::9]","privateIpAddress":"[2603:1020::4]"},{"frontendIpAddress":"nonsense"},{"frontendIpAddress":"20.0.0.1","privateIpAddress":""}]}}`))
	if err != nil || len(list) != 2 || list[0].Public.String() != "2603:1020::9" || list[0].Private.String() != "2603:1020::4" || list[1].Private.IsValid() {
		t.Errorf("%v, %v", list, err)
	}
	for _, body := range []string{`{}`, `null`, `[]`, ``, `{"loadbalancer":[]}`, `{"loadbalancer":{"publicIpAddresses":{}}}`} {
		if _, err := azure.ParseLoadBalancer([]byte(body)); err == nil {
			t.Errorf("%s is taken for an answer", body)
		}
	}
}

func seeds(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) < 3 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		must.OK(f, err)
		f.Add(b)
	}
	for _, s := range []string{``, `null`, `{}`, `[]`, `{"compute":null,"network":null}`, `{"Events":null}`, `{"Events":[null]}`, "\xff", `{"newest-versions":["2021-12-13",3]}`} {
		f.Add([]byte(s))
	}
}

func clean(t *testing.T, what, s string) {
	t.Helper()
	if strings.ContainsFunc(s, unicode.IsControl) {
		t.Errorf("%s holds control characters: %q", what, s)
	}
}

func FuzzParseInstance(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := azure.ParseInstance(b)
		if err != nil {
			return
		}
		if len(m.VMID) != 36 {
			t.Errorf("id %q", m.VMID)
		}
		for what, s := range map[string]string{"name": m.Name, "set": m.ScaleSet, "host": m.Hostname, "zone": m.Zone, "size": m.Size} {
			clean(t, what, s)
			if len(s) > 128 {
				t.Errorf("%s of %d bytes", what, len(s))
			}
		}
		for _, n := range m.NICs {
			for _, a := range n.IPv4 {
				if !a.Private.Is4() {
					t.Errorf("IPv4 address %s", a.Private)
				}
			}
			for _, a := range n.IPv6 {
				if !a.Is6() {
					t.Errorf("IPv6 address %s", a)
				}
			}
		}
	})
}

func FuzzParseDocument(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, _ := azure.ParseDocument(b)
		seen := map[string]bool{}
		for _, e := range d.Events {
			if e.ID == "" || e.Type == "" || seen[e.ID] {
				t.Errorf("%+v", e)
			}
			seen[e.ID] = true
			for what, s := range map[string]string{"id": e.ID, "type": e.Type, "status": e.Status, "text": e.Description, "source": e.Source, "of": strings.Join(e.Resources, "")} {
				clean(t, what, s)
			}
		}
	})
}

func FuzzParseLoadBalancer(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := azure.ParseLoadBalancer(b)
		for _, a := range list {
			if !a.Public.IsValid() {
				t.Errorf("%+v", a)
			}
		}
	})
}
