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
	if err == nil && name == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return Hostname{}, fmt.Errorf("reading the hostname: %w", err)
	}
	return resolved(ctx, name, resolve), nil
}

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
	return getentAddrs(out), err
}
