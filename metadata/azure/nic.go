// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/amsagent/amsagent/metadata/generic"
)

// choice says in words why an interface was taken; the note is for a choice that may be wrong.
type choice struct{ source, note string }

// pick takes the interface that the default route leaves by: the order in the metadata means nothing.
func (p *Provider) pick(nics []NIC) (NIC, choice) {
	switch len(nics) {
	case 0:
		return NIC{}, choice{}
	case 1:
		return nics[0], choice{source: "the only network interface"}
	}
	name, mac, err := generic.DefaultRoute(p.opts)
	if err == nil {
		for _, n := range nics {
			if n.MAC != "" && n.MAC == normalMAC(mac) {
				return n, choice{source: fmt.Sprintf("the network interface with the MAC of %s, by which the default route leaves", name)}
			}
		}
	}
	if err == nil {
		// A bridge, a bond or a team in front may have another MAC, and has the address.
		if list, aerr := p.opts.Interfaces(name); aerr == nil {
			for _, n := range nics {
				if slices.ContainsFunc(n.IPv4, func(a Address) bool { return slices.Contains(list, a.Private) }) ||
					slices.ContainsFunc(n.IPv6, func(a netip.Addr) bool { return slices.Contains(list, a) }) {
					return n, choice{source: fmt.Sprintf("the network interface with an address of %s, by which the default route leaves", name)}
				}
			}
		}
		err = fmt.Errorf("none has the MAC or an address of %s, by which the default route leaves", name)
	}
	return nics[0], choice{
		source: fmt.Sprintf("the first of %d network interfaces", len(nics)),
		note: fmt.Sprintf("of the %d network interfaces in the metadata the first was taken, since it is not known which one the default route leaves by: %v; "+
			"say --address where that is the wrong one", len(nics), err),
	}
}
