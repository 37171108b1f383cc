// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/amsagent/amsagent/files"
)

// Change is the change of one file.
type Change struct {
	// Before is the file as the plan read it. It is compared again before the rename.
	Before File
	// After is the new content; ignored with Remove.
	After  []byte
	Remove bool
	// Mode is the new permissions, without setuid, setgid and sticky; 0 keeps the old ones.
	Mode fs.FileMode
	// Like is the file whose owner it gets. Nil keeps the owner; a new file gets its folder's.
	Like *File
}

// UnfinishedError reports a commit that could be neither finished nor undone. Its journal stays: [Store.Recover]
// tries again.
type UnfinishedError struct {
	// Old files are as before and New ones as wanted. Edited ones were written by another program since.
	Old, New, Edited []string
	Err              error
}

func (e *UnfinishedError) Error() string { return e.Err.Error() }
func (e *UnfinishedError) Unwrap() error { return e.Err }

// Commit makes all changes or none, unless it returns an [UnfinishedError]. record is the new undo record; nil
// removes it. removeDirs are removed if empty. purpose is for the journal. After a crash, call [Store.Recover]
// before the next Commit.
func (s *Store) Commit(purpose string, changes []Change, record *Record, removeDirs []string) error {
	state, err := s.makeStateDir()
	if err != nil {
		return err
	}
	t := s.begin(state)
	defer t.end()
	if _, err := state.Stat(journalName); err == nil {
		return fmt.Errorf("%s: an earlier change is not finished yet", s.statePath(journalName))
	}
	j, err := t.newJournal(purpose, changes, record, removeDirs)
	if err != nil {
		return err
	}
	data, err := j.encode()
	if err != nil {
		return err
	}
	changes = slices.Clone(changes) // staging changes them
	t.sweep(j)
	plan, err := state.Create(stagingName, data, files.Own(0o600))
	if err != nil {
		return t.abandon(j, err)
	}
	if err := t.stage(j, changes, plan); err != nil {
		return t.abandon(j, err)
	}
	for i, f := range j.Files {
		if err := t.unchanged(f, &changes[i].Before); err != nil {
			return t.abandon(j, err)
		}
	}
	if err := t.syncDirs(j); err != nil {
		return t.abandon(j, err)
	}
	// A crash is finished forward from here on.
	if err := errors.Join(state.Rename(stagingName, journalName), state.Sync()); err != nil {
		return t.abandon(j, err)
	}
	if err := t.install(j, changes); err != nil {
		return t.retreat(j, err)
	}
	if err := twice(func() error { return t.finish(j, nil) }); err != nil {
		return t.unfinished(j, err)
	}
	return nil
}

// twice repeats f once, because a change may otherwise stay half made.
func twice(f func() error) error {
	if f() == nil {
		return nil
	}
	return f()
}

func (t *transaction) unfinished(j *journal, cause error) error {
	e := &UnfinishedError{Err: cause}
	for _, f := range j.Files {
		switch st, err := t.look(f); {
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

// install renames the staged files. The server writes its files in place at any time, so each is checked just
// before, and the old one again at the end.
func (t *transaction) install(j *journal, changes []Change) error {
	for i, f := range j.Files {
		if err := t.unchanged(f, &changes[i].Before); err != nil {
			return err
		}
		err := t.installFile(f)
		if files.Refused(err) {
			err = fmt.Errorf("%s: %w: %w", f.Target, ErrChanged, err)
		}
		if err != nil {
			return err
		}
	}
	if err := t.syncDirs(j); err != nil {
		return err
	}
	for _, f := range j.Files {
		switch late, err := t.overtaken(f); {
		case err != nil:
			return err
		case late:
			return fmt.Errorf("%s: %w", f.Target, ErrChanged)
		}
	}
	return nil
}

func (t *transaction) installFile(f journalFile) error {
	if f.Temp == "" {
		return t.drop(f.Target)
	}
	return t.rename(f.Temp, f.Target)
}

func (t *transaction) syncDirs(j *journal) error {
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
		d, err := t.folder(dirs[i])
		if err != nil {
			return ignoreGone(err) // it was removed with the change
		}
		return d.Sync()
	})
}

// finish drops the backups and makes the journal the undo record. It keeps the old records of edited, targets that
// another program wrote.
func (t *transaction) finish(j *journal, edited []string) error {
	record := j.Record
	if len(edited) > 0 {
		old, err := t.Record()
		if err != nil {
			return err
		}
		if record, _, err = t.carry(j.Record, old, edited); err != nil {
			return err
		}
	}
	if err := t.dropBeside(j); err != nil {
		return err
	}
	if record != j.Record {
		if err := t.writeRecord(j, record); err != nil {
			return err
		}
		return t.state.Remove(journalName)
	}
	if err := t.removeEmpty(j.RemoveDirs); err != nil {
		return err
	}
	// No fsync needed: if a power cut restores the journal, recovery repeats this.
	if j.Record != nil {
		return t.state.Rename(journalName, undoName)
	}
	if err := t.state.Remove(undoName); err != nil {
		return err
	}
	return t.state.Remove(journalName)
}

// carry adds from's records of those targets that still contain the agent's changes, and returns these targets.
// Without any it returns to.
func (s *Store) carry(to, from *Record, targets []string) (*Record, []string, error) {
	if from == nil {
		return to, nil, nil
	}
	out := &Record{Known: from.Known}
	if to != nil {
		out.Files, out.Dirs, out.Known = slices.Clone(to.Files), slices.Clone(to.Dirs), to.Known
	}
	var added []string
	for _, f := range from.Files {
		now, err := s.Read(f.Path)
		refused := files.Refused(err)
		if refused {
			now.Target = f.Path // the best known
		} else if err != nil {
			return nil, nil, err
		}
		if !slices.Contains(targets, now.Target) || out.File(f.Path) != nil {
			continue
		}
		if refused || f.holdsOurs(now.Bytes) {
			out.Files = append(out.Files, f)
			added = append(added, now.Target)
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

func (s *Store) writeRecord(j *journal, record *Record) error {
	data, err := (&journal{ID: j.ID, Purpose: j.Purpose, Record: record}).encode()
	if err != nil {
		return err
	}
	return s.writeFile(s.statePath(undoName), data, 0o600, 0o700, maxRecordSize)
}

// maxSideBySide bounds concurrent work: the server's user controls the number of files. Each needs memory, and a
// thread during disk I/O. The units allow 64 threads (TasksMax), and Go exits without one.
const maxSideBySide = 16

// each runs f(0) to f(n-1) concurrently.
func each(n int, f func(int) error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, maxSideBySide)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(i)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
