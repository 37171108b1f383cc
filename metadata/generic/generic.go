// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"context"
	"errors"
	"fmt"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/record"
)

// Name of this provider.
const Name = "generic"

// recordFile is what a recording of this provider holds.
const recordFile = "cloud-init.json"

const (
	hintTags = "without a cloud's metadata no tags are known: give role and group by flag, environment or configuration file"
	hintID   = "run systemd-machine-id-setup (and seal golden images, so that clones do not share the id), or give the machine a host name"
)

// Provider tells what this machine knows about itself.
type Provider struct{ opts cloud.Options }

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider.
func New(opts cloud.Options) (*Provider, error) {
	if opts.Record != "" {
		if err := record.Prepare(opts.Record); err != nil {
			return nil, err
		}
	}
	return &Provider{opts: opts.WithDefaults()}, nil
}

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	if err := ctx.Err(); err != nil {
		return cloud.Instance{}, fmt.Errorf("reading this machine's own facts: %w", err)
	}
	inst := cloud.Instance{Provider: Name, TagsHint: hintTags}
	note := func(err error) {
		p.opts.Log.Warn("a part of this machine's own facts could not be read", "provider", Name, "err", err)
		inst.Notes = append(inst.Notes, err.Error())
	}

	ci, err := ReadCloudInit(p.opts.Root)
	if err != nil && !absent(err) {
		note(err)
	}
	if p.opts.Record != "" && err == nil {
		if err := record.WriteFile(p.opts.Record, recordFile, redact(ci)); err != nil {
			return cloud.Instance{}, &record.WriteError{Err: err}
		}
	}
	inst.Region, inst.Zone = ci.Region, ci.AvailabilityZone
	inst.Hostname = ci.LocalHostname
	if !usableHostname(inst.Hostname) {
		inst.Hostname = Hostname(p.opts.Root)
	}

	if ci.HasOwnID() {
		inst.ID, inst.IDSource = ci.InstanceID, "cloud-init's instance id on "+ci.CloudName
	} else if inst.ID, inst.IDSource, err = Identify(p.opts.Root, inst.Hostname); err != nil {
		return cloud.Instance{}, err
	}

	a, err := readAddresses(p.opts)
	if err != nil {
		note(err)
	}
	inst.IPv6 = a.v6
	switch {
	case a.v4.IsValid():
		inst.Address, inst.AddressSource = a.v4, "address of the default route's interface "+a.v4From
	case a.v6.IsValid():
		inst.Address, inst.AddressSource = a.v6, "address of the IPv6 default route's interface "+a.v6From+", since there is no IPv4 default route with an address"
	default:
		inst.Notes = append(inst.Notes, "no default route with a usable address was found: give the address of this node by --address")
	}
	if a.v4.IsValid() && !a.v4.IsPrivate() && !carrierGrade(a.v4) {
		inst.PublicAddress = a.v4
		// Nodes that register a public address talk across the Internet, or not at all: AMS issues 2384, 7791.
		inst.Notes = append(inst.Notes, fmt.Sprintf("%s, the address of the default route, is public: if the nodes have a private network, give this node's address there by --address", a.v4))
	}
	return inst, nil
}

// Identify names a machine by its derived machine id, else by its host name.
func Identify(root, hostname string) (id, source string, err error) {
	id, err = MachineID(root)
	if err == nil {
		return "m-" + id, "derived from the machine id", nil
	}
	if usableHostname(hostname) {
		return "host-" + hostname, "host name, since there is no machine id", nil
	}
	return "", "", &cloud.Error{
		Provider: Name, Item: "machine id", Kind: cloud.ErrNotFound, Hint: hintID,
		Cause: errors.Join(err, errors.New("and the host name tells nothing either")),
	}
}

func redact(ci CloudInit) CloudInit {
	m := record.NewMapper()
	ci.InstanceID = m.Name("instance", ci.InstanceID)
	if ci.LocalHostname != "" {
		ci.LocalHostname = m.Name("host", ci.LocalHostname)
	}
	return ci
}
