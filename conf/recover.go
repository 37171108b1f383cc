// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/files"
)

// Recovery says what [Store.Recover] found of an interrupted commit.
type Recovery struct {
	// Purpose is that of the interrupted commit; "" when there was none.
	Purpose string `json:"purpose"`
	// Finished tells that every file is now new, otherwise every file is old.
	Finished bool `json:"finished"`
	// Files that the recovery replaced.
	Files []string `json:"files"`
	// Conflicts are files that somebody else wrote after the interruption;
	// they are left as they are.
	Conflicts []Conflict `json:"conflicts"`
}

// Recover finishes or undoes a commit that a crash interrupted. It finishes
// wherever all that is still to be renamed is there, and undoes otherwise. What
// somebody removed in between is made anew from the records, where they have it.
// With nothing to recover it only looks, and returns nil.
//
// A [DamagedError] means that neither is possible; nothing was changed then, and
// [Store.SetAside] is the way out.
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
	if err := t.dropStaging(); err != nil {
		return nil, err
	}
	j, err := s.loadJournal(journalName)
	if err != nil || j == nil {
		return nil, err
	}
	return t.recover(j)
}

func (t *transaction) recover(j *journal) (*Recovery, error) {
	r := &Recovery{Purpose: j.Purpose, Finished: true}
	var todo, done []journalFile
	var edited []string
	for _, f := range j.Files {
		st, err := t.look(f)
		switch {
		case err != nil:
			return nil, err
		case st == isNew:
			done = append(done, f)
		case st == isOld:
			todo = append(todo, f)
		default:
			edited = append(edited, f.Target)
			r.conflict(f.Target)
		}
	}
	var err error
	if r.Finished, err = t.direction(todo, done); err != nil {
		return nil, err
	}
	if !r.Finished {
		left, err := t.rollBack(j)
		if err != nil {
			return nil, &InterruptedError{Doing: "undoing", Purpose: j.Purpose, Err: err}
		}
		for _, target := range left {
			if !slices.Contains(edited, target) {
				r.conflict(target)
			}
		}
		for _, f := range j.Files {
			r.Files = append(r.Files, f.Target)
		}
		return r, nil
	}
	for _, f := range todo {
		late, err := t.installLate(f)
		if err != nil {
			return nil, &InterruptedError{Doing: "finishing", Purpose: j.Purpose, Err: err}
		}
		if late {
			edited = append(edited, f.Target)
			r.conflict(f.Target)
			continue
		}
		r.Files = append(r.Files, f.Target)
	}
	if err := errors.Join(t.syncDirs(j), t.finish(j, edited)); err != nil {
		return nil, &InterruptedError{Doing: "finishing", Purpose: j.Purpose, Err: err}
	}
	return r, nil
}

// InterruptedError says that an interrupted commit was found, and that neither
// finishing nor undoing it is done yet. The next [Store.Recover] tries again.
type InterruptedError struct {
	Doing, Purpose string
	Err            error
}

func (e *InterruptedError) Error() string {
	return e.Doing + " the interrupted " + e.Purpose + ": " + e.Err.Error()
}
func (e *InterruptedError) Unwrap() error { return e.Err }

func (r *Recovery) conflict(target string) {
	r.Conflicts = append(r.Conflicts, Conflict{Path: target, Msg: "was written by somebody else after the interruption; it is left as it is"})
}

// installLate replaces one file; late tells that somebody wrote it in that very
// moment, and that it is left as he wrote it.
func (t *transaction) installLate(f journalFile) (late bool, _ error) {
	if err := t.unchanged(f, nil); err != nil {
		return errors.Is(err, ErrChanged), ignore(err, ErrChanged)
	}
	if err := t.installFile(f); err != nil {
		return files.Refused(err), his(err)
	}
	late, err := t.overtaken(f)
	if err != nil || !late {
		return false, err
	}
	return true, his(t.rename(f.Backup, f.Target))
}

