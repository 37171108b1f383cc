// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"path/filepath"

	"github.com/amsagent/amsagent/files"
)

const (
	// maxApps bounds the entries of the webapps folder.
	maxApps = 4096
	// maxDBName is the maximum length of a MongoDB database name in bytes.
	maxDBName = 63
	// maxSystemFile bounds files outside the installation.
	maxSystemFile = 4 << 20
)

// File is a file of the installation under its two names.
type File struct {
	// Path is the name as Ant Media Server opens it, below the root.
	Path string `json:"path"`
	// Real is the path on this machine: with the root, links resolved. Two files with the same Real are one file.
	Real string `json:"real"`
}

// realRoot reports whether root is the running system's own.
func realRoot(root string) bool { return root == "" || filepath.Clean(root) == "/" }

// shown returns path for messages, with the root if there is one.
func shown(root, path string) string {
	if realRoot(root) {
		return path
	}
	return filepath.Join(root, path)
}

// statBelow returns the information of path below root.
func statBelow(root, path string) (files.Info, error) { return files.Root{Path: root}.Stat(path) }
