// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// appID is e3db9ca5a4ae4ac0aaf7e6b2eb021a95. It must never change: every derived id would change.
var appID = []byte{0xe3, 0xdb, 0x9c, 0xa5, 0xa4, 0xae, 0x4a, 0xc0, 0xaa, 0xf7, 0xe6, 0xb2, 0xeb, 0x02, 0x1a, 0x95}

// readMachineID derives an id that does not reveal the machine id, as does `systemd-id128 machine-id --app-specific=`appID.
func readMachineID(root string) (string, error) {
	var errs []error
	// The second is D-Bus's older path.
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		id, err := deriveMachineID(strings.TrimSpace(string(b)))
		if err == nil {
			return id, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", path, err))
	}
	return "", fmt.Errorf("reading the machine id: %w", errors.Join(errs...))
}

// deriveMachineID is sd_id128_get_machine_app_specific: HMAC-SHA256 of appID keyed with the machine id, cut to 128 bits,
// marked as a random UUID.
func deriveMachineID(machineID string) (string, error) {
	key, err := hex.DecodeString(machineID)
	if err != nil || len(key) != 16 || bytes.Equal(key, make([]byte, 16)) {
		// Before its first boot a golden image has an empty file or "uninitialized".
		return "", fmt.Errorf("no machine id of 32 hexadecimal digits (%d bytes)", len(machineID))
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(appID)
	id := mac.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id), nil
}

// hostName returns /etc/hostname or the kernel's name; "" if unusable.
func hostName(root string) string {
	for _, path := range []string{"/etc/hostname", "/proc/sys/kernel/hostname"} {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if usableHostname(line) {
				return line
			}
			break
		}
	}
	return ""
}

var hostname = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,253}$`)

func usableHostname(s string) bool {
	switch strings.ToLower(s) {
	case "localhost", "localhost.localdomain", "-":
		return false
	}
	return hostname.MatchString(s)
}

// CloudInitPath is cloud-init's instance data, readable by every user.
const CloudInitPath = "/run/cloud-init/instance-data.json"

// CloudInit holds v1 keys of cloud-init's instance data.
type CloudInit struct {
	CloudName, Region, Zone string
}

// ReadCloudInit returns fs.ErrNotExist without cloud-init.
func ReadCloudInit(root string) (CloudInit, error) {
	b, err := os.ReadFile(filepath.Join(root, CloudInitPath))
	if err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	return parseCloudInit(b)
}

// parseCloudInit parses instance data. Older releases spell keys with hyphens.
func parseCloudInit(b []byte) (CloudInit, error) {
	var doc struct {
		V1 map[string]json.RawMessage `json:"v1"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	get := func(key string) string {
		for _, k := range []string{key, strings.ReplaceAll(key, "_", "-")} {
			var s string
			// cloud-init writes n/a for unknown.
			if json.Unmarshal(doc.V1[k], &s) == nil && s != "" && s != "n/a" && len(s) <= cloud.MaxText {
				return cloud.Printable(s)
			}
		}
		return ""
	}
	return CloudInit{CloudName: get("cloud_name"), Region: get("region"), Zone: get("availability_zone")}, nil
}
