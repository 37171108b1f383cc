// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/generic"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// The machine id of the trees, and what systemd-id128 makes of it (worked out apart from this code).
const (
	machineID = "0123456789abcdef0123456789abcdef"
	derivedID = "9de891b3bea241469e3d059c8ef2862b"
)

const hintTags = "without a cloud's metadata no tags are known: give role and group by flag, environment or configuration file"

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// lookup answers like the kernel of a machine with these interfaces.
func lookup(m map[string][]netip.Addr) func(*cloud.Options) {
	return func(o *cloud.Options) {
		o.Interfaces = func(name string) ([]netip.Addr, error) {
			a, ok := m[name]
			if !ok {
				return nil, fmt.Errorf("interface %s: no such network interface", name)
			}
			return a, nil
		}
	}
}

func base(hostname string) cloud.Instance {
	return cloud.Instance{Provider: "generic", ID: "m-" + derivedID, IDSource: "derived from the machine id", Hostname: hostname, TagsHint: hintTags}
}

func with(i cloud.Instance, change func(*cloud.Instance)) cloud.Instance {
	change(&i)
	return i
}

func machines() []metadatatest.Machine {
	eth0 := lookup(map[string][]netip.Addr{"eth0": addrs("10.0.1.23", "fe80::1")})
	onEth0 := func(i cloud.Instance) cloud.Instance {
		i.Address, i.AddressSource = netip.MustParseAddr("10.0.1.23"), "address of the default route's interface eth0"
		return i
	}
	return []metadatatest.Machine{
		{
			Name: "bare_metal", Root: "testdata/bare-metal",
			Options: lookup(map[string][]netip.Addr{"eno1": addrs("169.254.9.9", "10.0.1.5", "10.0.1.6", "fe80::5")}),
			Want: with(base("edge-1"), func(i *cloud.Instance) {
				i.Address, i.AddressSource = netip.MustParseAddr("10.0.1.5"), "address of the default route's interface eno1"
			}),
		},
		{
			// The lowest metric wins, of equals the first; docker0 and the VPN are not asked (AMS issues 6707, 4957).
			Name: "multi_homed", Root: "testdata/multi-homed",
			Options: lookup(map[string][]netip.Addr{
				"tun0": addrs("10.10.8.2"), "ens5": addrs("10.0.1.23"), "docker0": addrs("172.17.0.1"),
				"ens6": addrs("10.0.2.23", "2001:db8::61", "2001:db8::62", "fd00::63", "2001:db8::64", "fe80::6"),
			}),
			Want: with(base("origin-1"), func(i *cloud.Instance) {
				i.Address, i.AddressSource = netip.MustParseAddr("10.0.2.23"), "address of the default route's interface ens6"
				// Not the temporary one, not the deprecated one, not the unique local one.
				i.IPv6 = netip.MustParseAddr("2001:db8::64")
			}),
		},
		{
			Name: "ipv6_only", Root: "testdata/ipv6-only",
			Options: lookup(map[string][]netip.Addr{"ens5": addrs("169.254.1.74", "2001:db8::a1", "fe80::a1")}),
			Want: with(base("v6"), func(i *cloud.Instance) {
				i.Address, i.IPv6 = netip.MustParseAddr("2001:db8::a1"), netip.MustParseAddr("2001:db8::a1")
				i.AddressSource = "address of the IPv6 default route's interface ens5, since there is no IPv4 default route with an address"
			}),
		},
		{Name: "no_route", Root: "testdata/no-route", Options: lookup(nil), Want: base("lonely")},
		{
			Name: "interface_vanished", Root: "testdata/bare-metal", Options: lookup(nil),
			Want: base("edge-1"),
		},
		{
			Name: "public_address_on_the_default_route", Root: "testdata/bare-metal",
			Options: lookup(map[string][]netip.Addr{"eno1": addrs("203.0.113.7")}),
			Want: with(base("edge-1"), func(i *cloud.Instance) {
				i.Address, i.AddressSource = netip.MustParseAddr("203.0.113.7"), "address of the default route's interface eno1"
				i.PublicAddress = i.Address
			}),
		},
		{
			Name: "golden_image_with_a_name", Root: "testdata/unsealed", Options: lookup(nil),
			Want: with(base("node-7"), func(i *cloud.Instance) { i.ID, i.IDSource = "host-node-7", "host name, since there is no machine id" }),
		},
		{Name: "golden_image_without_a_name", Root: "testdata/nameless", Options: lookup(nil), WantErr: cloud.ErrNotFound},
		{Name: "machine_id_of_dbus", Root: "testdata/dbus-only", Options: lookup(nil), Want: base("old")},
		{
			Name: "cloud_init_hetzner", Root: "testdata/hetzner", Options: eth0,
			Want: onEth0(with(base("edge-1"), func(i *cloud.Instance) {
				i.ID, i.IDSource, i.Region, i.Zone = "4711", "cloud-init's instance id on hetzner", "eu-central", "fsn1-dc14"
				i.TagsHint = noTags("hetzner")
			})),
		},
		{
			Name: "cloud_init_hyphens_and_nulls", Root: "testdata/cloud-init-hyphens-and-nulls", Options: eth0,
			Want: onEth0(with(base("from-etc"), func(i *cloud.Instance) {
				i.ID, i.IDSource = "386734086", "cloud-init's instance id on digitalocean"
				i.TagsHint = noTags("digitalocean")
			})),
		},
		// A seed that a person wrote has the same id on every clone.
		{Name: "cloud_init_nocloud", Root: "testdata/nocloud", Options: eth0, Want: onEth0(base("seeded"))},
		{Name: "cloud_init_without_a_source", Root: "testdata/cloud-init-none", Options: eth0, Want: onEth0(base("plain"))},
		{Name: "cloud_init_broken", Root: "testdata/cloud-init-broken", Options: eth0, Want: onEth0(base("broken"))},
		{
			Name: "cloud_init_wrong_types", Root: "testdata/cloud-init-wrong-types", Options: eth0,
			Want: onEth0(with(base("odd"), func(i *cloud.Instance) { i.Zone = "z1" })),
		},
	}
}

