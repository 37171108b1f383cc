// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/files"
)

// Interface is a network interface's address.
type Interface struct {
	Name string
	Addr netip.Addr
}

// HostInterfaces returns ErrInterfacesUnknown below another root.
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

// AddressSource is a node address's source.
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
	// Force accepts an explicit address without an interface, as behind NAT.
	Force bool
	// Metadata is the cloud's private address.
	Metadata       netip.Addr
	MetadataSource string
	// Known are the cloud's addresses, also translated; explicit ones need no interface.
	Known      []netip.Addr
	Interfaces func() ([]Interface, error)
	// DefaultRoute is the default route's source address.
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
		// The server passes this text to its peers, which may resolve a host name differently.
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

// hostnameLimit: a resolver without a server tries for half a minute; others need milliseconds.
const hostnameLimit = 800 * time.Millisecond

// Hostname is the machine's name. If it does not resolve, the liveness call returns 500. Releases up to 2.12 use it as
// node address.
type Hostname struct {
	Name    string       `json:"name"`
	Addrs   []netip.Addr `json:"addresses,omitempty"` // IPv4 first, as in Java
	Problem string       `json:"problem,omitempty"`
	// TimedOut: the result is unknown.
	TimedOut bool `json:"timed_out,omitempty"`
}

// Resolvable reports whether the name resolves.
func (h Hostname) Resolvable() bool { return len(h.Addrs) > 0 }

// Addr returns what Java's InetAddress.getLocalHost does.
func (h Hostname) Addr() netip.Addr {
	if len(h.Addrs) == 0 {
		return netip.Addr{}
	}
	return h.Addrs[0]
}

// LookupHostname resolves the hostname, below another root by etc/hosts. A missing name is an error.
func LookupHostname(ctx context.Context, root string) (Hostname, error) {
	name, err := os.Hostname()
	resolve := systemResolve
	if !realRoot(root) {
		name, err = etcHostname(root)
		resolve = func(_ context.Context, name string) ([]netip.Addr, error) { return etcHosts(root, name) }
	}
	if name == "" {
		return Hostname{}, fmt.Errorf("reading the hostname: %w", cmp.Or(err, errors.New("it is empty")))
	}
	return resolved(ctx, name, resolve), nil
}

func resolved(ctx context.Context, name string, resolve func(context.Context, string) ([]netip.Addr, error)) Hostname {
	ctx, cancel := context.WithTimeout(ctx, hostnameLimit)
	defer cancel()
	addrs, err := resolve(ctx, name)
	h := Hostname{Name: name, Addrs: addrs}
	switch {
	case err != nil:
		h.Addrs, h.Problem, h.TimedOut = nil, err.Error(), ctx.Err() != nil
	case len(addrs) == 0:
		h.Problem = "neither /etc/hosts nor DNS knows it"
	}
	return h
}

func etcHostname(root string) (string, error) {
	b, _, err := files.Root{Path: root}.Read("/etc/hostname", maxSystemFile)
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line, nil
		}
	}
	return "", err
}

func etcHosts(root, name string) ([]netip.Addr, error) {
	b, _, err := files.Root{Path: root}.Read("/etc/hosts", maxSystemFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return hostAddrs(b, name), err
}

// hostAddrs returns the addresses in lines with the name, or in all lines if it is empty.
func hostAddrs(text []byte, name string) (addrs []netip.Addr) {
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 || name != "" && !slices.ContainsFunc(fields[1:], func(n string) bool { return strings.EqualFold(n, name) }) {
			continue
		}
		if a, err := netip.ParseAddr(fields[0]); err == nil && !slices.Contains(addrs, a.Unmap()) {
			addrs = append(addrs, a.Unmap())
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return addrs
}

// getent queries every module of nsswitch.conf, as Java does; Go knows only files and DNS. Every system with glibc, which
// the server needs, has it.
const getent = "/usr/bin/getent"

func systemResolve(ctx context.Context, name string) ([]netip.Addr, error) {
	cmd := exec.CommandContext(ctx, getent, "ahosts", "--", name)
	cmd.Env = []string{"LANG=C"}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	exit, _ := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("resolving %s: %w", name, ctx.Err())
	case exit != nil && exit.ExitCode() == 2: // not in any database
		return nil, nil
	}
	return hostAddrs(out, ""), err
}
