// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Change is what a commit does to one file.
type Change struct {
	// Before is the file as the plan read it: it is compared again just before
	// the rename.
	Before File
	// After is what it becomes; ignored with Remove.
	After  []byte
	Remove bool
	// Mode is the permission bits it gets; 0 keeps those it has.
	Mode fs.FileMode
}

// journal is what a commit writes before it touches anything and what recovery
// goes by. Renamed, it is the undo record.
type journal struct {
	Version int           `json:"version"`
	ID      string        `json:"id"`
	Purpose string        `json:"purpose"`
	Files   []journalFile `json:"files"`
	// MakeDirs are made before staging, RemoveDirs removed if they are empty
	// after it; both real paths below the root, outermost first.
	MakeDirs   []string `json:"make_dirs,omitempty"`
	RemoveDirs []string `json:"remove_dirs,omitempty"`
	Record     *Record  `json:"record,omitempty"`
}

// journalFile names the files of one change, below the root.
type journalFile struct {
	Target string `json:"target"`
	Temp   string `json:"temp,omitempty"`
	Backup string `json:"backup,omitempty"`
	// Sums are SHA-256; "" means no file.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// Commit makes the changes as one: afterwards all files are new, or, when it
// returns an error, all are as before unless the error says otherwise. record
// is what undoing the changes will need, and replaces the record there was; nil
// removes it. removeDirs are directories to drop where they are empty
// afterwards. purpose goes into the journal for people.
//
// A crash inside Commit leaves a journal; [Store.Recover] must have been called
// before the next Commit.
func (s *Store) Commit(purpose string, changes []Change, record *Record, removeDirs []string) error {
	stateDir, err := s.makeStateDir()
	if err != nil {
		return err
	}
	j, err := s.newJournal(purpose, changes, record, removeDirs)
	if err != nil {
		return err
	}
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	staging, committed := filepath.Join(stateDir, stagingName), filepath.Join(stateDir, journalName)
	plan, err := createNew(staging, data, func(*os.File) error { return nil })
	if err != nil {
		return errors.Join(err, removeIfThere(staging))
	}
	if err := s.stage(j, changes, plan); err != nil {
		return errors.Join(err, s.unstage(j), removeIfThere(staging))
	}
	for _, f := range j.Files {
		if err := s.unchanged(f); err != nil {
			return errors.Join(err, s.unstage(j), removeIfThere(staging))
		}
	}
	// From here on a crash is finished forward.
	if err := errors.Join(os.Rename(staging, committed), syncDir(stateDir)); err != nil {
		return errors.Join(err, s.unstage(j), removeIfThere(staging), removeIfThere(committed))
	}
	if err := s.install(j); err != nil {
		if back := s.rollBack(j, stateDir); back != nil {
			return errors.Join(err, fmt.Errorf("and the files could not be put back; the next run tries again: %w", back))
		}
		return err
	}
	return s.finish(j, stateDir)
}

// newJournal plans names and sums.
func (s *Store) newJournal(purpose string, changes []Change, record *Record, removeDirs []string) (*journal, error) {
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	j := &journal{Version: recordVersion, ID: hex.EncodeToString(id[:]), Purpose: purpose, Record: record}
	seen := map[string]bool{}
	for _, c := range changes {
		real, err := s.resolve(c.Before.Path)
		if err != nil {
			return nil, err
		}
		if seen[real] {
			return nil, fmt.Errorf("%s is changed twice: two names lead to it", s.inside(real))
		}
		seen[real] = true
		dir, base := filepath.Split(s.inside(real))
		f := journalFile{Target: s.inside(real)}
		if c.Before.Exists() {
			f.Before = sum(c.Before.Bytes)
			f.Backup = dir + "." + base + ".amsagent-" + j.ID + ".old"
		}
		if !c.Remove {
			f.After = sum(c.After)
			f.Temp = dir + "." + base + ".amsagent-" + j.ID + ".new"
		}
		j.Files = append(j.Files, f)
		for _, d := range s.missingDirs(filepath.Dir(real)) {
			if !slices.Contains(j.MakeDirs, d) {
				j.MakeDirs = append(j.MakeDirs, d)
			}
		}
	}
	if record != nil {
		record.Version = recordVersion
		for _, d := range j.MakeDirs {
			if !slices.Contains(record.Dirs, d) {
				record.Dirs = append(record.Dirs, d)
			}
		}
	}
	for _, d := range removeDirs {
		real, err := s.resolve(d)
		if err != nil {
			return nil, err
		}
		j.RemoveDirs = append(j.RemoveDirs, s.inside(real))
	}
	return j, nil
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
		err := writeNew(s.real(f.Temp), c.After, func(fd *os.File) error {
			switch {
			case !c.Before.Exists():
				return fd.Chmod(c.Mode)
			case c.Mode != 0:
				return copyMeta(fd, s.real(f.Target), c.Mode)
			}
			return copyMeta(fd, s.real(f.Target), c.Before.Mode)
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
	})
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

func fileSum(f File) string {
	if !f.Exists() {
		return ""
	}
	return sum(f.Bytes)
}

// install renames every staged file over its target, after a last look at it:
// AMS writes its files in place and asks nobody.
func (s *Store) install(j *journal) error {
	for _, f := range j.Files {
		if err := s.unchanged(f); err != nil {
			return err
		}
		if err := s.installFile(f); err != nil {
			return err
		}
	}
	return s.syncDirs(j)
}

func (s *Store) installFile(f journalFile) error {
	if f.Temp == "" {
		return removeIfThere(s.real(f.Target))
	}
	return os.Rename(s.real(f.Temp), s.real(f.Target))
}

// syncDirs makes the renames durable.
func (s *Store) syncDirs(j *journal) error {
	var dirs []string
	add := func(d string) {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	for _, f := range j.Files {
		add(filepath.Dir(f.Target))
	}
	for _, d := range j.MakeDirs {
		add(filepath.Dir(d))
	}
	return each(len(dirs), func(i int) error {
		err := syncDir(s.real(dirs[i]))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was made for this change and is gone with it
		}
		return err
	})
}

// finish drops the backups and turns the journal into the undo record.
func (s *Store) finish(j *journal, stateDir string) error {
	for _, f := range j.Files {
		if err := errors.Join(s.drop(f.Backup), s.drop(f.Temp)); err != nil {
			return err
		}
	}
	s.removeEmpty(j.RemoveDirs)
	// No fsync from here on: should a power cut bring the journal back,
	// recovery finds everything done and comes here again.
	committed, undo := filepath.Join(stateDir, journalName), filepath.Join(stateDir, undoName)
	if j.Record != nil {
		return os.Rename(committed, undo)
	}
	return errors.Join(removeIfThere(undo), removeIfThere(committed))
}

func (s *Store) drop(path string) error {
	if path == "" {
		return nil
	}
	return removeIfThere(s.real(path))
}

// removeEmpty removes directories innermost first; one that is not empty, or
// not there, stays as it is.
func (s *Store) removeEmpty(dirs []string) {
	for _, d := range slices.Backward(dirs) {
		// The outcome does not matter: a directory somebody now uses is his.
		_ = os.Remove(s.real(d))
	}
}

// unstage removes what staging made. Targets were not touched.
func (s *Store) unstage(j *journal) error {
	var errs []error
	for _, f := range j.Files {
		errs = append(errs, s.drop(f.Temp), s.drop(f.Backup))
	}
	s.removeEmpty(j.MakeDirs)
	return errors.Join(errs...)
}

// rollBack puts every old file back and forgets the journal.
func (s *Store) rollBack(j *journal, stateDir string) error {
	var errs []error
	for _, f := range j.Files {
		now, err := readFile(s.real(f.Target))
		switch {
		case err != nil:
			errs = append(errs, err)
		case fileSum(now) != f.After || f.Before == f.After:
			// Not ours, or not replaced yet.
		case f.Backup == "":
			errs = append(errs, removeIfThere(s.real(f.Target)))
		default:
			errs = append(errs, os.Rename(s.real(f.Backup), s.real(f.Target)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := errors.Join(s.syncDirs(j), s.unstage(j)); err != nil {
		return err
	}
	return errors.Join(removeIfThere(filepath.Join(stateDir, journalName)), syncDir(stateDir))
}

// each runs f for 0 … n-1 side by side and joins the errors.
func each(n int, f func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
