// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// Sample is one look at the machine. Pointers are nil where nobody could tell.
type Sample struct {
	At time.Time
	// Load is what a beat says of it.
	Load cluster.Load

	CPU *float64 // percent of all cores busy since the sample before

	MemTotal, MemUsed   *uint64 // bytes, as AMS's own limit counts them
	DiskTotal, DiskUsed *uint64 // bytes of the volume that AMS is on

	GPUs    GPUReading
	Session cluster.Sessions

	// Missing says what could not be read, and why.
	Missing []Missing
}

// Missing is a reading that could not be had.
type Missing struct {
	// What is "cpu", "memory", "network", "disk", "gpu",
	// "publishers", "viewers", or "sessions" where nobody answered for both.
	What string
	Err  error
}

// GPUState says whether devices could be read.
type GPUState string

// The states. Absent, failing and zero load are three different things.
const (
	GPUAbsent  GPUState = "absent"  // no device and no driver here
	GPUPending GPUState = "pending" // there are some, and the first reading is to come
	GPUFailing GPUState = "failing" // there ought to be some; Reason says what is wrong
	GPUReady   GPUState = "ready"   // Devices are as of At
)

// GPUReading is the latest word about the devices.
type GPUReading struct {
	State GPUState
	// Reason says what is wrong: where nothing can be read, or, of devices that
	// are ready, with some of them.
	Reason string
	// At is when the devices were read last.
	At time.Time
	// Devices are there when ready, each at its index. One that does not answer
	// keeps its place, without readings.
	Devices []GPU
}

// GPU is one device. Percentages are 0 to 100; nil where the driver does not
// tell ("N/A", as for a device in MIG mode).
type GPU struct {
	Index             int
	Name              string
	Driver            string // its version
	Util, Enc, Dec    *float64
	MemUsed, MemTotal *uint64 // bytes
}
