// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package generic identifies a machine without cloud metadata, by its files and default route. It makes no requests.
//
// As systemd asks, the machine id stays confidential: sd_id128_get_machine_app_specific derives the id from it.
package generic

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name is this provider's name.
const Name = "generic"

// IDPrefix begins an id derived from the machine id.
const IDPrefix = "m-"

const (
	hintTags   = "without a cloud's metadata no tags are known: give MongoDB's address, role and group by flag, environment or configuration file"
	hintTreeID = "join with --offline needs no id; or give the tree one, on this machine: systemd-machine-id-setup --root=%s"
	hintID     = "run systemd-machine-id-setup (and seal golden images, so that clones do not share the id), or give the machine a host name"
)

// Provider identifies this machine by its files.
type Provider struct {
	cloud.Silent
	opts cloud.Options
}

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider.
func New(opts cloud.Options) (*Provider, error) {
	return &Provider{Silent: cloud.Silent{Without: "no cloud that this agent knows ends this machine"}, opts: opts.WithDefaults()}, nil
}

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Instance implements cloud.Provider. It ignores cloud-init's id, which may appear after the join and would make another
// node.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	if err := ctx.Err(); err != nil {
		return cloud.Instance{}, fmt.Errorf("reading this machine's own facts: %w", err)
	}
	inst := cloud.Instance{Provider: Name, TagsHint: hintTags, Hostname: hostName(p.opts.Root)}
	var err error
	if inst.ID, inst.IDSource, err = identify(p.opts.Root, inst.Hostname); err != nil {
		return cloud.Instance{}, err
	}
	ci, err := ReadCloudInit(p.opts.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		inst.Notes = append(inst.Notes, err.Error())
	}
	inst.Region, inst.Zone = ci.Region, ci.Zone

	v4, v6 := p.opts.Local()
	inst.IPv6 = v6
	switch {
	case v4.IsValid():
		inst.Address, inst.AddressSource = v4, "address that the default route sends from"
	case v6.IsValid():
		inst.Address, inst.AddressSource = v6, "address that the IPv6 default route sends from, since there is no IPv4 route"
	default:
		inst.Notes = append(inst.Notes, "no default route with a usable address was found: give the address of this node by --address")
	}
	if v4.IsValid() && !v4.IsPrivate() && !carrierGrade(v4) {
		inst.PublicAddress = v4
		// Registered public addresses use the Internet, or fail: AMS issues 2384, 7791.
		inst.Notes = append(inst.Notes, fmt.Sprintf("%s, the address of the default route, is public: if the nodes have a private network, give this node's address there by --address", v4))
	}
	return inst, nil
}

// 100.64.0.0/10 is not public either.
func carrierGrade(a netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(a)
}

// identify returns an id from the machine id or host name, or [cloud.ErrNotFound].
func identify(root, hostname string) (id, source string, err error) {
	id, err = readMachineID(root)
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
		Cause: errors.Join(err, errors.New("and the host name does not identify the machine either")),
	}
}

// Container returns the file that marks a container, or "".
func Container(root string) string {
	// Of systemd, Docker and Podman.
	for _, path := range []string{"/run/systemd/container", "/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
			return path
		}
	}
	return ""
}
