// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// Sample is one measurement of the machine. Unknown values are nil.
type Sample struct {
	At      time.Time
	Load    cluster.Load
	GPUs    GPUReading
	Session cluster.Sessions
	// Missing has the reasons by reading: cpu, memory, network, disk, gpu, publishers, viewers, or sessions for both.
	Missing map[string]error
}

// GPUState is the state of the GPU readings.
type GPUState string

// The states of the GPU readings.
const (
	GPUAbsent  GPUState = "absent"  // no device and no driver
	GPUPending GPUState = "pending" // before the first reading
	GPUFailing GPUState = "failing" // Reason is set
	GPUReady   GPUState = "ready"   // Devices are set
)

// GPUReading is the latest reading of the devices.
type GPUReading struct {
	State GPUState
	// Reason is set if the readings fail, also of some devices of a ready reading.
	Reason string
	Driver string // its version
	// Devices are those of a ready reading, at their index. A silent one has no values.
	Devices []cluster.GPULoad
}
