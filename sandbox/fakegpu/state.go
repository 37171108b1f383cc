// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegpu

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// State is what the tool tells, and how it fails.
type State struct {
	// Driver is the driver's version.
	Driver  string   `json:"driver"`
	Devices []Device `json:"devices"`
	// Lacks are fields that this driver does not know.
	Lacks []string `json:"lacks,omitempty"`
	// Replay is a file whose lines are printed in each round, whatever is asked
	// for. Lines that begin with # are left out.
	Replay string `json:"replay,omitempty"`
	// Fault is how it fails; empty: not at all.
	Fault Fault `json:"fault,omitempty"`
	// After is the number of rounds that each process does well before.
	After int `json:"after,omitempty"`
	// Text is what it says when it fails, where the fault has something to say.
	Text string `json:"text,omitempty"`
	// Status is its exit status when it dies.
	Status int `json:"status,omitempty"`
}

// Device is one device. A negative figure is one that it does not have: N/A.
type Device struct {
	Name        string  `json:"name"`
	UUID        string  `json:"uuid"`
	Util        float64 `json:"util"`
	Encoder     float64 `json:"encoder"`
	Decoder     float64 `json:"decoder"`
	MemUsed     float64 `json:"mem_used_mib"`
	MemTotal    float64 `json:"mem_total_mib"`
	Temperature float64 `json:"temperature"`
	Power       float64 `json:"power"`
	// MIG is a device that is split: its utilisation is N/A.
	MIG bool `json:"mig,omitempty"`
	// Error stands in the place of all readings ("GPU requires reset").
	Error string `json:"error,omitempty"`
	// Lost is a device that fell off the bus: a message, and no row.
	Lost bool `json:"lost,omitempty"`
}

// Fault is a way to fail.
type Fault string

// The faults.
const (
	FaultStall   Fault = "stall"   // lives, and says nothing more
	FaultDie     Fault = "die"     // says Text, and exits with Status
	FaultKill    Fault = "kill"    // is killed, in the middle of a row
	FaultCut     Fault = "cut"     // writes each row in two pieces
	FaultTorn    Fault = "torn"    // loses the second half of each second row
	FaultGlue    Fault = "glue"    // loses each second line end
	FaultNoise   Fault = "noise"   // says Text before each row, on both outputs
	FaultCRLF    Fault = "crlf"    // ends lines as another system does
	FaultEndless Fault = "endless" // writes without a line end, without an end
)

func faults() []Fault {
	return []Fault{FaultStall, FaultDie, FaultKill, FaultCut, FaultTorn, FaultGlue, FaultNoise, FaultCRLF, FaultEndless}
}

// Sample is a machine with some L4 that transcode.
func Sample(devices int) State {
	s := State{Driver: "550.90.07"}
	for i := range devices {
		s.Devices = append(s.Devices, Device{
			Name: "NVIDIA L4", UUID: fmt.Sprintf("GPU-%08d-1111-2222-3333-444444444444", i), Util: 30, Encoder: 60, Decoder: 10,
			MemUsed: 1800, MemTotal: 23034, Temperature: 55, Power: 45.5,
		})
	}
	return s
}

// Read reads a state. What is not known in it is refused, so that a misspelt test
// fails.
func Read(file string) (State, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return State{}, fmt.Errorf("reading the state of the GPUs: %w", err)
	}
	var s State
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return State{}, fmt.Errorf("reading the state of the GPUs from %s: %w", file, err)
	}
	if s.Fault != "" && !slices.Contains(faults(), s.Fault) {
		return State{}, fmt.Errorf("%s: no fault %q, but %q", file, s.Fault, faults())
	}
	return s, nil
}

// Write writes it in one step, so that a running tool reads the old or the new one.
func (s State) Write(file string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = replace(file, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing the state of the GPUs: %w", err)
	}
	return nil
}

func replace(file string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", content, mode); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Install makes the machine below root one with this state: usr/bin/nvidia-smi,
// which runs command with the arguments "--state FILE --" and its own, and the
// traces of a driver and of its devices. The state stands in the file that it
// returns.
func Install(root string, s State, command ...string) (state string, err error) {
	root, err = filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("installing a driver: %w", err)
	}
	state = filepath.Join(root, "var/lib/fakegpu.json")
	if err := s.Write(state); err != nil {
		return "", err
	}
	files := map[string]string{
		"dev/nvidiactl":              "",
		"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " + s.Driver + "\n",
	}
	for i := range s.Devices {
		device := fmt.Sprintf("sys/bus/pci/devices/0000:00:%02x.0/", 0x1e+i)
		files[device+"vendor"], files[device+"class"] = "0x10de\n", "0x030200\n"
	}
	for name, content := range files {
		if err := replace(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return "", fmt.Errorf("installing a driver: %w", err)
		}
	}
	script := "#!/bin/sh\nexec"
	for _, word := range append(slices.Clone(command), "--state", state, "--") {
		script += " " + quote(word)
	}
	script += " \"$@\"\n"
	// The tool comes last: who waits for it finds all the rest.
	if err := replace(filepath.Join(root, "usr/bin/nvidia-smi"), []byte(script), 0o755); err != nil {
		return "", fmt.Errorf("installing nvidia-smi: %w", err)
	}
	return state, nil
}

func quote(word string) string {
	return "'" + string(bytes.ReplaceAll([]byte(word), []byte("'"), []byte(`'\''`))) + "'"
}

// cell is a device's answer to one field; false: no driver knows that.
func (d Device) cell(i int, driver, field string) (string, bool) {
	reading := func(f float64, decimals int) string {
		switch {
		case d.Error != "":
			return "[" + d.Error + "]"
		case f < 0:
			return "[N/A]"
		}
		return strconv.FormatFloat(f, 'f', decimals, 64)
	}
	busy := func(f float64) string {
		if d.MIG {
			f = -1
		}
		return reading(f, 0)
	}
	switch field {
	case "index":
		return strconv.Itoa(i), true
	case "uuid", "gpu_uuid":
		return d.UUID, true
	case "name", "gpu_name":
		return d.Name, true
	case "driver_version":
		return driver, true
	case "utilization.gpu":
		return busy(d.Util), true
	case "utilization.encoder":
		return busy(d.Encoder), true
	case "utilization.decoder":
		return busy(d.Decoder), true
	case "memory.used":
		return reading(d.MemUsed, 0), true
	case "memory.total":
		return reading(d.MemTotal, 0), true
	case "temperature.gpu":
		return reading(d.Temperature, 0), true
	case "power.draw":
		return reading(d.Power, 2), true
	case "mig.mode.current":
		if d.MIG {
			return "Enabled", true
		}
		return "[N/A]", true
	}
	return "", false
}
