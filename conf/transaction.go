// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/amsagent/amsagent/files"
)

// transaction is a commit or a recovery. It keeps each folder open, so that all steps use the same one.
type transaction struct {
	*Store
	state *files.Folder

	mu      sync.Mutex
	folders map[string]*files.Folder // by path below the root, without links
}

// begin takes ownership of state.
func (s *Store) begin(state *files.Folder) *transaction {
	return &transaction{Store: s, state: state, folders: map[string]*files.Folder{}}
}

func (t *transaction) end() {
	for _, d := range t.folders {
		d.Close()
	}
	t.state.Close()
}

// folder opens a resolved path, and refuses links.
func (t *transaction) folder(path string) (*files.Folder, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d, ok := t.folders[path]; ok {
		return d, nil
	}
	d, err := t.Files().ResolvedFolder(path)
	if err != nil {
		return nil, err
	}
	t.folders[path] = d
	return d, nil
}

func (t *transaction) adopt(d *files.Folder) {
	if _, ok := t.folders[d.Path()]; ok {
		d.Close()
		return
	}
	t.folders[d.Path()] = d
}

// at returns a file's folder and name.
func (t *transaction) at(path string) (*files.Folder, string, error) {
	d, err := t.folder(filepath.Dir(path))
	return d, filepath.Base(path), err
}

// readAt needs a resolved path. A missing file is no error.
func (t *transaction) readAt(path string) (File, error) {
	d, name, err := t.at(path)
	if err != nil {
		return File{}, ignore(err, fs.ErrNotExist)
	}
	return readIn(d, name, maxFileSize)
}

// look treats an unreadable target as another program's.
func (t *transaction) look(f journalFile) (standing, error) {
	now, err := t.readAt(f.Target)
	switch {
	case files.Refused(err):
		return isForeign, nil
	case err != nil:
		return isForeign, err
	}
	return f.standing(now), nil
}

func (t *transaction) rename(from, to string) error {
	d, name, err := t.at(from)
	if err != nil {
		return err
	}
	return d.Rename(name, filepath.Base(to))
}

func (t *transaction) link(path, second string) error {
	d, name, err := t.at(path)
	if err != nil {
		return err
	}
	return d.Link(name, filepath.Base(second))
}

// drop ignores a missing or unreachable file.
func (t *transaction) drop(path string) error {
	if path == "" {
		return nil
	}
	d, name, err := t.at(path)
	if err != nil {
		return ignoreGone(err)
	}
	return d.Free(name)
}

// dropSide leaves, and reports, what the folder's owner has mounted there.
func (t *transaction) dropSide(path string) error {
	err := t.drop(path)
	if files.Refused(err) {
		if t.Left != nil {
			t.Left(path, err)
		}
		return nil
	}
	return err
}

// ignoreGone drops errors of a folder that was removed or replaced.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || files.Refused(err) {
		return nil
	}
	return err
}

func (t *transaction) makeDirs(dirs []string) error {
	for _, path := range dirs {
		parent, name, err := t.at(path)
		if err != nil {
			return err
		}
		d, err := parent.MakeFolder(name, 0o755)
		if err != nil {
			return err
		}
		t.adopt(d)
	}
	return nil
}

// sameFile checks folder, inode, owner and mode, so that a replaced file passes none of them on.
func sameFile(now, planned File) error {
	if now.id != planned.id || now.folder != planned.folder || now.UID != planned.UID || now.GID != planned.GID || now.Mode != planned.Mode {
		return fmt.Errorf("%s: %w", planned.Path, ErrChanged)
	}
	return nil
}
