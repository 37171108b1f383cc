// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
	swapped  = "45E12AEC-DCD1-B213-94ED-012345ABCDEF"
	otherID  = "4c4c4544-0042-3510-8051-b4c04f4d3332"
	azureTag = "7783-7084-3265-9085-8269-3286-77"
)

// Every row of the table of facts, the imitations of EC2, and machines that are in no cloud. None of these asks the network.
func detectCases() []detectCase {
	return []detectCase{
		{"aws nitro board tag", dmi("board_asset_tag=i-0abc1234567890def"), "aws", "", dirDMI + "board_asset_tag"},
		{"aws nitro in full", dmi("sys_vendor=Amazon EC2", "product_name=c7i.2xlarge", "bios_vendor=Amazon EC2", "board_asset_tag=i-0abc1234567890def", "chassis_asset_tag=Amazon EC2", "product_uuid="+xenUUID), "aws", "", dirDMI + "board_asset_tag"},
		{"aws uuid", dmi("product_uuid=EC2E1916-9099-7CAF-FD21-012345ABCDEF"), "aws", "", dirDMI + "product_uuid"},
		{"aws uuid in the other byte order", dmi("product_uuid=" + swapped), "aws", "", dirDMI + "product_uuid"},
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
		{"digitalocean", dmi("sys_vendor=DigitalOcean", "product_name=Droplet"), "generic", "digitalocean", dirDMI + "sys_vendor"},
		{"openstack nova", dmi("sys_vendor=OpenStack Foundation", "product_name=OpenStack Nova"), "generic", "openstack", dirDMI + "product_name"},
		{"openstack compute", dmi("product_name=OpenStack Compute"), "generic", "openstack", dirDMI + "product_name"},
		{"openstack tag", dmi("chassis_asset_tag=OpenStack Nova"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"open telekom cloud", dmi("chassis_asset_tag=OpenTelekomCloud"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"sap", dmi("chassis_asset_tag=SAP CCloud VM"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"huawei", dmi("chassis_asset_tag=HUAWEICLOUD"), "generic", "openstack", dirDMI + "chassis_asset_tag"},
		{"samsung", dmi("chassis_asset_tag=Samsung Cloud Platform"), "generic", "openstack", dirDMI + "chassis_asset_tag"},

		// They imitate EC2's metadata, and some its UUID: none of it may decide.
		{"brightbox", dmi("product_serial=srv-1ab2c.gb1.brightbox.com", "product_uuid="+xenUUID), "generic", "brightbox", dirDMI + "product_serial"},
		{"zstack", and(dmi("chassis_asset_tag=123.zstack.io", "product_uuid="+xenUUID), "sys/hypervisor/uuid", xenUUID), "generic", "zstack", dirDMI + "chassis_asset_tag"},
		{"e24cloud", dmi("sys_vendor=e24cloud", "product_uuid="+xenUUID), "generic", "e24cloud", dirDMI + "sys_vendor"},
		{"outscale", dmi("sys_vendor=3DS Outscale", "product_name=3DS Outscale VM", "product_uuid="+xenUUID), "generic", "outscale", dirDMI + "sys_vendor"},
		{"tilaa", dmi("sys_vendor=Tilaa", "product_uuid="+xenUUID), "generic", "tilaa", dirDMI + "sys_vendor"},

		// One machine in two thousand has such a UUID by chance.
		{"uuid by chance", dmi("sys_vendor=Dell Inc.", "product_name=PowerEdge R640", "product_uuid="+xenUUID), "generic", "", "network"},
		{"swapped uuid by chance", dmi("sys_vendor=QEMU", "product_uuid="+swapped), "generic", "", "network"},
		{"hypervisor uuid by chance", and(dmi("sys_vendor=QEMU"), "sys/hypervisor/uuid", xenUUID), "generic", "", "network"},

		{"hyper-v that is not azure", dmi("sys_vendor=Microsoft Corporation", "product_name=Virtual Machine", "chassis_asset_tag=1234-5678"), "generic", "", "network"},
		{"board tag of somebody else", dmi("sys_vendor=Dell Inc.", "board_asset_tag=inventory-42"), "generic", "", "network"},
		{"board tag of alibaba's form", dmi("board_asset_tag=i-bp13znx0m0me8cq0001"), "generic", "", "network"},
		{"chromebook", dmi("sys_vendor=Google", "product_name=Eve"), "generic", "", "network"},
		{"case matters", dmi("sys_vendor=amazon ec2", "product_name=google compute engine"), "generic", "", "network"},
		{"firmware without strings", dmi("sys_vendor=", "product_name="), "generic", "", "network"},
		{"no firmware strings at all", nil, "generic", "", "network"},

		// Firmware first, cloud-init after it.
		{"firmware beats cloud-init", and(dmi("board_asset_tag=i-0abc1234567890def"), cloudInit, `{"v1":{"cloud_name":"gce"}}`), "aws", "", dirDMI + "board_asset_tag"},
		{"cloud-init aws", map[string]string{cloudInit: `{"v1":{"cloud_name":"aws","platform":"ec2"}}`}, "aws", "", "/" + cloudInit},
		{"cloud-init azure, hyphen", map[string]string{cloudInit: `{"v1":{"cloud-name":"azure"}}`}, "azure", "", "/" + cloudInit},
		{"cloud-init aliyun", map[string]string{cloudInit: `{"v1":{"cloud_name":"aliyun"}}`}, "alibaba", "", "/" + cloudInit},
		{"cloud-init gce", map[string]string{cloudInit: `{"v1":{"cloud_name":"gce"}}`}, "gcp", "", "/" + cloudInit},
		{"cloud-init hetzner", map[string]string{cloudInit: `{"v1":{"cloud_name":"hetzner","instance_id":"4711"}}`}, "generic", "hetzner", "/" + cloudInit},
		// Its platform is ec2 for every imitation of EC2.
		{"cloud-init brightbox", map[string]string{cloudInit: `{"v1":{"cloud_name":"brightbox","platform":"ec2","instance_id":"srv-1"}}`}, "generic", "brightbox", "/" + cloudInit},
		{"cloud-init unknown ec2", map[string]string{cloudInit: `{"v1":{"cloud_name":"unknown","platform":"ec2","instance_id":"i-00000001"}}`}, "generic", "", "network"},
		{"cloud-init nocloud", map[string]string{cloudInit: `{"v1":{"cloud_name":"nocloud","instance_id":"iid-local01"}}`}, "generic", "", "network"},
		{"cloud-init oracle", map[string]string{cloudInit: `{"v1":{"cloud_name":"oracle","instance_id":"ocid1.instance.x"}}`}, "generic", "oci", "/" + cloudInit},
		{"cloud-init openstack", map[string]string{cloudInit: `{"v1":{"cloud_name":"openstack","instance_id":"b0fa911b"}}`}, "generic", "openstack", "/" + cloudInit},

		// A container sees the firmware of its host, and two of them are not one machine.
		{"container with a cloud-init of its own", and(and(dmi("board_asset_tag=i-0abc1234567890def"), "run/systemd/container", "lxc\n"), cloudInit, `{"v1":{"cloud_name":"lxd","instance_id":"4f7d2c"}}`), "generic", "lxd", "/" + cloudInit},
		{"container of docker", and(dmi("board_asset_tag=i-0abc1234567890def"), ".dockerenv", ""), "aws", "", dirDMI + "board_asset_tag"},
		{"container of podman, seeded", and(and(dmi("chassis_asset_tag="+azureTag), "run/.containerenv", ""), cloudInit, `{"v1":{"cloud_name":"nocloud","instance_id":"iid-1"}}`), "azure", "", dirDMI + "chassis_asset_tag"},
		{"container on a machine in no cloud", map[string]string{".dockerenv": ""}, "generic", "", "network"},

		{"cloud-init broken", map[string]string{cloudInit: `{"v1":`}, "generic", "", "network"},
	}
}

type detectCase struct {
	name               string
	files              map[string]string
	provider, platform string
	decidedBy          string
}

func TestDetect(t *testing.T) {
	for _, tt := range detectCases() {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			d, err := metadata.Detect(t.Context(), metadata.Options{Root: root, NoNetwork: true, DialContext: noDial(t)})
			must.OK(t, err)
			if d.Provider != tt.provider || d.Platform != tt.platform {
				t.Errorf("detected %s %q, want %s %q", d.Provider, d.Platform, tt.provider, tt.platform)
			}
			if got := d.Decisive().Source; got != tt.decidedBy {
				t.Errorf("decided by %s, want %s", got, tt.decidedBy)
			}
			checkEvidence(t, d)
		})
	}
}

// Somebody answers at the link-local address on many clouds, and on some as EC2 does. Where the firmware or cloud-init has
// spoken nobody there is even asked, however well he plays his part.
func TestDetectIsNotTempted(t *testing.T) {
	var asked atomic.Int64
	tempting := map[string]string{}
	for name, start := range map[string]func(testing.TB) string{"aws": fakeAWS, "azure": fakeAzure, "gcp": fakeGCP, "alibaba": fakeAlibaba} {
		behind, err := url.Parse(start(t))
		must.OK(t, err)
		proxy := &httputil.ReverseProxy{
			Transport: &http.Transport{}, // not the default one: it reads the proxy variables once for all tests
			// Not a Director: EC2 serves nothing that was forwarded.
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(behind) },
		}
		tempting[name] = serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			proxy.ServeHTTP(w, r)
		})
	}
	for _, tt := range detectCases() {
		for name, u := range tempting {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				before := asked.Load()
				d, err := metadata.Detect(t.Context(), metadata.Options{
					Root: tree(t, tt.files), Endpoints: map[string]string{"aws": u, "azure": u, "gcp": u, "alibaba": u},
				})
				must.OK(t, err)
				if tt.decidedBy == "network" {
					// Here he is asked, and believed: the control, without which the rest would show nothing.
					if d.Provider != name {
						t.Errorf("detected %s where only %s is to be seen", d.Provider, name)
					}
					return
				}
				if d.Provider != tt.provider || d.Platform != tt.platform || d.Decisive().Source != tt.decidedBy {
					t.Errorf("detected %s %q by %s, want %s %q by %s", d.Provider, d.Platform, d.Decisive().Source, tt.provider, tt.platform, tt.decidedBy)
				}
				if n := asked.Load() - before; n != 0 {
					t.Errorf("the network was asked %d times", n)
				}
			})
		}
	}
}

