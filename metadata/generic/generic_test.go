// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// The machine id of the trees, and the output of systemd-id128 for it.
const (
	machineID = "0123456789abcdef0123456789abcdef"
	derivedID = "9de891b3bea241469e3d059c8ef2862b"
)

const tagsHint = "without a cloud's metadata no tags are known: give MongoDB's address, role and group by flag, environment or configuration file"

func base(hostname string) cloud.Instance {
	return cloud.Instance{Provider: "generic", ID: "m-" + derivedID, IDSource: "derived from the machine id", Hostname: hostname, TagsHint: tagsHint}
}

func with(i cloud.Instance, change func(*cloud.Instance)) cloud.Instance {
	change(&i)
	return i
}

type machine struct {
	Name, Root string
	Options    func(*cloud.Options)
	// Want is compared without Notes, one of which has WantNote: a wrong address breaks clusters.
	Want     cloud.Instance
	WantNote string
	WantErr  error
}

func machines() []machine {
	eth0 := metadatatest.Sends("10.0.1.23", "")
	onEth0 := func(i cloud.Instance) cloud.Instance {
		i.Address, i.AddressSource = netip.MustParseAddr("10.0.1.23"), "address that the default route sends from"
		return i
	}
	return []machine{
		{Name: "bare_metal", Root: "testdata/bare-metal", Options: eth0, Want: onEth0(base("edge-1"))},
		{
			Name: "multi_homed", Root: "testdata/bare-metal", Options: metadatatest.Sends("10.0.1.23", "2001:db8::64"),
			Want: onEth0(with(base("edge-1"), func(i *cloud.Instance) { i.IPv6 = netip.MustParseAddr("2001:db8::64") })),
		},
		{
			Name: "ipv6_only", Root: "testdata/bare-metal", Options: metadatatest.Sends("", "2001:db8::a1"),
			Want: with(base("edge-1"), func(i *cloud.Instance) {
				i.Address, i.IPv6 = netip.MustParseAddr("2001:db8::a1"), netip.MustParseAddr("2001:db8::a1")
				i.AddressSource = "address that the IPv6 default route sends from, since there is no IPv4 route"
			}),
		},
		{
			Name: "no_route", Root: "testdata/bare-metal", Options: metadatatest.Sends("", ""), Want: base("edge-1"),
			WantNote: "no default route with a usable address was found: give the address of this node by --address",
		},
		{
			Name: "public_address_on_the_default_route", Root: "testdata/bare-metal", Options: metadatatest.Sends("203.0.113.7", ""),
			Want: with(base("edge-1"), func(i *cloud.Instance) {
				i.Address, i.AddressSource = netip.MustParseAddr("203.0.113.7"), "address that the default route sends from"
				i.PublicAddress = i.Address
			}),
			WantNote: "203.0.113.7, the address of the default route, is public",
		},
		{
			Name: "golden_image_with_a_name", Root: "testdata/unsealed",
			Want: with(base("node-7"), func(i *cloud.Instance) { i.ID, i.IDSource = "host-node-7", "host name, since there is no machine id" }),
		},
		{Name: "golden_image_without_a_name", Root: "testdata/nameless", WantErr: cloud.ErrNotFound},
		{Name: "machine_id_of_dbus", Root: "testdata/dbus-only", Want: base("old")},
		{
			// The id is that of the machine, whatever cloud-init calls it.
			Name: "cloud_init_hetzner", Root: "testdata/hetzner", Options: eth0,
			Want: onEth0(with(base("edge-1"), func(i *cloud.Instance) { i.Region, i.Zone = "eu-central", "fsn1-dc14" })),
		},
		{Name: "cloud_init_hyphens_and_nulls", Root: "testdata/cloud-init-hyphens-and-nulls", Options: eth0, Want: onEth0(base("from-etc"))},
		{
			Name: "cloud_init_broken", Root: "testdata/cloud-init-broken", Options: eth0, Want: onEth0(base("broken")),
			WantNote: "reading cloud-init's instance data: unexpected end of JSON input",
		},
		{
			Name: "cloud_init_wrong_types", Root: "testdata/cloud-init-wrong-types", Options: eth0,
			Want: onEth0(with(base("odd"), func(i *cloud.Instance) { i.Zone = "z1" })),
		},
	}
}

