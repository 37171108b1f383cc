// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/generic"
)

// What is not of the shape expected is told with its place and left out, and takes nothing else with it. What may be the
// role must not look as if there were none.
func TestParseCloudInitData(t *testing.T) {
	v1 := func(name, ds string) string {
		return fmt.Sprintf(`{"v1":{"cloud_name":%q,"instance_id":"id-1"},"ds":%s}`, name, ds)
	}
	base := func(name string) generic.CloudInit { return generic.CloudInit{CloudName: name, InstanceID: "id-1"} }
	for _, tt := range []struct {
		name, in string
		want     func(*generic.CloudInit)
		err      string
	}{
		{"no data at all", `{"v1":{"cloud_name":"openstack","instance_id":"id-1"}}`, nil, ""},
		{"data of null", v1("openstack", `null`), nil, ""},
		{"data kept from us", v1("oracle", `"redacted for non-root user"`), nil, ""},
		{"metadata kept from us", v1("openstack", `{"meta_data":"redacted for non-root user"}`), nil, ""},
		{"data of a wrong type", v1("oracle", `["x"]`), nil, "ds: no object"},
		{"metadata of a wrong type", v1("openstack", `{"meta_data":7}`), nil, "ds.meta_data: no object"},
		{"openstack, no properties", v1("openstack", `{"meta_data":{"uuid":"u"}}`), func(ci *generic.CloudInit) {
			ci.Tags, ci.TagsKnown = map[string]string{}, true
		}, ""},
		{"openstack, properties of null", v1("openstack", `{"meta_data":{"meta":null}}`), func(ci *generic.CloudInit) {
			ci.Tags, ci.TagsKnown = map[string]string{}, true
		}, ""},
		{"openstack, properties of a wrong type", v1("openstack", `{"meta_data":{"meta":["amsagent-role"]}}`), func(ci *generic.CloudInit) {
			ci.Tags = map[string]string{}
		}, "ds.meta_data.meta: no object"},
		{"openstack, a property kept from us", v1("openstack", `{"meta_data":{"meta":{"a":"b","amsagent-role":"redacted for non-root user"}}}`), func(ci *generic.CloudInit) {
			ci.Tags = map[string]string{"a": "b"}
		}, ""},
		{"openstack, a property of a wrong type", v1("openstack", `{"meta_data":{"meta":{"amsagent-role":["edge"],"a":"b","n":7,"y":true}}}`), func(ci *generic.CloudInit) {
			ci.Tags = map[string]string{"a": "b", "n": "7", "y": "true"}
		}, "ds.meta_data.meta.amsagent-role: no text, so it is no tag"},
		{"openstack, no such addresses", v1("openstack", `{"ec2_metadata":{"local-ipv4":"0.0.0.0","public-ipv4":""}}`), nil, ""},
		{"openstack, several addresses", v1("openstack", `{"ec2_metadata":{"local-ipv4":"10.0.1.23,10.0.2.4","public-ipv4":null}}`), func(ci *generic.CloudInit) {
			ci.Private = netip.MustParseAddr("10.0.1.23")
		}, ""},
		{"openstack, an address that is none", v1("openstack", `{"ec2_metadata":{"local-ipv4":"ten"}}`), nil, "ds.ec2_metadata.local-ipv4: no address"},
		{"openstack, an address of a wrong type", v1("openstack", `{"ec2_metadata":{"local-ipv4":{"a":1}}}`), nil, "ds.ec2_metadata.local-ipv4: neither text nor a number"},
		{"oracle, no tags", v1("oracle", `{"freeformTags":{},"definedTags":{},"shape":"S"}`), func(ci *generic.CloudInit) {
			ci.InstanceType, ci.Tags, ci.TagsKnown = "S", map[string]string{}, true
		}, ""},
		{"oracle, tags absent", v1("oracle", `{"shape":"S"}`), func(ci *generic.CloudInit) {
			ci.InstanceType, ci.Tags, ci.TagsKnown = "S", map[string]string{}, true
		}, ""},
		{"oracle, tags kept from us", v1("oracle", `{"freeformTags":"redacted for non-root user","definedTags":{}}`), func(ci *generic.CloudInit) { ci.Tags = map[string]string{} }, ""},
		{"oracle, namespaces kept from us", v1("oracle", `{"definedTags":"redacted for non-root user","freeformTags":{"a":"b"}}`), func(ci *generic.CloudInit) {
			ci.Tags = map[string]string{"a": "b"}
		}, ""},
		{"oracle, what was given at the launch", v1("oracle", `{"metadata":{"amsagent-role":"edge","n":7,"x":{},"user_data":"c2VjcmV0","ssh_authorized_keys":"k"}}`), func(ci *generic.CloudInit) {
			ci.Tags, ci.TagsKnown, ci.Launch = map[string]string{}, true, map[string]string{"amsagent-role": "edge", "n": "7"}
		}, "ds.metadata.x: no text"},
		{"oracle, a namespace of a wrong type", v1("oracle", `{"definedTags":{"amsagent":"edge"},"freeformTags":{"a":"b"}}`), func(ci *generic.CloudInit) {
			ci.Tags = map[string]string{"a": "b"}
		}, "ds.definedTags.amsagent: no object"},
		{"digitalocean, interfaces of a wrong type", v1("digitalocean", `{"meta_data":{"interfaces":{"public":{},"private":[7,{"ipv4":{"ip_address":"10.1.1.1"}}]}}}`), func(ci *generic.CloudInit) {
			ci.Private = netip.MustParseAddr("10.1.1.1")
		}, "ds.meta_data.interfaces.public: no list"},
		{"digitalocean, should tags ever come", v1("digitalocean", `{"meta_data":{"tags":["web","amsagent-role:edge","amsagent:group:west",""]}}`), func(ci *generic.CloudInit) {
			ci.Tags, ci.TagsKnown = map[string]string{"web": "", "amsagent-role": "edge", "amsagent:group": "west"}, true
		}, ""},
		{"digitalocean, tags of a wrong type", v1("digitalocean", `{"meta_data":{"tags":{"a":1}}}`), nil, "ds.meta_data.tags: no list of words"},
		// Whose data are not known is not looked at, whatever it is.
		{"another cloud", v1("vultr", `{"meta_data":{"meta":{"amsagent-role":"edge"}}}`), nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var doc struct {
				V1 struct {
					CloudName string `json:"cloud_name"`
				}
			}
			must.OK(t, json.Unmarshal([]byte(tt.in), &doc))
			want := base(doc.V1.CloudName)
			if tt.want != nil {
				tt.want(&want)
			}
			got, err := generic.ParseCloudInit([]byte(tt.in))
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Error(d)
			}
			switch {
			case tt.err == "" && err != nil:
				t.Errorf("error = %v", err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error = %v, want %q in it", err, tt.err)
			}
		})
	}
}

