// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// ErrNotThisMachine says that http.host of red5.properties is not an address of this machine. The file belongs to the server's
// user, and must not decide where root connects to.
var ErrNotThisMachine = errors.New("http.host is no address of this machine; it is not asked")

// dialThisMachine connects only to the loopback and to the addresses of this machine's interfaces.
func dialThisMachine(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a) // the resolver would drop a zone
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: livenessLimit}
	for _, a := range addrs {
		own, err := thisMachine(a)
		switch {
		case err != nil:
			return nil, err
		case own:
			// Dial the checked address: a name may resolve to another one the next time.
			return dialer.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		}
	}
	return nil, fmt.Errorf("connecting to %s: %w", host, ErrNotThisMachine)
}

// thisMachine reports whether an address is the loopback's or an interface's. An address with a zone is neither: the
// zone selects the interface to send by.
func thisMachine(a netip.Addr) (bool, error) {
	if a.Zone() != "" {
		return false, nil
	}
	if a = a.Unmap(); a.IsLoopback() {
		return true, nil
	}
	list, err := HostInterfaces("")
	return slices.ContainsFunc(list, func(in Interface) bool { return slices.Contains(in.Addrs, a) }), err
}

// checkHTTPHost warns of an http.host that the agent does not connect to. Names are checked when dialling; below another
// root the addresses are not known.
func (in *Installation) checkHTTPHost() {
	a, err := netip.ParseAddr(in.HTTPHost)
	if err != nil || a.IsUnspecified() || a.Zone() == "" && !realRoot(in.Root) {
		return
	}
	if own, err := thisMachine(a); err == nil && !own {
		in.warn(WarnHTTPHost, "%s: http.host=%q is no address of this machine: whether the server is live and who is on it is not asked there",
			shown(in.Root, in.Server.Path), in.HTTPHost)
	}
}
