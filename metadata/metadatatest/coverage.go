// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// topic is something that operators' machines differ in, and that a provider's Machines must therefore show.
type topic struct {
	name string
	// shown says whether a machine shows it; by what is wanted of it, or by its name.
	shown func(Machine) bool
}

// topics are the same for all providers. What a cloud does not have is named in Suite.Lacks.
func topics() []topic {
	wanted := func(fits func(cloud.Instance) bool) func(Machine) bool {
		return func(m Machine) bool { return m.WantErr == nil && fits(m.Want) }
	}
	named := func(words ...string) func(Machine) bool {
		return func(m Machine) bool {
			for _, w := range words {
				if strings.Contains(strings.ToLower(m.Name), w) {
					return true
				}
			}
			return false
		}
	}
	role := func(i cloud.Instance) string { return i.Tags["amsagent:role"] + i.Tags["amsagent-role"] }
	return []topic{
		{"identity", wanted(func(i cloud.Instance) bool { return i.ID != "" && i.IDSource != "" })},
		{"addresses_ipv4", wanted(func(i cloud.Instance) bool { return i.Address.Is4() && !i.IPv6.IsValid() })},
		{"addresses_dual_stack", wanted(func(i cloud.Instance) bool { return i.Address.Is4() && i.IPv6.IsValid() })},
		{"addresses_ipv6_only", wanted(func(i cloud.Instance) bool { return i.Address.Is6() })},
		{"addresses_several_nics", named("nic", "interface", "multi_homed", "multi-homed")},
		{"public_address_present", wanted(func(i cloud.Instance) bool { return i.PublicAddress.IsValid() })},
		{"public_address_absent", wanted(func(i cloud.Instance) bool { return i.Address.IsValid() && !i.PublicAddress.IsValid() })},
		{"role_present", wanted(func(i cloud.Instance) bool { return role(i) != "" })},
		{"role_absent", wanted(func(i cloud.Instance) bool { return i.TagsKnown && role(i) == "" })},
		{"tags_unknown", wanted(func(i cloud.Instance) bool { return !i.TagsKnown })},
		{"tags_malformed", named("malformed", "broken", "odd", "nonsense")},
		{"group_present", wanted(func(i cloud.Instance) bool { return i.Group != "" })},
		{"group_absent", wanted(func(i cloud.Instance) bool { return i.Group == "" })},
	}
}

// covers sees to it that no provider passes by leaving something out. That the machines are read right is the rule
// machine/NAME.
func (s Suite) covers(t *testing.T) {
	for _, topic := range topics() {
		t.Run(topic.name, func(t *testing.T) {
			if why, ok := s.Lacks[topic.name]; ok {
				t.Skip(why)
			}
			for _, m := range s.Machines {
				if topic.shown(m) {
					return
				}
			}
			t.Error("no machine of this provider's test shows this; if the cloud does not have it, say so in Suite.Lacks")
		})
	}
	names := map[string]bool{}
	for _, m := range s.Machines {
		if names[m.Name] {
			t.Errorf("two machines are called %s", m.Name)
		}
		names[m.Name] = true
	}
}
