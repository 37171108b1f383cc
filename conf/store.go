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

// Names in the state directory.
const (
	journalName = "journal"
	undoName    = "undo.json"
)

// ErrChanged reports that another program wrote a file after the plan read it. Nothing was changed.
var ErrChanged = errors.New("changed by another process meanwhile")

// Store reads and commits files below Root. Callers hold a [Lock]. Package files decides which links are followed.
type Store struct {
	// Root prefixes every path; "" is the real root. Links cannot lead out of it.
	Root string
	// Dir is the state directory below Root.
	Dir string
	// Left, if not nil, gets the leftovers of a commit that could not be removed because of the folder's owner.
	Left func(path string, err error)

	// hook lets tests fail calls.
	hook func(call, name string) error
}

// Files returns the root, for other reads.
func (s *Store) Files() files.Root { return files.Root{Path: s.Root, Hook: s.hook} }

// File is a file as a plan read it.
type File struct {
	// Path is as requested, below the root.
	Path string
	// Bytes is nil if the file does not exist.
	Bytes []byte
	// Mode includes setuid, setgid and sticky.
	Mode     fs.FileMode
	UID, GID int
	// Links counts hard links. A rename separates the file from its other names.
	Links int
	// Target is Path with links resolved, below the root.
	Target string

	missing int // folders
	// id and folder identify the file that was read.
	id, folder files.ID
}

// Exists reports whether the file existed.
func (f File) Exists() bool { return f.Bytes != nil }

// MaxSettings is in bytes. The server's user writes settings files and must not control the memory they take. The
// largest known has 9 KB.
const MaxSettings = 128 << 10

const (
	// maxFileSize bounds other files, in bytes.
	maxFileSize = 4 << 20
	// maxPlan bounds all settings files of a plan, in bytes.
	maxPlan = 8 << 20
)

// Follow resolves the links of a path below the root.
func (s *Store) Follow(path string) (string, error) {
	p, err := s.Files().Locate(path)
	if err != nil {
		return "", err
	}
	defer p.Close()
	return p.Path(), nil
}

// Read reads a regular file below the root. A missing file is no error. See [files.Refused] for others.
func (s *Store) Read(path string) (File, error) { return s.read(path, maxFileSize) }

// ReadSettings is Read for files of at most [MaxSettings].
func (s *Store) ReadSettings(path string) (File, error) { return s.read(path, MaxSettings) }

func (s *Store) read(path string, limit int64) (File, error) {
	p, err := s.Files().Locate(path)
	if err != nil {
		return File{}, err
	}
	defer p.Close()
	f := File{}
	if len(p.Missing) == 0 {
		if f, err = readIn(p.Folder, p.Name, limit); err != nil {
			return File{}, err
		}
	}
	f.Path, f.Target, f.missing = path, p.Path(), len(p.Missing)
	return f, nil
}

// readIn reads a name in an open folder. A missing file is no error.
func readIn(d *files.Folder, name string, limit int64) (File, error) {
	b, info, err := d.Read(name, limit)
	if err != nil {
		return File{}, ignore(err, fs.ErrNotExist)
	}
	return fileOf(d, b, info), nil
}

func fileOf(d *files.Folder, b []byte, info files.Info) File {
	return File{
		Bytes: b, Mode: info.Mode, UID: info.UID, GID: info.GID, Links: info.Links,
		id: info.ID, folder: d.Info().ID,
	}
}

// Record returns the undo record, or nil. An unusable one is a [DamagedError] or a [VersionError].
func (s *Store) Record() (*Record, error) {
	j, err := s.loadJournal(undoName, maxRecordSize)
	if err != nil || j == nil {
		return nil, err
	}
	if j.Record == nil {
		return nil, &DamagedError{Path: s.statePath(undoName), Err: errors.New("it holds no record")}
	}
	return j.Record, nil
}

func (s *Store) statePath(name string) string { return filepath.Join(s.Dir, name) }

func (s *Store) stateFolder() (*files.Folder, error) { return s.Files().Folder(s.Dir) }

func (s *Store) makeStateDir() (*files.Folder, error) { return s.makeFolder(s.Dir, 0o700) }

func (s *Store) makeFolder(path string, mode fs.FileMode) (*files.Folder, error) {
	for tries := 0; ; tries++ {
		d, err := s.makeMissing(path, mode)
		// Another process made one of them. Each round finds at least one more.
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
		if err == nil {
			// Names in it are durable only if its own is.
			if err = d.Sync(); err != nil {
				next.Close()
			}
		}
		d.Close()
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d, nil
}

const writeSuffix = ".amsagent-tmp"

// WriteFile replaces a file of the agent atomically and durably. Missing directories get dirMode. It writes
// nothing if content and mode are right.
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
		// A recovering process removes the temporary file as a leftover.
		if err = replace(d, name, data, d.In(mode)); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

const writeAttempts = 5

func replace(d *files.Folder, name string, data []byte, a files.Attributes) error {
	temp := "." + name + writeSuffix
	if err := d.Remove(temp); err != nil {
		return err
	}
	if err := d.Write(temp, data, a); err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	if err := d.Rename(temp, name); err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	return d.Sync()
}

// RemoveFile removes a file below the root durably, or the link itself. A missing file is no error.
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

// Empty truncates a file in place: a mount point cannot be replaced.
func (s *Store) Empty(path string) error {
	p, err := s.Files().Locate(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if len(p.Missing) > 0 {
		return &fs.PathError{Op: "truncate", Path: path, Err: fs.ErrNotExist}
	}
	return p.Folder.Overwrite(p.Name, nil)
}

// maxEntries bounds listings. A thousand applications, or logs of years, are possible.
const maxEntries = 100_000

// List returns the sorted names of a folder's regular files. A missing folder has none.
func (s *Store) List(dir string) ([]string, error) {
	d, err := s.Files().Folder(dir)
	if err != nil {
		return nil, ignore(err, fs.ErrNotExist)
	}
	defer d.Close()
	return ListIn(d)
}

// ListIn is List for an open folder.
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

// DamagedError reports an unusable file of the agent. Nothing was changed.
type DamagedError struct {
	Path string // below the root
	Err  error
}

func (e *DamagedError) Error() string { return e.Path + " is damaged: " + e.Err.Error() }
func (e *DamagedError) Unwrap() error { return e.Err }

// VersionError reports a file of another release of the agent.
type VersionError struct {
	Path    string // below the root
	Version int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s was written by another release of amsagent (format %d)", e.Path, e.Version)
}

func (s *Store) loadJournal(name string, limit int64) (*journal, error) {
	f, err := s.read(s.statePath(name), limit)
	if err != nil || !f.Exists() {
		return nil, err
	}
	return decodeJournal(s.statePath(name), f.Bytes)
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
