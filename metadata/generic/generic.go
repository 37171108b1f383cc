// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name of this provider.
const Name = "generic"

// IDPrefix begins an id that is derived from the machine's own, as no person would name it.
const IDPrefix = "m-"

const (
	hintTags       = "without a cloud's metadata no tags are known: give role and group by flag, environment or configuration file"
	hintNoTags     = "cloud-init hands on no tags of %s: give role and group by flag, environment or configuration file"
	hintBrokenTags = "not all tags in cloud-init's data can be read (see the notes): give role and group by flag, environment or configuration file"
	hintNotYet     = "cloud-init is still looking for its cloud at this boot: cloud-init status --wait shows when it has done so, and why it has not"
	hintTreeID     = "join with --offline needs no id; or give the tree one, on this machine: systemd-machine-id-setup --root=%s"
	hintID         = "run systemd-machine-id-setup (and seal golden images, so that clones do not share the id), or give the machine a host name"
)

const noteForbidden = "the instance's id in the firmware is for root only: the agent, as root, calls this machine by that, not by the id above"

// Provider tells what this machine knows about itself.
type Provider struct{ opts cloud.Options }

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider.
func New(opts cloud.Options) (*Provider, error) {
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

	ci, err := p.cloudInit(ctx)
	late := errors.Is(err, errNotYet)
	if err != nil && !absent(err) {
		if ctx.Err() != nil {
			return cloud.Instance{}, fmt.Errorf("reading this machine's own facts: %w", err)
		}
		note(err)
	}
	for k, v := range ci.Launch {
		// A tag, which can be changed later, counts more.
		if _, there := ci.Tags[k]; !there && p.ours(k) {
			ci.Tags[k] = v
		}
	}
	inst.Region, inst.Zone, inst.Type, inst.Group = ci.Region, ci.AvailabilityZone, ci.InstanceType, ci.Group
	inst.Hostname = ci.LocalHostname
	if !usableHostname(inst.Hostname) {
		inst.Hostname = Hostname(p.opts.Root)
	}
	switch {
	case ci.TagsKnown:
		inst.Tags, inst.TagsKnown, inst.TagsHint = ci.Tags, true, ""
	case ci.Tags != nil:
		// What could not be read may be the role.
		inst.Tags, inst.TagsHint = ci.Tags, hintBrokenTags
		inst.Missing = append(inst.Missing, "tags")
	case ci.CloudName != "" && ci.HasOwnID():
		inst.TagsHint = fmt.Sprintf(hintNoTags, ci.CloudName)
	}

	fw := readFirmware(p.opts.Root)
	switch {
	case ci.HasOwnID():
		inst.ID, inst.IDSource = ci.InstanceID, "cloud-init's instance id on "+ci.CloudName
	case fw.id != "" && (fw.certain || !late):
		inst.ID, inst.IDSource = fw.id, fw.source
	case late:
		// Anything else might name this machine otherwise than it is named in a minute.
		return cloud.Instance{}, &cloud.Error{
			Provider: Name, Item: "instance id", Kind: cloud.ErrNotReady, Hint: hintNotYet, Cause: err,
		}
	default:
		if inst.ID, inst.IDSource, err = Identify(p.opts.Root, inst.Hostname); err != nil {
			return cloud.Instance{}, err
		}
		if fw.forbidden {
			inst.Notes = append(inst.Notes, noteForbidden)
		}
	}
	if late {
		inst.TagsHint = hintNotYet
		inst.Missing = append(inst.Missing, "region", "tags", "zone")
	}
	slices.Sort(inst.Missing)

	a, err := readAddresses(p.opts)
	if err != nil {
		note(err)
	}
	inst.IPv6, inst.PublicAddress = a.v6, ci.Public
	switch {
	case a.v4.IsValid():
		inst.Address, inst.AddressSource = a.v4, "address of the default route's interface "+a.v4From
	case a.v6.IsValid():
		inst.Address, inst.AddressSource = a.v6, "address of the IPv6 default route's interface "+a.v6From+", since there is no IPv4 default route with an address"
	case ci.Private.IsValid():
		inst.Address, inst.AddressSource = ci.Private, "private address in cloud-init's data, since there is no default route with an address"
	default:
		inst.Notes = append(inst.Notes, "no default route with a usable address was found: give the address of this node by --address")
	}
	if a.v4.IsValid() && !a.v4.IsPrivate() && !carrierGrade(a.v4) {
		inst.PublicAddress = a.v4
		there := ""
		if ci.Private.IsValid() {
			there = fmt.Sprintf(", which is %s by what the cloud says", ci.Private)
		}
		// Nodes that register a public address talk across the Internet, or not at all: AMS issues 2384, 7791.
		inst.Notes = append(inst.Notes, fmt.Sprintf("%s, the address of the default route, is public: if the nodes have a private network, give this node's address there%s by --address", a.v4, there))
	}
	return inst, nil
}

// ours tells whether a value of the launch is meant for this program.
func (p *Provider) ours(key string) bool {
	return strings.HasPrefix(key, "amsagent:") || strings.HasPrefix(key, "amsagent-")
}

// errNotYet: cloud-init is at work and has not written what it found.
var errNotYet = errors.New("cloud-init is enabled and has not written its instance data yet")

// cloudInit reads cloud-init's data. At boot we may be earlier than cloud-init is done with its search: then it is waited
// for, as for a metadata service that is not up yet. It writes the data before it runs anybody's script, so a join in user
// data never waits; and once it has ended without them, there will be none.
func (p *Provider) cloudInit(ctx context.Context) (CloudInit, error) {
	bound, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	pause := p.opts.RetryWait
	for n := 1; ; n++ {
		ci, err := ReadCloudInit(p.opts.Root)
		if err == nil || !absent(err) || !cloudInitAtWork(p.opts.Root) {
			return ci, err
		}
		if n == 1 {
			p.opts.Log.Info("waiting for cloud-init to find out where this machine is", "provider", Name, "timeout", p.opts.Timeout)
		}
		timer := time.NewTimer(pause)
		select {
		case <-bound.Done():
			timer.Stop()
			if err := ctx.Err(); err != nil {
				return CloudInit{}, err
			}
			return CloudInit{}, errNotYet
		case <-timer.C:
		}
		pause = min(2*pause, cloud.MaxRetryWait)
	}
}

// Identify names a machine by its derived machine id, else by its host name.
func Identify(root, hostname string) (id, source string, err error) {
	id, err = MachineID(root)
	if err == nil {
		return IDPrefix + id, "derived from the machine id", nil
	}
	if usableHostname(hostname) {
		return "host-" + hostname, "host name, since there is no machine id", nil
	}
	hint := hintID
	if root != "" {
		hint = fmt.Sprintf(hintTreeID, root)
	}
	return "", "", &cloud.Error{
		Provider: Name, Item: "machine id", Kind: cloud.ErrNotFound, Hint: hint,
		Cause: errors.Join(err, errors.New("and the host name tells nothing either")),
	}
}
