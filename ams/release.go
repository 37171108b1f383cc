// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"archive/zip"
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/files"
)

// Release is a server release; zero is unknown. Only the jar's manifest or the operator gives it: upgrades keep old
// configuration.
type Release struct {
	Version string `json:"version,omitempty"` // without a leading v
	Build   string `json:"build,omitempty"`
	Note    string `json:"note,omitempty"` // why it is not known
}

// versionPattern excludes dates and hashes, which have five digits or more.
var versionPattern = regexp.MustCompile(`^(?:ams-)?[vV]?(\d{1,5}(?:\.\d{1,5}){0,3}(?:[-_]+[0-9A-Za-z][0-9A-Za-z._-]*)?)$`)

// preReleasePattern is before a release; other suffixes are builds of it.
var preReleasePattern = regexp.MustCompile(`(?i)[-_](snapshot|alpha|beta|rc)`)

// ParseRelease parses a release such as 2.4.2.1, 3.0.3-SNAPSHOT, v2.13.2 or ams-v2.8.0.
func ParseRelease(s string) (Release, error) {
	version := versionPattern.FindStringSubmatch(strings.TrimSpace(s))
	if version == nil {
		return Release{}, fmt.Errorf("reading release %q: want up to four numbers with dots, as in 2.4.2.1 or 3.0.3-SNAPSHOT", s)
	}
	return Release{Version: version[1]}, nil
}

// Known reports whether the release is known.
func (r Release) Known() bool { return r.Version != "" }

func (r Release) String() string {
	switch {
	case !r.Known():
		return "unknown"
	case r.Build != "":
		return r.Version + " (build " + r.Build + ")"
	}
	return r.Version
}

// AtLeast reports whether the release is known and not older. A 2.5-SNAPSHOT may lack features of 2.5.
func (r Release) AtLeast(numbers ...int) bool {
	if !r.Known() {
		return false
	}
	digits, _, _ := strings.Cut(strings.ReplaceAll(r.Version, "_", "-"), "-")
	var have, want [4]int
	for i, part := range strings.SplitN(digits, ".", len(have)) {
		have[i], _ = strconv.Atoi(part)
	}
	copy(want[:], numbers)
	c := slices.Compare(have[:], want[:])
	return c > 0 || c == 0 && !preReleasePattern.MatchString(r.Version)
}

// HonoursHostAddress reports whether the release uses AMS_HOST_ADDRESS (2.5 and later, or unknown).
func (r Release) HonoursHostAddress() bool { return !r.Known() || r.AtLeast(2, 5) }

// HasLiveness reports whether the release has /rest/v2/liveness (2.5.1 and later, or unknown).
func (r Release) HasLiveness() bool { return !r.Known() || r.AtLeast(2, 5, 1) }

const (
	// maxJarSize: the server's has 2 MB. archive/zip allocates all announced members first, one for each 30 bytes.
	maxJarSize = 64 << 20
	// maxJarRead bounds the memory for the directory: the server's has 100 kB.
	maxJarRead = 2 << 20
	// maxManifestSize: a manifest has a few kilobytes. The archive's figure is not trusted.
	maxManifestSize = 64 << 10
	// maxVersion bounds the registry's text. The longest known have 20 bytes.
	maxVersion = 64
)

type boundedReader struct {
	r    io.ReaderAt
	left int64
}

func (b *boundedReader) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fmt.Errorf("more than %d bytes of it would have to be read", maxJarRead)
	}
	return b.r.ReadAt(p, off)
}

// On failure, jarRelease returns only a note.
func jarRelease(root, path string) (r Release) {
	f, info, _, err := files.Root{Path: root}.Open(path)
	if err != nil {
		return Release{Note: err.Error()}
	}
	defer f.Close()
	manifest, err := manifestOf(f, info.Size)
	if err == nil {
		r, err = manifestRelease(manifest)
	}
	if err != nil {
		return Release{Note: filepath.Join(root, path) + ": " + err.Error()}
	}
	return r
}

func manifestOf(r io.ReaderAt, size int64) ([]byte, error) {
	if size > maxJarSize {
		return nil, fmt.Errorf("not the server's jar: larger than %d bytes", maxJarSize)
	}
	z, err := zip.NewReader(&boundedReader{r, maxJarRead}, size)
	if err != nil {
		return nil, fmt.Errorf("not a whole jar: %w", err)
	}
	for _, member := range z.File {
		// Java ignores case, too.
		if !strings.EqualFold(member.Name, "META-INF/MANIFEST.MF") {
			continue
		}
		r, err := member.Open()
		if err != nil {
			return nil, fmt.Errorf("opening its manifest: %w", err)
		}
		defer r.Close()
		return io.ReadAll(io.LimitReader(r, maxManifestSize))
	}
	return nil, errors.New("it has no META-INF/MANIFEST.MF")
}

// manifestLines joins continued lines, which textproto would join with a space.
var manifestLines = strings.NewReplacer("\r\n ", "", "\n ", "", "\r ", "", "\r\n", "\n", "\r", "\n")

func manifestRelease(manifest []byte) (Release, error) {
	lines := strings.NewReader(manifestLines.Replace(string(manifest)))
	// The final empty line may be missing, which is an error with attributes.
	attrs, _ := textproto.NewReader(bufio.NewReader(lines)).ReadMIMEHeader()
	version, build := attrs.Get("Implementation-Version"), attrs.Get("Build-Number")
	switch {
	case version == "":
		return Release{}, errors.New("its manifest has no Implementation-Version")
	case max(len(version), len(build)) > maxVersion:
		return Release{}, fmt.Errorf("its manifest has an Implementation-Version or a Build-Number that is longer than %d bytes", maxVersion)
	}
	r, err := ParseRelease(version)
	if err != nil {
		return Release{}, fmt.Errorf("its manifest: %w", err)
	}
	r.Build = build
	return r, nil
}
