// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
)

const dirDMI = "/sys/class/dmi/id/"

// firmwareID is what the firmware says of this machine's identity.
type firmwareID struct {
	id, source string
	// certain: cloud-init refuses to go on where the two differ, so what it will find is known already. The UUID of an
	// OpenStack machine may be written with its bytes in another order, on VMware for one.
	certain bool
	// forbidden: there is one, and this user may not read it.
	forbidden bool
}

var (
	serialNumber = regexp.MustCompile(`^[0-9]{1,20}$`)
	machineUUID  = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// readFirmware knows the clouds that write the instance's id into its firmware: the same id that cloud-init finds, and it
// compares them itself. It is there before cloud-init, and where cloud-init was switched off after the first boot.
//
// The firmware that a container sees is its host's.
func readFirmware(root string) firmwareID {
	if Container(root) != "" {
		return firmwareID{}
	}
	get := func(name string) (string, error) {
		b, err := readSmall(filepath.Join(root, dirDMI+name))
		return strings.TrimSpace(string(b)), err
	}
	vendor, _ := get("sys_vendor")
	product, _ := get("product_name")
	tag, _ := get("chassis_asset_tag")
	var name string
	var form *regexp.Regexp
	switch {
	case vendor == "Hetzner", vendor == "DigitalOcean":
		name, form = "product_serial", serialNumber
	case isOpenStack(product), isOpenStack(tag):
		name, form = "product_uuid", machineUUID
	default:
		return firmwareID{}
	}
	v, err := get(name)
	if err != nil {
		return firmwareID{forbidden: errors.Is(err, fs.ErrPermission)}
	}
	v = strings.ToLower(v)
	if !form.MatchString(v) {
		return firmwareID{}
	}
	return firmwareID{
		id: v, source: "firmware's " + name + ", which is the instance's id on this cloud", certain: name == "product_serial",
	}
}

func isOpenStack(v string) bool {
	switch v {
	case "OpenStack Nova", "OpenStack Compute", "OpenTelekomCloud", "SAP CCloud VM", "HUAWEICLOUD", "Samsung Cloud Platform":
		return true
	}
	return false
}

// Container returns which file says that a tree is that of a container, "" where none does.
func Container(root string) string {
	// systemd's own, Docker's, Podman's.
	for _, path := range []string{"/run/systemd/container", "/.dockerenv", "/run/.containerenv"} {
		if exists(root, path) {
			return path
		}
	}
	return ""
}
