// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"archive/zip"
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// master holds one folder for each hand-written variant, and the unit file.
//
//go:embed all:files
var master embed.FS

// DefaultDir is where an installation lives, below the root.
const DefaultDir = "/usr/local/antmedia"

// variants maps a variant to its master files and its release.
var variants = map[string]struct {
	files, version, build string
	crlf                  bool
}{
	// Three marked sections, application files without db.user.
	"3.0": {files: "3.0", version: "3.0.3", build: "20260504_0930"},
	// Two marked sections and a decoy; application files end without a newline.
	"2.10": {files: "2.10", version: "2.10.0", build: "20240705_1412"},
	// No markers: two whole files beside the active one.
	"1.9.0": {files: "1.9.0", version: "1.9.0", build: "20191127_1003"},
	// 3.0 after an editor on Windows.
	"crlf": {files: "3.0", version: "3.0.3", build: "20260504_0930", crlf: true},
}

// Variants lists the names for [Options.Variant].
func Variants() []string { return slices.Sorted(maps.Keys(variants)) }

// Options describes the installation. The zero value is a 3.0 installation as its
// installer leaves it, owned by the user of this process.
type Options struct {
	// Variant is one of [Variants]; default 3.0.
	Variant string
	// Dir is the installation's path below the root; default [DefaultDir].
	Dir string
	// Apps are further applications, made after LiveApp's image. A blank in a name
	// is fine, and is the point of one of the upstream script's defects.
	Apps []string `json:"apps"`
	// Symlink moves conf/red5.properties and LiveApp's file to /etc/antmedia below
	// the root, with relative symbolic links in their places.
	Symlink bool
	// Owner is the uid and gid of everything below Dir; nil: unchanged.
	Owner *Owner
	// HTTPPort replaces http.port; 0: as shipped (5080).
	HTTPPort int
	// Version and Build replace those of the variant in the jar's manifest.
	Version, Build string
	// NoJar leaves the jar out, so that the release is unknown.
	NoJar bool
	// NoUnit leaves /etc/systemd/system/antmedia.service out.
	NoUnit bool
	// Exec is the shell command that start.sh, which the unit starts, becomes; in it
	// "$ANTMEDIA_HOME" is the installation. Default: one that fails with a message.
	Exec string
	// User and Group go into the unit; default antmedia.
	User, Group string
	// DMI writes what /sys/class/dmi/id holds on a cloud, one of [Firmware]; kvm is
	// that of no cloud. Empty: nothing.
	DMI string
	// Host writes /etc/hostname, /etc/hosts (which names localhost and, if
	// HostResolves, the host too) and /etc/machine-id.
	Host         string
	HostResolves bool
}

// Owner is a numeric owner.
type Owner struct{ UID, GID int }

// Tree is what was written.
type Tree struct {
	Root string   `json:"root"` // as given
	Dir  string   `json:"dir"`  // the installation, Root included
	Unit string   `json:"unit,omitempty"`
	Apps []string `json:"apps"`
}

// Conf is the path of a file in conf.
func (t Tree) Conf(name string) string { return filepath.Join(t.Dir, "conf", name) }

// App is the path of an application's properties.
func (t Tree) App(name string) string {
	return filepath.Join(t.Dir, "webapps", name, "WEB-INF", "red5-web.properties")
}

