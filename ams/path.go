// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"path/filepath"

	"github.com/amsagent/amsagent/files"
)

const (
	maxApps = 4096
	// maxDBName is MongoDB's limit in bytes.
	maxDBName     = 63
	maxSystemFile = 4 << 20
)

// File is a file of the installation.
type File struct {
	// Path is below the root, as Ant Media Server opens it.
	Path string `json:"path"`
	// Real includes the root, with links resolved. One file has one Real.
	Real string `json:"real"`
}

func realRoot(root string) bool { return root == "" || filepath.Clean(root) == "/" }

func statBelow(root, path string) (files.Info, error) { return files.Root{Path: root}.Stat(path) }