// A tag that cannot be read leaves the tags unknown, with a word on where to look.
func TestBrokenTagIsMissing(t *testing.T) {
	root := t.TempDir()
	write(t, root, "etc/machine-id", machineID)
	write(t, root, generic.CloudInitPath, `{"v1":{"cloud_name":"openstack","instance_id":"u"},"ds":{"meta_data":{"meta":{"amsagent-role":{},"a":"b"}}}}`)
	p, err := generic.New(cloud.Options{Root: root})
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if inst.TagsKnown || inst.TagsHint == "" || len(inst.Missing) != 1 || inst.Missing[0] != "tags" || inst.Tags["a"] != "b" {
		t.Errorf("TagsKnown %v, TagsHint %q, Missing %v, Tags %v", inst.TagsKnown, inst.TagsHint, inst.Missing, inst.Tags)
	}
}

// What somebody gave a machine at its launch is read where it is meant for us, and never shown where it is not.
func TestLaunchValues(t *testing.T) {
	root := t.TempDir()
	write(t, root, "etc/machine-id", machineID)
	write(t, root, generic.CloudInitPath, `{"v1":{"cloud_name":"oracle","instance_id":"u"},"ds":{"freeformTags":{"amsagent-group":"west"},`+
		`"metadata":{"amsagent-role":"edge","amsagent-group":"east","our-place":"p","db_password":"hunter2"}}}`)
	p, err := generic.New(cloud.Options{Root: root})
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if d := cmp.Diff(cloud.Tags{"amsagent-role": "edge", "amsagent-group": "west"}, inst.Tags); d != "" || !inst.TagsKnown {
		t.Errorf("known %v: %s", inst.TagsKnown, d)
	}
}

// A cluster's nodes should meet in the private network, which the cloud names here.
func TestPublicRouteNamesThePrivateAddress(t *testing.T) {
	o := cloud.Options{Root: "testdata/digitalocean"}
	lookup(map[string][]netip.Addr{"eth0": addrs("203.0.113.9")})(&o)
	p, err := generic.New(o)
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if all := strings.Join(inst.Notes, "\n"); !strings.Contains(all, "which is 10.108.0.4 by what the cloud says") {
		t.Errorf("notes: %q", all)
	}
}

// write makes a file below a root.
func write(t *testing.T, root, path, body string) {
	t.Helper()
	path = filepath.Join(root, path)
	must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must.OK(t, os.WriteFile(path, []byte(body), 0o600))
}