func noTags(name string) string {
	return "cloud-init hands on no tags of " + name + ": give role and group by flag, environment or configuration file"
}

const hintNotYet = "cloud-init is still looking for its cloud at this boot: cloud-init status --wait shows when it has done so, and why it has not"

// cloudMachines are machines of clouds that are read through cloud-init and the firmware; see testdata/README.
func cloudMachines() []metadatatest.Machine {
	eth0 := lookup(map[string][]netip.Addr{"eth0": addrs("10.0.1.23", "fe80::1")})
	at := func(i cloud.Instance, change func(*cloud.Instance)) cloud.Instance {
		i.Address, i.AddressSource = netip.MustParseAddr("10.0.1.23"), "address of the default route's interface eth0"
		change(&i)
		return i
	}
	serial := "firmware's product_serial, which is the instance's id on this cloud"
	return []metadatatest.Machine{
		{
			// What was said at the launch counts least, a free-form tag most.
			Name: "oci", Root: "testdata/oci", Options: eth0,
			Want: at(base("edge-1"), func(i *cloud.Instance) {
				i.ID, i.IDSource = "ocid1.instance.oc1.phx.anyhqljtexampleexampleexample", "cloud-init's instance id on oracle"
				i.Region, i.Zone, i.Type, i.Group = "us-phoenix-1", "phx-ad-1", "VM.Standard.E4.Flex", "ocid1.instancepool.oc1.phx.aaaaaaaaexample"
				i.TagsKnown, i.TagsHint = true, ""
				i.Tags = cloud.Tags{
					"amsagent-role": "edge", "cost center": "42", "amsagent:group": "pool-edges",
					"Oracle-Tags:CreatedBy": "default/someone@example.com", "Oracle-Tags:CreatedOn": "2026-11-20T08:00:00.123Z",
				}
			}),
		},
		{
			Name: "openstack", Root: "testdata/openstack", Options: eth0,
			Want: at(base("origin-1"), func(i *cloud.Instance) {
				i.ID, i.IDSource = "b0fa911b-69d4-4476-bbe2-1c92bff6535c", "cloud-init's instance id on openstack"
				i.Zone, i.Type, i.PublicAddress = "nova", "m1.large", netip.MustParseAddr("203.0.113.7")
				i.TagsKnown, i.TagsHint = true, ""
				i.Tags = cloud.Tags{"amsagent:role": "origin", "amsagent-group": "west", "priority": "7"}
			}),
		},
		{
			Name: "openstack_without_a_route", Root: "testdata/openstack",
			Options: lookup(map[string][]netip.Addr{"eth0": addrs("fe80::1")}),
			Want: with(base("origin-1"), func(i *cloud.Instance) {
				i.ID, i.IDSource = "b0fa911b-69d4-4476-bbe2-1c92bff6535c", "cloud-init's instance id on openstack"
				i.Zone, i.Type, i.PublicAddress = "nova", "m1.large", netip.MustParseAddr("203.0.113.7")
				i.Address, i.AddressSource = netip.MustParseAddr("10.0.1.23"), "private address in cloud-init's data, since there is no default route with an address"
				i.TagsKnown, i.TagsHint = true, ""
				i.Tags = cloud.Tags{"amsagent:role": "origin", "amsagent-group": "west", "priority": "7"}
			}),
		},
		{
			// A config drive can be anybody's, so it is the firmware that is believed. No property was given: that is known.
			Name: "openstack_by_config_drive", Root: "testdata/openstack-config-drive", Options: eth0,
			Want: at(base("edge-7"), func(i *cloud.Instance) {
				i.ID, i.IDSource = "0d3b7c9e-5a2f-4c1d-8e6f-7a8b9c0d1e2f", "firmware's product_uuid, which is the instance's id on this cloud"
				i.Zone, i.TagsKnown, i.TagsHint, i.Tags = "az-2", true, "", cloud.Tags{}
			}),
		},
		{
			Name: "digitalocean", Root: "testdata/digitalocean", Options: lookup(map[string][]netip.Addr{"eth0": addrs("203.0.113.9", "10.17.0.9")}),
			Want: with(base("edge-1"), func(i *cloud.Instance) {
				i.ID, i.IDSource, i.Region, i.Zone = "386734086", "cloud-init's instance id on digitalocean", "nyc3", "nyc3"
				i.Address, i.AddressSource = netip.MustParseAddr("203.0.113.9"), "address of the default route's interface eth0"
				i.PublicAddress, i.TagsHint = i.Address, noTags("digitalocean")
			}),
		},
		{
			// It passes for EC2 by its UUID and its platform.
			Name: "brightbox", Root: "testdata/brightbox", Options: eth0,
			Want: at(base("edge-b"), func(i *cloud.Instance) {
				i.ID, i.IDSource, i.Region, i.Zone = "srv-1ab2c", "cloud-init's instance id on brightbox", "gb1", "gb1-a"
				i.TagsHint = noTags("brightbox")
			}),
		},
		// Somebody has switched cloud-init off after the first boot: the machine stays the same one.
		{
			Name: "cloud_init_switched_off", Root: "testdata/switched-off", Options: eth0,
			Want: at(base("edge-2"), func(i *cloud.Instance) { i.ID, i.IDSource = "4712", serial }),
		},
		{Name: "cloud_init_ended_without_data", Root: "testdata/ended", Options: eth0, Want: at(base("edge-2"), func(*cloud.Instance) {})},
		// The firmware that a container sees is its host's, and so is the number in it.
		{Name: "container_on_a_droplet", Root: "testdata/container", Options: eth0, Want: at(base("ct-1"), func(*cloud.Instance) {})},
	}
}

