// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of what a commit has beside a target: .NAME.amsagent-ID.new and .old.
const (
	besideMark   = ".amsagent-"
	tempSuffix   = ".new"
	backupSuffix = ".old"
)

func besideName(target, id, suffix string) string {
	dir, base := filepath.Split(target)
	return dir + "." + base + besideMark + id + suffix
}

// beside lists what commits have beside a target, by suffix. A folder that
// cannot be read has nothing.
func (s *Store) beside(target, suffix string) []string {
	dir, base := filepath.Split(s.real(target))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+base+besideMark) && strings.HasSuffix(e.Name(), suffix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

// sweep removes what a power cut may have left of an earlier commit: staged
// files whose plan was not on the disk yet. A backup goes only where it is
// another name of the very file; what cannot be removed stays.
func (s *Store) sweep(j *journal) {
	for _, f := range j.Files {
		for _, stray := range s.beside(f.Target, tempSuffix) {
			_ = os.Remove(stray)
		}
		target, err := os.Lstat(s.real(f.Target))
		if err != nil {
			continue
		}
		for _, stray := range s.beside(f.Target, backupSuffix) {
			if info, err := os.Lstat(stray); err == nil && os.SameFile(info, target) {
				_ = os.Remove(stray)
			}
		}
	}
}

// missingDirs lists the directories that must be made for dir, outermost first.
func (s *Store) missingDirs(dir string) []string {
	var missing []string
	for dir != s.root() && dir != "/" {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, s.inside(dir))
		dir = filepath.Dir(dir)
	}
	slices.Reverse(missing)
	return missing
}

func (s *Store) real(path string) string { return filepath.Join(s.root(), path) }

// stage writes every new file beside its target and links every old one, and
// brings the plan of all this to disk. The fsyncs run side by side: a journaling
// file system commits them together. A process that is killed leaves a plan that
// says what to clean up; should a power cut lose the plan and keep a staged
// file, that file is a stray one and nothing more, because no target is touched
// before all of this is on disk.
func (s *Store) stage(j *journal, changes []Change, plan *os.File) error {
	for _, d := range j.MakeDirs {
		if err := os.Mkdir(s.real(d), 0o755); err != nil {
			return errors.Join(err, plan.Close())
		}
	}
	return each(len(changes)+1, func(i int) error {
		if i == len(changes) {
			return errors.Join(plan.Sync(), plan.Close())
		}
		f, c := j.Files[i], changes[i]
		if f.Backup != "" {
			if err := backup(s.real(f.Target), s.real(f.Backup)); err != nil {
				return err
			}
		}
		if f.Temp == "" {
			return nil
		}
		return s.stageFile(f, c.After)
	})
}

// stageFile writes the new file beside its target and reads it again.
func (s *Store) stageFile(f journalFile, content []byte) error {
	err := writeNew(s.real(f.Temp), content, func(fd *os.File) error {
		if f.Before == "" {
			return fd.Chmod(f.AfterMode)
		}
		return copyMeta(fd, s.real(f.Target), f.AfterMode)
	})
	if err != nil {
		return fmt.Errorf("staging %s: %w", f.Target, err)
	}
	back, err := readFile(s.real(f.Temp))
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
// has no links, a copy.
func backup(target, name string) error {
	err := os.Link(target, name)
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EROFS) {
		return err
	}
	f, rerr := readFile(target)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	return writeNew(name, f.Bytes, func(fd *os.File) error { return copyMeta(fd, target, f.Mode) })
}

// unchanged compares the file with what the plan read.
func (s *Store) unchanged(f journalFile) error {
	now, err := readFile(s.real(f.Target))
	if err != nil {
		return err
	}
	if got := fileSum(now); got != f.Before {
		return fmt.Errorf("%s: %w", f.Target, ErrChanged)
	}
	return nil
}

// overtaken reports whether the old file was written after our last look at it:
// by somebody who had opened it before we replaced it. AMS saves its settings
// by emptying the file and writing it, so whoever opened the old file while it
// had its name has emptied it by now, and what he writes is under the name of
// the backup.
func (s *Store) overtaken(f journalFile) (bool, error) {
	if f.Backup == "" {
		return false, nil
	}
	old, err := readFile(s.real(f.Backup))
	return err == nil && fileSum(old) != f.Before, err
}

func fileSum(f File) string {
	if !f.Exists() {
		return ""
	}
	return sum(f.Bytes)
}
