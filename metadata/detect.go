// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/generic"
)

// Detection is which cloud this machine is in, and why we think so.
type Detection struct {
	Provider string `json:"provider"`
	// Platform is a finer word where the provider is generic: hetzner, oci, openstack, brightbox, …
	Platform string `json:"platform,omitempty"`
	// Remembered reports that Provider is Options.Known: nothing names a cloud now.
	Remembered bool `json:"remembered,omitempty"`
	// Evidence is everything that was looked at, in order. The last one decided.
	Evidence []Evidence `json:"evidence"`
}

// Evidence is one thing that was looked at.
type Evidence struct {
	// Source is a path, or what was asked of the network.
	Source string `json:"source"`
	// Value is what it said; identifying values are shown in part only.
	Value string `json:"value,omitempty"`
	// Verdict says in words what follows from it.
	Verdict string `json:"verdict"`
	// Decided is true for the one that settled the question.
	Decided bool `json:"decided,omitempty"`
}

// Decisive returns the evidence that settled the question.
func (d Detection) Decisive() Evidence {
	for _, e := range d.Evidence {
		if e.Decided {
			return e
		}
	}
	return Evidence{}
}

// undecided notes that nothing names a cloud. The machine is then in the cloud where it was before, or in none.
func (d *Detection) undecided(opts Options, source, verdict string) {
	switch opts.Known {
	case "", Generic:
		d.Provider = Generic
		d.Evidence = append(d.Evidence, Evidence{Source: source, Verdict: verdict, Decided: true})
	default:
		d.Provider, d.Remembered = opts.Known, true
		d.Evidence = append(d.Evidence, Evidence{Source: source, Verdict: "nothing names another cloud"}, Evidence{
			Source: "the agent's own record", Value: opts.Known, Verdict: "this machine was there when it joined", Decided: true,
		})
	}
}

// Given is the Detection of a provider that somebody named: nothing was looked at.
func Given(provider, by string) Detection {
	return Detection{Provider: provider, Evidence: []Evidence{{Source: by, Value: provider, Verdict: "named there, so nothing else was looked at", Decided: true}}}
}

// The strings of the firmware that are read, in /sys/class/dmi/id.
const (
	dirDMI          = "/sys/class/dmi/id/"
	pathHypervisor  = "/sys/hypervisor/uuid"
	chassisAssetTag = "chassis_asset_tag"
	boardAssetTag   = "board_asset_tag"
	productName     = "product_name"
	productSerial   = "product_serial"
	productUUID     = "product_uuid"
	sysVendor       = "sys_vendor"
	biosVendor      = "bios_vendor"
)

// dmi are the firmware's strings. A string that cannot be read is absent here and named in unreadable.
type dmi struct {
	value      map[string]string
	unreadable map[string]bool
}

