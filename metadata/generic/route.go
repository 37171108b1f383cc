// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Bits of the kernel's route flags (linux/route.h, linux/ipv6_route.h).
const (
	routeUp     = 0x0001
	routeReject = 0x0200
)

// Bits of the kernel's address flags (linux/if_addr.h).
const (
	addrTemporary  = 0x01
	addrDadFailed  = 0x08
	addrDeprecated = 0x20
	addrTentative  = 0x40
)

// ParseRoutes reads /proc/net/route and returns the interface of the default route with the lowest metric; of equals, the
// first, as the kernel does.
func ParseRoutes(b []byte) string {
	name, best := "", uint64(0)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err != nil || flags&routeUp == 0 || flags&routeReject != 0 {
			continue
		}
		metric, err := strconv.ParseUint(f[6], 10, 32)
		if err != nil {
			continue
		}
		if name == "" || metric < best {
			name, best = f[0], metric
		}
	}
	return name
}

// ParseIPv6Routes is ParseRoutes for /proc/net/ipv6_route, which always holds an unreachable default route by lo.
func ParseIPv6Routes(b []byte) string {
	const zero = "00000000000000000000000000000000"
	name, best := "", uint64(0)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[0] != zero || f[1] != "00" || f[9] == "lo" {
			continue
		}
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err != nil || flags&routeUp == 0 || flags&routeReject != 0 {
			continue
		}
		metric, err := strconv.ParseUint(f[5], 16, 32)
		if err != nil {
			continue
		}
		if name == "" || metric < best {
			name, best = f[9], metric
		}
	}
	return name
}

// DefaultRoute finds the interface by which this machine reaches others, and its hardware address, as the kernel writes it.
// The name may come with an error: then the address could not be read.
func DefaultRoute(o cloud.Options) (name, mac string, err error) {
	var errs []error
	for _, t := range []struct {
		path  string
		parse func([]byte) string
	}{{"/proc/net/route", ParseRoutes}, {"/proc/net/ipv6_route", ParseIPv6Routes}} {
		b, err := o.ReadFile(t.path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if name = t.parse(b); name != "" {
			break
		}
	}
	// The name becomes part of a path.
	if name == "" || strings.Contains(name, "/") || name == "." || name == ".." {
		return "", "", errors.Join(append(errs, errors.New("there is no default route"))...)
	}
	b, err := o.ReadFile("/sys/class/net/" + name + "/address")
	return name, strings.TrimSpace(string(b)), err
}

// ParseIfInet6 reads /proc/net/if_inet6 and returns the addresses that should not be given to others: temporary ones
// change within hours, deprecated and tentative ones do not work for long or yet.
func ParseIfInet6(b []byte) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || len(f[0]) != 32 {
			continue
		}
		flags, err := strconv.ParseUint(f[4], 16, 32)
		if err != nil || flags&(addrTemporary|addrDadFailed|addrDeprecated|addrTentative) == 0 {
			continue
		}
		var raw [16]byte
		ok := true
		for i := range raw {
			v, err := strconv.ParseUint(f[0][2*i:2*i+2], 16, 8)
			if err != nil {
				ok = false
				break
			}
			raw[i] = byte(v)
		}
		if ok {
			out[netip.AddrFrom16(raw)] = true
		}
	}
	return out
}

// addresses is what the default routes say about the addresses of this machine, and by which interface.
type addresses struct {
	v4, v6         netip.Addr
	v4From, v6From string
}

// readAddresses looks up the addresses of the default routes' interfaces.
func readAddresses(o cloud.Options) (addresses, error) {
	var (
		out  addresses
		errs []error
		// The interfaces that the default routes leave by.
		via   struct{ v4, v6 string }
		avoid map[netip.Addr]bool
	)
	for _, t := range []struct {
		path string
		use  func([]byte)
	}{
		{"/proc/net/route", func(b []byte) { via.v4 = ParseRoutes(b) }},
		{"/proc/net/ipv6_route", func(b []byte) { via.v6 = ParseIPv6Routes(b) }},
		{"/proc/net/if_inet6", func(b []byte) { avoid = ParseIfInet6(b) }},
	} {
		b, err := readTable(o.Path(t.path))
		if err != nil {
			errs = append(errs, fmt.Errorf("reading the routes: %w", err))
			continue
		}
		t.use(b)
	}
	if via.v4 != "" {
		list, err := o.Interfaces(via.v4)
		if err != nil {
			errs = append(errs, err)
		}
		if out.v4 = pickIPv4(list); out.v4.IsValid() {
			out.v4From = via.v4
		}
	}
	if via.v6 != "" {
		list, err := o.Interfaces(via.v6)
		if err != nil {
			errs = append(errs, err)
		}
		if out.v6 = pickIPv6(list, avoid); out.v6.IsValid() {
			out.v6From = via.v6
		}
	}
	return out, errors.Join(errs...)
}

// pickIPv4 takes the first address in the kernel's order, which is the one it sends from. Link-local ones are left out:
// an IPv6-only EC2 instance has one for its metadata service.
func pickIPv4(list []netip.Addr) netip.Addr {
	for _, a := range list {
		if a.Is4() && a.IsGlobalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}

// pickIPv6 prefers lasting to passing addresses and, of those, global to unique local ones, as the kernel does when it
// sends to a global one.
func pickIPv6(list []netip.Addr, avoid map[netip.Addr]bool) netip.Addr {
	var fit []netip.Addr
	for _, a := range list {
		if a.Is6() && a.IsGlobalUnicast() {
			fit = append(fit, a)
		}
	}
	if len(fit) == 0 {
		return netip.Addr{}
	}
	rank := func(a netip.Addr) int {
		n := 0
		if avoid[a] {
			n += 2
		}
		if a.IsPrivate() {
			n++
		}
		return n
	}
	return slices.MinFunc(fit, func(a, b netip.Addr) int { return rank(a) - rank(b) })
}

// carrierGrade says whether an address is of 100.64.0.0/10, which is no more public than the private ranges.
func carrierGrade(a netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(a)
}
