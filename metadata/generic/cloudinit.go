// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// CloudInitPath is where cloud-init leaves what it found, without the secrets, for everyone to read.
const CloudInitPath = "/run/cloud-init/instance-data.json"

// maxInstanceData: user data of 16 KiB, vendor data and keys are far below.
const maxInstanceData = 8 << 20

// CloudInit is the part of cloud-init's instance data that says where this machine is. Empty means absent or null.
type CloudInit struct {
	CloudName        string `json:"cloud_name,omitempty"`
	CloudID          string `json:"cloud_id,omitempty"`
	Platform         string `json:"platform,omitempty"`
	InstanceID       string `json:"instance_id,omitempty"`
	Region           string `json:"region,omitempty"`
	AvailabilityZone string `json:"availability_zone,omitempty"`
	LocalHostname    string `json:"local_hostname,omitempty"`

	// What follows is the cloud's own, below ds, for the clouds whose data we know: see readData.

	InstanceType string `json:"instance_type,omitempty"`
	Group        string `json:"group,omitempty"`
	// Private and Public are addresses of this machine.
	Private netip.Addr `json:"private,omitzero"`
	Public  netip.Addr `json:"public,omitzero"`
	// Launch is what somebody gave the machine at its launch, beside tags. Only what is meant for us is made use of: the rest
	// is somebody else's, and may be secret.
	Launch map[string]string `json:"-"`
	// TagsKnown says that this cloud's tags are in the data, and all of them could be read.
	Tags      map[string]string `json:"tags,omitempty"`
	TagsKnown bool              `json:"tags_known,omitempty"`
}

// ReadCloudInit reads cloud-init's instance data below a root. Where there is none it returns an error that matches
// fs.ErrNotExist.
func ReadCloudInit(root string) (CloudInit, error) {
	f, err := os.Open(filepath.Join(root, CloudInitPath))
	if err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInstanceData+1))
	if err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	if len(b) > maxInstanceData {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: larger than %d bytes", maxInstanceData)
	}
	return ParseCloudInit(b)
}

// ParseCloudInit reads instance data. Every release of cloud-init spells keys with an underscore, older ones also with a
// hyphen; either is accepted, as are numbers where strings are usual (Hetzner's instance ids) and null everywhere.
func ParseCloudInit(b []byte) (CloudInit, error) {
	var doc struct {
		V1 map[string]json.RawMessage `json:"v1"`
		DS json.RawMessage            `json:"ds"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return CloudInit{}, fmt.Errorf("reading cloud-init's instance data: %w", err)
	}
	var errs []error
	get := func(key string) string {
		for _, k := range []string{key, strings.ReplaceAll(key, "_", "-")} {
			raw, ok := doc.V1[k]
			if !ok || string(raw) == "null" {
				continue
			}
			v, err := text(raw)
			if err != nil {
				errs = append(errs, fmt.Errorf("v1.%s: %w", k, err))
				continue
			}
			// n/a is what cloud-init itself writes for "not known".
			if v == "" || v == "n/a" {
				continue
			}
			return v
		}
		return ""
	}
	ci := CloudInit{
		CloudName: get("cloud_name"), CloudID: get("cloud_id"), Platform: get("platform"), InstanceID: get("instance_id"),
		Region: get("region"), AvailabilityZone: get("availability_zone"), LocalHostname: get("local_hostname"),
	}
	errs = append(errs, readData(&ci, doc.DS)...)
	if len(errs) > 0 {
		return ci, fmt.Errorf("reading cloud-init's instance data: %w", errors.Join(errs...))
	}
	return ci, nil
}

// text accepts a string or a number.
func text(raw json.RawMessage) (string, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err == nil {
		s = strings.TrimSpace(s)
		if len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", errors.New("not a short text of one line")
		}
		return s, nil
	}
	var n json.Number
	if err := json.Unmarshal(raw, &n); err == nil {
		return n.String(), nil
	}
	return "", errors.New("neither text nor a number")
}

// HasOwnID says whether the instance id comes from a platform that makes it unique. Where a person wrote the seed (NoCloud),
// or where cloud-init found no source at all, the same id is on every clone.
func (ci CloudInit) HasOwnID() bool {
	switch strings.ToLower(ci.CloudName) {
	case "", "none", "nocloud", "unknown", "ovf", "configdrive", "config-drive", "no-ec2-metadata":
		return false
	}
	return ci.InstanceID != "" && !strings.HasPrefix(ci.InstanceID, "iid-")
}

// The marks that cloud-init leaves besides: its generator's at boot, and that of its end.
const (
	cloudInitEnabled = "/run/cloud-init/enabled"
	cloudInitResult  = "/run/cloud-init/result.json"
)

// cloudInitAtWork says whether instance data may still come.
func cloudInitAtWork(root string) bool {
	return exists(root, cloudInitEnabled) && !exists(root, cloudInitResult)
}

func exists(root, path string) bool {
	_, err := os.Lstat(filepath.Join(root, path))
	return err == nil
}

// absent says whether an error of ReadCloudInit means that there simply is none.
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
