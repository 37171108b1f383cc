// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
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

// standing is a file's progress in a commit.
type standing int

const (
	isOld standing = iota
	isNew
	isForeign // written by another program
)

// look treats an unreadable target as another program's.
func (t *transaction) look(f journalFile) (standing, error) {
	now, err := t.readAt(f.Target)
	switch got := sumOf(now.Bytes); {
	case files.Refused(err):
		return isForeign, nil
	case err != nil:
		return isForeign, err
	case got == f.After && (f.Before != f.After || now.Mode == f.AfterMode): // perhaps only the mode changes
		return isNew, nil
	case got == f.Before:
		return isOld, nil
	}
	return isForeign, nil
}

// Staged files are beside their targets: .NAME.amsagent-ID.new.
const (
	stagedMark   = ".amsagent-"
	stagedSuffix = ".new"

	// maxBase is the longest name of a target, in bytes: file systems allow 255.
	maxBase = 255 - len(".") - len(stagedMark) - 2*idSize - len(stagedSuffix)
)

func (j *journal) stagedName(target string) string {
	return "." + filepath.Base(target) + stagedMark + j.ID + stagedSuffix
}

// IsLeftover reports whether name is that of a staged file for the file at path. One is left if the journal was damaged.
func IsLeftover(path, name string) bool {
	id, ok := strings.CutPrefix(name, "."+filepath.Base(path)+stagedMark)
	id, cut := strings.CutSuffix(id, stagedSuffix)
	// .NAME.amsagent-saved.amsagent-ID.new belongs to the kept copy of NAME.
	return ok && cut && !strings.ContainsAny(id, "./")
}

// sweep removes leftovers of other commits. Errors are ignored.
func (t *transaction) sweep(j *journal) {
	for _, f := range j.Files {
		d, _, err := t.at(f.Target)
		if err != nil {
			continue
		}
		entries, err := d.Entries(maxEntries)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if IsLeftover(f.Target, e.Name()) {
				_ = d.Remove(e.Name())
			}
		}
	}
}

// stage writes the new file beside its target, with owner, mode, ACL and extended attributes of the file that it
// replaces. planned is nil in a recovery.
func (t *transaction) stage(j *journal, f journalFile, planned *File) error {
	d, name, err := t.at(f.Target)
	if err != nil {
		return f.blame(err)
	}
	attributes := d.In(f.AfterMode)
	if f.Before != "" {
		if attributes, err = f.attributes(d, name, planned); err != nil {
			return f.blame(err)
		}
		attributes.Mode = f.AfterMode
	}
	if f.After == "" {
		return nil
	}
	if f.Owner != nil {
		attributes.UID, attributes.GID = f.Owner.UID, f.Owner.GID
	}
	staged := j.stagedName(f.Target)
	if err := d.Free(staged); err != nil {
		return f.blame(err)
	}
	if err := d.Write(staged, f.Data, attributes); err != nil {
		return f.blame(fmt.Errorf("staging %s: %w", f.Target, err))
	}
	return nil
}

// attributes compares the former file and reads its attributes through one descriptor: its owner may exchange the name.
func (f journalFile) attributes(d *files.Folder, name string, planned *File) (files.Attributes, error) {
	fd, info, err := d.Open(name)
	if err != nil {
		return files.Attributes{}, err
	}
	defer fd.Close()
	limit := int64(maxFileSize)
	if planned != nil {
		limit = int64(len(planned.Bytes)) // several are read at a time
	}
	b, err := files.ReadOpen(fd, limit)
	if errors.Is(err, files.ErrTooLarge) {
		err = fmt.Errorf("%s: %w", f.Target, ErrChanged)
	}
	if err != nil {
		return files.Attributes{}, err
	}
	if err := f.unchanged(fileOf(d, b, info), planned); err != nil {
		return files.Attributes{}, err
	}
	return files.AttributesOf(fd, info)
}

// unchanged returns [ErrChanged] if now is not the file from before the commit. A recovery knows its content and owner,
// so that a replaced file passes on no other user's rights. planned has more.
func (f journalFile) unchanged(now File, planned *File) error {
	switch {
	case sumOf(now.Bytes) != f.Before, now.Exists() && f.Was != nil && now.UID != f.Was.UID:
	case planned == nil || !planned.Exists():
		return nil
	case now.id == planned.id && now.folder == planned.folder && now.UID == planned.UID && now.GID == planned.GID && now.Mode == planned.Mode:
		return nil
	}
	return fmt.Errorf("%s: %w", f.Target, ErrChanged)
}

// blame adds [ErrChanged] to errors that the folder's owner can cause.
func (f journalFile) blame(err error) error {
	if err == nil || ignoreGone(err) != nil {
		return err
	}
	return fmt.Errorf("%s: %w: %w", f.Target, ErrChanged, err)
}

// install renames the staged file, or removes the target, if that is still the former file.
func (t *transaction) install(j *journal, f journalFile, planned *File) error {
	now, err := t.readAt(f.Target)
	if err != nil {
		return f.blame(err)
	}
	if err := f.unchanged(now, planned); err != nil {
		return err
	}
	d, name, err := t.at(f.Target)
	switch {
	case err != nil:
	case f.After == "":
		err = d.Free(name)
	default:
		err = d.Rename(j.stagedName(f.Target), name)
	}
	return f.blame(err)
}

// reversed leads from the new file to the former one, which c has.
func (f journalFile) reversed(c Change) journalFile {
	return journalFile{
		Target: f.Target, Before: f.After, Was: cmp.Or(f.Owner, f.Was),
		After: f.Before, AfterMode: files.Plain(c.Before.Mode), Owner: f.Was, Data: c.Before.Bytes,
	}
}

// dropStaged leaves, and reports, what the folder's owner has mounted there.
func (t *transaction) dropStaged(j *journal) error {
	var errs []error
	for _, f := range j.Files {
		d, _, err := t.at(f.Target)
		if err == nil {
			if err = d.Free(j.stagedName(f.Target)); files.Refused(err) && t.Left != nil {
				t.Left(filepath.Join(d.Path(), j.stagedName(f.Target)), err)
			}
		}
		errs = append(errs, ignoreGone(err))
	}
	return errors.Join(errs...)
}

func (t *transaction) syncDirs(j *journal) error {
	var dirs []string
	for _, f := range j.Files {
		dirs = append(dirs, filepath.Dir(f.Target))
	}
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	return each(len(dirs), func(i int) error {
		d, err := t.folder(dirs[i])
		if err != nil {
			return ignoreGone(err) // it was removed with the change
		}
		return d.Sync()
	})
}

// ignoreGone drops errors of a file or folder that was removed or replaced.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || files.Refused(err) {
		return nil
	}
	return err
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}
