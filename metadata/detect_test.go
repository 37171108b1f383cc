// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// tree makes a root with files.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, body := range files {
		path := filepath.Join(root, name)
		must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.OK(t, os.WriteFile(path, []byte(body), 0o600))
	}
	return root
}

// dmi makes the files of firmware strings, "name=value" each.
func dmi(values ...string) map[string]string {
	files := map[string]string{}
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		files["sys/class/dmi/id/"+name] = value + "\n"
	}
	return files
}

const cloudInit = "run/cloud-init/instance-data.json"

func and(m map[string]string, name, body string) map[string]string {
	m[name] = body
	return m
}

const (
	dirDMI   = "/sys/class/dmi/id/"
	xenUUID  = "ec2e1916-9099-7caf-fd21-012345abcdef"
	azureTag = "7783-7084-3265-9085-8269-3286-77"
)

// TestDetect: every row of the table of facts, imitations of EC2, and machines that are in no cloud.
func TestDetect(t *testing.T) {
	for _, tt := range []struct {
		name               string
		files              map[string]string
		provider, platform string
		decidedBy          string
	}{
		{"aws nitro board tag", dmi("board_asset_tag=i-0abc1234567890def"), "aws", "", dirDMI + "board_asset_tag"},
		{"aws nitro in full", dmi("sys_vendor=Amazon EC2", "product_name=c7i.2xlarge", "bios_vendor=Amazon EC2", "board_asset_tag=i-0abc1234567890def", "chassis_asset_tag=Amazon EC2", "product_uuid="+xenUUID), "aws", "", dirDMI + "board_asset_tag"},
		{"aws xen", and(dmi("sys_vendor=Xen", "product_name=HVM domU"), "sys/hypervisor/uuid", xenUUID+"\n"), "aws", "", "/sys/hypervisor/uuid"},
		{"aws xen by machine uuid", dmi("sys_vendor=Xen", "product_name=HVM domU", "product_uuid="+xenUUID), "aws", "", dirDMI + "product_uuid"},
		{"aws vendor alone, as a user", dmi("sys_vendor=Amazon EC2"), "aws", "", dirDMI + "sys_vendor"},
		{"azure", dmi("sys_vendor=Microsoft Corporation", "product_name=Virtual Machine", "chassis_asset_tag="+azureTag), "azure", "", dirDMI + "chassis_asset_tag"},
		{"alibaba", dmi("sys_vendor=Alibaba Cloud", "product_name=Alibaba Cloud ECS"), "alibaba", "", dirDMI + "product_name"},
		{"gcp", dmi("sys_vendor=Google", "product_name=Google Compute Engine"), "gcp", "", dirDMI + "product_name"},
		{"gcp short name", dmi("product_name=Google"), "gcp", "", dirDMI + "product_name"},
		{"gcp serial", dmi("product_name=something", "product_serial=GoogleCloud-0123456789ABCDEF"), "gcp", "", dirDMI + "product_serial"},
		{"oci", dmi("sys_vendor=QEMU", "chassis_asset_tag=OracleCloud.com"), "generic", "oci", dirDMI + "chassis_asset_tag"},
		{"hetzner", dmi("sys_vendor=Hetzner", "product_name=vServer"), "generic", "hetzner", dirDMI + "sys_vendor"},
		// A folder in the place of the file cannot be read by root either: the rest decides.
		{"a string that only root may read", and(dmi("sys_vendor=Hetzner"), "sys/class/dmi/id/product_serial/folder", ""), "generic", "hetzner", dirDMI + "sys_vendor"},
		{"digitalocean", dmi("sys_vendor=DigitalOcean", "product_name=Droplet"), "generic", "digitalocean", dirDMI + "sys_vendor"},
		{"openstack nova", dmi("sys_vendor=OpenStack Foundation", "product_name=OpenStack Nova"), "generic", "openstack", dirDMI + "product_name"},
		{"openstack compute", dmi("product_name=OpenStack Compute"), "generic", "openstack", dirDMI + "product_name"},
		{"openstack tag", dmi("chassis_asset_tag=OpenStack Nova"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"open telekom cloud", dmi("chassis_asset_tag=OpenTelekomCloud"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"sap", dmi("chassis_asset_tag=SAP CCloud VM"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"huawei", dmi("chassis_asset_tag=HUAWEICLOUD"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"samsung", dmi("chassis_asset_tag=Samsung Cloud Platform"), "generic", "openstack", dirDMI + "chassis_asset_tag"},

		// They imitate EC2, some its UUID: none of it may decide.
		{"brightbox", dmi("sys_vendor=QEMU", "product_serial=srv-1ab2c.gb1.brightbox.com", "product_uuid="+xenUUID), "generic", "", ""},
		{"outscale", dmi("sys_vendor=3DS Outscale", "product_name=3DS Outscale VM", "product_uuid="+xenUUID), "generic", "", ""},

		// One machine in two thousand has such a UUID by chance.
		{"uuid by chance", dmi("sys_vendor=Dell Inc.", "product_name=PowerEdge R640", "product_uuid="+xenUUID), "generic", "", ""},
		{"hypervisor uuid by chance", and(dmi("sys_vendor=QEMU"), "sys/hypervisor/uuid", xenUUID), "generic", "", ""},

		{"hyper-v that is not azure", dmi("sys_vendor=Microsoft Corporation", "product_name=Virtual Machine", "chassis_asset_tag=1234-5678"), "generic", "", ""},
		{"board tag of another firm", dmi("sys_vendor=Dell Inc.", "board_asset_tag=inventory-42"), "generic", "", ""},
		{"board tag of alibaba's form", dmi("board_asset_tag=i-bp13znx0m0me8cq0001"), "generic", "", ""},
		{"chromebook", dmi("sys_vendor=Google", "product_name=Eve"), "generic", "", ""},
		{"case matters", dmi("sys_vendor=amazon ec2", "product_name=google compute engine"), "generic", "", ""},
		{"firmware without strings", dmi("sys_vendor=", "product_name="), "generic", "", ""},
		{"no firmware strings at all", nil, "generic", "", ""},

		// Firmware first, cloud-init after it.
		{"firmware beats cloud-init", and(dmi("board_asset_tag=i-0abc1234567890def"), cloudInit, `{"v1":{"cloud_name":"gce"}}`), "aws", "", dirDMI + "board_asset_tag"},
		{"cloud-init aws", map[string]string{cloudInit: `{"v1":{"cloud_name":"aws","platform":"ec2"}}`}, "aws", "", "/" + cloudInit},
		{"cloud-init azure, hyphen", map[string]string{cloudInit: `{"v1":{"cloud-name":"azure"}}`}, "azure", "", "/" + cloudInit},
		{"cloud-init aliyun", map[string]string{cloudInit: `{"v1":{"cloud_name":"aliyun"}}`}, "alibaba", "", "/" + cloudInit},
		{"cloud-init gce", map[string]string{cloudInit: `{"v1":{"cloud_name":"gce"}}`}, "gcp", "", "/" + cloudInit},
		{"cloud-init hetzner", map[string]string{cloudInit: `{"v1":{"cloud_name":"hetzner","instance_id":"4711"}}`}, "generic", "hetzner", "/" + cloudInit},
		// Its platform is ec2 for every imitation of EC2.
		{"cloud-init unknown ec2", map[string]string{cloudInit: `{"v1":{"cloud_name":"unknown","platform":"ec2","instance_id":"i-00000001"}}`}, "generic", "", ""},
		{"cloud-init nocloud", map[string]string{cloudInit: `{"v1":{"cloud_name":"nocloud","instance_id":"iid-local01"}}`}, "generic", "", ""},
		{"cloud-init oracle", map[string]string{cloudInit: `{"v1":{"cloud_name":"oracle","instance_id":"ocid1.instance.x"}}`}, "generic", "oci", "/" + cloudInit},
		{"cloud-init openstack", map[string]string{cloudInit: `{"v1":{"cloud_name":"openstack","instance_id":"b0fa911b"}}`}, "generic", "openstack", "/" + cloudInit},

		// A container sees the firmware of its host, and two of them are not one machine.
		{"container with a cloud-init of its own", and(and(dmi("board_asset_tag=i-0abc1234567890def"), "run/systemd/container", "lxc\n"), cloudInit, `{"v1":{"cloud_name":"lxd","instance_id":"4f7d2c"}}`), "generic", "lxd", "/" + cloudInit},
		{"container of docker", and(dmi("board_asset_tag=i-0abc1234567890def"), ".dockerenv", ""), "aws", "", dirDMI + "board_asset_tag"},
		{"container of podman, seeded", and(and(dmi("chassis_asset_tag="+azureTag), "run/.containerenv", ""), cloudInit, `{"v1":{"cloud_name":"nocloud","instance_id":"iid-1"}}`), "azure", "", dirDMI + "chassis_asset_tag"},
		{"container on a machine in no cloud", map[string]string{".dockerenv": ""}, "generic", "", ""},

		{"cloud-init broken", map[string]string{cloudInit: `{"v1":`}, "generic", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := metadata.Detect(metadata.Options{Root: tree(t, tt.files)})
			must.OK(t, err)
			if d.Provider != tt.provider || d.Platform != tt.platform {
				t.Errorf("detected %s %q, want %s %q", d.Provider, d.Platform, tt.provider, tt.platform)
			}
			if path, _, _ := strings.Cut(d.Because, ":"); path != tt.decidedBy {
				t.Errorf("because of %q, want %s", d.Because, tt.decidedBy)
			}
			// Serial numbers and UUIDs identify hardware, and this goes into tickets.
			for _, secret := range []string{"-9099-", "012345abcdef", "0123456789ABCDEF"} {
				if strings.Contains(d.Because, secret) {
					t.Errorf("%q shows %q", d.Because, secret)
				}
			}
		})
	}
}

// TestHardware: only an id that no other machine has counts.
func TestHardware(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a machine":    {dmi("product_uuid=" + strings.ToUpper(xenUUID)), xenUUID},
		"a container":  {and(dmi("product_uuid="+xenUUID), "run/systemd/container", "lxc\n"), ""},
		"no firmware":  {nil, ""},
		"zeros":        {dmi("product_uuid=00000000-0000-0000-0000-000000000000"), ""},
		"all bits":     {dmi("product_uuid=FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"), ""},
		"a board":      {dmi("product_uuid=03000200-0400-0500-0006-000700080009"), ""},
		"swapped":      {dmi("product_uuid=00020003-0004-0005-0006-000700080009"), ""},
		"FE":           {dmi("product_uuid=FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE"), ""},
		"in order":     {dmi("product_uuid=12345678-1234-5678-90AB-CDDEEFAABBCC"), ""},
		"not filled":   {dmi("product_uuid=To be filled by O.E.M."), ""},
		"an empty one": {dmi("product_uuid="), ""},
	} {
		must.Equal(t, name, metadata.Hardware(tree(t, tt.files)), tt.want)
	}
}

// Where the firmware and cloud-init say nothing, the one endpoint in the settings decides, then what was known when the
// machine joined.
func TestDetectBySettings(t *testing.T) {
	const at = "http://127.0.0.1:9"
	for _, tt := range []struct {
		name      string
		files     map[string]string
		endpoints map[string]string
		known     string
		want      metadata.Detection
	}{
		{"an endpoint", nil, map[string]string{"gcp": at}, "", metadata.Detection{Provider: "gcp", Because: "the endpoint " + at + " in the environment"}},
		{"two endpoints", nil, map[string]string{"gcp": at, "aws": at}, "", metadata.Detection{Provider: "generic"}},
		{"an endpoint and another firmware", dmi("sys_vendor=Amazon EC2"), map[string]string{"gcp": at}, "azure", metadata.Detection{Provider: "aws", Because: dirDMI + "sys_vendor: Amazon EC2"}},
		{"known from before", nil, nil, "azure", metadata.Detection{Provider: "azure", Remembered: true, Because: "this machine was there when it joined"}},
		{"known to be in none", nil, nil, "generic", metadata.Detection{Provider: "generic"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := metadata.Detect(metadata.Options{Root: tree(t, tt.files), Endpoints: tt.endpoints, Known: tt.known})
			must.OK(t, err)
			must.Equal(t, "detected", d, tt.want)
		})
	}
	for _, name := range metadata.Names() {
		_, err := metadata.Detect(metadata.Options{Root: t.TempDir(), Endpoints: map[string]string{name: "http://x/latest/"}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}
