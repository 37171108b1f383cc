// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/ams"
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
