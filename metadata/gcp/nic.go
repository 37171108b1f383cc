// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"io"
	"os"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/generic"
)

// maxFile bounds what is read of a file of the kernel's; below a root that somebody made it may be anything.
const maxFile = 1 << 20

// defaultRoute finds the interface by which this machine reaches others, and its hardware address: "" where it has none.
// The metadata names interfaces by that alone.
func defaultRoute(o cloud.Options) (mac, name string, err error) {
	v4, err := readFile(o.Path("/proc/net/route"))
	if err != nil {
		return "", "", err
	}
	name = generic.ParseRoutes(v4)
	if name == "" {
		if v6, err := readFile(o.Path("/proc/net/ipv6_route")); err == nil {
			name = generic.ParseIPv6Routes(v6)
		}
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return "", "", nil
	}
	b, err := readFile(o.Path("/sys/class/net/" + name + "/address"))
	if err != nil {
		return "", name, err
	}
	return strings.ToLower(strings.TrimSpace(string(b))), name, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func indexMAC(nics []Interface, mac string) int {
	if mac == "" {
		return -1
	}
	return slices.IndexFunc(nics, func(n Interface) bool { return n.MAC == mac })
}

// hasGPU tells whether a graphics processor of NVIDIA's is in this machine: such a machine is told of maintenance an hour
// before, every other one 60 seconds.
func hasGPU(o cloud.Options) bool {
	const dir = "/sys/bus/pci/devices"
	entries, err := os.ReadDir(o.Path(dir))
	if err != nil {
		return false
	}
	for _, e := range entries {
		vendor, verr := readFile(o.Path(dir + "/" + e.Name() + "/vendor"))
		class, cerr := readFile(o.Path(dir + "/" + e.Name() + "/class"))
		if verr == nil && cerr == nil && strings.TrimSpace(string(vendor)) == "0x10de" && strings.HasPrefix(string(class), "0x03") {
			return true
		}
	}
	return false
}
