// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"github.com/amsagent/amsagent/internal/pci"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// hasGPU tells whether a graphics processor of NVIDIA's is in this machine: such a machine is told of maintenance an hour
// before, every other one 60 seconds.
func hasGPU(o cloud.Options) bool {
	drivers, _ := pci.NVIDIADrivers(o.Path("/"))
	return len(drivers) > 0
}
