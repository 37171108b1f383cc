// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package none_test

import (
	"net/netip"
	"testing"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
	"github.com/amsagent/amsagent/metadata/none"
)

const hintTags = "provider none knows no tags: give role and group by flag, environment or configuration file"

func given(address string) func(*cloud.Options) {
	return func(o *cloud.Options) { o.Address = netip.MustParseAddr(address) }
}

func TestConformance(t *testing.T) {
	want := cloud.Instance{
		Provider: "none", ID: "m-9de891b3bea241469e3d059c8ef2862b", IDSource: "derived from the machine id", TagsHint: hintTags,
	}
	told, v6, named := want, want, want
	told.Address, told.AddressSource = netip.MustParseAddr("10.1.2.3"), "given"
	v6.Address, v6.IPv6, v6.AddressSource = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::1"), "given"
	named.ID, named.IDSource = "host-node-1", "host name, since there is no machine id"
	metadatatest.Run(t, metadatatest.Suite{
		Name: none.Name,
		Open: func(o cloud.Options) (cloud.Provider, error) {
			p, err := none.New(o)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
		Lacks: map[string]string{
			"addresses_dual_stack":   "one address is told, and nothing else is known",
			"addresses_several_nics": "no interface is looked at",
			"public_address_present": "one address is told, and nothing else is known",
			"role_present":           hintTags,
			"role_absent":            hintTags,
			"tags_malformed":         hintTags,
			"group_present":          "no cloud is asked, so there is no group",
		},
		Machines: []metadatatest.Machine{
			{Name: "told", Root: "testdata/machine", Options: given("10.1.2.3"), Want: told},
			// Neither the host name nor the route of the tree is told.
			{Name: "told_nothing", Root: "testdata/machine", Want: want},
			{Name: "told_ipv6", Root: "testdata/machine", Options: given("2001:db8::1"), Want: v6},
			{Name: "no_machine_id", Root: "testdata/unnumbered", Want: named},
			{Name: "nothing_at_all", Root: "testdata/empty", WantErr: cloud.ErrNotFound},
		},
	})
}