// Every row of the table stands in a test, so that a row that is added without one is found.
func TestDetectCoversTheTable(t *testing.T) {
	shown := map[string]bool{}
	for _, tt := range detectCases() {
		shown[tt.provider+" "+tt.platform+" by "+strings.TrimPrefix(tt.decidedBy, dirDMI)] = true
	}
	for _, want := range []string{
		"aws  by board_asset_tag", "aws  by product_uuid", "aws  by /sys/hypervisor/uuid", "aws  by sys_vendor", "azure  by chassis_asset_tag",
		"alibaba  by product_name", "gcp  by product_name", "gcp  by product_serial", "generic oci by chassis_asset_tag", "generic hetzner by sys_vendor",
		"generic digitalocean by sys_vendor", "generic openstack by product_name", "generic openstack by chassis_asset_tag",
		"generic brightbox by product_serial", "generic zstack by chassis_asset_tag", "generic e24cloud by sys_vendor", "generic outscale by sys_vendor",
		"generic tilaa by sys_vendor",
	} {
		if !shown[want] {
			t.Errorf("no case shows: %s", want)
		}
	}
}

// checkEvidence looks at what must hold of every list of evidence.
func checkEvidence(t *testing.T, d metadata.Detection) {
	t.Helper()
	decided := 0
	for i, e := range d.Evidence {
		if e.Source == "" || e.Verdict == "" {
			t.Errorf("evidence without source or verdict: %+v", e)
		}
		if e.Decided {
			decided++
			if i != len(d.Evidence)-1 {
				t.Errorf("what decided is not the last: %+v", d.Evidence)
			}
		}
	}
	if decided != 1 {
		t.Errorf("%d pieces of evidence decided, want one: %+v", decided, d.Evidence)
	}
	js, err := json.Marshal(d)
	must.OK(t, err)
	// Serial numbers and UUIDs identify hardware, and this goes into tickets.
	for _, secret := range []string{"-9099-", "012345abcdef", "012345ABCDEF", otherID, "0123456789ABCDEF", "srv-1ab2c"} {
		if strings.Contains(string(js), secret) {
			t.Errorf("the evidence shows %q: %s", secret, js)
		}
	}
}

