// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestParseRelease(t *testing.T) {
	for in, want := range map[string]string{
		"2.4.2.1": "2.4.2.1", "3.0.3-SNAPSHOT": "3.0.3-SNAPSHOT", "v2.13.2": "2.13.2", "ams-v2.8.0": "2.8.0", " 2.5 \n": "2.5",
		"3": "3", "2.10.0_hotfix1": "2.10.0_hotfix1", "V2.0.0": "2.0.0", "2.9.0-rc.1": "2.9.0-rc.1",
	} {
		r, err := ParseRelease(in)
		if err != nil || r.Version != want || !r.Known() {
			t.Errorf("ParseRelease(%q) = %+v, %v", in, r, err)
		}
	}
	for _, in := range []string{"", " ", "v", "latest", "2.", ".2", "2..3", "1.2.3.4.5", "2.4x", "2.4-", "2.4 beta", "20220304", "2.4-ü", "-1", "ams-v", "${project.version}"} {
		if r, err := ParseRelease(in); err == nil || r.Known() {
			t.Errorf("ParseRelease(%q) = %+v, want an error", in, r)
		}
	}
}

func release(t *testing.T, s string) Release {
	t.Helper()
	if s == "unknown" {
		return Release{}
	}
	r, err := ParseRelease(s)
	must.OK(t, err)
	return r
}

// A missing number counts as 0, and a SNAPSHOT comes before its release.
func TestReleaseAtLeast(t *testing.T) {
	want := []int{2, 5, 0, 1}
	for version, at := range map[string]bool{
		"unknown": false, "1.9.1": false, "2.4.9": false, "2.5": false, "2.5.0.1-SNAPSHOT": false, "2.5.0.1_rc1": false, "2.5.0.1": true, "2.5.0.1_hotfix1": true,
		"2.5.1-SNAPSHOT": true, "2.5.1": true, "2.10.0": true, "3": true, "3.0.3-beta": true,
	} {
		must.Equal(t, fmt.Sprintf("%s at least %v", version, want), release(t, version).AtLeast(want...), at)
	}
	if !release(t, "2.5").AtLeast(2, 5, 0) || release(t, "2.5-SNAPSHOT").AtLeast(2, 5) || !release(t, "2.5-SNAPSHOT").AtLeast(2, 4, 3) {
		t.Error("2.5 and its SNAPSHOT")
	}
	for version, able := range map[string]struct{ env, live bool }{
		"unknown": {true, true}, "2.4.3": {false, false}, "2.5.0": {true, false}, "2.5.1": {true, true}, "3.0.4-SNAPSHOT": {true, true},
	} {
		must.Equal(t, version+" honours the address", release(t, version).HonoursHostAddress(), able.env)
		must.Equal(t, version+" has liveness", release(t, version).HasLiveness(), able.live)
	}
}