// bootingMachines are looked at before cloud-init has written its data, and do not wait for long.
func bootingMachines() []metadatatest.Machine {
	eth0 := lookup(map[string][]netip.Addr{"eth0": addrs("10.0.1.23")})
	impatient := func(o *cloud.Options) {
		eth0(o)
		o.Timeout, o.RetryWait = 20*time.Millisecond, time.Millisecond
	}
	return []metadatatest.Machine{
		// The machine id would be another name than the one of a minute later.
		{Name: "still_booting", Root: "testdata/booting", Options: impatient, WantErr: cloud.ErrNotReady},
		{Name: "still_booting_on_openstack", Root: "testdata/booting-openstack", Options: impatient, WantErr: cloud.ErrNotReady},
		{
			Name: "still_booting_with_an_id_in_the_firmware", Root: "testdata/booting-hetzner", Options: impatient,
			Want: with(base("edge-2"), func(i *cloud.Instance) {
				i.ID, i.IDSource = "4712", "firmware's product_serial, which is the instance's id on this cloud"
				i.Address, i.AddressSource = netip.MustParseAddr("10.0.1.23"), "address of the default route's interface eth0"
				i.TagsHint, i.Missing = hintNotYet, []string{"region", "tags", "zone"}
			}),
		},
	}
}

