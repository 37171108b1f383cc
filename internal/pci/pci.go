// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package pci lists GPUs on the kernel's PCI bus, with or without a driver.
package pci

import (
	"io"
	"os"
	"path/filepath"
	"strings"
)

// NVIDIADrivers returns the driver of each NVIDIA display and accelerator below root, "" for one without. An empty root
// is this machine's. The error is that of listing the devices.
func NVIDIADrivers(root string) ([]string, error) {
	bus := filepath.Join(root, "/sys/bus/pci/devices")
	entries, err := os.ReadDir(bus)
	if err != nil {
		return nil, err
	}
	var drivers []string
	for _, e := range entries {
		dir := filepath.Join(bus, e.Name())
		if word(dir, "vendor") != "0x10de" || !strings.HasPrefix(word(dir, "class"), "0x03") {
			continue
		}
		driver, err := os.Readlink(filepath.Join(dir, "driver"))
		if err == nil {
			driver = filepath.Base(driver)
		}
		drivers = append(drivers, driver)
	}
	return drivers, nil
}

// word reads a one-word file, or returns "". It reads a bounded part: below another root the file may be anything.
func word(dir, name string) string {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
