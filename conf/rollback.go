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

	"golang.org/x/sys/unix"
)

// abandon takes back what was staged. No target was touched.
func (s *Store) abandon(j *journal, stateDir string, cause error) error {
	err := twice(func() error { return s.unstage(j) })
	if err == nil {
		// Only now: they say what is to be removed.
		err = twice(func() error {
			return errors.Join(removeIfThere(filepath.Join(stateDir, stagingName)), removeIfThere(filepath.Join(stateDir, journalName)))
		})
	}
	if err != nil {
		return s.unfinished(j, errors.Join(cause, fmt.Errorf("and what was staged could not be removed: %w", err)))
	}
	return cause
}

// retreat puts the old files back after some were replaced.
func (s *Store) retreat(j *journal, stateDir string, cause error) error {
	var edited []string
	err := twice(func() (err error) {
		edited, err = s.rollBack(j, stateDir)
		return err
	})
	switch {
	case err != nil:
		return s.unfinished(j, errors.Join(cause, fmt.Errorf("and the files could not be put back: %w", err)))
	case len(edited) > 0:
		return s.unfinished(j, cause)
	}
	return cause
}

func (s *Store) drop(path string) error {
	if path == "" {
		return nil
	}
	return removeIfThere(s.real(path))
}

// dropBeside removes what the commit has beside its targets.
func (s *Store) dropBeside(j *journal) error {
	var errs []error
	for _, f := range j.Files {
		errs = append(errs, s.drop(f.Temp), s.drop(f.Backup))
	}
	return errors.Join(errs...)
}

// removeEmpty removes directories innermost first; one that is not empty, or
// not there, stays as it is: a directory somebody now uses is his.
func (s *Store) removeEmpty(dirs []string) error {
	var errs []error
	for _, d := range slices.Backward(dirs) {
		real := s.real(d)
		err := unix.Rmdir(real)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, fs.ErrExist),
			errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EBUSY):
			continue
		}
		if _, serr := os.Lstat(real); !errors.Is(serr, fs.ErrNotExist) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: real, Err: err})
		}
	}
	return errors.Join(errs...)
}

// unstage removes what staging made. Targets were not touched.
func (s *Store) unstage(j *journal) error {
	return errors.Join(s.dropBeside(j), s.removeEmpty(j.MakeDirs))
}

// rollBack puts every old file back and forgets the journal. A file that
// somebody else wrote is left as it is and named; what undoing it needs is kept.
func (s *Store) rollBack(j *journal, stateDir string) (edited []string, _ error) {
	var errs []error
	for _, f := range slices.Backward(j.Files) {
		now, err := readFile(s.real(f.Target))
		switch {
		case err != nil:
			errs = append(errs, err)
		case f.standing(now) == isOld:
		case f.standing(now) == isForeign:
			edited = append(edited, f.Target)
		default:
			wrote, err := s.putBack(f)
			if wrote {
				edited = append(edited, f.Target)
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return edited, err
	}
	if err := s.syncDirs(j); err != nil {
		return edited, err
	}
	edited, err := s.keepOurs(j, edited)
	if err != nil {
		return edited, err
	}
	if err := s.unstage(j); err != nil {
		return edited, err
	}
	return edited, errors.Join(removeIfThere(filepath.Join(stateDir, journalName)), syncDir(stateDir))
}

// keepOurs adds to the record on disk what the commit knew of files that hold
// both its changes and somebody else's, and names these. A file that holds his
// alone is no business of ours.
func (s *Store) keepOurs(j *journal, edited []string) ([]string, error) {
	if len(edited) == 0 {
		return nil, nil
	}
	old, err := s.Record()
	if err != nil {
		return edited, err
	}
	record, ours, err := s.carry(old, j.Record, edited)
	if err != nil || len(ours) == 0 {
		return ours, err
	}
	return ours, s.writeRecord(j, record)
}

// putBack gives the old file its name back. Ours has a second name meanwhile:
// should somebody write into it in this very moment, it stays, and edited says
// so.
func (s *Store) putBack(f journalFile) (edited bool, _ error) {
	target, old := s.real(f.Target), s.real(f.Backup)
	if f.Temp == "" {
		// We removed it. A file that is there again is somebody else's.
		err := os.Link(old, target)
		if errors.Is(err, fs.ErrExist) {
			return true, nil
		}
		if err != nil {
			err = os.Rename(old, target)
		}
		return false, err
	}
	ours := s.real(f.Temp)
	if err := removeIfThere(ours); err != nil {
		return false, err
	}
	if err := os.Link(target, ours); err != nil {
		ours = "" // this file system has no links: no second look either
	}
	var err error
	if f.Backup == "" {
		err = removeIfThere(target)
	} else {
		err = os.Rename(old, target)
	}
	if err != nil || ours == "" {
		return false, err
	}
	now, err := readFile(ours)
	if err != nil || fileSum(now) == f.After {
		return false, err
	}
	if f.Backup == "" {
		return true, os.Rename(ours, target)
	}
	if err := errors.Join(os.Link(target, old), os.Rename(ours, target)); err != nil {
		return true, err
	}
	if late, err := s.overtaken(f); err != nil || !late {
		return true, err
	}
	// Both were written at once, and nobody can tell which is the later.
	return true, os.Rename(old, s.real(savedName(f.Target)))
}