// Write writes an installation below root, which is created. It refuses to write
// over one.
func Write(root string, o Options) (Tree, error) {
	if o.Variant == "" {
		o.Variant = "3.0"
	}
	v, ok := variants[o.Variant]
	if !ok {
		return Tree{}, fmt.Errorf("unknown variant %q (known: %s)", o.Variant, strings.Join(Variants(), ", "))
	}
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	files, err := Files(o.Variant)
	if err != nil {
		return Tree{}, err
	}
	w := writer{root: root}
	t := Tree{Root: root, Dir: filepath.Join(root, o.Dir)}
	if _, err := os.Lstat(t.Dir); err == nil {
		return Tree{}, fmt.Errorf("writing an installation: %s exists", t.Dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Tree{}, fmt.Errorf("writing an installation: %w", err)
	}

	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for _, app := range o.Apps {
		if app == "" || strings.ContainsAny(app, "/\x00") || app == "." || app == ".." {
			return Tree{}, fmt.Errorf("application name %q: not a name of a folder", app)
		}
		text := strings.ReplaceAll(string(files[live]), "LiveApp", app)
		// A database name has no blank, whatever the application is called.
		db := strings.ToLower(strings.ReplaceAll(app, " ", "_"))
		text = strings.ReplaceAll(text, "db.name=liveapp", "db.name="+db)
		files["webapps/"+app+"/WEB-INF/red5-web.properties"] = []byte(text)
	}
	if o.HTTPPort != 0 {
		const shipped = "http.port=5080"
		red5 := files["conf/red5.properties"]
		if !bytes.Contains(red5, []byte(shipped)) {
			return Tree{}, fmt.Errorf("variant %s has no line %s", o.Variant, shipped)
		}
		files["conf/red5.properties"] = bytes.Replace(red5, []byte(shipped),
			[]byte("http.port="+strconv.Itoa(o.HTTPPort)), 1)
	}

	for _, name := range slices.Sorted(maps.Keys(files)) {
		w.file(path.Join(o.Dir, name), files[name], 0o644)
		if app, ok := strings.CutPrefix(name, "webapps/"); ok {
			t.Apps = append(t.Apps, app[:strings.Index(app, "/")])
		}
	}
	if !o.NoJar {
		jar, err := jarOf(orDefault(o.Version, v.version), orDefault(o.Build, v.build))
		if err != nil {
			return Tree{}, err
		}
		w.file(path.Join(o.Dir, "ant-media-server.jar"), jar, 0o644)
	}
	w.file(path.Join(o.Dir, "start.sh"), startScript(o), 0o755)
	// The installer makes log a link to /var/log/antmedia. Ours is relative, so
	// that it does not lead out of the root.
	w.dir("/var/log/antmedia")
	w.link(path.Join(o.Dir, "log"), "/var/log/antmedia")

	if o.Symlink {
		w.move(path.Join(o.Dir, "conf/red5.properties"), "/etc/antmedia/red5.properties")
		w.move(path.Join(o.Dir, live), "/etc/antmedia/LiveApp.properties")
	}
	if !o.NoUnit {
		const unit = "/etc/systemd/system/antmedia.service"
		w.file(unit, unitFile(o), 0o644)
		t.Unit = filepath.Join(root, unit)
	}
	w.machine(o)
	if o.Owner != nil {
		for _, dir := range []string{o.Dir, "/var/log/antmedia", "/etc/antmedia"} {
			w.chown(dir, *o.Owner)
		}
	}
	if w.err != nil {
		return Tree{}, fmt.Errorf("writing an installation: %w", w.err)
	}
	return t, nil
}

// Files returns the files of a variant's conf and webapps, by their path below the
// installation.
func Files(variant string) (map[string][]byte, error) {
	v, ok := variants[variant]
	if !ok {
		return nil, fmt.Errorf("unknown variant %q (known: %s)", variant, strings.Join(Variants(), ", "))
	}
	out := map[string][]byte{}
	base := path.Join("files", v.files)
	err := fs.WalkDir(master, base, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := master.ReadFile(p)
		if v.crlf {
			b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
		}
		out[strings.TrimPrefix(p, base+"/")] = b
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the files of variant %s: %w", variant, err)
	}
	return out, nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// jarOf makes a jar that holds what an agent may look at: the manifest.
func jarOf(version, build string) ([]byte, error) {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	add := func(name, content string) error {
		// A fixed date keeps the jar the same from run to run.
		w, err := z.CreateHeader(&zip.FileHeader{
			Name: name, Method: zip.Deflate, Modified: time.Date(2026, 5, 4, 9, 30, 0, 0, time.UTC),
		})
		if err != nil {
			return err
		}
		_, err = w.Write([]byte(content))
		return err
	}
	manifest := []string{
		"Manifest-Version: 1.0",
		"Created-By: Maven Jar Plugin 3.2.0",
		"Build-Jdk-Spec: 17",
		"Implementation-Title: Ant Media Server",
		"Implementation-Version: " + version,
		"Build-Number: " + build,
		"", "",
	}
	// A jar begins with the folder and the manifest, in this order.
	err := errors.Join(add("META-INF/", ""), add("META-INF/MANIFEST.MF", strings.Join(manifest, "\r\n")), z.Close())
	if err != nil {
		return nil, fmt.Errorf("making the jar: %w", err)
	}
	return buf.Bytes(), nil
}

func startScript(o Options) []byte {
	cmd := o.Exec
	if cmd == "" {
		cmd = "echo 'there is no server in this tree' >&2; exit 1"
	}
	return []byte("#!/bin/sh\nANTMEDIA_HOME=$(cd \"$(dirname \"$0\")\" && pwd)\nexport ANTMEDIA_HOME\n" + cmd + "\n")
}

func unitFile(o Options) []byte {
	b, err := master.ReadFile("files/antmedia.service")
	if err != nil {
		panic(err) // it is embedded
	}
	return []byte(strings.NewReplacer(
		"@AMS@", o.Dir, "@EXEC@", path.Join(o.Dir, "start.sh"),
		"@USER@", orDefault(o.User, "antmedia"), "@GROUP@", orDefault(o.Group, "antmedia"),
	).Replace(string(b)))
}

// writer writes below a root and keeps the first error.
type writer struct {
	root string
	err  error
}

func (w *writer) try(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) dir(p string) {
	if w.err == nil {
		w.try(os.MkdirAll(filepath.Join(w.root, p), 0o755))
	}
}

func (w *writer) file(p string, b []byte, mode fs.FileMode) {
	w.dir(path.Dir(p))
	if w.err == nil {
		full := filepath.Join(w.root, p)
		w.try(os.WriteFile(full, b, mode))
		w.try(os.Chmod(full, mode)) // whatever the umask is
	}
}

// link makes a relative symbolic link at p that leads to target; both are paths
// below the root.
func (w *writer) link(p, target string) {
	if w.err != nil {
		return
	}
	rel, err := filepath.Rel(path.Dir(p), target)
	w.try(err)
	w.try(os.Symlink(rel, filepath.Join(w.root, p)))
}

func (w *writer) move(p, to string) {
	w.dir(path.Dir(to))
	if w.err == nil {
		w.try(os.Rename(filepath.Join(w.root, p), filepath.Join(w.root, to)))
		w.link(p, to)
	}
}

func (w *writer) chown(p string, o Owner) {
	if w.err != nil {
		return
	}
	full := filepath.Join(w.root, p)
	if _, err := os.Lstat(full); errors.Is(err, fs.ErrNotExist) {
		return
	}
	w.try(filepath.WalkDir(full, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, o.UID, o.GID)
	}))
}

