// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
)

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
	return ParseCloudInit(b)
}

// ParseCloudInit parses instance data. Older releases spell keys with hyphens.
func ParseCloudInit(b []byte) (CloudInit, error) {
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
