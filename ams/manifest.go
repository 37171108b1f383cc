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
	"strings"
)

// A manifest has some hundred bytes to a few kilobytes; its size in the archive
// is only what the archive says.
const maxManifestSize = 1 << 20

// maxJarRead bounds what is read of a jar, and with it the memory that its
// directory takes: that of the server's has some hundred kilobytes.
const maxJarRead = 8 << 20

// boundedReader ends after so many bytes, wherever they are.
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

// jarRelease reads the release from the manifest of the server's jar. Whatever
// goes wrong makes it an unknown release with a note, never a guess.
func jarRelease(root, path string) Release {
	unknown := func(why string) Release {
		return Release{Source: SourceUnknown, Note: shown(root, path) + ": " + why}
	}
	manifest, err := jarManifest(root, path)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return unknown("not there")
		case errors.Is(err, fs.ErrPermission):
			return unknown("permission denied")
		}
		// The name is in the note already, under the root the caller knows.
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return unknown(err.Error())
	}
	attrs := manifestAttributes(manifest)
	version := strings.TrimSpace(attrs["implementation-version"])
	if version == "" {
		return unknown("its manifest has no Implementation-Version")
	}
	r, err := ParseRelease(version)
	if err != nil {
		return unknown("its manifest: " + err.Error())
	}
	r.Source = SourceManifest
	r.Build = strings.TrimSpace(attrs["build-number"])
	return r
}

// jarManifest reads META-INF/MANIFEST.MF of a jar. Only the directory at the end
// of the archive and this one member are read, whatever the size of the jar.
func jarManifest(root, path string) ([]byte, error) {
	f, info, err := openBelow(root, path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	z, err := zip.NewReader(&boundedReader{f, maxJarRead}, info.Size)
	if err != nil {
		return nil, fmt.Errorf("not a whole jar: %w", err)
	}
	for _, member := range z.File {
		// Java looks for it without regard to case, too.
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

// manifestAttributes reads the main section of a manifest; names in lower case.
// A line ends in CR LF, LF or CR; one that starts with a blank continues the
// line before it, which may be in the middle of a letter of several bytes.
func manifestAttributes(b []byte) map[string]string {
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
	attrs := make(map[string]string)
	name := ""
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		if len(line) == 0 {
			// The first blank line ends the main section; what follows is about
			// single members of the jar.
			break
		}
		if line[0] == ' ' {
			if name != "" {
				attrs[name] += string(line[1:])
			}
			continue
		}
		key, value, ok := strings.Cut(string(line), ":")
		if !ok {
			name = ""
			continue
		}
		name = strings.ToLower(key)
		attrs[name] = strings.TrimPrefix(value, " ")
	}
	return attrs
}