// his leaves out the errors that the owner of a folder brought about: the file stays as he has it.
func his(err error) error {
	if files.Refused(err) {
		return nil
	}
	return err
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// direction decides whether an interrupted commit is finished: where all that
// is to be put in place is there. Otherwise it is undone, for which the former
// files must be there. What is missing for that, too, is made anew: first for
// undoing, because a commit that was being undone when it was interrupted looks
// like this.
func (t *transaction) direction(todo, done []journalFile) (forward bool, _ error) {
	var temps, backups []journalFile // that are missing
	for _, f := range todo {
		ok, err := t.holds(f.Temp, f.After)
		if err != nil {
			return false, err
		}
		if !ok {
			temps = append(temps, f)
		}
	}
	for _, f := range done {
		ok, err := t.holds(f.Backup, f.Before)
		if err != nil {
			return false, err
		}
		if !ok {
			backups = append(backups, f)
		}
	}
	if len(temps) == 0 {
		return true, nil
	}
	contents, err := t.contents()
	if err != nil {
		return false, err
	}
	lacks := func(files []journalFile, sum func(journalFile) string) (missing []string) {
		for _, f := range files {
			if _, ok := contents[sum(f)]; !ok {
				missing = append(missing, f.Target)
			}
		}
		return missing
	}
	former := lacks(backups, func(f journalFile) string { return f.Before })
	if len(former) == 0 {
		for _, f := range backups {
			if err := his(t.restage(f.Backup, f, contents[f.Before], f.BeforeMode)); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	if next := lacks(temps, func(f journalFile) string { return f.After }); len(next) > 0 {
		return false, &DamagedError{Path: t.statePath(journalName), Err: fmt.Errorf(
			"an interrupted change can neither be finished (the new %s is gone) nor undone (the former %s is gone)",
			strings.Join(next, ", "), strings.Join(former, ", "))}
	}
	for _, f := range temps {
		if err := his(t.restage(f.Temp, f, contents[f.After], f.AfterMode)); err != nil {
			return false, err
		}
	}
	return true, nil
}

// holds reports whether the file at path has that content; no path and no
// content are fine, too.
func (t *transaction) holds(path, want string) (bool, error) {
	if path == "" {
		return true, nil
	}
	f, err := t.readAt(path)
	if files.Refused(err) {
		return false, nil
	}
	return err == nil && fileSum(f) == want, err
}

// contents is every content of a file that the records know, by its sum.
func (t *transaction) contents() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range []string{journalName, undoName} {
		j, err := t.loadJournal(name)
		if err != nil {
			return nil, err
		}
		if j == nil || j.Record == nil {
			continue
		}
		for _, f := range j.Record.Files {
			if written, err := applySpans(f.Original, f.Spans); err == nil {
				out[sum(written)] = written
			}
			if f.Existed {
				out[sum(f.Original)] = f.Original
			}
		}
	}
	return out, nil
}

// restage writes one of the names of a commit anew. It gets the attributes of the
// file that is there now, where that is the one of the commit, or the owner of the
// folder: who may exchange the file must not choose whose the new one is.
func (t *transaction) restage(path string, f journalFile, content []byte, mode fs.FileMode) error {
	if err := t.drop(path); err != nil {
		return err
	}
	d, name, err := t.at(path)
	if err != nil {
		return err
	}
	a := d.In(mode)
	fd, info, err := d.Open(filepath.Base(f.Target))
	switch {
	case err == nil:
		defer fd.Close()
		now, err := files.ReadOpen(fd, maxFileSize)
		if files.Refused(err) {
			break
		}
		if err != nil {
			return err
		}
		if is := sum(now); is != f.Before && is != f.After {
			break
		}
		if a, err = files.AttributesOf(fd, info); err != nil {
			return err
		}
		a.Mode = mode
	case !errors.Is(err, fs.ErrNotExist) && !files.Refused(err):
		return err
	}
	return d.Write(name, content, a)
}

// dropStaging removes what a commit staged that never got to replacing
// anything.
func (t *transaction) dropStaging() error {
	j, err := t.loadJournal(stagingName)
	var damaged *DamagedError
	switch {
	case errors.As(err, &damaged):
		// Torn: it was not on disk yet, so nothing was staged either.
	case err != nil:
		return err
	case j == nil:
		return nil
	default:
		if err := t.unstage(j); err != nil {
			return &InterruptedError{Doing: "cleaning up after", Purpose: j.Purpose, Err: err}
		}
	}
	return t.state.Remove(stagingName)
}

// RemoveTemps removes what interrupted calls of [Store.WriteFile] left in a
// folder below the root.
func (s *Store) RemoveTemps(dir string) error {
	d, err := s.Files().Folder(dir)
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	defer d.Close()
	return s.removeTemps(d)
}

func (*Store) removeTemps(d *files.Folder) error {
	entries, err := d.Entries(maxEntries)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), writeSuffix) {
			if err := d.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetAside puts a damaged file of the state directory out of the way, under a
// name of its own, and returns that name.
func (s *Store) SetAside(path string) (string, error) {
	p, err := s.Files().LocateName(path)
	if err != nil {
		return "", err
	}
	defer p.Close()
	d := p.Folder
	for i := 1; ; i++ {
		suffix := fmt.Sprintf(".damaged-%d", i)
		if _, err := d.Stat(p.Name + suffix); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return "", err
			}
			continue
		}
		if err := d.Rename(p.Name, p.Name+suffix); err != nil {
			return "", err
		}
		return path + suffix, d.Sync()
	}
}

// Interrupted reports whether a commit was cut short, without repairing it.
func (s *Store) Interrupted() bool {
	j, err := s.loadJournal(journalName)
	return err != nil || j != nil
}
