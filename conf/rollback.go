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

// abandon removes the staged files. No target was changed.
func (t *transaction) abandon(j *journal, cause error) error {
	err := twice(func() error { return t.unstage(j) })
	if err == nil {
		// Last: they list what to remove.
		err = twice(func() error {
			return errors.Join(t.state.Remove(stagingName), t.state.Remove(journalName))
		})
	}
	if err != nil {
		return t.unfinished(j, errors.Join(cause, fmt.Errorf("and what was staged could not be removed: %w", err)))
	}
	return cause
}

// retreat restores the old files.
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

func (t *transaction) dropBeside(j *journal) error {
	var errs []error
	for _, f := range j.Files {
		errs = append(errs, t.dropSide(f.Temp), t.dropSide(f.Backup))
	}
	return errors.Join(errs...)
}

// removeEmpty works innermost first. A directory in use stays.
func (t *transaction) removeEmpty(dirs []string) error {
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		d, name, err := t.at(dir)
		if err != nil {
			errs = append(errs, ignoreGone(err))
			continue
		}
		errs = append(errs, d.RemoveFolder(name))
	}
	return errors.Join(errs...)
}

func (t *transaction) unstage(j *journal) error {
	return errors.Join(t.dropBeside(j), t.removeEmpty(j.MakeDirs))
}

// rollBack restores the old files and removes the journal. Files that another program wrote stay, with their
// records, and are returned.
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
				wrote, err = true, nil // its owner blocks it
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

// keepOurs adds records of files that contain both the commit's changes and later edits, and returns these files.
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

// putBack links the new file to a second name first. If a program writes into it meanwhile, it stays and edited is
// true.
func (t *transaction) putBack(f journalFile) (edited bool, _ error) {
	if f.Temp == "" {
		// A file that exists again is another program's.
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
	// Without hard links there is no second check.
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
	// Both were written, and the order is unknown.
	d, base, err := t.at(f.Target)
	if err != nil {
		return true, err
	}
	name, _, err := spareName(d, base, nil)
	if err != nil || name == "" { // then it is removed with the commit's other names
		return true, err
	}
	return true, d.Rename(filepath.Base(f.Backup), name)
}
