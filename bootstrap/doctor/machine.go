// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/pci"
)

func checkWritable(ctx context.Context, p *patient) []Result {
	return preflight(func(_ *patient, in *bootstrap.Inspection) Result {
		switch {
		case in.Install == nil:
			return noInstall()
		case !in.Writable:
			return unknown("only root may look")
		}
		return good("the folders of all files that a join writes")
	}, bootstrap.IDWritable)(ctx, p)
}

// What a volume must have left. A node records, and its log grows: what is nearly
// full today is full tonight.
const (
	fewBytes = 1 << 30
)

// space is the file system that a folder is on.
func space(root files.Root, dir string) (unix.Statfs_t, error) {
	folder, err := root.Folder(dir)
	if err != nil {
		return unix.Statfs_t{}, err
	}
	defer folder.Close()
	return folder.Space()
}

func checkSpace(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	found := findings(in.Findings, bootstrap.IDSpace)
	dirs := []string{"/var/log/antmedia", "/var/lib"}
	if in.Install != nil {
		dirs = append([]string{in.Install.Dir}, dirs...)
	}
	var seen []string
	var volumes []unix.Fsid
	for _, dir := range dirs {
		st, err := space(p.store.Files(), dir)
		if err != nil || slices.Contains(volumes, st.Fsid) {
			continue
		}
		volumes = append(volumes, st.Fsid)
		free := st.Bavail * uint64(max(st.Bsize, 0))
		switch {
		case st.Blocks == 0: // a file system that does not count
		case free < fewBytes && len(found) == 0:
			found = append(found, warning("make room; recordings are below webapps/*/streams", "%s has %s left", dir, size(free)))
		default:
			seen = append(seen, fmt.Sprintf("%s left on the volume of %s", size(free), dir))
		}
	}
	switch {
	case len(found) > 0:
		return found
	case len(seen) == 0:
		return one(unknown("no file system says how full it is"))
	}
	return one(good("%s", strings.Join(seen, ", ")))
}

func size(n uint64) string {
	const unit = 1024
	switch {
	case n >= unit*unit*unit:
		return fmt.Sprintf("%.1f GiB", float64(n)/(unit*unit*unit))
	case n >= unit*unit:
		return fmt.Sprintf("%d MiB", n/(unit*unit))
	}
	return fmt.Sprintf("%d KiB", n/unit)
}

// checkTimeSync asks the kernel whether a time service keeps its clock.
func checkTimeSync(_ context.Context, p *patient) []Result {
	if !p.running {
		return inTree()
	}
	var t unix.Timex // asks, because no mode is set
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return one(notKnown(fmt.Errorf("asking the kernel about its clock: %w", err)))
	}
	return one(judgeSync(state, t.Status))
}

func judgeSync(state int, status int32) Result {
	if state == unix.TIME_ERROR || status&unix.STA_UNSYNC != 0 {
		return warning("let chrony or systemd-timesyncd run: nodes that are 20 s apart take each other for dead",
			"no time service keeps this machine's clock (timedatectl shows more)")
	}
	return good("the clock is kept")
}

// oldDriver is the first branch of NVIDIA's driver that current encoders accept
// (Video Codec SDK 11.1); it is the last one for old devices, too.
const oldDriver = 470

func checkGPU(ctx context.Context, p *patient) []Result {
	drivers, err := pci.NVIDIADrivers(p.root)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || !p.running) {
		if !p.running {
			return inTree()
		}
		return one(notKnown(err))
	}
	var ours []string
	for _, d := range drivers {
		if d != "vfio-pci" { // handed on to a virtual machine
			ours = append(ours, d)
		}
	}
	if len(ours) == 0 {
		return one(good("no GPU of NVIDIA is here: streams are encoded by the CPU"))
	}
	for _, d := range ours {
		switch d {
		case "nvidia":
		case "":
			return one(bad("install NVIDIA's driver, then restart the server: it looks for devices at its start only", "a GPU of NVIDIA is on the bus, and no driver has it").as(idGPUDriver))
		default:
			return one(bad("install NVIDIA's own driver, then restart the server", "a GPU of NVIDIA is on the bus, and driver %s has it, which encodes nothing", d).as(idGPUDriver))
		}
	}
	if p.GPUs == nil || !p.running {
		return one(unknown("%d on the bus with NVIDIA's driver; the driver was not asked", len(ours)))
	}
	v, err := p.GPUs(ctx)
	switch {
	case err != nil:
		return one(notKnown(err))
	case v.Trouble != "":
		return one(bad("nvidia-smi, run by hand, says more", "%d on the bus, and the driver does not answer: %s", len(ours), v.Trouble).as(idGPUDriver))
	}
	return one(judgeGPUs(v, len(ours)))
}

func judgeGPUs(v GPUView, onBus int) Result {
	major, _, _ := strings.Cut(v.Driver, ".")
	n, err := strconv.Atoi(major)
	switch {
	case len(v.Devices) < onBus:
		return bad("nvidia-smi and dmesg say which one was lost", "%d on the bus, and the driver shows %d", onBus, len(v.Devices)).as(idGPUDriver)
	case err == nil && n < oldDriver:
		return warning(fmt.Sprintf("install a driver of branch %d or later", oldDriver), "driver %s is too old for current encoders", v.Driver).as(idGPUDriver)
	case v.Driver == "":
		return good("%s", few(v.Devices))
	}
	return good("%s; driver %s", few(v.Devices), v.Driver)
}
