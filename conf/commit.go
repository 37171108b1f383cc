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

// Change is what a commit does to one file.
type Change struct {
	// Before is the file as the plan read it: it is compared again just before
	// the rename.
	Before File
	// After is what it becomes; ignored with Remove.
	After  []byte
	Remove bool
	// Mode is the permission bits it gets; 0 keeps those it has. Setuid, setgid and
	// sticky are left out.
	Mode fs.FileMode
	// Like is the file whose owner it gets. Nil leaves it the owner it has; a new
	// one belongs to the owner of its folder.
	Like *File
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
	changes = slices.Clone(changes) // what staging learns of them is its own
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
	// From here on a crash is finished forward.
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

// twice gives what failed a second chance: where a change cannot be left as it
// is, one failure that goes away by itself must not be the last word.
func twice(f func() error) error {
	if f() == nil {
		return nil
	}
	return f()
}

// unfinished looks what the files are now.
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

// install renames every staged file over its target. AMS writes its files in
// place and asks nobody: each is looked at just before, and the old one once
// more when all is done.
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

// syncDirs makes the renames durable.
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
			return gone(err) // it was made for this change and is gone with it
		}
		return d.Sync()
	})
}

// finish drops the backups and turns the journal into the undo record. edited
// are targets that somebody else wrote: what undoing them needs is kept.
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
	// No fsync from here on: should a power cut bring the journal back,
	// recovery finds everything done and comes here again.
	if j.Record != nil {
		return t.state.Rename(journalName, undoName)
	}
	if err := t.state.Remove(undoName); err != nil {
		return err
	}
	return t.state.Remove(journalName)
}

// carry adds to a record what another one knows of those targets that hold
// changes of ours beside somebody else's, and names them. Where there are none
// it returns the record as it is.
func (s *Store) carry(to, from *Record, targets []string) (*Record, []string, error) {
	if from == nil {
		return to, nil, nil
	}
	out := &Record{Version: recordVersion, Known: from.Known}
	if to != nil {
		out.Files, out.Dirs, out.Known = slices.Clone(to.Files), slices.Clone(to.Dirs), to.Known
	}
	var added []string
	for _, f := range from.Files {
		now, err := s.Read(f.Path)
		refused := files.Refused(err)
		if refused {
			now.Target = f.Path // nothing better is known
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

// writeRecord replaces the undo record.
func (s *Store) writeRecord(j *journal, record *Record) error {
	data, err := (&journal{Version: journalVersion, ID: j.ID, Purpose: j.Purpose, Record: record}).encode()
	if err != nil {
		return err
	}
	return s.writeFile(s.statePath(undoName), data, 0o600, 0o700, maxRecordSize)
}

// maxSideBySide bounds the files that are worked on at a time: the server's user decides
// how many there are, and each of them takes some memory, and a thread while the disk works. The units
// have 64 threads (TasksMax), and Go ends a process that gets no more of them.
const maxSideBySide = 16

// each runs f for 0 … n-1 side by side and joins the errors.
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