func TestJarRelease(t *testing.T) {
	manifest := func(s string) string { return jar(t, map[string]string{manifestName: s}) }
	good := "Manifest-Version: 1.0\r\nImplementation-Version: 3.0.3\r\nBuild-Number: 20260504_1200\r\n\r\n"
	want303 := Release{Version: "3.0.3", Build: "20260504_1200"}
	for _, c := range []struct {
		name, jar string
		want      Release
		note      string // part of it
	}{
		{"good", manifest(good), want303, ""},
		{"LF", manifest(strings.ReplaceAll(good, "\r\n", "\n")), want303, ""},
		{"CR alone", manifest(strings.ReplaceAll(good, "\r\n", "\r")), want303, ""},
		{"no newline at the end", manifest("Implementation-Version: 2.4.2.1"), Release{Version: "2.4.2.1"}, ""},
		{"names in another case", manifest("IMPLEMENTATION-version: 2.13.2\nbuild-NUMBER: 7\n"), Release{Version: "2.13.2", Build: "7"}, ""},
		{
			"continued", manifest("X: y\r\n z\r\nImplementation-Version: 3.0.3-SN\r\n AP\r\n SHOT\r\n\r\n"),
			Release{Version: "3.0.3-SNAPSHOT"},
			"",
		},
		{"member's name in another case", jar(t, map[string]string{"meta-inf/Manifest.mf": good}), want303, ""},
		{"only in a later section", manifest("Manifest-Version: 1.0\r\n\r\nName: x\r\nImplementation-Version: 9.9\r\n"), Release{}, "no Implementation-Version"},
		{"no manifest", jar(t, map[string]string{"x.class": "x"}), Release{}, "no META-INF/MANIFEST.MF"},
		{"not filled in", manifest("Implementation-Version: ${project.version}\n"), Release{}, "${project.version}"},
		{"empty version", manifest("Implementation-Version: \n"), Release{}, "no Implementation-Version"},
		{"no jar", "-", Release{}, "ant-media-server.jar: no such file or directory"},
		{"empty file", "", Release{}, "not a whole jar"},
		{"cut", manifest(good)[:60], Release{}, "not a whole jar"},
		{"not a zip", strings.Repeat("x", 100_000), Release{}, "not a whole jar"},
		{"manifest without end", manifest("Implementation-Version: 3.0.3\nX: " + strings.Repeat("y", 64<<10)), Release{Version: "3.0.3"}, ""},
		{"version without end", manifest("Implementation-Version: 3.0.3-" + strings.Repeat("x", 300)), Release{}, "longer than"},
		{"build without end", manifest("Implementation-Version: 3.0.3\nBuild-Number: " + strings.Repeat("7", 300)), Release{}, "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := Open(tree(t, map[string]string{"ant-media-server.jar": c.jar}), "")
			must.OK(t, err)
			got := in.Release
			if c.note != "" {
				if got.Known() || !strings.Contains(got.Note, c.note) || !strings.Contains(got.Note, "ant-media-server.jar") {
					t.Errorf("release %+v", got)
				}
				return
			}
			must.NoDiff(t, "release", got, c.want)
		})
	}
}

func TestJarReleaseOddFiles(t *testing.T) {
	t.Run("absolute link below the root", func(t *testing.T) {
		root := tree(t, map[string]string{"ant-media-server.jar": "-> /opt/jars/server.jar", "../../../opt/jars/server.jar": jar(t, map[string]string{manifestName: "Implementation-Version: 2.8.0\n"})})
		in, err := Open(root, "")
		if err != nil || in.Release.Version != "2.8.0" {
			t.Errorf("%+v, %v", in, err)
		}
	})
	t.Run("pipe", func(t *testing.T) {
		root := tree(t, map[string]string{"ant-media-server.jar": "-"})
		must.OK(t, syscall.Mkfifo(filepath.Join(root, DefaultDir, "ant-media-server.jar"), 0o600))
		in, err := Open(root, "")
		if err != nil || in.Release.Known() || !strings.Contains(in.Release.Note, "not a regular file") {
			t.Errorf("%+v, %v", in, err)
		}
	})
}

// forgedJar is a sparse jar of that size, which claims the maximum number of members that archive/zip accepts. Its
// content is at the front.
func forgedJar(t *testing.T, size int64, directory []byte) (root string) {
	t.Helper()
	root = tree(t, map[string]string{"ant-media-server.jar": "-"})
	f, err := os.Create(filepath.Join(root, DefaultDir, "ant-media-server.jar"))
	must.OK(t, err)
	defer f.Close()
	const end64Size, locatorSize, endSize = 56, 20, 22
	at := size - end64Size - locatorSize - endSize
	length := uint64(len(directory))
	records := (uint64(size) - length) / 30
	b := binary.LittleEndian.AppendUint32(nil, 0x06064b50) // the end of a zip64 directory
	b = binary.LittleEndian.AppendUint64(b, end64Size-12)
	b = append(b, make([]byte, 12)...) // versions, disks
	b = binary.LittleEndian.AppendUint64(b, records)
	b = binary.LittleEndian.AppendUint64(b, records)
	b = binary.LittleEndian.AppendUint64(b, length)
	b = binary.LittleEndian.AppendUint64(b, uint64(at)-length)
	b = binary.LittleEndian.AppendUint32(b, 0x07064b50) // its offset
	b = append(b, make([]byte, 4)...)
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint32(b, 0x06054b50) // the end of a directory
	b = append(b, make([]byte, 4)...)
	for range 12 {
		b = append(b, 0xff) // numbers that zip64 has
	}
	b = append(b, 0, 0)
	for _, part := range []struct {
		b  []byte
		at int64
	}{{directory, at - int64(length)}, {b, at}} {
		_, err = f.WriteAt(part.b, part.at)
		must.OK(t, err)
	}
	return root
}

