// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp_test

import (
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/metadata/gcp"
)

func ours(key string) bool { return strings.HasPrefix(key, "amsagent") || key == "created-by" }

func FuzzParseMachine(f *testing.F) {
	f.Add([]byte(fixture(f, "instance.json")))
	for _, s := range service().WrongTypes {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := gcp.ParseMachine(body, ours)
		if err != nil {
			return
		}
		if m.ID == "" || strings.Trim(m.ID, "0123456789") != "" || m.Zone == "" || strings.Contains(m.Zone, "/") {
			t.Errorf("%+v", m)
		}
		for k := range m.Attributes {
			if !ours(k) {
				t.Errorf("attribute %q of somebody else", k)
			}
		}
		for _, n := range m.Interfaces {
			if n.Address.IsValid() && !n.Address.Is4() || n.IPv6.IsValid() && !n.IPv6.Is6() {
				t.Errorf("%+v", n)
			}
		}
	})
}

func FuzzParseProject(f *testing.F) {
	f.Add([]byte(fixture(f, "project.json")))
	f.Add([]byte(`{"projectId":7}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := gcp.ParseProject(body, ours)
		if err == nil && p.ID == "" {
			t.Error("a project without a name")
		}
	})
}

func FuzzParseSignals(f *testing.F) {
	for _, s := range []string{
		fixture(f, "shutdown-details.json"), fixture(f, "upcoming-maintenance.json"), "NONE", "TRUE", "PENDING_STOP", "",
		`{"maxDuration":{"seconds":"1e3"}}`, `{"maxDuration":"1e999s"}`, `{"a":{"startTime":"2026-11-20T19:00:01Z"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if w, err := gcp.ParseWord(body); err == nil && (len(w) > 64 || strings.ContainsAny(w, " \n<>")) {
			t.Errorf("%q is no word", w)
		}
		now := time.Now()
		if s, err := gcp.ParseShutdown(body); err == nil {
			if at := s.Ends(now); !at.IsZero() && (!at.After(now) || at.Sub(now) > 24*time.Hour) {
				t.Errorf("%+v ends at %s", s, at)
			}
		}
		if m, err := gcp.ParseUpcoming(body); err == nil && (m.Start.IsZero() != (m.Status == "")) {
			t.Errorf("%+v", m)
		}
	})
}
