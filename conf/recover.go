// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	stateDir, err := s.resolve(s.Dir)
	if err != nil {
		return nil, err
	}
	if err := s.RemoveTemps(s.Dir); err != nil {
		return nil, err
	}
	if err := s.dropStaging(stateDir); err != nil {
		return nil, err
	}
	j, err := s.loadJournal(journalName)
	if err != nil || j == nil {
		return nil, err
	}
	r := &Recovery{Purpose: j.Purpose, Finished: true}
	var todo, done []journalFile
	var edited []string
	for _, f := range j.Files {
		now, err := readFile(s.real(f.Target))
		if err != nil {
			return nil, err
		}
		switch f.standing(now) {
		case isNew:
			done = append(done, f)
		case isOld:
			todo = append(todo, f)
		default:
			edited = append(edited, f.Target)
			r.conflict(f.Target)
		}
	}
	if r.Finished, err = s.direction(todo, done); err != nil {
		return nil, err
	}
	if !r.Finished {
		if _, err := s.rollBack(j, stateDir); err != nil {
			return nil, &InterruptedError{Doing: "undoing", Purpose: j.Purpose, Err: err}
		}
		for _, f := range j.Files {
			r.Files = append(r.Files, f.Target)
		}
		return r, nil
	}
	for _, f := range todo {
		late, err := s.installLate(f)
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
	if err := errors.Join(s.syncDirs(j), s.finish(j, stateDir, edited)); err != nil {
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
func (s *Store) installLate(f journalFile) (late bool, _ error) {
	if err := s.unchanged(f); err != nil {
		return errors.Is(err, ErrChanged), ignore(err, ErrChanged)
	}
	if err := s.installFile(f); err != nil {
		return false, err
	}
	late, err := s.overtaken(f)
	if err != nil || !late {
		// A backup that is gone tells nothing.
		return false, ignore(err, fs.ErrNotExist)
	}
	return true, os.Rename(s.real(f.Backup), s.real(f.Target))
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
func (s *Store) direction(todo, done []journalFile) (forward bool, _ error) {
	var temps, backups []journalFile // that are missing
	for _, f := range todo {
		ok, err := s.holds(f.Temp, f.After)
		if err != nil {
			return false, err
		}
		if !ok {
			temps = append(temps, f)
		}
	}
	for _, f := range done {
		ok, err := s.holds(f.Backup, f.Before)
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
	contents, err := s.contents()
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
			if err := s.remakeBackup(f, contents[f.Before]); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	if next := lacks(temps, func(f journalFile) string { return f.After }); len(next) > 0 {
		return false, &DamagedError{Path: s.statePath(journalName), Err: fmt.Errorf(
			"an interrupted change can neither be finished (the new %s is gone) nor undone (the former %s is gone)",
			strings.Join(next, ", "), strings.Join(former, ", "))}
	}
	for _, f := range temps {
		if err := s.drop(f.Temp); err != nil {
			return false, err
		}
		if err := s.stageFile(f, contents[f.After]); err != nil {
			return false, err
		}
	}
	return true, nil
}

// holds reports whether the file at path has that content; no path and no
// content are fine, too.
func (s *Store) holds(path, want string) (bool, error) {
	if path == "" {
		return true, nil
	}
	f, err := readFile(s.real(path))
	return err == nil && fileSum(f) == want, err
}

// contents is every content of a file that the records know, by its sum.
func (s *Store) contents() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range []string{journalName, undoName} {
		j, err := s.loadJournal(name)
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

// remakeBackup writes a former file anew beside the one that replaced it.
func (s *Store) remakeBackup(f journalFile, content []byte) error {
	if err := s.drop(f.Backup); err != nil {
		return err
	}
	return writeNew(s.real(f.Backup), content, func(fd *os.File) error {
		if _, err := os.Lstat(s.real(f.Target)); err != nil {
			return fd.Chmod(f.BeforeMode)
		}
		return copyMeta(fd, s.real(f.Target), f.BeforeMode)
	})
}

// dropStaging removes what a commit staged that never got to replacing
// anything.
func (s *Store) dropStaging(stateDir string) error {
	staging := filepath.Join(stateDir, stagingName)
	j, err := s.loadJournal(stagingName)
	var damaged *DamagedError
	switch {
	case errors.As(err, &damaged):
		// Torn: it was not on disk yet, so nothing was staged either.
	case err != nil:
		return err
	case j == nil:
		return nil
	default:
		if err := s.unstage(j); err != nil {
			return &InterruptedError{Doing: "cleaning up after", Purpose: j.Purpose, Err: err}
		}
	}
	return removeIfThere(staging)
}

// RemoveTemps removes what interrupted calls of [Store.WriteFile] left in a
// folder below the root.
func (s *Store) RemoveTemps(dir string) error {
	real, err := s.resolve(dir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), writeSuffix) {
			if err := removeIfThere(filepath.Join(real, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetAside puts a damaged file of the state directory out of the way, under a
// name of its own, and returns that name.
func (s *Store) SetAside(path string) (string, error) {
	real, err := s.resolve(path)
	if err != nil {
		return "", err
	}
	for i := 1; ; i++ {
		name := fmt.Sprintf("%s.damaged-%d", path, i)
		to := fmt.Sprintf("%s.damaged-%d", real, i)
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return "", err
			}
			continue
		}
		if err := os.Rename(real, to); err != nil {
			return "", err
		}
		return name, syncDir(filepath.Dir(real))
	}
}

// Salvage undoes an interrupted commit whose journal was set aside, by what it
// left beside the files at paths: the former file gets its name back, and the
// one that is there now is kept. It names the files it put back.
func (s *Store) Salvage(paths []string) (restored []string, _ error) {
	for _, path := range paths {
		real, err := s.resolve(path)
		if err != nil {
			return restored, err
		}
		target := s.inside(real)
		for _, old := range s.beside(target, backupSuffix) {
			put, err := s.salvage(real, old)
			if err != nil {
				return restored, err
			}
			if put {
				restored = append(restored, path)
			}
		}
		for _, temp := range s.beside(target, tempSuffix) {
			if err := removeIfThere(temp); err != nil {
				return restored, err
			}
		}
		if err := syncDir(filepath.Dir(real)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return restored, err
		}
	}
	return restored, nil
}

func (s *Store) salvage(target, old string) (put bool, _ error) {
	now, err := readFile(target)
	if err != nil {
		return false, err
	}
	was, err := readFile(old)
	if err != nil {
		return false, err
	}
	if fileSum(now) == fileSum(was) && now.Mode == was.Mode {
		return false, removeIfThere(old)
	}
	if now.Exists() {
		saved := savedName(target)
		if err := errors.Join(removeIfThere(saved), os.Link(target, saved)); err != nil {
			return false, err
		}
	}
	return true, os.Rename(old, target)
}

// Interrupted reports whether a commit was cut short, without repairing it.
func (s *Store) Interrupted() bool {
	j, err := s.loadJournal(journalName)
	return err != nil || j != nil
}