// The server's user controls the jar, and must not decide how much memory root takes.
func TestJarReleaseMemory(t *testing.T) {
	const most = 40 << 20
	record := append([]byte{'P', 'K', 1, 2}, make([]byte, 42)...) // of a member without a name
	for name, root := range map[string]string{
		"larger than any jar":     forgedJar(t, 6<<30, nil),
		"as large as a jar is":    forgedJar(t, 64<<20, nil),
		"a directory of all that": forgedJar(t, 64<<20, bytes.Repeat(record, (64<<20)/2/len(record))),
	} {
		t.Run(name, func(t *testing.T) {
			var in *Installation
			var err error
			n := allocated(func() { in, err = Open(root, "") })
			if err != nil || in.Release.Known() || in.Release.Note == "" {
				t.Fatalf("%+v, %v", in, err)
			}
			if n > most {
				t.Errorf("%d MB were taken to find that %s", n>>20, in.Release.Note)
			}
		})
	}
}

// allocated returns how many bytes f allocates, freed ones included.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// FuzzJar reads a jar that the server's user controls.
func FuzzJar(f *testing.F) {
	z := func(method uint16, content string) []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		m, err := w.CreateHeader(&zip.FileHeader{Name: manifestName, Method: method})
		if err == nil {
			_, err = m.Write([]byte(content))
		}
		err = errors.Join(err, w.Close())
		must.OK(f, err)
		return b.Bytes()
	}
	f.Add(z(zip.Store, "Implementation-Version: 3.0.3\n"))
	f.Add(z(zip.Deflate, "Implementation-Version: 3.0.3\nX: "+strings.Repeat("y", 64<<10)))
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\xff", 16) + "\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		manifest, err := manifestOf(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if len(manifest) > maxManifestSize {
			t.Errorf("a manifest of %d bytes", len(manifest))
		}
		r, err := manifestRelease(manifest)
		if err == nil && (!r.Known() || len(r.Version) > maxVersion || len(r.Build) > maxVersion) {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte("Implementation-Version: 3.0.3\r\n\r\n"))
	f.Add([]byte("A: b\n c\nImplementation-Version: 2\r 5\n"))
	f.Add([]byte(" x\n:\n\r"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := manifestRelease(b)
		if err != nil {
			return
		}
		if strings.ContainsAny(r.Version+r.Build, "\r\n") {
			t.Errorf("%+v spans lines", r)
		}
		// Line endings do not matter.
		lf := bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
		for _, other := range [][]byte{lf, bytes.ReplaceAll(lf, []byte("\n"), []byte("\r\n"))} {
			if got, err := manifestRelease(other); err != nil || got != r {
				t.Errorf("%q is %+v, not %+v; %v", other, got, r, err)
			}
		}
	})
}

func FuzzParseRelease(f *testing.F) {
	for _, s := range []string{"2.4.2.1", "3.0.3-SNAPSHOT", "ams-v2.8.0", "2.4-", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRelease(s)
		if err != nil {
			return
		}
		again, err := ParseRelease(r.Version)
		if err != nil || again != r {
			t.Errorf("%q became %+v, then %+v, %v", s, r, again, err)
		}
		must.Equal(t, "printed", fmt.Sprint(r), r.Version)
	})
}
