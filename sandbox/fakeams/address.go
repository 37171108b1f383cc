// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"crypto/md5"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// address is what the server registers itself under.
func (o *Options) address(in *installation) (string, error) {
	if o.HostAddress != "" && in.release.atLeast(release{2, 5, 0}) {
		return o.HostAddress, nil
	}
	// useGlobalIp would ask a service on the internet; the stand-in never does.
	if o.LocalAddress != "" {
		return o.LocalAddress, nil
	}
	switch {
	case !in.release.atLeast(release{2, 13, 0}):
		return addressOfHostname()
	case !in.release.atLeast(release{3, 0, 4}):
		return addressOfDefaultRoute()
	}
	return firstSiteLocal()
}

// addressOfHostname is Java's InetAddress.getLocalHost.
func addressOfHostname() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("finding the local address: %w", err)
	}
	ips, err := net.LookupIP(name)
	if err != nil {
		return "", fmt.Errorf("finding the local address: %w", err)
	}
	for _, ip := range ips {
		if v4 := ip.To4(); v4 != nil { // the unit asks for preferIPv4Stack
			return v4.String(), nil
		}
	}
	return "", fmt.Errorf("finding the local address: %s has no IPv4 address", name)
}

// addressOfDefaultRoute connects a datagram socket, which sends nothing, and looks
// at the source address that the kernel chose.
func addressOfDefaultRoute() (string, error) {
	c, err := net.Dial("udp4", "8.8.8.8:53")
	if err != nil {
		return "127.0.0.1", nil // no route: the server falls back to loopback too
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	return host, err
}

// firstSiteLocal is the rule after 3.0.3: the first private IPv4 address of any
// interface that is up, a bridge of containers included.
func firstSiteLocal() (string, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("finding the local address: %w", err)
	}
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsPrivate() {
				return n.IP.String(), nil
			}
		}
	}
	return addressOfDefaultRoute()
}

// instanceID is the first part of the node's id.
func (o *Options) instanceID(in *installation) (string, error) {
	if o.InstanceID != "" {
		return o.InstanceID, nil
	}
	if in.release.atLeast(release{2, 13, 0}) {
		of := []byte(rand.Text())
		if ifaces, err := net.Interfaces(); err == nil {
			for _, i := range ifaces {
				if len(i.HardwareAddr) > 0 {
					of = i.HardwareAddr
					break
				}
			}
		}
		return fmt.Sprintf("%x", md5.Sum(of)), nil
	}
	file := filepath.Join(o.Root, "conf", "instanceId")
	b, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the instance id: %w", err)
	}
	id := randomUUID()
	if o.Litter {
		if err := os.WriteFile(file, []byte(id), 0o644); err != nil {
			return "", fmt.Errorf("keeping the instance id: %w", err)
		}
	}
	return id, nil
}

func randomUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// named says whether a hosts file knows the name.
func named(hostsFile, name string) bool {
	b, err := os.ReadFile(hostsFile)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		for i, f := range fields {
			if i > 0 && strings.EqualFold(f, name) {
				return true
			}
		}
	}
	return false
}
