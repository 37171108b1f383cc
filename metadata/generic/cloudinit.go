// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// CloudInitPath is the file of instance data that cloud-init writes, readable for every user.
const CloudInitPath = "/run/cloud-init/instance-data.json"

// maxInstanceData bounds the size: user data of 16 KiB, vendor data and keys are far below.
const maxInstanceData = 8 << 20

// CloudInit is the part of cloud-init's instance data that is used, its v1 keys. An empty field is absent.
type CloudInit struct {
	CloudName, Region, Zone string
}

// ReadCloudInit reads the instance data of cloud-init below a root. If there is no such file, the error matches fs.ErrNotExist.
func ReadCloudInit(root string) (CloudInit, error) {
	f, err := os.Open(filepath.Join(root, CloudInitPath))
	if err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInstanceData))
	if err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	return ParseCloudInit(b)
}

// ParseCloudInit decodes instance data. Releases of cloud-init spell keys with an underscore, older ones also with a hyphen. A
// value that is not a short text counts as absent.
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
			// n/a means unknown in cloud-init.
			if json.Unmarshal(doc.V1[k], &s) == nil && s != "" && s != "n/a" && len(s) <= cloud.MaxText {
				return cloud.Printable(s)
			}
		}
		return ""
	}
	return CloudInit{CloudName: get("cloud_name"), Region: get("region"), Zone: get("availability_zone")}, nil
}
