// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/generic"
)

// Detection is the cloud of this machine.
type Detection struct {
	Provider string `json:"provider"`
	// Platform refines [Generic]: hetzner, oci, openstack and others; "" if unknown
	Platform string `json:"platform,omitempty"`
	// Because is the evidence: a path with its content, or a setting.
	Because string `json:"because,omitempty"`
	// Remembered reports that nothing names a cloud now, and Provider is that of an earlier detection.
	Remembered bool `json:"remembered,omitempty"`
}

const (
	dirDMI         = "/sys/class/dmi/id/"
	pathHypervisor = "/sys/hypervisor/uuid"
)

type rule struct {
	path, pattern      string
	provider, platform string
	// xen rules need Xen: one UUID in 4096 begins with ec2 by chance.
	xen bool
}

const openStackTags = `OpenStack (Nova|Compute)|OpenTelekomCloud|SAP CCloud VM|HUAWEICLOUD|Samsung Cloud Platform`

// rules follows the clouds' documentation and cloud-init's ds-identify.
var rules = []rule{
	{path: dirDMI + "chassis_asset_tag", pattern: `7783-7084-3265-9085-8269-3286-77`, provider: Azure},
	{path: dirDMI + "board_asset_tag", pattern: `i-[0-9a-f]+`, provider: AWS},
	{path: dirDMI + "sys_vendor", pattern: `Amazon EC2`, provider: AWS},
	{path: dirDMI + "product_name", pattern: `Alibaba Cloud ECS`, provider: Alibaba},
	{path: dirDMI + "product_name", pattern: `Google Compute Engine|Google`, provider: GCP},
	// Google does not guarantee the product name; the serial number needs root.
	{path: dirDMI + "product_serial", pattern: `GoogleCloud-.*`, provider: GCP},
	{path: dirDMI + "chassis_asset_tag", pattern: `OracleCloud\.com`, provider: Generic, platform: "oci"},
	{path: dirDMI + "chassis_asset_tag", pattern: openStackTags, provider: Generic, platform: "openstack"},
	{path: dirDMI + "product_name", pattern: openStackTags, provider: Generic, platform: "openstack"},
	{path: dirDMI + "sys_vendor", pattern: `Hetzner`, provider: Generic, platform: "hetzner"},
	{path: dirDMI + "sys_vendor", pattern: `DigitalOcean`, provider: Generic, platform: "digitalocean"},
	{path: pathHypervisor, pattern: `(?i)ec2.*`, provider: AWS, xen: true},
	{path: dirDMI + "product_uuid", pattern: `(?i)ec2.*`, provider: AWS, xen: true},
}

// placeholders are ids of boards that have none.
var placeholders = []string{
	"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc", "fefefefe-fefe-fefe-fefe-fefefefefefe",
}

// Hardware returns the firmware's machine id, which a copied disk does not carry along. It is "" if unknown: only root can read
// it, and a container has its host's.
func Hardware(root string) string {
	b, _ := os.ReadFile(filepath.Join(root, dirDMI, "product_uuid"))
	id := strings.ToLower(strings.TrimSpace(string(b)))
	if len(id) != 36 || strings.Count(id, id[:1]) == 32 || slices.Contains(placeholders, id) || generic.Container(root) != "" {
		return ""
	}
	return id
}

// Detect finds the cloud without network access, by firmware, cloud-init, the only configured endpoint, then opts.Known;
// else it is [Generic]. In a container cloud-init comes first, since the firmware is the host's.
func Detect(opts Options) (Detection, error) {
	opts = opts.WithDefaults()
	var given []Detection
	for _, name := range Names() {
		at, err := opts.Endpoint(name)
		if err != nil {
			return Detection{}, err
		}
		if at != "" {
			given = append(given, Detection{Provider: name, Because: "the endpoint " + at + " in the environment"})
		}
	}
	seen := []Detection{byFirmware(opts), byCloudInit(opts)}
	if generic.Container(opts.Root) != "" {
		slices.Reverse(seen)
	}
	if d := cmp.Or(seen...); d.Provider != "" {
		return d, nil
	}
	if len(given) == 1 {
		return given[0], nil
	}
	if opts.Known != "" && opts.Known != Generic {
		return Detection{Provider: opts.Known, Remembered: true, Because: "this machine was there when it joined"}, nil
	}
	return Detection{Provider: Generic}, nil
}

func byFirmware(opts Options) Detection {
	xen := strings.HasPrefix(firmware(opts, dirDMI+"sys_vendor"), "Xen")
	for _, r := range rules {
		v := firmware(opts, r.path)
		if v == "" || r.xen && !xen || !regexp.MustCompile(`^(`+r.pattern+`)$`).MatchString(v) {
			continue
		}
		because := r.path
		if !strings.HasSuffix(r.path, "uuid") && !strings.HasSuffix(r.path, "serial") { // these identify the hardware
			because += ": " + v
		}
		return Detection{Provider: r.provider, Platform: r.platform, Because: because}
	}
	return Detection{}
}

func firmware(opts Options, path string) string {
	b, _ := os.ReadFile(opts.Path(path))
	return strings.TrimSpace(strings.ToValidUTF8(string(b), "?"))
}

// byCloudInit ignores the platform: every imitation of EC2 has ec2.
func byCloudInit(opts Options) Detection {
	ci, err := generic.ReadCloudInit(opts.Root)
	if err != nil {
		return Detection{}
	}
	name := strings.ToLower(ci.CloudName)
	switch name {
	case "", "none", "nocloud", "unknown", "ovf", "configdrive", "config-drive", "no-ec2-metadata":
		return Detection{} // a source of the seed, not a cloud
	case "oracle":
		name = "oci"
	}
	because := generic.CloudInitPath + ": cloud_name " + ci.CloudName
	known := map[string]string{"aws": AWS, "azure": Azure, "aliyun": Alibaba, "alibaba": Alibaba, "gce": GCP, "gcp": GCP}
	if provider := known[name]; provider != "" {
		return Detection{Provider: provider, Because: because}
	}
	return Detection{Provider: Generic, Platform: name, Because: because}
}
