// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// hostnameLimit bounds the lookup of the own hostname: a resolver without a
// server behind it tries for half a minute. A server that answers does so within
// milliseconds, /etc/hosts at once. With the second in which the cloud is looked
// for over the network, a join on a machine without both begins within two.
const hostnameLimit = 800 * time.Millisecond

// Hostname is the machine's own name and what it resolves to. A server whose own
// name does not resolve answers 500 to its liveness call, and releases up to 2.12
// take their node address from it.
type Hostname struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addresses,omitempty"` // in the order Java tries them: IPv4 first
	// Problem says why it does not resolve.
	Problem string `json:"problem,omitempty"`
	// TimedOut tells that the resolver did not answer: whether the name resolves is
	// not known.
	TimedOut bool `json:"timed_out,omitempty"`
}

// Resolvable says whether the name resolves to anything.
func (h Hostname) Resolvable() bool { return len(h.Addrs) > 0 }

// Addr is the address Java's InetAddress.getLocalHost gives; not valid where the
// name does not resolve.
func (h Hostname) Addr() netip.Addr {
	if len(h.Addrs) == 0 {
		return netip.Addr{}
	}
	return h.Addrs[0]
}

// HostnameOptions are the seams of [LookupHostname]. The zero value asks the
// running system.
type HostnameOptions struct {
	// Root other than the real one: only its etc/hostname and etc/hosts are read.
	Root string
	// Name gives the machine's name; nil is the kernel's.
	Name func() (string, error)
	// Resolve gives the addresses of a name, none and no error where the name is
	// not known; nil is the system's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
}

// LookupHostname finds out whether the machine's own hostname resolves. It fails
// only where the machine has no name at all; a name that does not resolve is an
// answer.
func LookupHostname(ctx context.Context, o HostnameOptions) (Hostname, error) {
	if !realRoot(o.Root) {
		return rootHostname(o.Root)
	}
	name, resolve := o.Name, o.Resolve
	if name == nil {
		name = os.Hostname
	}
	if resolve == nil {
		resolve = systemResolve
	}
	var h Hostname
	var err error
	if h.Name, err = name(); err != nil {
		return h, fmt.Errorf("reading the hostname: %w", err)
	}
	if h.Name == "" {
		return h, errors.New("reading the hostname: it is empty")
	}
	ctx, cancel := context.WithTimeout(ctx, hostnameLimit)
	defer cancel()
	addrs, err := resolve(ctx, h.Name)
	switch {
	case err != nil:
		h.Problem, h.TimedOut = err.Error(), ctx.Err() != nil
	case len(addrs) == 0:
		h.Problem = "neither /etc/hosts nor DNS knows it"
	default:
		h.Addrs = javaOrder(addrs)
	}
	return h, nil
}

// rootHostname is the same for a tree that does not run: what its files say.
func rootHostname(root string) (Hostname, error) {
	const hostnameFile, hostsFile = "/etc/hostname", "/etc/hosts"
	var h Hostname
	b, _, err := readBelow(root, hostnameFile, maxConfigSize)
	if err != nil {
		return h, fmt.Errorf("reading the hostname from %s: %w", shown(root, hostnameFile), err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			h.Name = line
			break
		}
	}
	if h.Name == "" {
		return h, fmt.Errorf("reading the hostname from %s: it has none", shown(root, hostnameFile))
	}
	b, _, err = readBelow(root, hostsFile, maxConfigSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return h, fmt.Errorf("reading %s: %w", shown(root, hostsFile), err)
	}
	if h.Addrs = javaOrder(hostsAddrs(b, h.Name)); len(h.Addrs) == 0 {
		h.Problem = shown(root, hostsFile) + " does not know it"
	}
	return h, nil
}

// hostsAddrs looks a name up in a hosts file, in the order of its lines.
func hostsAddrs(b []byte, name string) []netip.Addr {
	var addrs []netip.Addr
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.ContainsFunc(fields[1:], func(n string) bool { return strings.EqualFold(n, name) }) {
			continue
		}
		if a, err := netip.ParseAddr(fields[0]); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs
}

// javaOrder puts IPv4 first, as Java does unless told otherwise, and drops
// repetitions.
func javaOrder(addrs []netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, four := range []bool{true, false} {
		for _, a := range addrs {
			if a = a.Unmap(); a.Is4() == four && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	return list
}

// getentAddrs reads the first column of getent's output.
func getentAddrs(out []byte) []netip.Addr {
	var addrs []netip.Addr
	for line := range strings.Lines(string(out)) {
		first, _, _ := strings.Cut(line, " ")
		if a, err := netip.ParseAddr(first); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func goResolve(ctx context.Context, name string) ([]netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return nil, nil
	}
	return addrs, err
}
