// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/metadata"
)

// TestUnknownOwner: whom the installation belongs to cannot be known. A password
// must not be written then: its files could stay readable by all.
func TestUnknownOwner(t *testing.T) {
	m := ownTree(t, "3.0", "3.0.3")
	f := &facts{address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}}
	m.checkInstall(f)
	f.install.Dir = filepath.Join(f.install.Dir, "gone")
	m.checkPlan(m.store(), JoinRequest{Mongo: mustTarget(t, testMongo)}, f)
	if got := findingIDs(f.failed); len(got) != 1 || got[0] != IDInstall {
		t.Errorf("failed: %v", f.failed)
	}
	if f.plan != nil {
		t.Error("there is a plan")
	}
}

// TestServerNotEnabled: review real-server S10, a join said nothing about a server
// that does not come back after a reboot.
func TestServerNotEnabled(t *testing.T) {
	for unitFile, want := range map[string]string{"disabled": IDNotEnabled, "enabled": "", "static": "", "": ""} {
		m := ownTree(t, "3.0", "3.0.3")
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, UnitFile: unitFile}}
		f := &facts{}
		req := JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, DryRun: true}
		req.Identify = func(context.Context) (metadata.Instance, error) { return joinedAs(), nil }
		if err := m.preflight(t.Context(), m.store(), req, f); err != nil {
			t.Fatal(err)
		}
		var got string
		for _, w := range f.warnings {
			if strings.Contains(w.Hint, "systemctl enable") {
				got += w.ID
			}
		}
		if got != want || len(f.failed) > 0 {
			t.Errorf("%q: warnings %q, want %q: %v", unitFile, got, want, f.failed)
		}
	}
}

// TestAddressOfAnEnvironmentFile: systemd lets a file of EnvironmentFile= override every
// drop-in, so the server would register under another address after a restart for nothing.
func TestAddressOfAnEnvironmentFile(t *testing.T) {
	for address, failed := range map[string]string{"10.0.1.9": IDAddress, "10.0.1.7": "", "": IDAddress} {
		m := joinedTree(t)
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, HostAddress: address, HostAddressFile: "/etc/default/antmedia"}}
		req := JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, DryRun: true}
		req.Identify = func(context.Context) (metadata.Instance, error) { return joinedAs(), nil }
		f := &facts{}
		if err := m.preflight(t.Context(), m.store(), req, f); err != nil {
			t.Fatal(err)
		}
		if got := ids(f.failed); got != failed {
			t.Errorf("%q: failed %q, want %q: %v", address, got, failed, f.failed)
		}
	}
}
