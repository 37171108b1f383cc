// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// amdCards finds the folders of AMD's devices, in the order of their addresses
// on the bus: the kernel's own numbers change from boot to boot. Only what the
// amdgpu driver tells something about is a device here; the display chip of an
// old server is of the same vendor and computes nothing.
func amdCards(root string) []string {
	drm := filepath.Join(root, "sys/class/drm")
	entries, err := os.ReadDir(drm)
	if err != nil {
		return nil
	}
	cards := map[string]string{} // folders by address and number
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "card")
		number, err := strconv.Atoi(digits)
		if !ok || err != nil { // card0-DP-1 is a connector
			continue
		}
		dir := filepath.Join(drm, e.Name(), "device")
		if gpuFile(dir, "vendor") != "0x1002" || gpuFile(dir, "gpu_busy_percent") == "" && gpuFile(dir, "mem_info_vram_total") == "" {
			continue
		}
		address := ""
		if real, err := filepath.EvalSymlinks(dir); err == nil && real != dir {
			address = filepath.Base(real)
		}
		cards[fmt.Sprintf("%s\x00%09d", address, number)] = dir
	}
	var dirs []string
	for _, place := range slices.Sorted(maps.Keys(cards)) {
		dirs = append(dirs, cards[place])
	}
	return dirs[:min(len(dirs), gpuMost)]
}

// readAMD reads the devices. The kernel answers at once, or not at all while a
// device sleeps or is reset.
func readAMD(root string, cards []string, at time.Time) GPUReading {
	r := GPUReading{State: GPUReady, At: at, Devices: make([]GPU, 0, len(cards))}
	driver := gpuFile(filepath.Join(root, "sys/module/amdgpu"), "version")
	known := false
	for i, dir := range cards {
		g := GPU{
			Index: i, Driver: driver, UUID: gpuFile(dir, "unique_id"), Name: gpuFile(dir, "product_name"),
			Util:    amdPercent(dir, "gpu_busy_percent"),
			MemUsed: amdBytes(dir, "mem_info_vram_used"), MemTotal: amdBytes(dir, "mem_info_vram_total"),
		}
		if g.Name == "" {
			g.Name = strings.TrimSpace("AMD " + gpuFile(dir, "device"))
		}
		// One engine encodes and decodes, and the kernel tells one figure. It tells
		// none of the engines before it (VCE, UVD).
		if busy := amdPercent(dir, "vcn_busy_percent"); busy != nil {
			g.Enc, g.Dec = busy, busy
		}
		if g.MemUsed != nil && g.MemTotal != nil && *g.MemUsed > *g.MemTotal {
			g.MemUsed = nil
		}
		if sensors, _ := filepath.Glob(filepath.Join(dir, "hwmon/hwmon*")); len(sensors) > 0 {
			g.Temperature = amdScaled(sensors[0], 1e3, "temp1_input")
			g.Power = amdScaled(sensors[0], 1e6, "power1_average", "power1_input")
		}
		if g.Util == nil && g.MemUsed == nil {
			r.Reason = "GPU " + strconv.Itoa(i) + " (" + g.Name + "): the kernel gives no reading"
		} else {
			known = true
		}
		r.Devices = append(r.Devices, g)
	}
	if !known {
		r.State, r.Devices = GPUFailing, nil
	}
	return r
}

// gpuFile reads a small file of the kernel's; empty where there is none.
func gpuFile(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return gpuReason(b)
}

func amdPercent(dir, name string) *float64 {
	n, err := strconv.ParseUint(gpuFile(dir, name), 10, 64)
	if err != nil || n > 100 {
		return nil
	}
	f := float64(n)
	return &f
}

func amdBytes(dir, name string) *uint64 {
	n, err := strconv.ParseUint(gpuFile(dir, name), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

func amdScaled(dir string, unit float64, names ...string) *float64 {
	for _, name := range names {
		if n, err := strconv.ParseInt(gpuFile(dir, name), 10, 64); err == nil {
			f := float64(n) / unit
			return &f
		}
	}
	return nil
}
