// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
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

// UnfinishedError says that a commit could be neither finished nor undone, and
// what the files are now. Its journal is left: [Store.Recover] tries again.
type UnfinishedError struct {
	// Old files are as they were before the commit, New ones as it wanted them.
	// Edited ones somebody else has written since.
	Old, New, Edited []string
	Err              error
}

func (e *UnfinishedError) Error() string { return e.Err.Error() }
func (e *UnfinishedError) Unwrap() error { return e.Err }

// Commit makes the changes as one: afterwards all files are new, or, when it
// returns an error, all are as before unless it is an [UnfinishedError]. record
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
	staging, committed := filepath.Join(stateDir, stagingName), filepath.Join(stateDir, journalName)
	if _, err := os.Lstat(committed); err == nil {
		return fmt.Errorf("%s: an earlier change is not finished yet", s.statePath(journalName))
	}
	j, err := s.newJournal(purpose, changes, record, removeDirs)
	if err != nil {
		return err
	}
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	s.sweep(j)
	plan, err := createNew(staging, data, func(*os.File) error { return nil })
	if err != nil {
		return s.abandon(j, stateDir, err)
	}
	if err := s.stage(j, changes, plan); err != nil {
		return s.abandon(j, stateDir, err)
	}
	for _, f := range j.Files {
		if err := s.unchanged(f); err != nil {
			return s.abandon(j, stateDir, err)
		}
	}
	// From here on a crash is finished forward.
	if err := errors.Join(os.Rename(staging, committed), syncDir(stateDir)); err != nil {
		return s.abandon(j, stateDir, err)
	}
	if err := s.install(j); err != nil {
		return s.retreat(j, stateDir, err)
	}
	if err := twice(func() error { return s.finish(j, stateDir, nil) }); err != nil {
		return s.unfinished(j, err)
	}
	return nil
}

// twice gives what failed a second chance: where a change cannot be left as it
// is, one failure that goes away by itself must not be the last word.
func twice(f func() error) error {
	if f() == nil {
		return nil
	}
	return f()
}

// unfinished looks what the files are now.
func (s *Store) unfinished(j *journal, cause error) error {
	e := &UnfinishedError{Err: cause}
	for _, f := range j.Files {
		now, err := readFile(s.real(f.Target))
		switch st := f.standing(now); {
		case err != nil, st == isForeign:
			e.Edited = append(e.Edited, f.Target)
		case st == isNew:
			e.New = append(e.New, f.Target)
		default:
			e.Old = append(e.Old, f.Target)
		}
	}
	return e
}

// install renames every staged file over its target. AMS writes its files in
// place and asks nobody: each is looked at just before, and the old one once
// more when all is done.
func (s *Store) install(j *journal) error {
	for _, f := range j.Files {
		if err := s.unchanged(f); err != nil {
			return err
		}
		if err := s.installFile(f); err != nil {
			return err
		}
	}
	if err := s.syncDirs(j); err != nil {
		return err
	}
	for _, f := range j.Files {
		switch late, err := s.overtaken(f); {
		case err != nil:
			return err
		case late:
			return fmt.Errorf("%s: %w", f.Target, ErrChanged)
		}
	}
	return nil
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

// finish drops the backups and turns the journal into the undo record. edited
// are targets that somebody else wrote: what undoing them needs is kept.
func (s *Store) finish(j *journal, stateDir string, edited []string) error {
	record := j.Record
	if len(edited) > 0 {
		old, err := s.Record()
		if err != nil {
			return err
		}
		if record, _, err = s.carry(j.Record, old, edited); err != nil {
			return err
		}
	}
	if err := s.dropBeside(j); err != nil {
		return err
	}
	committed, undo := filepath.Join(stateDir, journalName), filepath.Join(stateDir, undoName)
	if record != j.Record {
		if err := s.writeRecord(j, record); err != nil {
			return err
		}
		return removeIfThere(committed)
	}
	if err := s.removeEmpty(j.RemoveDirs); err != nil {
		return err
	}
	// No fsync from here on: should a power cut bring the journal back,
	// recovery finds everything done and comes here again.
	if j.Record != nil {
		return os.Rename(committed, undo)
	}
	if err := removeIfThere(undo); err != nil {
		return err
	}
	return removeIfThere(committed)
}

// carry adds to a record what another one knows of those targets that hold
// changes of ours beside somebody else's, and names them. Where there are none
// it returns the record as it is.
func (s *Store) carry(to, from *Record, targets []string) (*Record, []string, error) {
	if from == nil {
		return to, nil, nil
	}
	out := &Record{Version: recordVersion}
	if to != nil {
		out.Files, out.Dirs = slices.Clone(to.Files), slices.Clone(to.Dirs)
	}
	var added []string
	for _, f := range from.Files {
		real, err := s.resolve(f.Path)
		if err != nil {
			return nil, nil, err
		}
		target := s.inside(real)
		if !slices.Contains(targets, target) || out.File(f.Path) != nil {
			continue
		}
		now, err := readFile(real)
		if err != nil {
			return nil, nil, err
		}
		if f.holdsOurs(now.Bytes) {
			out.Files = append(out.Files, f)
			added = append(added, target)
		}
	}
	if len(added) == 0 {
		return to, nil, nil
	}
	for _, d := range from.Dirs {
		if !slices.Contains(out.Dirs, d) {
			out.Dirs = append(out.Dirs, d)
		}
	}
	return out, added, nil
}

// writeRecord replaces the undo record.
func (s *Store) writeRecord(j *journal, record *Record) error {
	data, err := json.Marshal(&journal{Version: recordVersion, ID: j.ID, Purpose: j.Purpose, Record: record})
	if err != nil {
		return err
	}
	return s.WriteFile(s.statePath(undoName), data, 0o600, 0o700)
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
