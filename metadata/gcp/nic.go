// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"os"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// hasGPU tells whether a graphics processor of NVIDIA's is in this machine: such a machine is told of maintenance an hour
// before, every other one 60 seconds.
func hasGPU(o cloud.Options) bool {
	const dir = "/sys/bus/pci/devices"
	entries, err := os.ReadDir(o.Path(dir))
	if err != nil {
		return false
	}
	for _, e := range entries {
		vendor, verr := o.ReadFile(dir + "/" + e.Name() + "/vendor")
		class, cerr := o.ReadFile(dir + "/" + e.Name() + "/class")
		if verr == nil && cerr == nil && strings.TrimSpace(string(vendor)) == "0x10de" && strings.HasPrefix(string(class), "0x03") {
			return true
		}
	}
	return false
}
