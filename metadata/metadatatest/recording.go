// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/record"
)

// record reads a machine with a recorder and returns the folder, or "" where the machine cannot be read at all.
func (s Suite) record(t *testing.T, m Machine) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "recording")
	o := patient(s.at(s.fake(t, m), m))
	o.Record, o.AttemptTimeout = dir, time.Minute // a late answer would be recorded twice
	_, err := s.open(t, o).Instance(t.Context())
	switch {
	case m.WantErr != nil:
		return ""
	case err != nil:
		t.Fatalf("%s: recording: %v", m.Name, err)
	}
	return dir
}

// recordingHoldsNoSecret: a recording is sent to strangers with a bug report.
func (s Suite) recordingHoldsNoSecret(t *testing.T) {
	for _, m := range s.Machines {
		dir := s.record(t, m)
		if dir == "" {
			continue
		}
		secrets := append(slices.Clone(s.Secrets), identifying(m.Want)...)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range secrets {
				if holds(e.Name(), secret) || holds(string(b), secret) {
					t.Errorf("%s: %s of the recording holds %q:\n%s", m.Name, e.Name(), secret, b)
				}
			}
			if info, err := e.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %s can be read by others: %v, %v", m.Name, e.Name(), info.Mode(), err)
			}
		}
	}
}

func holds(text, secret string) bool {
	return strings.Contains(strings.ToLower(text), strings.ToLower(secret))
}

// identifying are the texts of an instance that name it, its owner or its place in a network.
func identifying(i cloud.Instance) []string {
	list := []string{i.ID, i.Name, i.AccountID, i.Hostname, i.Group}
	for _, a := range []netip.Addr{i.Address, i.IPv6, i.PublicAddress} {
		if a.IsValid() && !documentation(a) {
			list = append(list, a.String())
		}
	}
	for k, v := range i.Tags {
		if !strings.HasPrefix(k, "amsagent") {
			list = append(list, v)
		}
	}
	// A short one (a role, a number) may stand anywhere by chance.
	return slices.DeleteFunc(list, func(s string) bool { return len(s) < 6 })
}

// documentation says whether an address is of the ranges that a recording puts its made-up addresses into.
func documentation(a netip.Addr) bool {
	for _, p := range []string{"192.0.2.0/24", "203.0.113.0/24", "198.51.100.0/24", "2001:db8::/32"} {
		if netip.MustParsePrefix(p).Contains(a) {
			return true
		}
	}
	return false
}

// recordingReplays: what was recorded reads as the machine did, with other names, and asks for nothing else.
func (s Suite) recordingReplays(t *testing.T) {
	for _, m := range s.Machines {
		dir := s.record(t, m)
		if dir == "" || len(m.Want.Missing) > 0 {
			continue
		}
		exchanges, err := record.Load(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		read := func() (cloud.Instance, map[string]int) {
			rt := record.NewReplay(exchanges)
			o := cloud.Options{Transport: rt, RetryWait: time.Millisecond}
			if m.Options != nil {
				m.Options(&o)
			}
			o.Transport, o.Endpoints = rt, nil
			got, err := s.open(t, o).Instance(t.Context())
			if err != nil {
				t.Fatalf("%s: replaying: %v", m.Name, err)
			}
			return got, rt.Asked()
		}
		got, asked := read()
		if d := gocmp.Diff(shape(t, m.Want), shape(t, got)); d != "" {
			t.Errorf("%s: the replayed instance has other fields (-want +got):\n%s", m.Name, d)
		}
		for what, n := range asked {
			if n > 1 {
				t.Errorf("%s: replaying asked %d times for %s", m.Name, n, what)
			}
		}
		if again, _ := read(); !gocmp.Equal(flat(t, got), flat(t, again)) {
			t.Errorf("%s: two replays of one recording differ", m.Name)
		}
	}
}

// shape is an instance without the values that a recording replaces: which fields there are, the role and the kind of
// machine.
func shape(t *testing.T, i cloud.Instance) map[string]any {
	t.Helper()
	fields := flat(t, i)
	for _, k := range []string{"id", "name", "account_id", "hostname", "address", "ipv6", "public_address", "group", "notes"} {
		if _, ok := fields[k]; ok {
			fields[k] = "…"
		}
	}
	delete(fields, "notes")
	tags := map[string]int{"of any name": len(i.Tags)}
	for _, k := range []string{"amsagent:role", "amsagent-role"} {
		if v, ok := i.Tags[k]; ok {
			tags[k+"="+v] = 1
		}
	}
	fields["tags"] = tags
	if i.Address.IsValid() {
		fields["address"] = i.Address.Is4()
	}
	return fields
}

func flat(t *testing.T, i cloud.Instance) map[string]any {
	t.Helper()
	b, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(errors.Join(err, errors.New(string(b))))
	}
	return maps.Clone(out)
}
