// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/pci"
)

func TestNVIDIADrivers(t *testing.T) {
	root := t.TempDir()
	if d, err := pci.NVIDIADrivers(root); len(d) > 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a bus: %q, %v", d, err)
	}
	for _, d := range []struct{ name, vendor, class, driver string }{
		{"0000:00:01.0", "0x10de\n", "0x030200\n", "nvidia"},
		{"0000:00:02.0", "0x10de\n", "0x030000\n", ""},
		{"0000:00:03.0", "0x10de\n", "0x040300\n", "snd_hda_intel"},
		{"0000:00:04.0", "0x8086\n", "0x030000\n", "i915"},
		{"0000:00:05.0", "0x10de\n", "0x030000\n", "vfio-pci"},
		{"0000:00:06.0", "0x10de" + strings.Repeat(" ", 1<<20) + "x", "0x03", "nouveau"},
	} {
		dir := filepath.Join(root, "sys/bus/pci/devices", d.name)
		err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "vendor"), []byte(d.vendor), 0o644),
			os.WriteFile(filepath.Join(dir, "class"), []byte(d.class), 0o644))
		if d.driver != "" {
			err = errors.Join(err, os.Symlink("../../drivers/"+d.driver, filepath.Join(dir, "driver")))
		}
		must.OK(t, err)
	}
	// Only the start of the last file is read.
	if d, err := pci.NVIDIADrivers(root); err != nil || !slices.Equal(d, []string{"nvidia", "", "vfio-pci", "nouveau"}) {
		t.Errorf("%q, %v", d, err)
	}
}

// Both names of this machine's root find its bus, if it has one.
func TestNVIDIADriversOfThisMachine(t *testing.T) {
	want, wantErr := pci.NVIDIADrivers("/")
	got, err := pci.NVIDIADrivers("")
	if !slices.Equal(got, want) || (err == nil) != (wantErr == nil) {
		t.Errorf("%q, %v; below / %q, %v", got, err, want, wantErr)
	}
}