func readDMI(opts Options) dmi {
	d := dmi{value: map[string]string{}, unreadable: map[string]bool{}}
	read := func(name, path string) {
		f, err := os.Open(opts.Path(path))
		if err == nil {
			defer f.Close()
			var b []byte
			// The kernel gives one line; below a root that somebody made it may be anything.
			if b, err = io.ReadAll(io.LimitReader(f, 4<<10)); err == nil {
				d.value[name] = strings.TrimSpace(strings.ToValidUTF8(string(b), "?"))
				return
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			d.unreadable[name] = true
		}
	}
	for _, name := range []string{sysVendor, productName, biosVendor, boardAssetTag, chassisAssetTag, productUUID, productSerial} {
		read(name, dirDMI+name)
	}
	read(pathHypervisor, pathHypervisor)
	return d
}

// rule is one line of the table of facts: a string, what it must look like, and what follows.
type rule struct {
	name     string
	fits     func(d dmi, v string) bool
	provider string
	platform string
	verdict  string
}

func is(want ...string) func(dmi, string) bool {
	return func(_ dmi, v string) bool { return slices.Contains(want, v) }
}

func endsIn(suffix string) func(dmi, string) bool {
	return func(_ dmi, v string) bool { return strings.HasSuffix(v, suffix) }
}

var ec2Instance = regexp.MustCompile(`^i-[0-9a-f]+$`)

// rules returns the table in the order of trust. Strings that only one cloud's firmware has come first; the UUIDs, which
// could be a coincidence, last. Who imitates EC2's metadata, and would pass every later test for it, is named before it.
func rules() []rule {
	const lookAlike = "imitates EC2's metadata and is not EC2"
	return []rule{
		{productSerial, endsIn(".brightbox.com"), Generic, "brightbox", lookAlike},
		{chassisAssetTag, endsIn(".zstack.io"), Generic, "zstack", lookAlike},
		{sysVendor, is("e24cloud"), Generic, "e24cloud", lookAlike},
		{sysVendor, is("3DS Outscale"), Generic, "outscale", lookAlike},
		// Not in a source that could be read here; a name so particular can only be theirs.
		{sysVendor, func(_ dmi, v string) bool { return strings.EqualFold(v, "tilaa") }, Generic, "tilaa", lookAlike},

		{chassisAssetTag, is("7783-7084-3265-9085-8269-3286-77"), Azure, "", "the tag of every Azure machine, and of no other Hyper-V"},
		{chassisAssetTag, is("OracleCloud.com"), Generic, "oci", "the tag of Oracle's cloud"},
		{chassisAssetTag, is("OpenTelekomCloud", "SAP CCloud VM", "HUAWEICLOUD", "Samsung Cloud Platform"), Generic, "openstack", "the tag of an OpenStack cloud"},
		{chassisAssetTag, is("OpenStack Nova", "OpenStack Compute"), Generic, "openstack", "the tag of OpenStack's own"},
		{boardAssetTag, func(_ dmi, v string) bool { return ec2Instance.MatchString(v) }, AWS, "", "the id of an EC2 Nitro instance"},

		{productName, is("Alibaba Cloud ECS"), Alibaba, "", "the product name of Alibaba's machines"},
		{productName, is("Google Compute Engine", "Google"), GCP, "", "the product name of Google's machines"},
		{productName, is("OpenStack Nova", "OpenStack Compute"), Generic, "openstack", "the product name of OpenStack's machines"},

		{sysVendor, is("Amazon EC2"), AWS, "", "the manufacturer name of EC2"},
		{sysVendor, is("Hetzner"), Generic, "hetzner", "the manufacturer name of Hetzner's cloud"},
		{sysVendor, is("DigitalOcean"), Generic, "digitalocean", "the manufacturer name of DigitalOcean"},

		// Google does not promise the product name; the serial number is for root only.
		{productSerial, func(_ dmi, v string) bool { return strings.HasPrefix(v, "GoogleCloud-") }, GCP, "", "a serial number of Google's machines"},

		{pathHypervisor, ec2UUID, AWS, "", "a Xen machine's UUID that begins with ec2"},
		{productUUID, ec2UUID, AWS, "", "a machine UUID that begins with ec2, in one byte order or the other"},
	}
}

// ec2UUID says whether a UUID marks an EC2 machine. One in 2048 of all machines would pass by chance, so it does not count
// where the firmware names a manufacturer that builds no EC2.
func ec2UUID(d dmi, v string) bool {
	if !looksEC2(v) {
		return false
	}
	switch d.value[sysVendor] {
	case "", "Xen", "Amazon EC2":
		return true
	}
	return false
}

func looksEC2(v string) bool {
	v = strings.ToLower(v)
	if strings.HasPrefix(v, "ec2") {
		return true
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(v, "-", ""))
	// Firmware may store the first field with its bytes turned round.
	return err == nil && len(raw) == 16 && raw[3] == 0xec && raw[2]>>4 == 0x2
}

// Detect finds out which cloud this machine is in. Files decide where they can, and the network is asked only after that.
// The answer is Generic where nothing decides. An error means that the search was cut off, or that the settings are wrong.
func Detect(ctx context.Context, opts Options) (Detection, error) {
	opts = opts.WithDefaults()
	for _, name := range Names() {
		if _, err := opts.Endpoint(name); err != nil {
			return Detection{}, err
		}
	}
	fw := readDMI(opts)
	var (
		d         Detection
		done      bool
		container = generic.Container(opts.Root)
	)
	if container != "" {
		d.Evidence = append(d.Evidence, Evidence{Source: container, Verdict: "a container: the strings of the firmware are its host's, so cloud-init's word counts more"})
		done = detectCloudInit(&d, opts)
	}
	if !done {
		done = detectDMI(&d, fw)
	}
	if !done && container == "" {
		done = detectCloudInit(&d, opts)
	}
	if !done {
		if err := detectNetwork(ctx, &d, opts); err != nil {
			return Detection{}, err
		}
	}
	return d, nil
}

// detectDMI goes through the table and notes each string once: how it decided, or that it did not.
func detectDMI(d *Detection, fw dmi) bool {
	hit := slices.IndexFunc(rules(), func(r rule) bool { v, ok := fw.value[r.name]; return ok && r.fits(fw, v) })
	var decided *rule
	if hit >= 0 {
		decided = &rules()[hit]
	}
	for _, name := range []string{sysVendor, productName, boardAssetTag, chassisAssetTag, productSerial, pathHypervisor, productUUID} {
		if decided != nil && name == decided.name {
			continue
		}
		e := Evidence{Source: sourceOf(name)}
		v, ok := fw.value[name]
		switch {
		case fw.unreadable[name]:
			e.Verdict = "cannot be read by this user"
		case !ok:
			e.Verdict = "not there"
		case v == "":
			e.Verdict = "empty"
		case (name == productUUID || name == pathHypervisor) && looksEC2(v) && decided == nil:
			e.Value, e.Verdict = shown(name, v), "begins as EC2's do, but the manufacturer is another: a coincidence"
		default:
			e.Value, e.Verdict = shown(name, v), "names no cloud by itself"
			if decided != nil {
				e.Verdict = "not needed"
			}
		}
		d.Evidence = append(d.Evidence, e)
	}
	if decided == nil {
		return false
	}
	d.Provider, d.Platform = decided.provider, decided.platform
	d.Evidence = append(d.Evidence, Evidence{
		Source: sourceOf(decided.name), Value: shown(decided.name, fw.value[decided.name]), Verdict: decided.verdict, Decided: true,
	})
	return true
}

func sourceOf(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return dirDMI + name
}

// shown keeps what identifies the hardware out of terminals and tickets: of a UUID or serial only what the rules look at.
func shown(name, v string) string {
	switch name {
	case productUUID, pathHypervisor:
		if looksEC2(v) {
			return v[:min(8, len(v))] + "…"
		}
		return "(a UUID)"
	case productSerial:
		for _, part := range []string{"GoogleCloud-", ".brightbox.com"} {
			if strings.Contains(v, part) {
				return "…" + part + "…"
			}
		}
		return "(a serial number)"
	}
	if len(v) > 80 {
		return v[:80] + "…"
	}
	return v
}

// detectCloudInit believes cloud-init, which has looked harder than we do, where it names a cloud.
func detectCloudInit(d *Detection, opts Options) bool {
	e := Evidence{Source: generic.CloudInitPath}
	ci, err := generic.ReadCloudInit(opts.Root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Verdict = "not there"
	case err != nil && ci.CloudName == "":
		e.Verdict = err.Error()
	case ci.CloudName == "":
		e.Verdict = "names no cloud"
	default:
		// Not the platform: it says ec2 for every imitation of EC2 too.
		e.Value = "v1.cloud_name " + ci.CloudName
		switch strings.ToLower(ci.CloudName) {
		case "aws":
			d.Provider = AWS
		case "azure":
			d.Provider = Azure
		case "aliyun", "alibaba":
			d.Provider = Alibaba
		case "gce", "gcp":
			d.Provider = GCP
		default:
			if ci.HasOwnID() {
				d.Provider, d.Platform = Generic, platformName(strings.ToLower(ci.CloudName))
				break
			}
			e.Verdict = "says where its seed came from, and that is no cloud"
		}
		if d.Provider != "" {
			e.Verdict, e.Decided = "cloud-init found it at this boot", true
		}
	}
	d.Evidence = append(d.Evidence, e)
	return e.Decided
}

// platformName is one word for a platform that cloud-init and the firmware are read for.
func platformName(cloudName string) string {
	if cloudName == "oracle" {
		return "oci"
	}
	return cloudName
}
