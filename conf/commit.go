// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
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

// journal is what a commit writes before it touches anything and what recovery
// goes by. Renamed, it is the undo record.
type journal struct {
	Version int           `json:"version"`
	ID      string        `json:"id"`
	Purpose string        `json:"purpose"`
	Files   []journalFile `json:"files"`
	// MakeDirs are made before staging, RemoveDirs removed if they are empty
	// after it; both real paths below the root, outermost first.
	MakeDirs   []string `json:"make_dirs,omitempty"`
	RemoveDirs []string `json:"remove_dirs,omitempty"`
	Record     *Record  `json:"record,omitempty"`
}

// journalFile names the files of one change, below the root.
type journalFile struct {
	Target string `json:"target"`
	Temp   string `json:"temp,omitempty"`
	Backup string `json:"backup,omitempty"`
	// Sums are SHA-256; "" means no file.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Modes are the permission bits before and after.
	BeforeMode fs.FileMode `json:"before_mode,omitempty"`
	AfterMode  fs.FileMode `json:"after_mode,omitempty"`
}

// standing is where a file is in a commit.
type standing int

const (
	isOld     standing = iota
	isNew              // replaced
	isForeign          // written by somebody else
)

func (f journalFile) standing(now File) standing {
	got := fileSum(now)
	switch {
	case f.Before == f.After && got == f.After:
		// Only its mode changes.
		if now.Mode == f.AfterMode {
			return isNew
		}
		return isOld
	case got == f.After:
		return isNew
	case got == f.Before:
		return isOld
	}
	return isForeign
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

// newJournal plans names and sums.
func (s *Store) newJournal(purpose string, changes []Change, record *Record, removeDirs []string) (*journal, error) {
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	j := &journal{Version: recordVersion, ID: hex.EncodeToString(id[:]), Purpose: purpose, Record: record}
	seen := map[string]bool{}
	for _, c := range changes {
		real, err := s.resolve(c.Before.Path)
		if err != nil {
			return nil, err
		}
		if seen[real] {
			return nil, fmt.Errorf("%s is changed twice: two names lead to it", s.inside(real))
		}
		seen[real] = true
		f := journalFile{Target: s.inside(real), BeforeMode: c.Before.Mode, AfterMode: c.Mode}
		if c.Before.Exists() {
			f.Before = sum(c.Before.Bytes)
			f.Backup = besideName(f.Target, j.ID, backupSuffix)
			if f.AfterMode == 0 {
				f.AfterMode = c.Before.Mode
			}
		}
		if !c.Remove {
			f.After = sum(c.After)
			f.Temp = besideName(f.Target, j.ID, tempSuffix)
		}
		j.Files = append(j.Files, f)
		for _, d := range s.missingDirs(filepath.Dir(real)) {
			if !slices.Contains(j.MakeDirs, d) {
				j.MakeDirs = append(j.MakeDirs, d)
			}
		}
	}
	if record != nil {
		record.Version = recordVersion
		for _, d := range j.MakeDirs {
			if !slices.Contains(record.Dirs, d) {
				record.Dirs = append(record.Dirs, d)
			}
		}
	}
	for _, d := range removeDirs {
		real, err := s.resolve(d)
		if err != nil {
			return nil, err
		}
		j.RemoveDirs = append(j.RemoveDirs, s.inside(real))
	}
	return j, nil
}

// Names of what a commit has beside a target: .NAME.amsagent-ID.new and .old.
const (
	besideMark   = ".amsagent-"
	tempSuffix   = ".new"
	backupSuffix = ".old"
)

func besideName(target, id, suffix string) string {
	dir, base := filepath.Split(target)
	return dir + "." + base + besideMark + id + suffix
}

// beside lists what commits have beside a target, by suffix. A folder that
// cannot be read has nothing.
func (s *Store) beside(target, suffix string) []string {
	dir, base := filepath.Split(s.real(target))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+base+besideMark) && strings.HasSuffix(e.Name(), suffix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

// sweep removes what a power cut may have left of an earlier commit: staged
// files whose plan was not on the disk yet. A backup goes only where it is
// another name of the very file; what cannot be removed stays.
func (s *Store) sweep(j *journal) {
	for _, f := range j.Files {
		for _, stray := range s.beside(f.Target, tempSuffix) {
			_ = os.Remove(stray)
		}
		target, err := os.Lstat(s.real(f.Target))
		if err != nil {
			continue
		}
		for _, stray := range s.beside(f.Target, backupSuffix) {
			if info, err := os.Lstat(stray); err == nil && os.SameFile(info, target) {
				_ = os.Remove(stray)
			}
		}
	}
}

// missingDirs lists the directories that must be made for dir, outermost first.
func (s *Store) missingDirs(dir string) []string {
	var missing []string
	for dir != s.root() && dir != "/" {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, s.inside(dir))
		dir = filepath.Dir(dir)
	}
	slices.Reverse(missing)
	return missing
}

func (s *Store) real(path string) string { return filepath.Join(s.root(), path) }

// stage writes every new file beside its target and links every old one, and
// brings the plan of all this to disk. The fsyncs run side by side: a journaling
// file system commits them together. A process that is killed leaves a plan that
// says what to clean up; should a power cut lose the plan and keep a staged
// file, that file is a stray one and nothing more, because no target is touched
// before all of this is on disk.
func (s *Store) stage(j *journal, changes []Change, plan *os.File) error {
	for _, d := range j.MakeDirs {
		if err := os.Mkdir(s.real(d), 0o755); err != nil {
			return errors.Join(err, plan.Close())
		}
	}
	return each(len(changes)+1, func(i int) error {
		if i == len(changes) {
			return errors.Join(plan.Sync(), plan.Close())
		}
		f, c := j.Files[i], changes[i]
		if f.Backup != "" {
			if err := backup(s.real(f.Target), s.real(f.Backup)); err != nil {
				return err
			}
		}
		if f.Temp == "" {
			return nil
		}
		return s.stageFile(f, c.After)
	})
}

// stageFile writes the new file beside its target and reads it again.
func (s *Store) stageFile(f journalFile, content []byte) error {
	err := writeNew(s.real(f.Temp), content, func(fd *os.File) error {
		if f.Before == "" {
			return fd.Chmod(f.AfterMode)
		}
		return copyMeta(fd, s.real(f.Target), f.AfterMode)
	})
	if err != nil {
		return fmt.Errorf("staging %s: %w", f.Target, err)
	}
	back, err := readFile(s.real(f.Temp))
	if err != nil {
		return fmt.Errorf("verifying what was staged for %s: %w", f.Target, err)
	}
	if sum(back.Bytes) != f.After {
		return fmt.Errorf("verifying what was staged for %s: it reads back differently", f.Target)
	}
	return nil
}

// backup keeps the old file under a second name: a hard link, so that putting
// it back needs no space and restores the very inode. Where the file system
// has no links, a copy.
func backup(target, name string) error {
	err := os.Link(target, name)
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EROFS) {
		return err
	}
	f, rerr := readFile(target)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	return writeNew(name, f.Bytes, func(fd *os.File) error { return copyMeta(fd, target, f.Mode) })
}

// unchanged compares the file with what the plan read.
func (s *Store) unchanged(f journalFile) error {
	now, err := readFile(s.real(f.Target))
	if err != nil {
		return err
	}
	if got := fileSum(now); got != f.Before {
		return fmt.Errorf("%s: %w", f.Target, ErrChanged)
	}
	return nil
}

// overtaken reports whether the old file was written after our last look at it:
// by somebody who had opened it before we replaced it. AMS saves its settings
// by emptying the file and writing it, so whoever opened the old file while it
// had its name has emptied it by now, and what he writes is under the name of
// the backup.
func (s *Store) overtaken(f journalFile) (bool, error) {
	if f.Backup == "" {
		return false, nil
	}
	old, err := readFile(s.real(f.Backup))
	return err == nil && fileSum(old) != f.Before, err
}

func fileSum(f File) string {
	if !f.Exists() {
		return ""
	}
	return sum(f.Bytes)
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
