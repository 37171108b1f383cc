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

	"github.com/amsagent/amsagent/files"
)

// hostnameLimit bounds the lookup of the own hostname: a resolver without a server tries for half a minute, while a
// working one responds within milliseconds. With the second for detecting the cloud, a join without both begins within
// two.
const hostnameLimit = 800 * time.Millisecond

// Hostname is the machine's name and its addresses. A server whose own name does not resolve answers 500 to its liveness
// call, and releases up to 2.12 use it for their node address.
type Hostname struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addresses,omitempty"` // in Java's order: IPv4 first
	// Problem is the reason why it does not resolve.
	Problem string `json:"problem,omitempty"`
	// TimedOut means that the resolver did not respond: whether the name resolves is not known.
	TimedOut bool `json:"timed_out,omitempty"`
}

// Resolvable reports whether the name resolves.
func (h Hostname) Resolvable() bool { return len(h.Addrs) > 0 }

// Addr returns the address of Java's InetAddress.getLocalHost; not valid if the name does not resolve.
func (h Hostname) Addr() netip.Addr {
	if len(h.Addrs) == 0 {
		return netip.Addr{}
	}
	return h.Addrs[0]
}

// HostnameOptions replace the sources of [LookupHostname], for tests. The zero value uses the running system.
type HostnameOptions struct {
	// Root, if not the real one, limits the lookup to its etc/hostname and etc/hosts.
	Root string
	// Name returns the machine's name; nil means the kernel's.
	Name func() (string, error)
	// Resolve returns the addresses of a name, and no error for an unknown name; nil means the system's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
}

// LookupHostname reports whether the machine's own hostname resolves. It fails only if the machine has no name.
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

// rootHostname does the same for a tree that does not run, from its files.
func rootHostname(root string) (Hostname, error) {
	const hostnameFile, hostsFile = "/etc/hostname", "/etc/hosts"
	var h Hostname
	b, _, err := files.Root{Path: root}.Read(hostnameFile, maxSystemFile)
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
	b, _, err = files.Root{Path: root}.Read(hostsFile, maxSystemFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return h, fmt.Errorf("reading %s: %w", shown(root, hostsFile), err)
	}
	if h.Addrs = javaOrder(hostsAddrs(b, h.Name)); len(h.Addrs) == 0 {
		h.Problem = shown(root, hostsFile) + " does not know it"
	}
	return h, nil
}

// hostsAddrs looks up a name in a hosts file.
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

// javaOrder sorts IPv4 first, as Java does by default, and drops duplicates.
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

// getentAddrs parses the first column of getent's output.
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
