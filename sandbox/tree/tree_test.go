// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package tree_test

import (
	"archive/zip"
	"bytes"
	stdcmp "cmp"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/sandbox/tree"
)

var update = flag.Bool("update", false, "copy the master files to testdata/trees")

func write(t *testing.T, o tree.Options) tree.Tree {
	t.Helper()
	tr, err := tree.Write(filepath.Join(t.TempDir(), "root"), o)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func read(t *testing.T, p string) string {
	t.Helper()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The agent's own tests use copies of the master files, because an embedded file
// cannot come from another module.
func TestCopiesForTheAgentAreTheSame(t *testing.T) {
	t.Parallel()
	for _, variant := range tree.Variants() {
		files, err := tree.Files(variant)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join("..", "..", "testdata", "trees", variant)
		if *update {
			for name, b := range files {
				p := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		seen := 0
		err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			seen++
			rel, _ := filepath.Rel(dir, p)
			want, ok := files[filepath.ToSlash(rel)]
			if !ok {
				t.Errorf("%s: no such master file", p)
			} else if got := read(t, p); got != string(want) {
				t.Errorf("%s differs from its master (go test ./tree -update)", p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if seen != len(files) {
			t.Errorf("%s: %d files, want %d (go test ./tree -update)", dir, seen, len(files))
		}
	}
}

// The shape that decides how an agent edits: markers, decoys, line ends.
func TestVariants(t *testing.T) {
	t.Parallel()
	tests := []struct {
		variant          string
		version          string
		sections         int
		apps             []string
		userKeys         bool // application files have db.user
		newlineAtEnd     bool // of application files
		crlf             bool
		decoy, wholeFile bool
	}{
		{variant: "3.0", version: "3.0.3", sections: 3, apps: []string{"LiveApp", "WebRTCAppEE", "root"}, newlineAtEnd: true},
		{variant: "crlf", version: "3.0.3", sections: 3, apps: []string{"LiveApp", "WebRTCAppEE", "root"}, newlineAtEnd: true, crlf: true},
		{variant: "2.10", version: "2.10.0", sections: 2, apps: []string{"LiveApp", "WebRTCAppEE", "root"}, userKeys: true, decoy: true},
		{variant: "1.9.0", version: "1.9.0", apps: []string{"LiveApp", "WebRTCAppEE"}, userKeys: true, wholeFile: true},
	}
	for _, tt := range tests {
		t.Run(tt.variant, func(t *testing.T) {
			t.Parallel()
			tr := write(t, tree.Options{Variant: tt.variant})
			jee := read(t, tr.Conf("jee-container.xml"))
			if got := strings.Count(jee, "<!-- cluster start"); got != tt.sections {
				t.Errorf("%d start markers, want %d", got, tt.sections)
			}
			if got := strings.Count(jee, "cluster end -->"); got != tt.sections {
				t.Errorf("%d end markers, want %d", got, tt.sections)
			}
			if got := strings.Contains(jee, `<!-- cluster --><!-- property name="cluster" ref="tomcat.cluster" /--><!-- cluster -->`); got != tt.decoy {
				t.Errorf("decoy present: %v, want %v", got, tt.decoy)
			}
			// The last end marker of every release has a blank behind it.
			end := "cluster end --> \n"
			if tt.crlf {
				end = "cluster end --> \r\n"
			}
			if tt.sections > 0 && strings.Count(jee, end) != 1 {
				t.Error("no end marker with a trailing blank")
			}
			if beans(t, jee)["tomcat.cluster"] {
				t.Error("a fresh installation is in cluster mode")
			}
			if tt.wholeFile {
				if !beans(t, read(t, tr.Conf("jee-container-cluster.xml")))["tomcat.cluster"] {
					t.Error("jee-container-cluster.xml has no cluster bean")
				}
				if read(t, tr.Conf("jee-container-standalone.xml")) != jee {
					t.Error("jee-container.xml is not the standalone file")
				}
			} else if !beans(t, activate(jee))["valve.cluster"] {
				t.Error("with its sections activated the file has no valve.cluster")
			}
			if diff := cmp.Diff(tt.apps, tr.Apps); diff != "" {
				t.Errorf("applications (-want +got):\n%s", diff)
			}
			live := read(t, tr.App("LiveApp"))
			if got := strings.Contains(live, "db.user="); got != tt.userKeys {
				t.Errorf("db.user in LiveApp: %v, want %v", got, tt.userKeys)
			}
			if got := strings.HasSuffix(live, "\n"); got != tt.newlineAtEnd {
				t.Errorf("newline at the end of LiveApp's file: %v, want %v", got, tt.newlineAtEnd)
			}
			for _, s := range []string{jee, live, read(t, tr.Conf("red5.properties"))} {
				if lf, crlf := strings.Count(s, "\n"), strings.Count(s, "\r\n"); tt.crlf && lf != crlf || !tt.crlf && crlf != 0 {
					t.Errorf("%d newlines, %d of them CRLF", lf, crlf)
				}
			}
			if got := manifest(t, filepath.Join(tr.Dir, "ant-media-server.jar")); !strings.Contains(got, "Implementation-Version: "+tt.version+"\r\n") || !strings.Contains(got, "Build-Number: ") {
				t.Errorf("manifest:\n%s", got)
			}
		})
	}
}

// activate uncomments the marked sections the crude way.
func activate(jee string) string {
	jee = strings.ReplaceAll(jee, "<!-- cluster start", "<!-- cluster start -->")
	return strings.ReplaceAll(jee, "cluster end -->", "<!-- cluster end -->")
}

func beans(t *testing.T, doc string) map[string]bool {
	t.Helper()
	ids := map[string]bool{}
	d := xml.NewDecoder(strings.NewReader(doc))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "bean" {
			for _, a := range e.Attr {
				if a.Name.Local == "id" {
					ids[a.Value] = true
				}
			}
		}
	}
}

func manifest(t *testing.T, jar string) string {
	t.Helper()
	z, err := zip.OpenReader(jar)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	f, err := z.Open("META-INF/MANIFEST.MF")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOptions(t *testing.T) {
	t.Parallel()
	tr := write(t, tree.Options{
		Variant: "2.10", Apps: []string{"My App", "Third"}, Symlink: true, HTTPPort: 15080,
		Version: "2.12.0", Build: "b1", Exec: `exec sandbox ams --root "$ANTMEDIA_HOME"`, User: "nobody", Group: "nogroup",
		DMI: "aws", Host: "edge-1",
	})
	wantApps := []string{"LiveApp", "My App", "Third", "WebRTCAppEE", "root"}
	if diff := cmp.Diff(wantApps, tr.Apps); diff != "" {
		t.Errorf("applications (-want +got):\n%s", diff)
	}
	blank := read(t, tr.App("My App"))
	for _, line := range []string{"webapp.contextPath=/My App\n", "db.app.name=My App\n", "db.name=my_app\n"} {
		if !strings.Contains(blank, line) {
			t.Errorf("file of My App lacks %q", line)
		}
	}
	for _, p := range []string{tr.Conf("red5.properties"), tr.App("LiveApp")} {
		target, err := os.Readlink(p)
		if err != nil || filepath.IsAbs(target) {
			t.Errorf("%s: link to %q, %v; want a relative link", p, target, err)
		}
	}
	if !strings.Contains(read(t, tr.Conf("red5.properties")), "http.port=15080\n") {
		t.Error("http.port was not set")
	}
	if m := manifest(t, filepath.Join(tr.Dir, "ant-media-server.jar")); !strings.Contains(m, "Implementation-Version: 2.12.0\r\nBuild-Number: b1\r\n") {
		t.Errorf("manifest:\n%s", m)
	}
	unit := read(t, tr.Unit)
	for _, line := range []string{"ExecStart=/usr/local/antmedia/start.sh\n", "User=nobody\n", "Group=nogroup\n", "TimeoutStopSec=10\n"} {
		if !strings.Contains(unit, line) {
			t.Errorf("unit lacks %q:\n%s", line, unit)
		}
	}
	if strings.Contains(unit, "@") {
		t.Errorf("unit with a placeholder left:\n%s", unit)
	}
	if got := read(t, filepath.Join(tr.Root, "sys/class/dmi/id/board_asset_tag")); got != "i-0abc1234567890def\n" {
		t.Errorf("board_asset_tag = %q", got)
	}
	if hosts := read(t, filepath.Join(tr.Root, "etc/hosts")); strings.Contains(hosts, "edge-1") {
		t.Errorf("the host resolves though it was not asked to:\n%s", hosts)
	}
	if _, err := os.Stat(filepath.Join(tr.Dir, "log") + "/."); err != nil {
		t.Errorf("log does not lead anywhere: %v", err)
	}
}

// TestFirmware: the agent knows each cloud by its firmware alone, and nothing by the
// firmware of a machine that is in none.
func TestFirmware(t *testing.T) {
	t.Parallel()
	for _, name := range tree.Firmware() {
		tr := write(t, tree.Options{DMI: name})
		d, err := metadata.Detect(t.Context(), metadata.Options{Root: tr.Root, NoNetwork: true})
		if err != nil {
			t.Fatal(err)
		}
		want := name
		if name == "kvm" {
			want = metadata.Generic
		}
		if got := stdcmp.Or(d.Platform, d.Provider); got != want {
			t.Errorf("a machine with the firmware of %s is in %s, by %+v", name, got, d.Decisive())
		}
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	tr := write(t, tree.Options{Owner: &tree.Owner{UID: 4711, GID: 4712}})
	lines, err := tree.Snapshot(tr.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if !strings.Contains(l, " 4711:4712 ") {
			t.Errorf("not given away: %s", l)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, o := range []tree.Options{
		{Variant: "9.9"}, {Apps: []string{"a/b"}}, {Apps: []string{".."}}, {DMI: "mainframe"},
	} {
		if _, err := tree.Write(t.TempDir(), o); err == nil {
			t.Errorf("Write(%+v) succeeded", o)
		}
	}
	tr := write(t, tree.Options{})
	before, err := tree.Snapshot(tr.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Write(tr.Root, tree.Options{}); err == nil {
		t.Error("Write over an installation succeeded")
	}
	after, err := tree.Snapshot(tr.Root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("a refused Write changed something:\n%s", diff)
	}
}

func TestWriteIsReproducible(t *testing.T) {
	t.Parallel()
	var first []string
	for i := range 2 {
		lines, err := tree.Snapshot(write(t, tree.Options{Apps: []string{"A"}}).Root)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = lines
		} else if diff := cmp.Diff(first, lines); diff != "" {
			t.Errorf("two trees differ:\n%s", diff)
		}
	}
}

func TestSnapshotSeesEverything(t *testing.T) {
	t.Parallel()
	changes := map[string]func(tree.Tree) error{
		"content": func(tr tree.Tree) error { return appendTo(tr.App("root"), " ") },
		"mode":    func(tr tree.Tree) error { return os.Chmod(tr.App("root"), 0o600) },
		"new":     func(tr tree.Tree) error { return os.WriteFile(tr.Conf("new"), nil, 0o644) },
		"gone":    func(tr tree.Tree) error { return os.Remove(tr.App("root")) },
		"link": func(tr tree.Tree) error {
			return errors.Join(os.Remove(filepath.Join(tr.Dir, "log")), os.Symlink("conf", filepath.Join(tr.Dir, "log")))
		},
	}
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		tr := write(t, tree.Options{})
		before, err := tree.Snapshot(tr.Root)
		if err != nil {
			t.Fatal(err)
		}
		if err := changes[name](tr); err != nil {
			t.Fatal(err)
		}
		after, err := tree.Snapshot(tr.Root)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(before, after) {
			t.Errorf("a change of kind %s is not seen", name)
		}
		if skipped, err := tree.Snapshot(tr.Root, "usr"); err != nil || len(skipped) >= len(before) || fmt.Sprint(skipped) == "[]" {
			t.Errorf("Snapshot without usr: %d lines, %v", len(skipped), err)
		}
	}
}

func appendTo(p, s string) error {
	b, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	return os.WriteFile(p, append(bytes.Clone(b), s...), 0o644)
}