func TestConformance(t *testing.T) {
	for _, m := range machines() {
		t.Run("machine/"+m.Name, func(t *testing.T) {
			o := cloud.Options{Root: m.Root, Transport: metadatatest.RoundTrip(func(req *http.Request) (*http.Response, error) {
				t.Errorf("asked %s", req.URL)
				return nil, errors.New("no network here")
			})}
			if m.Options != nil {
				m.Options(&o)
			}
			p, err := New(o)
			must.OK(t, err)
			got, err := p.Instance(t.Context())
			must.Contain(t, "notes", strings.Join(got.Notes, "\n"), m.WantNote)
			if out := fmt.Sprintf("%+v %v", got, err); strings.Contains(out, machineID) {
				t.Errorf("the machine id is in %s", out)
			}
			if got.Notes = nil; !errors.Is(err, m.WantErr) || p.Name() != Name {
				t.Errorf("%s: %v, want %v", p.Name(), err, m.WantErr)
			}
			must.NoDiff(t, "Instance()", got, m.Want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := p.Instance(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Instance() with a cancelled context: %v, want context.Canceled", err)
			}
		})
	}
}

func TestNoIdentityHint(t *testing.T) {
	p, err := New(cloud.Options{Root: "testdata/nameless"})
	must.OK(t, err)
	_, err = p.Instance(t.Context())
	must.Contain(t, fmt.Sprintf("hint of %v", err), cloud.HintOf(err), "--offline", "on this machine: systemd-machine-id-setup --root=testdata/nameless")
}

// With another root the addresses of this machine do not count; without one they do.
func TestForeignRootAsksNoInterface(t *testing.T) {
	p, err := New(cloud.Options{Root: "testdata/bare-metal"})
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if inst.Address.IsValid() {
		t.Errorf("Address = %s, from this machine's own interfaces", inst.Address)
	}
	v4, v6 := cloud.Options{}.WithDefaults().Local()
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() && (a.IsLoopback() || a.IsLinkLocalUnicast()) {
			t.Errorf("this machine sends from %s", a)
		}
	}
}

func TestMachineID(t *testing.T) {
	got, err := deriveMachineID(machineID)
	if err != nil || got != derivedID {
		t.Errorf("deriveMachineID() = %q, %v, want %q", got, err, derivedID)
	}
	for _, bad := range []string{"", "uninitialized", machineID[:31], machineID + "0", strings.Repeat("0", 32), strings.Repeat("g", 32)} {
		if got, err := deriveMachineID(bad); err == nil {
			t.Errorf("deriveMachineID(%q) = %q, want an error", bad, got)
		} else if len(bad) > 13 && strings.Contains(err.Error(), bad) {
			t.Errorf("the error shows the machine id: %v", err)
		}
	}
}

// The same derivation by systemd itself, if it is installed.
func TestMachineIDAgreesWithSystemd(t *testing.T) {
	tool, err := exec.LookPath("systemd-id128")
	if err != nil {
		t.Skip("systemd-id128 is not installed")
	}
	out, err := exec.CommandContext(t.Context(), tool, "machine-id", "--app-specific=e3db9ca5a4ae4ac0aaf7e6b2eb021a95").Output()
	if err != nil {
		t.Skipf("this machine has no machine id: %v", err)
	}
	got, err := readMachineID("/")
	must.OK(t, err)
	must.Equal(t, "MachineID(); systemd has the one wanted", got, strings.TrimSpace(string(out)))
}

func TestReadCloudInitAbsent(t *testing.T) {
	if _, err := ReadCloudInit(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error = %v, want fs.ErrNotExist", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range machines() {
		if b, err := os.ReadFile(filepath.Join(m.Root, CloudInitPath)); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ci, _ := parseCloudInit(b)
		for _, v := range []string{ci.CloudName, ci.Region, ci.Zone} {
			if strings.ContainsAny(v, "\n\r\x00") || len(v) > 400 {
				t.Errorf("let through %q", v)
			}
		}
		if _, err := deriveMachineID(string(b)); err == nil && len(b) != 32 {
			t.Errorf("an id out of %q", b)
		}
	})
}
