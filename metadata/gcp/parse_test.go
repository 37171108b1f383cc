// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestParseUpcoming(t *testing.T) {
	plan, err := os.ReadFile("testdata/upcoming-maintenance.json")
	must.OK(t, err)
	for _, body := range []string{
		string(plan), `{"maintenanceStatus": "ONGOING", "windowStartTime": "2026-11-20T19:00:01Z"}`, `{"startTime": "2026-11-20T19:00:01Z"}`,
		`{"Upcoming maintenance": {"maintenance_status": "PENDING", "window_start_time": "2026-11-20T19:00:01Z"}}`,
	} {
		if got := parseUpcoming([]byte(body)); !got.Equal(time.Date(2026, 11, 20, 19, 0, 1, 0, time.UTC)) {
			t.Errorf("%s: %s", body, got)
		}
	}
	for _, body := range []string{
		`NONE`, `"NONE"`, ``, `{}`, `null`, `[]`, `<html>`, `{"window_start_time": "soon"}`,
		`{ "error": "no notifications have been received yet, try again later" }`,
	} {
		if got := parseUpcoming([]byte(body)); !got.IsZero() {
			t.Errorf("%s: %s", body, got)
		}
	}
}

func seeds(f *testing.F, more ...string) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) != 4 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		must.OK(f, err)
		f.Add(b)
	}
	for _, s := range more {
		f.Add([]byte(s))
	}
}

func FuzzParseMachine(f *testing.F) {
	seeds(f, `{"id":"edge","zone":"z"}`, `{"id":4.5e18,"zone":"z"}`, `{"id":[4567],"zone":"z"}`, `{"id":4567,"zone":17}`, `{"id":4567,"zone":"a/"}`, `[]`, `null`)
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := parseMachine(body)
		if err != nil {
			return
		}
		if id := m.ID.String(); id == "" || strings.Trim(id, "0123456789") != "" || m.Zone == "" || strings.Contains(m.Zone+m.MachineType, "/") {
			t.Errorf("%+v", m)
		}
		for k := range agentAttributes(m.Attributes) {
			if !strings.HasPrefix(k, "amsagent") && k != "created-by" && k != "instance-template" {
				t.Errorf("attribute %q is not ours", k)
			}
		}
		for _, n := range m.Interfaces {
			var inst cloud.Instance
			inst.Choose([]cloud.NIC{n.reached()}, nil)
			if inst.IPv6.IsValid() && !inst.IPv6.Is6() || inst.Address.IsValid() != (inst.AddressSource != "") {
				t.Errorf("%+v", inst)
			}
		}
	})
}

func FuzzParseProject(f *testing.F) {
	seeds(f, `{"projectId":7}`)
	f.Fuzz(func(t *testing.T, body []byte) {
		if p, err := parseProject(body); err == nil && p.ID == "" {
			t.Error("a project without a name")
		}
	})
}

func FuzzParseSignals(f *testing.F) {
	seeds(f, "NONE", "TRUE", "PENDING_STOP", "", `{"maxDuration":{"seconds":"1e3"}}`, `{"maxDuration":"1e999s"}`, `{"maxDuration":"nan"}`, `{"a":{"startTime":"2026-11-20T19:00:01Z"}}`)
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, body []byte) {
		if oneWord.Match(body) && (len(body) > 64 || strings.ContainsAny(string(body), " \n<>")) {
			t.Errorf("%q is no word", body)
		}
		if _, at, _ := parseShutdown(&cloud.Clock{Known: true}, body, now); !at.IsZero() && (at.Before(now) || at.Sub(now) > maxShutdown) {
			t.Errorf("it ends at %s", at)
		}
		parseUpcoming(body)
	})
}
