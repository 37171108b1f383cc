// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/amsagent/amsagent/files"
)

// Names below the state directory.
const (
	stagingName = "journal.staging"
	journalName = "journal"
	undoName    = "undo.json"
)

// ErrChanged says that a file was written by somebody else between the moment
// it was read for the plan and the moment it was to be replaced. Nothing was
// changed.
var ErrChanged = errors.New("changed by somebody else meanwhile")

// Store reads and commits the files below Root. One process at a time may use
// it: callers hold a [Lock]. What it reaches, and which links it follows, is the
// rule of package files.
type Store struct {
	// Root prefixes every path; "" is the real root. Links are followed as if
	// Root were "/": they cannot lead out of it.
	Root string
	// Dir is the state directory below Root: journal and undo record.
	Dir string
	// Left, if not nil, is told of what a commit made beside a file and cannot remove, because
	// of the owner of the folder.
	Left func(path string, err error)

	// hook lets tests make calls fail.
	hook func(call, name string) error
}

// Files is the root for whoever reads beside the store.
func (s *Store) Files() files.Root { return files.Root{Path: s.Root, Hook: s.hook} }

// File is a file as it was read for a plan.
type File struct {
	// Path is the name it was asked by, below the root.
	Path string
	// Bytes is nil when the file does not exist.
	Bytes []byte
	// Mode is its permission bits with setuid, setgid and sticky; 0 when it
	// does not exist.
	Mode     fs.FileMode
	UID, GID int
	// Links counts its hard links: replacing a file by rename separates it
	// from its other names.
	Links int
	// Target is the file that Path leads to when Path is a link, below the
	// root; otherwise Path itself.
	Target string

	// id and folder tell whether it is still the very file that was read.
	id, folder files.ID
}

// Exists reports whether the file was there.
func (f File) Exists() bool { return f.Bytes != nil }

// MaxSettings bounds a settings file of the server, in bytes: the server's user
// writes them, and must not decide how much memory they take. The largest ones known
// have 9 KB.
const MaxSettings = 128 << 10

const (
	// maxFileSize bounds a file that is no settings file of the server.
	maxFileSize = 4 << 20
	// maxPlan bounds all settings files of one plan.
	maxPlan = 8 << 20
)

// Follow gives the path below the root that a path leads to, links followed.
func (s *Store) Follow(path string) (string, error) {
	p, err := s.Files().Locate(path)
	if err != nil {
		return "", err
	}
	defer p.Close()
	return p.Path(), nil
}

// Read reads a file below the root. A file that does not exist is not an
// error; anything but a regular file is, with what [files.Refused] knows.
func (s *Store) Read(path string) (File, error) { return s.read(path, maxFileSize) }

// ReadSettings is Read for a settings file of the server, which is small.
func (s *Store) ReadSettings(path string) (File, error) { return s.read(path, MaxSettings) }

func (s *Store) read(path string, limit int64) (File, error) {
	p, err := s.Files().Locate(path)
	if err != nil {
		return File{}, err
	}
	defer p.Close()
	f := File{}
	if len(p.Missing) == 0 {
		b, info, err := p.Folder.Read(p.Name, limit)
		if f, err = fileOf(p.Folder, b, info, err); err != nil {
			return File{}, err
		}
	}
	f.Path, f.Target = path, p.Path()
	return f, nil
}

// readIn reads a file of a folder, to be compared; one that is not there is no error. A commit
// gives each file a second name itself.
func readIn(d *files.Folder, name string, limit int64) (File, error) {
	b, info, err := d.ReadAny(name, limit)
	return fileOf(d, b, info, err)
}

func fileOf(d *files.Folder, b []byte, info files.Info, err error) (File, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, err
	}
	return File{
		Bytes: b, Mode: info.Mode, UID: info.UID, GID: info.GID, Links: info.Links,
		id: info.ID, folder: d.Info().ID,
	}, nil
}

// Record loads the undo record of the last commit; nil when there is none. One
// that cannot be used is a [DamagedError] or a [VersionError].
func (s *Store) Record() (*Record, error) {
	j, err := s.loadJournal(undoName)
	if err != nil || j == nil {
		return nil, err
	}
	path := s.statePath(undoName)
	switch {
	case j.Record == nil:
		return nil, &DamagedError{Path: path, Err: errors.New("it holds no record")}
	case j.Record.Version != recordVersion:
		return nil, &VersionError{Path: path, Version: j.Record.Version}
	}
	return j.Record, nil
}

func (s *Store) statePath(name string) string { return filepath.Join(s.Dir, name) }

// stateFolder opens the state directory.
func (s *Store) stateFolder() (*files.Folder, error) { return s.Files().Folder(s.Dir) }

// makeStateDir makes the state directory, readable by its owner only.
func (s *Store) makeStateDir() (*files.Folder, error) { return s.makeFolder(s.Dir, 0o700) }