const instanceData = `{"v1":{"cloud_name":"hetzner","instance_id":"4711"}}`

// The converger at boot is earlier than cloud-init: it waits, and finds what a join in user data finds.
func TestWaitsForCloudInit(t *testing.T) {
	root := t.TempDir()
	write(t, root, "etc/machine-id", machineID)
	write(t, root, "run/cloud-init/enabled", "")
	synctest.Test(t, func(t *testing.T) {
		p, err := generic.New(cloud.Options{Root: root})
		must.OK(t, err)
		go func() {
			timer := time.NewTimer(5 * time.Second)
			<-timer.C
			write(t, root, generic.CloudInitPath, instanceData)
		}()
		begin := time.Now()
		inst, err := p.Instance(t.Context())
		must.OK(t, err)
		if inst.ID != "4711" {
			t.Errorf("ID = %q", inst.ID)
		}
		if took := time.Since(begin); took < 5*time.Second || took > 5*time.Second+cloud.MaxRetryWait {
			t.Errorf("took %v", took)
		}
	})
}

func TestWaitForCloudInitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := generic.New(cloud.Options{Root: "testdata/booting"})
		must.OK(t, err)
		begin := time.Now()
		_, err = p.Instance(t.Context())
		if !errors.Is(err, cloud.ErrNotReady) || !strings.Contains(cloud.HintOf(err), "cloud-init status --wait") {
			t.Errorf("error = %v, hint %q", err, cloud.HintOf(err))
		}
		if took := time.Since(begin); took != cloud.DefaultTimeout {
			t.Errorf("took %v", took)
		}
	})
}

func TestWaitForCloudInitEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := generic.New(cloud.Options{Root: "testdata/booting"})
		must.OK(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err = p.Instance(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// Clones of one disk have one seed: what a person wrote, or what cloud-init makes up, names no machine.
func TestHasOwnID(t *testing.T) {
	for _, tt := range []struct {
		cloud, id string
		want      bool
	}{
		{"nocloud", "iid-local01", false},
		{"NoCloud", "my-vm", false},
		{"none", "iid-datasource-none", false},
		{"configdrive", "b0fa911b-69d4-4476-bbe2-1c92bff6535c", false},
		{"ovf", "vm", false},
		{"unknown", "i-1", false},
		{"", "i-1", false},
		// cloud-init's own stand-ins for an id that it did not find.
		{"openstack", "iid-dsopenstack", false},
		{"hetzner", "iid-datasource", false},
		{"hetzner", "", false},
		{"hetzner", "4711", true},
		{"oracle", "ocid1.instance.x", true},
		{"brightbox", "srv-1ab2c", true},
		{"lxd", "4f7d", true},
	} {
		if got := (generic.CloudInit{CloudName: tt.cloud, InstanceID: tt.id}).HasOwnID(); got != tt.want {
			t.Errorf("%s %q: %v, want %v", tt.cloud, tt.id, got, tt.want)
		}
	}
}

// The firmware's id is for root; without it the machine id has to do, and whoever looks is told that root sees another.
func TestFirmwareForRootOnly(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	root := t.TempDir()
	write(t, root, "etc/machine-id", machineID)
	write(t, root, "sys/class/dmi/id/sys_vendor", "Hetzner\n")
	write(t, root, "sys/class/dmi/id/product_serial", "4712\n")
	must.OK(t, os.Chmod(filepath.Join(root, "sys/class/dmi/id/product_serial"), 0))
	p, err := generic.New(cloud.Options{Root: root})
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if inst.ID != "m-"+derivedID || !strings.Contains(strings.Join(inst.Notes, "\n"), "for root only") {
		t.Errorf("ID %q, notes %q", inst.ID, inst.Notes)
	}
}

// A serial number that is none, and a UUID of a machine that is in no such cloud, name nobody.
func TestFirmwareOfOthers(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"a default serial": {"sys_vendor": "Hetzner", "product_serial": "Not Specified"},
		"a default uuid":   {"product_name": "OpenStack Nova", "product_uuid": "no-uuid"},
		"another vendor":   {"sys_vendor": "Dell Inc.", "product_serial": "4712", "product_uuid": "b0fa911b-69d4-4476-bbe2-1c92bff6535c"},
		"nothing":          {},
	} {
		root := t.TempDir()
		write(t, root, "etc/machine-id", machineID)
		for n, v := range files {
			write(t, root, "sys/class/dmi/id/"+n, v+"\n")
		}
		p, err := generic.New(cloud.Options{Root: root})
		must.OK(t, err)
		if inst, err := p.Instance(t.Context()); err != nil || inst.ID != "m-"+derivedID {
			t.Errorf("%s: %q, %v", name, inst.ID, err)
		}
	}
}
