// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
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
// finishes it.
type UnfinishedError struct {
	// Old files are as before and New ones as wanted. Edited ones were written by another program since.
	Old, New, Edited []string
	Err              error
}

func (e *UnfinishedError) Error() string { return e.Err.Error() }
func (e *UnfinishedError) Unwrap() error { return e.Err }

// Commit makes all changes or none, unless it returns an [UnfinishedError]. record is the new undo record; nil
// removes it. purpose is for the journal. After a crash, call [Store.Recover] before the next Commit.
func (s *Store) Commit(purpose string, changes []Change, record *Record) error {
	state, err := s.makeStateDir()
	if err != nil {
		return err
	}
	t := s.begin(state)
	defer t.end()
	switch _, err := state.Stat(journalName); {
	case err == nil:
		return fmt.Errorf("%s: an earlier change is not finished yet", s.statePath(journalName))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	j, err := t.newJournal(purpose, changes, record)
	if err != nil {
		return err
	}
	data, err := j.encode(maxJournal)
	if err == nil && record != nil {
		_, err = j.undo().encode(maxRecordSize) // so that it can be written in the end
	}
	if err != nil {
		return err
	}
	t.sweep(j)
	if err := t.writeFile(t.statePath(journalName), data, 0o600, 0o700, maxJournal); err != nil {
		return t.abandon(j, err) // it may have its name
	}
	// A crash is finished forward from here on.
	if err := t.stageAll(j, changes); err != nil {
		return t.abandon(j, err)
	}
	for i, f := range j.Files {
		if err := t.install(j, f, &changes[i].Before); err != nil {
			return t.retreat(j, changes, i, err)
		}
	}
	if err := t.syncDirs(j); err != nil {
		return t.retreat(j, changes, len(changes), err)
	}
	if err := twice(func() error { return t.finish(j, false) }); err != nil {
		return t.unfinished(j, err)
	}
	return nil
}

// stageAll syncs the files concurrently: a journaling file system commits them together.
func (t *transaction) stageAll(j *journal, changes []Change) error {
	return each(len(changes), func(i int) error { return t.stage(j, j.Files[i], &changes[i].Before) })
}

// abandon removes the staged files and the journal. All targets are the former files.
func (t *transaction) abandon(j *journal, cause error) error {
	err := twice(func() error {
		if err := t.dropStaged(j); err != nil {
			return err
		}
		if err := t.syncDirs(j); err != nil {
			return err
		}
		return errors.Join(t.state.Remove(journalName), t.state.Sync())
	})
	if err != nil {
		return t.unfinished(j, errors.Join(cause, fmt.Errorf("and what was staged could not be removed: %w", err)))
	}
	return cause
}

// retreat restores the former files. replaced counts those that were renamed.
func (t *transaction) retreat(j *journal, changes []Change, replaced int, cause error) error {
	if err := twice(func() error { return t.putBack(j, changes, replaced) }); err != nil {
		return t.unfinished(j, errors.Join(cause, fmt.Errorf("and the files could not be put back: %w", err)))
	}
	return t.abandon(j, cause)
}

func (t *transaction) putBack(j *journal, changes []Change, replaced int) error {
	for i, f := range slices.Backward(j.Files) {
		st, err := t.look(f)
		if err != nil {
			return err
		}
		if st == isForeign && i < replaced {
			return fmt.Errorf("%s: %w", f.Target, ErrChanged)
		}
		if st != isNew {
			continue
		}
		back := f.reversed(changes[i])
		if err := t.stage(j, back, nil); err != nil {
			return err
		}
		if err := t.install(j, back, nil); err != nil {
			return err
		}
	}
	return nil
}

// finish writes the undo record and removes the journal. Without a new record, the former one stays if files were left as
// another program wrote them: the next leave needs it.
func (t *transaction) finish(j *journal, left bool) error {
	switch {
	case j.Record != nil:
		data, err := j.undo().encode(maxRecordSize)
		if err != nil {
			return err
		}
		if err := t.writeFile(t.statePath(undoName), data, 0o600, 0o700, maxRecordSize); err != nil {
			return err
		}
	case !left:
		if err := t.state.Remove(undoName); err != nil {
			return err
		}
	}
	// No fsync needed: if a power cut restores the journal, recovery repeats this.
	return t.state.Remove(journalName)
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

// twice repeats f once, because a change may otherwise stay half made.
func twice(f func() error) error {
	if f() == nil {
		return nil
	}
	return f()
}

// Recovery is the result of [Store.Recover].
type Recovery struct {
	// Purpose is the interrupted commit's.
	Purpose string
	// Files are those that the recovery replaced.
	Files []string
	// Conflicts are files that were written since, and stay as they are.
	Conflicts []Conflict
}

// InterruptedError reports a recovery that failed. The next [Store.Recover] tries again.
type InterruptedError struct {
	Purpose string
	Err     error
}

func (e *InterruptedError) Error() string {
	return "finishing the interrupted " + e.Purpose + ": " + e.Err.Error()
}
func (e *InterruptedError) Unwrap() error { return e.Err }

// Recover finishes an interrupted commit. Without one it returns nil. A [DamagedError] means that this is not possible
// and nothing was changed: call [Store.SetAside].
func (s *Store) Recover() (*Recovery, error) {
	state, err := s.stateFolder()
	if err != nil {
		return nil, ignore(err, fs.ErrNotExist)
	}
	t := s.begin(state)
	defer t.end()
	if err := t.removeTemps(state); err != nil {
		return nil, err
	}
	j, err := s.loadJournal(journalName, maxJournal)
	if err != nil || j == nil {
		return nil, err
	}
	r, err := t.redo(j)
	if err != nil {
		return nil, &InterruptedError{Purpose: j.Purpose, Err: err}
	}
	return r, nil
}

// Interrupted reports whether a commit was interrupted. It repairs nothing.
func (s *Store) Interrupted() bool {
	j, err := s.loadJournal(journalName, maxJournal)
	return err != nil || j != nil
}

// redo is a commit from its journal: all files are staged before the first one is replaced.
func (t *transaction) redo(j *journal) (*Recovery, error) {
	r := &Recovery{Purpose: j.Purpose}
	var staged []journalFile
	for _, f := range j.Files {
		st, err := t.look(f)
		if err == nil && st == isOld {
			err = t.stage(j, f, nil)
		}
		switch {
		case errors.Is(err, ErrChanged), err == nil && st == isForeign:
			r.conflict(f.Target)
		case err != nil:
			return nil, err
		case st == isOld:
			staged = append(staged, f)
		}
	}
	for _, f := range staged {
		switch err := t.install(j, f, nil); {
		case errors.Is(err, ErrChanged):
			r.conflict(f.Target)
		case err != nil:
			return nil, err
		default:
			r.Files = append(r.Files, f.Target)
		}
	}
	if err := t.dropStaged(j); err != nil {
		return nil, err
	}
	if err := t.syncDirs(j); err != nil {
		return nil, err
	}
	return r, t.finish(j, len(r.Conflicts) > 0)
}

func (r *Recovery) conflict(target string) {
	r.Conflicts = append(r.Conflicts, Conflict{Path: target, Msg: "was written by another process after the interruption; it is left as it is"})
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
