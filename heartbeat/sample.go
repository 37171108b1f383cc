// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// Sample is one measurement of the machine. Unknown values are nil.
type Sample struct {
	At time.Time
	// Load is for the heartbeat.
	Load cluster.Load

	cpu    *float64   // percent of all cores busy since the sample before
	memory *memoryUse // as AMS's own limit counts it

	GPUs    GPUReading
	Session cluster.Sessions

	// Missing holds the reason for each missing reading: "cpu", "memory", "network", "disk", "gpu", "publishers",
	// "viewers", or "sessions" for both.
	Missing map[string]error
}

// GPUState is the state of the GPU readings.
type GPUState string

// The states. Absent, failing and zero load are three different things.
const (
	GPUAbsent  GPUState = "absent"  // no device and no driver here
	GPUPending GPUState = "pending" // before the first reading
	GPUFailing GPUState = "failing" // devices or driver exist; Reason is set
	GPUReady   GPUState = "ready"   // Devices are as of At
)

// GPUReading is the latest reading of the devices.
type GPUReading struct {
	State GPUState
	// Reason is set if failing, or if some devices of a ready reading are.
	Reason string
	// At is the time of the last reading.
	At time.Time
	// Devices are set if ready, each at its index. One that does not respond keeps its place, without values.
	Devices []GPU
}

// GPU is one device. Percentages are 0 to 100; nil if the driver has none ("N/A", as for a device in MIG mode).
type GPU struct {
	Index             int
	Name              string
	Driver            string // its version
	Util, Enc, Dec    *float64
	MemUsed, MemTotal *uint64 // bytes
}
