// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
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

// hostnameLimit: a resolver without a server tries for half a minute; a working one needs milliseconds.
const hostnameLimit = 800 * time.Millisecond

// Hostname is the machine's name. If it does not resolve, the server's liveness call returns 500. Releases up to 2.12 use
// it as node address.
type Hostname struct {
	Name    string       `json:"name"`
	Addrs   []netip.Addr `json:"addresses,omitempty"` // IPv4 first, as in Java
	Problem string       `json:"problem,omitempty"`
	// TimedOut means that the result is unknown.
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

// LookupHostname resolves the machine's hostname, below another root by etc/hosts. A machine without a name is an error.
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

// hostAddrs returns the addresses at the beginning of lines that have the name, or of all lines without one.
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

// getent queries every module of nsswitch.conf, as Java does; Go's resolver knows only files and DNS. Every system with
// glibc, which the server needs, has getent.
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
