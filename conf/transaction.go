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

// transaction is a commit or a recovery under way. Each folder is opened once and
// kept, so that all that happens to a file happens in the folder that was looked
// at first.
type transaction struct {
	*Store
	state *files.Folder

	mu      sync.Mutex
	folders map[string]*files.Folder // by their path below the root, without links
}

// begin takes over the state folder.
func (s *Store) begin(state *files.Folder) *transaction {
	return &transaction{Store: s, state: state, folders: map[string]*files.Folder{}}
}

// end closes what the transaction opened.
func (t *transaction) end() {
	for _, d := range t.folders {
		d.Close()
	}
	t.state.Close()
}

// folder opens a folder that was resolved before: where a link is now, it is
// refused.
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

// adopt keeps a folder that was opened on the way to one of its files.
func (t *transaction) adopt(d *files.Folder) {
	if _, ok := t.folders[d.Path()]; ok {
		d.Close()
		return
	}
	t.folders[d.Path()] = d
}

// at gives the folder of a file and the file's name in it.
func (t *transaction) at(path string) (*files.Folder, string, error) {
	d, err := t.folder(filepath.Dir(path))
	return d, filepath.Base(path), err
}

// read reads a file by its resolved path; one that is not there is no error.
func (t *transaction) readAt(path string) (File, error) {
	d, name, err := t.at(path)
	if err != nil {
		return File{}, ignore(err, fs.ErrNotExist)
	}
	return readIn(d, name, maxFileSize)
}

// look reads a target and says where it is in the commit. One that another user
// made unreadable is his.
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

// rename gives one of the names of a commit to another.
func (t *transaction) rename(from, to string) error {
	d, name, err := t.at(from)
	if err != nil {
		return err
	}
	return d.Rename(name, filepath.Base(to))
}

// link gives a file a second name.
func (t *transaction) link(path, second string) error {
	d, name, err := t.at(path)
	if err != nil {
		return err
	}
	return d.Link(name, filepath.Base(second))
}

// drop removes a file; what is not there, or cannot be reached any more, is gone.
func (t *transaction) drop(path string) error {
	if path == "" {
		return nil
	}
	d, name, err := t.at(path)
	if err != nil {
		return gone(err)
	}
	return d.Free(name)
}

// dropSide drops one of the names beside a target. What the folder's owner has mounted there is
// his: it stays, is named, and holds nothing up.
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

// gone leaves out the errors of a folder that is not there any more, or in whose
// place its owner put something else.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || files.Refused(err) {
		return nil
	}
	return err
}

// makeDirs makes the folders for new files.
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

// sameFile checks that a file is the very one that was read for the plan: by its
// folder, its inode, its owner and its mode, so that a folder or a file that was
// exchanged since passes none of these on.
func sameFile(now, planned File) error {
	if now.id != planned.id || now.folder != planned.folder || now.UID != planned.UID || now.GID != planned.GID || now.Mode != planned.Mode {
		return fmt.Errorf("%s: %w", planned.Path, ErrChanged)
	}
	return nil
}