// makeFolder makes a folder and those above it, where they are not there.
func (s *Store) makeFolder(path string, mode fs.FileMode) (*files.Folder, error) {
	for tries := 0; ; tries++ {
		d, err := s.makeMissing(path, mode)
		// Another process has made one of them in between: what is missing now is looked up again. Each round finds at
		// least one folder more.
		if errors.Is(err, fs.ErrExist) && tries < strings.Count(path, "/") {
			continue
		}
		return d, err
	}
}

func (s *Store) makeMissing(path string, mode fs.FileMode) (*files.Folder, error) {
	p, err := s.Files().Locate(filepath.Join(path, "x"))
	if err != nil {
		return nil, err
	}
	d := p.Folder
	for _, name := range p.Missing {
		next, err := d.MakeFolder(name, mode)
		d.Close()
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d, nil
}

// writeSuffix ends the name of the temporary file of [Store.WriteFile].
const writeSuffix = ".amsagent-tmp"

// WriteFile atomically replaces a file of our own below the root: temporary
// file beside it, fsync, rename, fsync of the directory. Missing directories
// are made with dirMode. Nothing is written when the file already holds data
// with that mode.
func (s *Store) WriteFile(path string, data []byte, mode, dirMode fs.FileMode) error {
	return s.writeFile(path, data, mode, dirMode, maxFileSize)
}

func (s *Store) writeFile(path string, data []byte, mode, dirMode fs.FileMode, limit int64) error {
	if int64(len(data)) > limit {
		// It could not be read again.
		return fmt.Errorf("%s is %w: %d bytes, at most %d", path, files.ErrTooLarge, len(data), limit)
	}
	p, err := s.Files().Locate(path)
	if err != nil {
		return err
	}
	d, name := p.Folder, p.Name
	if len(p.Missing) > 0 {
		dir := filepath.Dir(p.Path())
		p.Close()
		if d, err = s.makeFolder(dir, dirMode); err != nil {
			return err
		}
	}
	defer d.Close()
	if f, err := readIn(d, name, limit); err == nil && f.Exists() && bytes.Equal(f.Bytes, data) && f.Mode == mode {
		return nil
	}
	for range writeAttempts {
		// Another process, which recovers, takes the temporary file for one of a process that was killed.
		if err = replace(d, "."+name+writeSuffix, name, data, mode); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

const writeAttempts = 5

func replace(d *files.Folder, temp, name string, data []byte, mode fs.FileMode) error {
	if err := d.Remove(temp); err != nil {
		return err
	}
	if err := d.Write(temp, data, d.In(mode)); err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	if err := d.Rename(temp, name); err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	return d.Sync()
}

// RemoveFile removes a file below the root, itself and not what it leads to, and
// makes that durable; a file that is not there is no error.
func (s *Store) RemoveFile(path string) error {
	p, err := s.Files().LocateName(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if len(p.Missing) > 0 {
		return nil
	}
	if _, err := p.Folder.Stat(p.Name); err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	if err := p.Folder.Remove(p.Name); err != nil {
		return err
	}
	return p.Folder.Sync()
}

// RemoveFolder removes a folder below the root where it is empty.
func (s *Store) RemoveFolder(path string) error {
	p, err := s.Files().LocateName(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if len(p.Missing) > 0 {
		return nil
	}
	return p.Folder.RemoveFolder(p.Name)
}

// Empty makes a file below the root empty where it stands: one that something is
// mounted on cannot be replaced.
func (s *Store) Empty(path string) error {
	p, err := s.Files().Locate(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if len(p.Missing) > 0 {
		return &fs.PathError{Op: "truncate", Path: path, Err: fs.ErrNotExist}
	}
	return p.Folder.Truncate(p.Name)
}

// maxEntries bounds the folders that are listed. AMS with a thousand applications
// would be a large one; its logs are kept for years by some.
const maxEntries = 100_000

// List names the regular files of a folder below the root, sorted; none where it
// is not there.
func (s *Store) List(dir string) ([]string, error) {
	d, err := s.Files().Folder(dir)
	if err != nil {
		return nil, ignore(err, fs.ErrNotExist)
	}
	defer d.Close()
	return ListIn(d)
}

// ListIn names the regular files of a folder that is open, sorted.
func ListIn(d *files.Folder) ([]string, error) {
	entries, err := d.Entries(maxEntries)
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// recordVersion is the version of the format of [Record].
const recordVersion = 1

// DamagedError says that what the agent wrote down about its own changes cannot
// be used. Nothing was changed because of it.
type DamagedError struct {
	Path string // below the root
	Err  error
}

func (e *DamagedError) Error() string { return e.Path + " is damaged: " + e.Err.Error() }
func (e *DamagedError) Unwrap() error { return e.Err }

// VersionError says that another release of amsagent wrote the file.
type VersionError struct {
	Path    string // below the root
	Version int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s was written by another release of amsagent (format %d)", e.Path, e.Version)
}

func (s *Store) loadJournal(name string) (*journal, error) {
	f, err := s.read(s.statePath(name), maxRecordSize)
	if err != nil || !f.Exists() {
		return nil, err
	}
	return decodeJournal(s.statePath(name), f.Bytes)
}