// dmi is what the firmware of a cloud's machine says of itself. Strings that a cloud
// is known by are its own; the others are likely ones, and decide nothing.
var dmi = map[string]map[string]string{
	"aws": {
		"sys_vendor": "Amazon EC2", "product_name": "c7i.2xlarge", "bios_vendor": "Amazon EC2",
		"board_asset_tag": "i-0abc1234567890def", "chassis_asset_tag": "Amazon EC2",
		"product_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef",
	},
	"azure": {
		// Only the tag identifies Azure: vendor and product are those of any Hyper-V. On some
		// machines the UUID's first half is in the other byte order than the cloud's id.
		"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine", "bios_vendor": "Microsoft Corporation",
		"board_asset_tag": "", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
		"product_uuid": "8eb3085c-1b4d-0a4f-9e6c-3b2a1c0d0001",
	},
	"alibaba": {
		"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS", "bios_vendor": "SeaBIOS",
		"board_asset_tag": "", "chassis_asset_tag": "", "product_uuid": "3f1c0a52-7d5e-4c0b-9f43-6a1d2e8b7c90",
	},
	"gcp": {
		"sys_vendor": "Google", "product_name": "Google Compute Engine", "bios_vendor": "Google",
		"board_asset_tag": "", "chassis_asset_tag": "", "product_serial": "GoogleCloud-0123456789ABCDEF0123456789ABCDEF",
	},
	"oci": {
		"sys_vendor": "QEMU", "product_name": "Standard PC (i440FX + PIIX, 1996)", "bios_vendor": "SeaBIOS",
		"board_asset_tag": "", "chassis_asset_tag": "OracleCloud.com",
	},
	"hetzner": {
		"sys_vendor": "Hetzner", "product_name": "vServer", "bios_vendor": "Hetzner",
		"board_asset_tag": "", "chassis_asset_tag": "",
	},
	"digitalocean": {
		"sys_vendor": "DigitalOcean", "product_name": "Droplet", "bios_vendor": "DigitalOcean",
		"board_asset_tag": "", "chassis_asset_tag": "",
	},
	"openstack": {
		"sys_vendor": "OpenStack Foundation", "product_name": "OpenStack Nova", "bios_vendor": "SeaBIOS",
		"board_asset_tag": "", "chassis_asset_tag": "",
	},
	"kvm": {
		"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)", "bios_vendor": "SeaBIOS",
		"board_asset_tag": "", "chassis_asset_tag": "",
	},
}

// Firmware lists the names for DMI in [Options].
func Firmware() []string { return slices.Sorted(maps.Keys(dmi)) }

func (w *writer) machine(o Options) {
	if o.DMI != "" {
		values, ok := dmi[o.DMI]
		if !ok {
			w.try(fmt.Errorf("unknown machine %q (known: %s)", o.DMI, strings.Join(Firmware(), ", ")))
		}
		for name, value := range values {
			mode := fs.FileMode(0o444)
			if name == "product_uuid" || name == "product_serial" {
				mode = 0o400
			}
			w.file("/sys/class/dmi/id/"+name, []byte(value+"\n"), mode)
		}
	}
	if o.Host != "" {
		hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
		if o.HostResolves {
			hosts += "127.0.1.1 " + o.Host + "\n"
		}
		w.file("/etc/hostname", []byte(o.Host+"\n"), 0o644)
		w.file("/etc/hosts", []byte(hosts), 0o644)
		w.file("/etc/machine-id", []byte("0123456789abcdef0123456789abcdef\n"), 0o444)
	}
}