func open(o cloud.Options) (cloud.Provider, error) {
	p, err := generic.New(o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func TestConformance(t *testing.T) {
	all := slices.Concat(machines(), cloudMachines(), bootingMachines())
	metadatatest.Run(t, metadatatest.Suite{Name: generic.Name, Open: open, Machines: all})
}

// What went wrong or was chosen is told in words, since the address a node registers is what clusters break by.
func TestNotes(t *testing.T) {
	for name, want := range map[string]string{
		"no_route":                            "no default route with a usable address was found: give the address of this node by --address",
		"interface_vanished":                  "interface eno1: no such network interface",
		"public_address_on_the_default_route": "203.0.113.7, the address of the default route, is public",
		"cloud_init_broken":                   "reading cloud-init's instance data: unexpected end of JSON input",
		"cloud_init_wrong_types":              "v1.instance_id: neither text nor a number",
	} {
		for _, m := range machines() {
			if m.Name != name {
				continue
			}
			o := cloud.Options{Root: m.Root}
			m.Options(&o)
			p, err := generic.New(o)
			must.OK(t, err)
			inst, err := p.Instance(t.Context())
			must.OK(t, err)
			if all := strings.Join(inst.Notes, "\n"); !strings.Contains(all, want) {
				t.Errorf("%s: notes %q, want %q in them", name, all, want)
			}
		}
	}
}

func TestNoIdentityHint(t *testing.T) {
	p, err := generic.New(cloud.Options{Root: "testdata/nameless"})
	must.OK(t, err)
	_, err = p.Instance(t.Context())
	for _, want := range []string{"--offline", "on this machine: systemd-machine-id-setup --root=testdata/nameless"} {
		if !strings.Contains(cloud.HintOf(err), want) {
			t.Errorf("hint = %q, want %q; error = %v", cloud.HintOf(err), want, err)
		}
	}
}

// Below another root the interfaces of the machine we run on say nothing.
func TestForeignRootAsksNoInterface(t *testing.T) {
	p, err := generic.New(cloud.Options{Root: "testdata/bare-metal"})
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if inst.Address.IsValid() {
		t.Errorf("Address = %s, from this machine's own interfaces", inst.Address)
	}
}

func TestMachineID(t *testing.T) {
	got, err := generic.DeriveMachineID(machineID)
	if err != nil || got != derivedID {
		t.Errorf("DeriveMachineID() = %q, %v, want %q", got, err, derivedID)
	}
	for _, bad := range []string{"", "uninitialized", machineID[:31], machineID + "0", strings.Repeat("0", 32), strings.Repeat("g", 32)} {
		if got, err := generic.DeriveMachineID(bad); err == nil {
			t.Errorf("DeriveMachineID(%q) = %q, want an error", bad, got)
		} else if len(bad) > 13 && strings.Contains(err.Error(), bad) {
			t.Errorf("the error shows the machine id: %v", err)
		}
	}
}

// The same derivation by systemd itself, where there is one.
func TestMachineIDAgreesWithSystemd(t *testing.T) {
	tool, err := exec.LookPath("systemd-id128")
	if err != nil {
		t.Skip("systemd-id128 is not installed")
	}
	out, err := exec.CommandContext(t.Context(), tool, "machine-id", "--app-specific=e3db9ca5a4ae4ac0aaf7e6b2eb021a95").Output()
	if err != nil {
		t.Skipf("this machine has no machine id: %v", err)
	}
	got, err := generic.MachineID("/")
	must.OK(t, err)
	if want := strings.TrimSpace(string(out)); got != want {
		t.Errorf("MachineID() = %s, systemd says %s", got, want)
	}
}

// The id itself must not get out by any way of looking at an instance.
func TestMachineIDStaysInside(t *testing.T) {
	for _, m := range slices.Concat(machines(), cloudMachines()) {
		o := cloud.Options{Root: m.Root}
		m.Options(&o)
		p, err := generic.New(o)
		must.OK(t, err)
		inst, err := p.Instance(t.Context())
		if out := fmt.Sprintf("%+v %v", inst, err); strings.Contains(out, machineID) {
			t.Errorf("%s: %s", m.Name, out)
		}
	}
}

func TestReadCloudInitAbsent(t *testing.T) {
	if _, err := generic.ReadCloudInit(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error = %v, want fs.ErrNotExist", err)
	}
}

func TestReadCloudInitTooLarge(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, generic.CloudInitPath)
	must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must.OK(t, os.WriteFile(path, []byte(`{"v1":{}}`+strings.Repeat(" ", 9<<20)), 0o600))
	if _, err := generic.ReadCloudInit(root); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("error = %v", err)
	}
}

