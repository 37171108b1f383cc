// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"slices"
	"strings"
)

// SettingsDifference is of nodes of one role whose servers have other settings.
type SettingsDifference struct {
	Role string `json:"role"`
	// Nodes and Addresses have other settings than most nodes of the role. Without Most they are all of them.
	Nodes     []string `json:"nodes"`
	Addresses []string `json:"addresses"`
	Most      bool     `json:"most"`
}

// maxDifferent bounds the names in a text.
const maxDifferent = 5

func (d SettingsDifference) String() string {
	names := slices.Clone(d.Addresses[:min(len(d.Addresses), maxDifferent)])
	if more := len(d.Addresses) - maxDifferent; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	verb, from, role := "differ", "other", "without a role"
	if d.Most {
		from = "most"
	}
	if len(d.Nodes) == 1 {
		verb = "differs"
	}
	if d.Role != "" {
		role = "of role " + d.Role
	}
	return fmt.Sprintf("%s %s from %s nodes %s in the server's settings", strings.Join(names, ", "), verb, from, role)
}

// SettingsDifferences compares active and draining nodes with a fresh heartbeat, in each role. Another release of the server
// has other files, and is compared within itself. A node whose settings are unknown differs from none.
func SettingsDifferences(members []Member) (list []SettingsDifference) {
	var known []*Node
	for _, m := range members {
		if n := m.Node; n != nil && m.Agent.Fresh && n.Digest != "" && (n.State == StateActive || n.State == StateDraining) {
			known = append(known, n)
		}
	}
	for i, first := range known {
		peer := func(n *Node) bool { return n.Role == first.Role && n.AMS == first.AMS }
		if slices.ContainsFunc(known[:i], peer) {
			continue // with the first of them
		}
		count, peers, most := map[string]int{}, 0, ""
		for _, n := range known {
			if !peer(n) {
				continue
			}
			peers++
			if count[n.Digest]++; count[n.Digest] > count[most] {
				most = n.Digest
			}
		}
		d := SettingsDifference{Role: first.Role, Most: 2*count[most] > peers}
		for _, n := range known {
			if peer(n) && !(d.Most && n.Digest == most) {
				d.Nodes, d.Addresses = append(d.Nodes, n.ID), append(d.Addresses, n.IP)
			}
		}
		if len(d.Nodes) > 0 {
			list = append(list, d)
		}
	}
	return list
}