func noDial(t *testing.T) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, addr string) (net.Conn, error) {
		t.Errorf("dialled %s %s", network, addr)
		return nil, errors.New("no network in this test")
	}
}

// What only root may read is told as such, and the rest still decides.
func TestDetectAsUser(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root reads everything; a folder in the place of the file cannot be read by anybody.
		root := tree(t, dmi("sys_vendor=Hetzner"))
		must.OK(t, os.MkdirAll(filepath.Join(root, "sys/class/dmi/id/product_uuid"), 0o755))
		d, err := metadata.Detect(t.Context(), metadata.Options{Root: root, NoNetwork: true})
		must.OK(t, err)
		i := slices.IndexFunc(d.Evidence, func(e metadata.Evidence) bool { return e.Source == dirDMI+"product_uuid" })
		if i < 0 || d.Evidence[i].Verdict != "cannot be read by this user" {
			t.Errorf("evidence: %+v", d.Evidence)
		}
		if d.Platform != "hetzner" {
			t.Errorf("platform %q", d.Platform)
		}
		return
	}
	root := tree(t, dmi("sys_vendor=Hetzner", "product_uuid="+otherID))
	must.OK(t, os.Chmod(filepath.Join(root, "sys/class/dmi/id/product_uuid"), 0))
	if d, err := metadata.Detect(t.Context(), metadata.Options{Root: root, NoNetwork: true}); err != nil || d.Platform != "hetzner" {
		t.Errorf("detected %+v, %v", d, err)
	}
}

