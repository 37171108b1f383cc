// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// Which form the list of IPv6 addresses has is not documented.
func TestParseAddresses(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][]netip.Addr{
		`["2408:4001::1","2408:4001::2"]`:     addrs("2408:4001::1", "2408:4001::2"),
		`[2408:4001::1,2408:4001::2]`:         addrs("2408:4001::1", "2408:4001::2"),
		`[2408:4001::1]`:                      addrs("2408:4001::1"),
		"2408:4001::1\n2408:4001::2\n":        addrs("2408:4001::1", "2408:4001::2"),
		"2408:4001::1/128":                    addrs("2408:4001::1"),
		"192.168.0.12":                        addrs("192.168.0.12"),
		"[]":                                  nil,
		"":                                    nil,
		"<html>":                              addrs("0.0.0.0"), // an error
		"fe80::1%eth0":                        addrs("0.0.0.0"),
		strings.Repeat("10.0.0.1\n", 1000):    addrs("0.0.0.0"),
		"10.0.0.1 and 10.0.0.2 are addresses": addrs("0.0.0.0"),
	} {
		got, err := alibaba.ParseAddresses([]byte(body))
		if len(want) == 1 && want[0].IsUnspecified() {
			if err == nil {
				t.Errorf("%.40q: %v", body, got)
			}
			continue
		}
		if diff := cmp.Diff(want, got, sameAddr); err != nil || diff != "" {
			t.Errorf("%.40q: %v %s", body, err, diff)
		}
	}
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
		{"too large", strings.Repeat("x\n", 40<<10) + "amsagent-role=edge\n", nil},
		{"a long heading", "##### amsagent-role=edge\n", nil},
		{"empty", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := alibaba.ParseUserData([]byte(tt.body))
			if diff := cmp.Diff(map[string]string(tt.want), map[string]string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseTerminationTime(t *testing.T) {
	t.Parallel()
	want := time.Date(2026, 11, 20, 17, 3, 0, 0, time.UTC)
	for _, s := range []string{"2026-11-20T17:03:00Z", " 2026-11-20T17:03:00Z\n", "2026-11-20T17:03Z", "2026-11-20T18:03:00+01:00"} {
		if at, err := alibaba.ParseTerminationTime([]byte(s)); err != nil || !at.Equal(want) {
			t.Errorf("%q: %v, %v", s, at, err)
		}
	}
	for _, s := range []string{"", "none", "0001-01-01T00:00:00Z", "<html>", "1700000000"} {
		if at, err := alibaba.ParseTerminationTime([]byte(s)); err == nil {
			t.Errorf("%q: %v", s, at)
		}
	}
}

func TestParseSystemEvents(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	reboot := alibaba.SystemEvent{ID: "e-1", Type: "SystemMaintenance.Reboot", State: "Scheduled", NotBefore: at, Reason: "host"}
	for _, tt := range []struct {
		name, body string
		want       []alibaba.SystemEvent
		bad        bool
	}{
		{"none", "None", nil, false},
		{"empty", "", nil, false},
		{"empty list", "[]", nil, false},
		{"as the API's", fixture(t, "events_api.json"), []alibaba.SystemEvent{reboot}, false},
		{"flat", fixture(t, "events_flat.json"), []alibaba.SystemEvent{reboot}, false},
		{"wrapped", `{"InstanceSystemEventType":[{"EventId":"e-1","EventType":"SystemMaintenance.Reboot"}]}`, []alibaba.SystemEvent{{ID: "e-1", Type: "SystemMaintenance.Reboot"}}, false},
		{"as event rules name them", `[{"eventId":"e-1","name":"Instance:InstanceFailure.Reboot:executing"}]`, []alibaba.SystemEvent{{ID: "e-1", Type: "InstanceFailure.Reboot", State: "Executing"}}, false},
		{"without an id", `[{"type":"SystemMaintenance.Stop","notBefore":"2026-11-22T08:00Z"}]`, []alibaba.SystemEvent{{ID: "SystemMaintenance.Stop@2026-11-22T08:00:00Z", Type: "SystemMaintenance.Stop", NotBefore: at}}, false},
		{"fields to come", `[{"EventId":"e-1","EventType":"SystemMaintenance.Dance","Partner":{"a":[1]},"Beat":3}]`, []alibaba.SystemEvent{{ID: "e-1", Type: "SystemMaintenance.Dance"}}, false},
		{"one of two is odd", `[{"EventId":"e-1","EventType":"A.Reboot"},7]`, []alibaba.SystemEvent{{ID: "e-1", Type: "A.Reboot"}}, true},
		{"a page", "<html>", nil, true},
		{"a word", `"x"`, nil, true},
		{"an odd date", `[{"EventId":"e-1","EventType":"A.B","NotBefore":"soon"}]`, nil, true},
		{"too many", "[" + strings.Repeat("{},", 200) + "{}]", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := alibaba.ParseSystemEvents([]byte(tt.body))
			if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.bad {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

func fixture(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name)
	must.OK(tb, err)
	return string(b)
}

func TestParseCredentials(t *testing.T) {
	t.Parallel()
	c, err := alibaba.ParseCredentials([]byte(fixture(t, "credentials.json")))
	if err != nil || c.AccessKeyID != "STS.EXAMPLEKEY" || c.SecurityToken != "EXAMPLETOKEN" || !c.Expiration.Equal(time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)) {
		t.Errorf("%#v, %v", c, err)
	}
	// However they are printed, the secret is not.
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "c", c)
	js, _ := json.Marshal(c)
	if out := fmt.Sprintf("%v %+v %#v %s", c, c, c, js) + log.String(); strings.Contains(out, "EXAMPLE") {
		t.Errorf("shown: %s", out)
	}
	for _, body := range []string{
		"", "{}", "null", "[]", "<html>", `{"Code":"Failed","AccessKeyId":"EXAMPLE"}`,
		`{"Code":"Success","AccessKeyId":"EXAMPLE","AccessKeySecret":"EXAMPLE","SecurityToken":"EXAMPLE"}`,
		`{"Code":"Success","AccessKeyId":"a","AccessKeySecret":"EXAMPLE","SecurityToken":"a\r\nb","Expiration":"2026-11-20T14:00:00Z"}`,
	} {
		if c, err := alibaba.ParseCredentials([]byte(body)); err == nil || strings.Contains(err.Error(), "EXAMPLE") {
			t.Errorf("%s: %v, %v", body, c, err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(fixture(f, "document.json")))
	f.Add([]byte(`{"instance-id":"i-bp13znx0m0me8cq0001","region-id":"cn-hangzhou","private-ipv4":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		id, err := alibaba.ParseIdentity(body)
		if err == nil && (!strings.HasPrefix(id.InstanceID, "i-") || id.Region == "" || strings.ContainsAny(id.InstanceID+id.Region+id.Zone+id.Type+id.MAC, " \n/&?")) {
			t.Errorf("%+v", id)
		}
	})
}

func FuzzParseUserData(f *testing.F) {
	f.Add([]byte("# amsagent-role=edge\namsagent:mongo: 'mongodb://u:p@h'"))
	f.Fuzz(func(t *testing.T, body []byte) {
		tags := alibaba.ParseUserData(body)
		for k, v := range tags {
			if !strings.HasPrefix(k, "amsagent") || v == "" || len(v) > 1024 || len(k) > 64 || strings.ContainsAny(v, "\r\n\x00") || len(tags) > 16 {
				t.Errorf("%q = %q", k, v)
			}
		}
	})
}

func FuzzParseSystemEvents(f *testing.F) {
	f.Add([]byte(fixture(f, "events_api.json")))
	f.Add([]byte(fixture(f, "events_flat.json")))
	f.Fuzz(func(t *testing.T, body []byte) {
		events, _ := alibaba.ParseSystemEvents(body)
		for _, e := range events {
			if e.ID == "" || e.Type == "" || strings.ContainsAny(e.ID+e.Type+e.State+e.Reason, "\r\n\x00") {
				t.Errorf("%+v", e)
			}
		}
	})
}

func FuzzParseAddresses(f *testing.F) {
	f.Add([]byte(`["2408::1"]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := alibaba.ParseAddresses(body)
		for _, a := range list {
			if err != nil || !a.IsValid() || a.Zone() != "" {
				t.Errorf("%v %v", list, err)
			}
		}
	})
}
