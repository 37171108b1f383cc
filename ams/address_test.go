// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// machine has interfaces of many kinds.
func machine() ([]Interface, error) {
	return []Interface{
		{"lo", netip.MustParseAddr("127.0.0.1")},
		{"lo", netip.MustParseAddr("::1")},
		{"docker0", netip.MustParseAddr("172.17.0.1")},
		{"eth0", netip.MustParseAddr("10.0.0.5")},
		{"eth0", netip.MustParseAddr("fd00::5")},
		{"eth0", netip.MustParseAddr("fe80::5%eth0")},
		{"eth1", netip.MustParseAddr("203.0.113.9")},
		{"eth1", netip.MustParseAddr("2001:db8::9")},
		{"eth2", netip.MustParseAddr("192.168.7.7")},
		{"ens6", netip.MustParseAddr("100.64.3.2")},
		{"ens6", netip.MustParseAddr("169.254.10.1")},
	}, nil
}

func TestChooseAddress(t *testing.T) {
	cloud, route := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("203.0.113.9")
	for name, c := range map[string]struct {
		o    AddressOptions
		want string
		warn []string
	}{
		"a person's word":          {AddressOptions{Explicit: " 10.0.0.5 ", Metadata: netip.MustParseAddr("192.168.7.7"), DefaultRoute: route}, "10.0.0.5 of eth0 by flag: given by you", nil},
		"the cloud's word":         {AddressOptions{Metadata: cloud, MetadataSource: "private address", DefaultRoute: route}, "10.0.0.5 of eth0 by metadata: private address", nil},
		"the route":                {AddressOptions{DefaultRoute: cloud}, "10.0.0.5 of eth0 by default-route: address of the default route", nil},
		"IPv4 in IPv6 spelling":    {AddressOptions{Explicit: "::ffff:10.0.0.5"}, "10.0.0.5 of eth0 by flag: given by you", nil},
		"private IPv6":             {AddressOptions{Explicit: "fd00::5"}, "fd00::5 of eth0 by flag: given by you", nil},
		"a carrier's shared space": {AddressOptions{Explicit: "100.64.3.2"}, "100.64.3.2 of ens6 by flag: given by you", nil},
		"public, by the route":     {AddressOptions{DefaultRoute: route}, "203.0.113.9 of eth1 by default-route: address of the default route", []string{WarnAddressPublic}},
		"translated on the way, by the cloud's word": {
			AddressOptions{Explicit: "198.51.100.7", Known: addrs("198.51.100.7")}, "198.51.100.7 of  by flag: given by you", []string{WarnAddressPublic, WarnAddressNotHere},
		},
		"loopback":                 {AddressOptions{Explicit: "127.0.0.1", Force: true}, "127.0.0.1 of lo by flag: given by you", []string{WarnAddressLoopback}},
		"link-local with its zone": {AddressOptions{Explicit: "fe80::5%eth0", Force: true}, "fe80::5%eth0 of eth0 by flag: given by you", []string{WarnAddressLoopback}},
		"IPv4 link-local":          {AddressOptions{Explicit: "169.254.10.1", Force: true}, "169.254.10.1 of ens6 by flag: given by you", []string{WarnAddressLoopback}},
		"the cloud's, not here":    {AddressOptions{Metadata: netip.MustParseAddr("10.1.1.1")}, "10.1.1.1 of  by metadata: instance metadata", []string{WarnAddressNotHere}},
		"forced":                   {AddressOptions{Explicit: "198.51.100.7", Force: true}, "198.51.100.7 of  by flag: given by you", []string{WarnAddressPublic, WarnAddressNotHere}},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Interfaces = machine
			got, err := ChooseAddress(c.o)
			must.OK(t, err)
			must.NoDiff(t, "warnings", warnings(got.Warnings), c.warn)
			must.Equal(t, "address", fmt.Sprintf("%s of %s by %s: %s", got.Addr, got.Interface, got.Source, got.Reason), c.want)
		})
	}
}

func TestChooseAddressErrors(t *testing.T) {
	for _, c := range []struct {
		o    AddressOptions
		want string
		text string
	}{
		{AddressOptions{}, ErrNoAddress.Error(), "this machine has no default route; it has 172.17.0.1 (docker0), 10.0.0.5 (eth0)"},
		{AddressOptions{Metadata: netip.MustParseAddr("0.0.0.0")}, "not a usable node address", "no single machine"},
		{AddressOptions{Explicit: "10.0.0.6", Interfaces: machine}, ErrAddressNotHere.Error(), "10.0.0.5 (eth0)"},
		{AddressOptions{Explicit: "10.0.0.6", Interfaces: func() ([]Interface, error) { return nil, nil }}, ErrAddressNotHere.Error(), "no address but the loopback"},
		{AddressOptions{Explicit: "127.0.0.1", Interfaces: machine}, "other nodes cannot reach this address", "a loopback or link-local address; this machine has 172.17.0.1"},
		{AddressOptions{Explicit: "::1", Interfaces: machine}, "other nodes cannot reach this address", "a loopback or link-local address"},
		{AddressOptions{Explicit: "169.254.10.1", Interfaces: machine}, "other nodes cannot reach this address", "a loopback or link-local address"},
		{AddressOptions{Explicit: "10.0.0.5:5080"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "10.0.0.0/24"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "node-1.internal"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "[::1]"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "10.0.0"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "010.0.0.1"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "10.0.0.256"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: "mongodb://10.0.0.5"}, "not a usable node address", "not an IP address"},
		{AddressOptions{Explicit: " "}, "not a usable node address", ""},
		{AddressOptions{Explicit: "0.0.0.0", Force: true}, "not a usable node address", "no single machine"},
		{AddressOptions{Explicit: "::", Force: true}, "not a usable node address", "no single machine"},
		{AddressOptions{Explicit: "224.0.0.1", Force: true}, "not a usable node address", "no single machine"},
		{AddressOptions{Explicit: "255.255.255.255", Force: true}, "not a usable node address", "no single machine"},
	} {
		if c.o.Interfaces == nil {
			c.o.Interfaces = machine
		}
		a, err := ChooseAddress(c.o)
		if !says(err, c.want) || !says(err, c.text) || Hint(err) == "" {
			t.Errorf("%+v: %v, hint %q", c.o, err, Hint(err))
		}
		if a.Addr.IsValid() {
			t.Errorf("%+v: an address with the error: %+v", c.o, a)
		}
	}
}

// Unknown interfaces are not ErrAddressNotHere.
func TestChooseAddressUnchecked(t *testing.T) {
	for name, ifaces := range map[string]func() ([]Interface, error){
		"another root": func() ([]Interface, error) { return HostInterfaces("/srv/image") },
		"an error":     func() ([]Interface, error) { return nil, errors.New("netlink: permission denied") },
	} {
		a, err := ChooseAddress(AddressOptions{Explicit: "10.0.0.6", Interfaces: ifaces})
		if err != nil || !cmp.Equal(warnings(a.Warnings), []string{WarnAddressUnchecked}) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if _, err := ChooseAddress(AddressOptions{Interfaces: func() ([]Interface, error) { return HostInterfaces("/srv/image") }}); !errors.Is(err, ErrNoAddress) || !errors.Is(err, ErrInterfacesUnknown) {
		t.Errorf("no address: %v", err)
	}
}

func TestHostInterfaces(t *testing.T) {
	ifaces, err := HostInterfaces("")
	must.OK(t, err)
	if !slices.ContainsFunc(ifaces, func(in Interface) bool { return in.Addr == netip.MustParseAddr("127.0.0.1") }) {
		t.Errorf("no loopback among %+v", ifaces)
	}
}
