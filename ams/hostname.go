// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/files"
)

// hostnameLimit bounds the lookup of the own hostname: a resolver without a server tries for half a minute, a working one
// responds within milliseconds.
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

// LookupHostname reports whether the machine's own hostname resolves; below another root, by its etc/hostname and
// etc/hosts. It fails only if the machine has no name.
func LookupHostname(ctx context.Context, root string) (Hostname, error) {
	name, err := os.Hostname()
	resolve := systemResolve
	if !realRoot(root) {
		name, err = etcHostname(root)
		resolve = func(_ context.Context, name string) ([]netip.Addr, error) { return etcHosts(root, name) }
	}
	if err == nil && name == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return Hostname{}, fmt.Errorf("reading the hostname: %w", err)
	}
	return resolved(ctx, name, resolve), nil
}

// resolved uses resolve, which returns no error for an unknown name.
func resolved(ctx context.Context, name string, resolve func(context.Context, string) ([]netip.Addr, error)) Hostname {
	h := Hostname{Name: name}
	ctx, cancel := context.WithTimeout(ctx, hostnameLimit)
	defer cancel()
	addrs, err := resolve(ctx, name)
	switch {
	case err != nil:
		h.Problem, h.TimedOut = err.Error(), ctx.Err() != nil
	case len(addrs) == 0:
		h.Problem = "neither /etc/hosts nor DNS knows it"
	default:
		h.Addrs = javaOrder(addrs)
	}
	return h
}

// etcHostname returns the hostname of a tree that does not run.
func etcHostname(root string) (string, error) {
	b, _, err := files.Root{Path: root}.Read("/etc/hostname", maxSystemFile)
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line, nil
		}
	}
	return "", err
}

// etcHosts looks up a name in the hosts file of a tree that does not run.
func etcHosts(root, name string) ([]netip.Addr, error) {
	b, _, err := files.Root{Path: root}.Read("/etc/hosts", maxSystemFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var addrs []netip.Addr
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.ContainsFunc(fields[1:], func(n string) bool { return strings.EqualFold(n, name) }) {
			continue
		}
		if a, err := netip.ParseAddr(fields[0]); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// javaOrder sorts IPv4 first, as Java does by default, and drops duplicates.
func javaOrder(addrs []netip.Addr) []netip.Addr {
	var four, six []netip.Addr
	for _, a := range addrs {
		list := &six
		if a = a.Unmap(); a.Is4() {
			list = &four
		}
		if !slices.Contains(*list, a) {
			*list = append(*list, a)
		}
	}
	return append(four, six...)
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

// getent queries the C library, as Java does, with every module of nsswitch.conf, such as systemd's for the own
// hostname. Go's resolver knows only files and DNS. Every system with glibc, which the server needs, has getent.
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
	return getentAddrs(out), err
}
