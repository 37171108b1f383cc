// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
)

// Names beside a target: .NAME.amsagent-ID.new and .old.
const (
	besideMark   = ".amsagent-"
	tempSuffix   = ".new"
	backupSuffix = ".old"
)

// maxBase is the longest name of a target, in bytes: file systems allow 255, and the names beside it contain an
// id, too.
const maxBase = 255 - len(".") - len(besideMark) - 2*idSize - len(backupSuffix)

func besideName(target, id, suffix string) string {
	dir, base := filepath.Split(target)
	return dir + "." + base + besideMark + id + suffix
}

// isBeside reports whether name is a commit's beside base. An id has no dot: .NAME.amsagent-saved.amsagent-ID.old
// belongs to the kept copy of NAME.
func isBeside(name, base, suffix string) bool {
	id, ok := strings.CutPrefix(name, "."+base+besideMark)
	id, cut := strings.CutSuffix(id, suffix)
	return ok && cut && !strings.ContainsAny(id, "./")
}

// IsLeftover reports whether an interrupted commit left name for the file at path.
func IsLeftover(path, name string) bool {
	return isBeside(name, filepath.Base(path), backupSuffix) || isBeside(name, filepath.Base(path), tempSuffix)
}

func beside(base string, entries []fs.DirEntry, suffix string) []string {
	var out []string
	for _, e := range entries {
		if isBeside(e.Name(), base, suffix) {
			out = append(out, e.Name())
		}
	}
	return out
}

// sweep removes files that were staged before a power cut, without a plan on disk. It removes a backup only if it
// is a link to the target. Errors are ignored.
func (t *transaction) sweep(j *journal) {
	for _, f := range j.Files {
		d, name, err := t.at(f.Target)
		if err != nil {
			continue
		}
		entries, err := d.Entries(maxEntries)
		if err != nil {
			continue
		}
		for _, stray := range beside(name, entries, tempSuffix) {
			_ = d.Remove(stray)
		}
		strays := beside(name, entries, backupSuffix)
		if len(strays) == 0 {
			continue
		}
		target, err := d.Stat(name)
		if err != nil {
			continue
		}
		for _, stray := range strays {
			if info, err := d.Stat(stray); err == nil && info.ID == target.ID {
				_ = d.Remove(stray)
			}
		}
	}
}

// stage writes the new files, links the old ones and syncs the plan. The fsyncs are concurrent: a journaling file
// system commits them together. After a kill the plan says what to remove. A power cut may lose the plan and keep
// a staged file, which is harmless: no target is changed before.
func (t *transaction) stage(j *journal, changes []Change, plan *os.File) error {
	if err := t.makeDirs(j.MakeDirs); err != nil {
		return errors.Join(err, plan.Close())
	}
	return each(len(changes)+1, func(i int) error {
		if i == len(changes) {
			return t.state.SyncFile(plan)
		}
		return t.stageChange(j.Files[i], &changes[i])
	})
}

// stageChange copies owner, mode, ACL and extended attributes of the file that was read for the plan.
func (t *transaction) stageChange(f journalFile, c *Change) error {
	d, name, err := t.at(f.Target)
	if err != nil {
		return err
	}
	attributes := d.In(f.AfterMode)
	if f.Before != "" {
		fd, info, err := d.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", f.Target, ErrChanged)
		}
		if err != nil {
			return err
		}
		defer fd.Close()
		now := File{Mode: info.Mode, UID: info.UID, GID: info.GID, id: info.ID, folder: d.Info().ID}
		if err := sameFile(now, c.Before); err != nil {
			return err
		}
		if attributes, err = files.AttributesOf(fd, info); err != nil {
			return err
		}
		if err := t.backup(f, fd, len(c.Before.Bytes)); err != nil {
			return err
		}
		if info, err = files.InfoOf(fd); err != nil {
			return err
		}
		c.Before.id = info.ID
	}
	if f.Temp == "" {
		return nil
	}
	attributes.Mode = f.AfterMode
	if c.Like != nil {
		attributes.UID, attributes.GID = c.Like.UID, c.Like.GID
	}
	return t.stageFile(f, c.After, attributes)
}

// stageFile reads the file back, up to the written length: its owner may append meanwhile.
func (t *transaction) stageFile(f journalFile, content []byte, a files.Attributes) error {
	d, name, err := t.at(f.Temp)
	if err != nil {
		return err
	}
	if err := d.Write(name, content, a); err != nil {
		return fmt.Errorf("staging %s: %w", f.Target, err)
	}
	back, err := readIn(d, name, int64(len(content)))
	if err != nil {
		return fmt.Errorf("verifying what was staged for %s: %w", f.Target, err)
	}
	if sum(back.Bytes) != f.After {
		return fmt.Errorf("verifying what was staged for %s: it reads back differently", f.Target)
	}
	return nil
}

// backup makes a hard link, so that a restore needs no space and keeps the inode, or a copy. target is the planned
// file, open, with its former size.
func (t *transaction) backup(f journalFile, target *os.File, size int) error {
	d, _, err := t.at(f.Target)
	if err != nil {
		return err
	}
	second := filepath.Base(f.Backup)
	switch err := d.LinkOpen(target, second); {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO):
		return err
	}
	// Read the open file, not its name.
	info, err := files.InfoOf(target)
	if err != nil {
		return err
	}
	a, err := files.AttributesOf(target, info)
	if err != nil {
		return err
	}
	old, err := files.ReadOpen(target, int64(size))
	if files.Refused(err) {
		return fmt.Errorf("%s: %w: %w", f.Target, ErrChanged, err)
	}
	if err != nil {
		return err
	}
	return d.Write(second, old, a)
}

// unchanged compares the file with the plan's, which is nil in a recovery.
func (t *transaction) unchanged(f journalFile, planned *File) error {
	now, err := t.readAt(f.Target)
	if files.Refused(err) {
		return fmt.Errorf("%s: %w: %w", f.Target, ErrChanged, err)
	}
	if err != nil {
		return err
	}
	if got := fileSum(now); got != f.Before {
		return fmt.Errorf("%s: %w", f.Target, ErrChanged)
	}
	if planned == nil || !planned.Exists() {
		return nil
	}
	return sameFile(now, *planned)
}

// overtaken reports whether a program that had opened the old file wrote it after the rename. The server empties a
// file before it saves, so the backup then differs.
func (t *transaction) overtaken(f journalFile) (bool, error) {
	if f.Backup == "" {
		return false, nil
	}
	old, err := t.readAt(f.Backup)
	if files.Refused(err) {
		return false, nil
	}
	// A missing backup was restored by an interrupted rollback.
	return err == nil && old.Exists() && fileSum(old) != f.Before, err
}

func fileSum(f File) string { return sumOf(f.Bytes) }
