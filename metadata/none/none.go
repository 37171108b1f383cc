// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package none

import (
	"context"
	"fmt"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/generic"
)

// Name of this provider.
const Name = "none"

const hintTags = "provider none knows no tags: give role and group by flag, environment or configuration file"

// Provider tells what Options says.
type Provider struct{ opts cloud.Options }

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider.
func New(opts cloud.Options) (*Provider, error) { return &Provider{opts: opts.WithDefaults()}, nil }

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	if err := ctx.Err(); err != nil {
		return cloud.Instance{}, fmt.Errorf("reading the machine id: %w", err)
	}
	// The host name only names a machine without a machine id; it is not told.
	id, source, err := generic.Identify(p.opts.Root, generic.Hostname(p.opts.Root))
	if err != nil {
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{Provider: Name, ID: id, IDSource: source, Address: p.opts.Address, TagsHint: hintTags}
	if inst.Address.IsValid() {
		inst.AddressSource = "given"
		if inst.Address.Is6() {
			inst.IPv6 = inst.Address
		}
	}
	return inst, nil
}
