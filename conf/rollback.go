// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/amsagent/amsagent/files"
)

// abandon takes back what was staged. No target was touched.
func (t *transaction) abandon(j *journal, cause error) error {
	err := twice(func() error { return t.unstage(j) })
	if err == nil {
		// Only now: they say what is to be removed.
		err = twice(func() error {
			return errors.Join(t.state.Remove(stagingName), t.state.Remove(journalName))
		})
	}
	if err != nil {
		return t.unfinished(j, errors.Join(cause, fmt.Errorf("and what was staged could not be removed: %w", err)))
	}
	return cause
}

// retreat puts the old files back after some were replaced.
func (t *transaction) retreat(j *journal, cause error) error {
	var edited []string
	err := twice(func() (err error) {
		edited, err = t.rollBack(j)
		return err
	})
	switch {
	case err != nil:
		return t.unfinished(j, errors.Join(cause, fmt.Errorf("and the files could not be put back: %w", err)))
	case len(edited) > 0:
		return t.unfinished(j, cause)
	}
	return cause
}

// dropBeside removes what the commit has beside its targets.
func (t *transaction) dropBeside(j *journal) error {
	var errs []error
	for _, f := range j.Files {
		errs = append(errs, t.dropSide(f.Temp), t.dropSide(f.Backup))
	}
	return errors.Join(errs...)
}

// removeEmpty removes directories innermost first; one that is not empty, or
// not there, stays as it is: a directory somebody now uses is his.
func (t *transaction) removeEmpty(dirs []string) error {
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		d, name, err := t.at(dir)
		if err != nil {
			errs = append(errs, gone(err))
			continue
		}
		errs = append(errs, d.RemoveFolder(name))
	}
	return errors.Join(errs...)
}

// unstage removes what staging made. Targets were not touched.
func (t *transaction) unstage(j *journal) error {
	return errors.Join(t.dropBeside(j), t.removeEmpty(j.MakeDirs))
}

// rollBack puts every old file back and forgets the journal. A file that
// somebody else wrote is left as it is and named; what undoing it needs is kept.
func (t *transaction) rollBack(j *journal) (edited []string, _ error) {
	var errs []error
	for _, f := range slices.Backward(j.Files) {
		switch st, err := t.look(f); {
		case err != nil:
			errs = append(errs, err)
		case st == isOld:
		case st == isForeign:
			edited = append(edited, f.Target)
		default:
			wrote, err := t.putBack(f)
			if files.Refused(err) {
				wrote, err = true, nil // its owner keeps it as it is
			}
			if wrote {
				edited = append(edited, f.Target)
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return edited, err
	}
	if err := t.syncDirs(j); err != nil {
		return edited, err
	}
	edited, err := t.keepOurs(j, edited)
	if err != nil {
		return edited, err
	}
	if err := t.unstage(j); err != nil {
		return edited, err
	}
	return edited, errors.Join(t.state.Remove(journalName), t.state.Sync())
}

// keepOurs adds to the record on disk what the commit knew of files that hold
// both its changes and somebody else's, and names these. A file that holds his
// alone is no business of ours.
func (t *transaction) keepOurs(j *journal, edited []string) ([]string, error) {
	if len(edited) == 0 {
		return nil, nil
	}
	old, err := t.Record()
	if err != nil {
		return edited, err
	}
	record, ours, err := t.carry(old, j.Record, edited)
	if err != nil || len(ours) == 0 {
		return ours, err
	}
	return ours, t.writeRecord(j, record)
}

// putBack gives the old file its name back. Ours has a second name meanwhile:
// should somebody write into it in this very moment, it stays, and edited says
// so.
func (t *transaction) putBack(f journalFile) (edited bool, _ error) {
	if f.Temp == "" {
		// We removed it. A file that is there again is somebody else's.
		err := t.link(f.Backup, f.Target)
		if errors.Is(err, fs.ErrExist) {
			return true, nil
		}
		if err != nil {
			err = t.rename(f.Backup, f.Target)
		}
		return false, err
	}
	if err := t.dropSide(f.Temp); err != nil {
		return false, err
	}
	// Where the file system has no links there is no second look either.
	linked := t.link(f.Target, f.Temp) == nil
	var err error
	if f.Backup == "" {
		err = t.drop(f.Target)
	} else {
		err = t.rename(f.Backup, f.Target)
	}
	if err != nil || !linked {
		return false, err
	}
	now, err := t.readAt(f.Temp)
	if files.Refused(err) {
		return true, nil
	}
	if err != nil || fileSum(now) == f.After {
		return false, err
	}
	if f.Backup == "" {
		return true, t.rename(f.Temp, f.Target)
	}
	if err := errors.Join(t.link(f.Target, f.Backup), t.rename(f.Temp, f.Target)); err != nil {
		return true, err
	}
	if late, err := t.overtaken(f); err != nil || !late {
		return true, err
	}
	// Both were written at once, and nobody can tell which is the later.
	d, base, err := t.at(f.Target)
	if err != nil {
		return true, err
	}
	name, _, err := spareName(d, base, nil)
	if err != nil || name == "" { // without a name it goes with the other names of the commit
		return true, err
	}
	return true, d.Rename(filepath.Base(f.Backup), name)
}
