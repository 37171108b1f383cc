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

// Recovery is the result of [Store.Recover].
type Recovery struct {
	// Purpose is the interrupted commit's.
	Purpose string `json:"purpose"`
	// Finished reports that every file is new. Otherwise every file is old.
	Finished bool `json:"finished"`
	// Files are those that the recovery replaced.
	Files []string `json:"files"`
	// Conflicts are files that were written since, and stay as they are.
	Conflicts []Conflict `json:"conflicts"`
}

// Recover finishes an interrupted commit if all staged files are present, and otherwise undoes it. It recreates
// missing ones from the records. Without such a commit it returns nil. A [DamagedError] means that neither is
// possible and nothing was changed: call [Store.SetAside].
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

// InterruptedError reports a recovery that failed. The next [Store.Recover] tries again.
type InterruptedError struct {
	Doing, Purpose string
	Err            error
}

func (e *InterruptedError) Error() string {
	return e.Doing + " the interrupted " + e.Purpose + ": " + e.Err.Error()
}
func (e *InterruptedError) Unwrap() error { return e.Err }

func (r *Recovery) conflict(target string) {
	r.Conflicts = append(r.Conflicts, Conflict{Path: target, Msg: "was written by another process after the interruption; it is left as it is"})
}

// installLate reports in late that another program wrote the file meanwhile. Its content stays.
func (t *transaction) installLate(f journalFile) (late bool, _ error) {
	if err := t.unchanged(f, nil); err != nil {
		return errors.Is(err, ErrChanged), ignore(err, ErrChanged)
	}
	if err := t.installFile(f); err != nil {
		return files.Refused(err), ignoreRefused(err)
	}
	late, err := t.overtaken(f)
	if err != nil || !late {
		return false, err
	}
	return true, ignoreRefused(t.rename(f.Backup, f.Target))
}

// ignoreRefused drops errors that the folder's owner caused: the file stays as it is.
func ignoreRefused(err error) error {
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

// direction reports whether to finish: if all staged files are present. Otherwise it needs the former files to
// undo. Missing files are recreated from the records, first those for an undo, because an interrupted undo looks
// the same.
func (t *transaction) direction(todo, done []journalFile) (forward bool, _ error) {
	var temps, backups []journalFile // missing ones
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
			if err := ignoreRefused(t.restage(f.Backup, f, contents[f.Before], f.BeforeMode)); err != nil {
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
		if err := ignoreRefused(t.restage(f.Temp, f, contents[f.After], f.AfterMode)); err != nil {
			return false, err
		}
	}
	return true, nil
}

// holds reports whether path has that content. No path always has.
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

// contents returns all recorded contents by sum.
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
			if f.Existed {
				out[sum(f.Original)] = f.Original
			}
			if written := f.written(); written != nil {
				out[sum(written)] = written
			}
		}
	}
	return out, nil
}

// restage recreates a staged file. It takes the attributes of the commit's file, or of the folder: a user who
// can replace the file must not choose its owner.
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

// dropStaging removes a commit that replaced nothing.
func (t *transaction) dropStaging() error {
	j, err := t.loadJournal(stagingName)
	var damaged *DamagedError
	switch {
	case errors.As(err, &damaged):
		// Torn, so it was not on disk yet and nothing was staged.
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

// RemoveTemps removes leftovers of [Store.WriteFile] in a folder below the root.
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

// SetAside renames a damaged file and returns the new path.
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

// Interrupted reports whether a commit was interrupted. It repairs nothing.
func (s *Store) Interrupted() bool {
	j, err := s.loadJournal(journalName)
	return err != nil || j != nil
}
