// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// FuzzParse: a parser fails only by an error, and the values that it returns satisfy their users.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":"eu-west-1","privateIp":"10.0.1.23"}`,
		"Name\namsagent:role", "2001:db8::1%eth0", "::ffff:10.0.0.1", "0e:49:61:0f:c3:11",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if id, err := parseIdentity(body); err == nil {
			if !strings.HasPrefix(id.InstanceID, "i-") || strings.ContainsAny(id.InstanceID, "/ \n") || id.Region == "" {
				t.Errorf("let through %+v", id)
			}
			if id.PrivateIP.IsLinkLocalUnicast() || id.PrivateIP.IsLoopback() {
				t.Errorf("let through address %s", id.PrivateIP)
			}
		}
		if keys, err := parseTagKeys(body); err == nil {
			for _, k := range keys {
				if k == "" || k == ".." || strings.ContainsAny(k, "/\n\r <>") {
					t.Errorf("let through key %q", k)
				}
			}
			must.Equal(t, fmt.Sprintf("different keys of %q", keys), len(slices.Compact(slices.Sorted(slices.Values(keys)))), len(keys))
		}
		for name, parse := range map[string]func([]byte) (string, error){"line": cloud.ParseLine, "value": cloud.ParseValue} {
			if v, err := parse(body); err == nil && strings.ContainsFunc(v, unicode.IsControl) {
				t.Errorf("%s: let through %q", name, v)
			}
		}
		if list, err := cloud.ParseAddresses(body); err == nil {
			for _, a := range list {
				if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
					t.Errorf("let through address %s", a)
				}
			}
		}
	})
}

func FuzzSignals(f *testing.F) {
	for _, s := range []string{
		"InService", "Warmed:Stopped", `{"action":"terminate","time":"2026-11-20T08:22:00Z"}`,
		`[{"EventId":"e","Code":"system-reboot","State":"active","NotBefore":"21 Jan 2019 09:00:43 GMT","NotAfter":"","Description":"d"}]`, `[null]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for name, parse := range map[string]func([]byte) ([]cloud.Notice, error){
			"target": parseTarget, "scheduled": func(b []byte) ([]cloud.Notice, error) { return parseScheduled(&cloud.Clock{}, b) },
			"spot": func(b []byte) ([]cloud.Notice, error) {
				return parseSpot(&cloud.Clock{}, b, &cloud.SpotEnd{Lead: time.Minute})
			},
		} {
			current, err := parse(body)
			if err != nil && current != nil {
				t.Errorf("%s: %v with %v", name, current, err)
			}
			for _, n := range current {
				if n.ID == "" || n.Kind == "" || n.Reason == "" || strings.ContainsAny(n.ID+n.Reason, "\n\x1b\x00") {
					t.Errorf("%s: %+v", name, n)
				}
			}
		}
	})
}
