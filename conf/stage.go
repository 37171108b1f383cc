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

// Names of what a commit has beside a target: .NAME.amsagent-ID.new and .old.
const (
	besideMark   = ".amsagent-"
	tempSuffix   = ".new"
	backupSuffix = ".old"
)

// maxBase is the longest name of a target, in bytes: file systems take 255, and what is beside it has the digits
// of an id in its name, too.
const maxBase = 255 - len(".") - len(besideMark) - 2*idSize - len(backupSuffix)

func besideName(target, id, suffix string) string {
	dir, base := filepath.Split(target)
	return dir + "." + base + besideMark + id + suffix
}

// isBeside reports whether a commit gives that name to what it has beside the file
// called base. An id has no dot: .NAME.amsagent-saved.amsagent-ID.old belongs to the
// copy kept of NAME.
func isBeside(name, base, suffix string) bool {
	id, ok := strings.CutPrefix(name, "."+base+besideMark)
	id, cut := strings.CutSuffix(id, suffix)
	return ok && cut && !strings.ContainsAny(id, "./")
}

// IsBackup reports whether name is what a commit that was interrupted left of a file with that path.
func IsBackup(path, name string) bool { return isBeside(name, filepath.Base(path), backupSuffix) }

// beside lists what commits have beside a target, by suffix, as names in its
// folder. A folder that cannot be read has nothing.
func beside(base string, entries []fs.DirEntry, suffix string) []string {
	var out []string
	for _, e := range entries {
		if isBeside(e.Name(), base, suffix) {
			out = append(out, e.Name())
		}
	}
	return out
}

// sweep removes what a power cut may have left of an earlier commit: staged
// files whose plan was not on the disk yet. A backup goes only where it is
// another name of the very file; what cannot be removed stays.
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

// stage writes every new file beside its target and links every old one, and
// brings the plan of all this to disk. The fsyncs run side by side: a journaling
// file system commits them together. A process that is killed leaves a plan that
// says what to clean up; should a power cut lose the plan and keep a staged
// file, that file is a stray one and nothing more, because no target is touched
// before all of this is on disk.
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

// stageChange stages one file. Owner, mode, ACL and extended attributes are those
// of the very file that was read for the plan.
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

// stageFile writes the new file beside its target and reads it again, no further than
// it was written: its owner may write to it meanwhile.
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

// backup keeps the old file under a second name: a hard link, so that putting
// it back needs no space and restores the very inode. Where the file system
// has no links, a copy. target is the file that was planned, open, and size what it had then.
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
	// The file that is open, whatever its name stands for by now.
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

// unchanged compares the file with what the plan read. planned is that file, nil
// in a recovery.
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

// overtaken reports whether the old file was written after our last look at it:
// by somebody who had opened it before we replaced it. AMS saves its settings
// by emptying the file and writing it, so whoever opened the old file while it
// had its name has emptied it by now, and what he writes is under the name of
// the backup.
func (t *transaction) overtaken(f journalFile) (bool, error) {
	if f.Backup == "" {
		return false, nil
	}
	old, err := t.readAt(f.Backup)
	if files.Refused(err) {
		return false, nil
	}
	// A backup that is gone says nothing: an interrupted rollback has put it back already.
	return err == nil && old.Exists() && fileSum(old) != f.Before, err
}

func fileSum(f File) string {
	if !f.Exists() {
		return ""
	}
	return sum(f.Bytes)
}
