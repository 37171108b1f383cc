// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

const (
	// maxJarSize bounds a jar: the server's has 2 MB. archive/zip trusts a directory that announces one member for each
	// 30 bytes of the file, and allocates them before it reads the first one.
	maxJarSize = 64 << 20
	// maxJarRead bounds the bytes read of a jar, and so the memory for its directory: the server's has 100 kB.
	maxJarRead = 2 << 20
	// maxManifestSize bounds the manifest, which has at most a few kilobytes. Its size in the archive is not trusted.
	maxManifestSize = 64 << 10
	// maxVersion bounds version and build number, which go into the state file and into the registry. The longest known
	// have 20 bytes.
	maxVersion = 64
)

// boundedReader fails after left bytes, at any offsets.
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

// jarRelease reads the release from the manifest of the server's jar. Any failure makes it an unknown release with a
// note.
func jarRelease(root, path string) Release {
	unknown := func(why string) Release {
		return Release{Note: shown(root, path) + ": " + why}
	}
	manifest, err := jarManifest(root, path)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return unknown("not there")
		case errors.Is(err, fs.ErrPermission):
			return unknown("permission denied")
		}
		// The note has the name already, under the caller's root.
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return unknown(err.Error())
	}
	r, err := manifestRelease(manifest)
	if err != nil {
		return unknown(err.Error())
	}
	return r
}

// manifestRelease parses the release in a manifest.
func manifestRelease(manifest []byte) (Release, error) {
	attrs := manifestAttributes(manifest)
	version, build := strings.TrimSpace(attrs["implementation-version"]), strings.TrimSpace(attrs["build-number"])
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

// jarManifest reads META-INF/MANIFEST.MF of a jar.
func jarManifest(root, path string) ([]byte, error) {
	f, info, err := openBelow(root, path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return manifestOf(f, info.Size)
}

// manifestOf reads META-INF/MANIFEST.MF of the jar in r. It reads only the directory at the end of the archive and this
// one member.
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
		defer func() { _ = r.Close() }()
		b, err := io.ReadAll(io.LimitReader(r, maxManifestSize+1))
		if err != nil {
			return nil, fmt.Errorf("reading its manifest: %w", err)
		}
		if len(b) > maxManifestSize {
			return nil, fmt.Errorf("its manifest is larger than %d bytes", maxManifestSize)
		}
		return b, nil
	}
	return nil, errors.New("it has no META-INF/MANIFEST.MF")
}

// manifestAttributes parses the main section of a manifest; names in lower case. A line ends in CR LF, LF or CR; one
// that starts with a space continues the line before it, even in the middle of a UTF-8 sequence.
func manifestAttributes(b []byte) map[string]string {
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
	values := make(map[string][]byte)
	name := ""
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		if len(line) == 0 {
			// The first empty line ends the main section; sections of single members follow.
			break
		}
		if line[0] == ' ' {
			if name != "" {
				values[name] = append(values[name], line[1:]...)
			}
			continue
		}
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			name = ""
			continue
		}
		name = strings.ToLower(string(key))
		values[name] = slices.Clone(bytes.TrimPrefix(value, []byte(" ")))
	}
	attrs := make(map[string]string, len(values))
	for name, value := range values {
		attrs[name] = string(value)
	}
	return attrs
}