func TestDetectChecksItsSettings(t *testing.T) {
	for _, name := range metadata.Names() {
		_, err := metadata.Detect(t.Context(), metadata.Options{Root: t.TempDir(), Endpoints: map[string]string{name: "http://x/latest/"}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

func TestGiven(t *testing.T) {
	d := metadata.Given("azure", "--provider")
	checkEvidence(t, d)
	if d.Provider != "azure" || d.Decisive().Source != "--provider" {
		t.Errorf("Given() = %+v", d)
	}
}

// With no network at all the last step must not hold up a machine that is in no cloud: a second, and a half to spare.
func TestDetectWithoutNetworkIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{}) // net/http goes on dialling for a request that was given up
		defer close(over)
		hang := func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-over:
				return nil, net.ErrClosed
			}
		}
		begin := time.Now()
		// Without a root, so that the network is asked; the firmware strings are those of the machine this test runs on.
		d, err := metadata.Detect(t.Context(), metadata.Options{DialContext: hang})
		must.OK(t, err)
		took := time.Since(begin)
		if d.Decisive().Source != "all of the above" {
			t.Skipf("this machine is known by %s", d.Decisive().Source)
		}
		if d.Provider != "generic" || took > 1500*time.Millisecond {
			t.Errorf("detected %s after %v", d.Provider, took)
		}
		t.Logf("generic after %v", took)
	})
}
