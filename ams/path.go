// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"os"
	"path/filepath"

	"github.com/amsagent/amsagent/files"
)

// A configuration file of Ant Media Server has some ten kilobytes. What is
// larger than this is not one, and reading it whole would only cost memory.
const maxConfigSize = 4 << 20

// maxApps bounds the folder of the applications.
const maxApps = 4096

// maxDBName is how many bytes the name of a database has in MongoDB.
const maxDBName = 63

// File is a file of the installation under its two names.
type File struct {
	// Path is the name as Ant Media Server opens it, below the root.
	Path string `json:"path"`
	// Real is where it is on this machine: the root in front, symbolic links
	// followed. Two files with the same Real are one file.
	Real string `json:"real"`
}

// cleanRoot makes a root usable: absolute and without dots; "" is the real root.
func cleanRoot(root string) (string, error) {
	if root == "" {
		return "/", nil
	}
	return filepath.Abs(root)
}

// realRoot says whether root is the running system's own.
func realRoot(root string) bool { return root == "" || filepath.Clean(root) == "/" }

// below finds what path leads to below root. A link that is absolute, or climbs
// with dots, is followed inside the root, as a chroot would; which links are
// followed at all is the rule of package files. What does not exist resolves to the
// name it would have.
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

// shown is path as a person sees it, with the root in front where there is one.
func shown(root, path string) string {
	if realRoot(root) {
		return path
	}
	return filepath.Join(root, path)
}

// readBelow reads a regular file of at most limit bytes below root, and gives its
// real path. A pipe or a device in the place of a file must not make us wait: it is
// refused.
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

// statBelow looks at what path leads to below root.
func statBelow(root, path string) (files.Info, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return files.Info{}, err
	}
	return files.Root{Path: root}.Stat(path)
}