// The kernel's own tables of the machine this test runs on are read without a mistake.
func TestOwnRoutes(t *testing.T) {
	for path, parse := range map[string]func([]byte) string{"/proc/net/route": generic.ParseRoutes, "/proc/net/ipv6_route": generic.ParseIPv6Routes} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Logf("%s: %v", path, err)
			continue
		}
		name := parse(b)
		if name == "lo" {
			t.Errorf("%s: default route by lo", path)
		}
		if name == "" {
			continue
		}
		if _, err := cloud.InterfaceAddresses(name); err != nil {
			t.Errorf("%s: interface %s: %v", path, name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range slices.Concat(machines(), cloudMachines()) {
		for _, path := range []string{"proc/net/route", "proc/net/ipv6_route", "proc/net/if_inet6", "run/cloud-init/instance-data.json"} {
			if b, err := os.ReadFile(filepath.Join(m.Root, path)); err == nil {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range []string{generic.ParseRoutes(b), generic.ParseIPv6Routes(b)} {
			if strings.ContainsAny(name, " \t\n") || (name != "" && !strings.Contains(string(b), name)) {
				t.Errorf("interface %q", name)
			}
		}
		for a := range generic.ParseIfInet6(b) {
			if !a.Is6() {
				t.Errorf("address %s", a)
			}
		}
		ci, _ := generic.ParseCloudInit(b)
		for _, v := range []string{ci.CloudName, ci.CloudID, ci.InstanceID, ci.Region, ci.AvailabilityZone, ci.LocalHostname, ci.InstanceType, ci.Group} {
			if strings.ContainsAny(v, "\n\r\x00") || len(v) > 400 {
				t.Errorf("let through %q", v)
			}
		}
		for k, v := range ci.Tags {
			if k == "" || len(k) > 511 || len(v) > 4<<10 || strings.ContainsAny(k, "\n\x00") {
				t.Errorf("let through the tag %q=%q", k, v)
			}
		}
		for _, a := range []netip.Addr{ci.Private, ci.Public} {
			if a.IsValid() && !a.IsGlobalUnicast() {
				t.Errorf("let through the address %s", a)
			}
		}
		if _, err := generic.DeriveMachineID(string(b)); err == nil && len(b) != 32 {
			t.Errorf("an id out of %q", b)
		}
	})
}
