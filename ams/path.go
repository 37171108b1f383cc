// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// A configuration file of Ant Media Server has some ten kilobytes. What is
// larger than this is not one, and reading it whole would only cost memory.
const maxConfigSize = 4 << 20

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

// below resolves path below root. A link that is absolute, or climbs with dots,
// is followed inside the root, as a chroot would. What does not exist resolves
// to the name it would have.
func below(root, path string) (string, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return "", err
	}
	return securejoin.SecureJoin(root, path)
}

// shown is path as a person sees it, with the root in front where there is one.
func shown(root, path string) string {
	if realRoot(root) {
		return path
	}
	return filepath.Join(root, path)
}

// openRegular opens a regular file for reading. A pipe or a device in the place
// of a file must not make us wait: it is refused.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// readFile reads a regular file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, nil
}

// readBelow reads path below root, both names resolved.
func readBelow(root, path string, limit int64) ([]byte, error) {
	onDisk, err := below(root, path)
	if err != nil {
		return nil, err
	}
	return readFile(onDisk, limit)
}
