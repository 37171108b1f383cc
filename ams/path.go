// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"os"
	"path/filepath"

	"github.com/amsagent/amsagent/files"
)

// A configuration file of Ant Media Server has some ten kilobytes.
const maxConfigSize = 4 << 20

// maxApps bounds the entries of the webapps folder.
const maxApps = 4096

// maxDBName is the maximum length of a MongoDB database name in bytes.
const maxDBName = 63

// File is a file of the installation under its two names.
type File struct {
	// Path is the name as Ant Media Server opens it, below the root.
	Path string `json:"path"`
	// Real is the path on this machine: with the root, links resolved. Two files with the same Real are one file.
	Real string `json:"real"`
}

// cleanRoot makes a root absolute and clean; "" is the real root.
func cleanRoot(root string) (string, error) {
	if root == "" {
		return "/", nil
	}
	return filepath.Abs(root)
}

// realRoot reports whether root is the running system's own.
func realRoot(root string) bool { return root == "" || filepath.Clean(root) == "/" }

// below resolves path below root. Absolute links and ".." stay inside the root, as in a chroot; package files decides
// which links are followed. A missing path resolves to the name it would have.
func below(root, path string) (string, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return "", err
	}
	p, err := files.Root{Path: root}.Locate(path)
	if err != nil {
		return "", err
	}
	defer p.Close()
	return filepath.Join(root, p.Path()), nil
}

// shown returns path for messages, with the root if there is one.
func shown(root, path string) string {
	if realRoot(root) {
		return path
	}
	return filepath.Join(root, path)
}

// readBelow reads a regular file of at most limit bytes below root, and returns its real path. It refuses a pipe or a
// device, which could block.
func readBelow(root, path string, limit int64) (b []byte, real string, _ error) {
	root, err := cleanRoot(root)
	if err != nil {
		return nil, "", err
	}
	b, at, err := files.Root{Path: root}.Read(path, limit)
	if at != "" {
		at = filepath.Join(root, at)
	}
	return b, at, err
}

// openBelow opens a regular file below root for reading.
func openBelow(root, path string) (*os.File, files.Info, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return nil, files.Info{}, err
	}
	f, info, _, err := files.Root{Path: root}.Open(path)
	return f, info, err
}

// statBelow returns the information of path below root.
func statBelow(root, path string) (files.Info, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return files.Info{}, err
	}
	return files.Root{Path: root}.Stat(path)
}
