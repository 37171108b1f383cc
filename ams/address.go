// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Interface is an address of a network interface.
type Interface struct {
	Name string
	Addr netip.Addr
}

// HostInterfaces lists the running system's addresses. For another root it returns ErrInterfacesUnknown.
func HostInterfaces(root string) (all []Interface, _ error) {
	if !realRoot(root) {
		return nil, ErrInterfacesUnknown
	}
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the network interfaces: %w", err)
	}
	for _, l := range list {
		addrs, err := l.Addrs()
		if err != nil {
			return nil, fmt.Errorf("listing the addresses of interface %s: %w", l.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, Interface{l.Name, p.Addr().Unmap()})
			}
		}
	}
	return all, nil
}

// AddressSource is the source of a node address.
type AddressSource string

const (
	addressFromFlag     AddressSource = "flag"
	addressFromMetadata AddressSource = "metadata"
	addressFromRoute    AddressSource = "default-route"
)

// Warnings about a node address.
const (
	WarnAddressLoopback  = "AMS-ADDRESS-LOOPBACK" // or link-local
	WarnAddressPublic    = "AMS-ADDRESS-PUBLIC"
	WarnAddressNotHere   = "AMS-ADDRESS-NOT-HERE"
	WarnAddressUnchecked = "AMS-ADDRESS-UNCHECKED"
)

// AddressOptions is the input of [ChooseAddress].
type AddressOptions struct {
	Explicit string
	// Force accepts an explicit address that no interface has, such as one behind NAT.
	Force bool
	// Metadata is the private address from the cloud.
	Metadata       netip.Addr
	MetadataSource string
	// Known are the cloud's addresses, translated ones included, which need no interface if explicit.
	Known      []netip.Addr
	Interfaces func() ([]Interface, error)
	// DefaultRoute is the source address of the default route.
	DefaultRoute netip.Addr
}

// Address is the chosen node address.
type Address struct {
	Addr      netip.Addr    `json:"address"`
	Source    AddressSource `json:"source"`
	Reason    string        `json:"reason"`
	Interface string        `json:"interface,omitempty"`
	Warnings  []Warning     `json:"warnings,omitempty"`
}

// ChooseAddress prefers the operator's address, then the cloud's, then the default route's. It returns errBadAddress,
// errAddressUnreachable, ErrAddressNotHere or ErrNoAddress.
func ChooseAddress(o AddressOptions) (Address, error) {
	var a Address
	ifaces, ifacesErr := o.Interfaces()
	switch {
	case o.Explicit != "":
		// The server passes this text to its peers, where a host name may resolve to another machine.
		addr, err := netip.ParseAddr(strings.TrimSpace(o.Explicit))
		if err != nil {
			return Address{}, fmt.Errorf("%q: %w: it is not an IP address", o.Explicit, errBadAddress)
		}
		a = Address{Addr: addr.Unmap(), Source: addressFromFlag, Reason: "given by you"}
	case o.Metadata.IsValid():
		a = Address{Addr: o.Metadata.Unmap(), Source: addressFromMetadata, Reason: cmp.Or(o.MetadataSource, "instance metadata")}
	case o.DefaultRoute.IsValid():
		a = Address{Addr: o.DefaultRoute, Source: addressFromRoute, Reason: "address of the default route"}
	case ifacesErr != nil:
		return Address{}, fmt.Errorf("%w: %w", ErrNoAddress, ifacesErr)
	default:
		return Address{}, fmt.Errorf("%w: this machine has no default route; it has %s", ErrNoAddress, addressList(ifaces))
	}
	switch {
	case !a.Addr.IsGlobalUnicast() && !isLocal(a.Addr):
		return Address{}, fmt.Errorf("%s: %w: it is no single machine's", a.Addr, errBadAddress)
	case isLocal(a.Addr):
		a.warn(WarnAddressLoopback, "%s is a loopback or link-local address: nodes of other networks cannot reach it", a.Addr)
	case isPublic(a.Addr):
		a.warn(WarnAddressPublic, "%s is a public address: the nodes would talk to each other over the public network", a.Addr)
	}
	explicit := a.Source == addressFromFlag && !o.Force
	// The operator's link-local address has no zone.
	here := func(in Interface) bool { return in.Addr.WithZone("") == a.Addr.WithZone("") }
	if i := slices.IndexFunc(ifaces, here); i >= 0 {
		a.Interface = ifaces[i].Name
	}
	switch {
	case ifacesErr != nil:
		a.warn(WarnAddressUnchecked, "whether this machine has %s was not checked: %v", a.Addr, ifacesErr)
	case explicit && isLocal(a.Addr):
		return Address{}, fmt.Errorf("%s: %w: it is a loopback or link-local address; this machine has %s", a.Addr, errAddressUnreachable, addressList(ifaces))
	case a.Interface != "":
	case explicit && !slices.Contains(o.Known, a.Addr):
		return Address{}, fmt.Errorf("%s: %w; it has %s", a.Addr, ErrAddressNotHere, addressList(ifaces))
	default:
		a.warn(WarnAddressNotHere, "no interface of this machine has %s; it has %s", a.Addr, addressList(ifaces))
	}
	return a, nil
}

func isLocal(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() }

func (a *Address) warn(id, format string, args ...any) {
	a.Warnings = append(a.Warnings, Warning{ID: id, Text: fmt.Sprintf(format, args...)})
}

func addressList(ifaces []Interface) string {
	var list []string
	for _, in := range ifaces {
		if !isLocal(in.Addr) {
			list = append(list, in.Addr.String()+" ("+in.Name+")")
		}
	}
	return cmp.Or(strings.Join(list, ", "), "no address but the loopback")
}

// isPublic excludes private addresses and shared space (RFC 6598), which clouds use internally.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}
