// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
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
// it: callers hold a [Lock].
type Store struct {
	// Root prefixes every path; "" is the real root. Links are followed as if
	// Root were "/": they cannot lead out of it.
	Root string
	// Dir is the state directory below Root: journal and undo record.
	Dir string
}

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
}

// Exists reports whether the file was there.
func (f File) Exists() bool { return f.Bytes != nil }

// maxFileSize bounds what is taken for a configuration file. The largest ones
// known have 9 KB.
const maxFileSize = 4 << 20

func (s *Store) root() string {
	if s.Root == "" {
		return "/"
	}
	return s.Root
}

// resolve gives the real path of the file that path leads to.
func (s *Store) resolve(path string) (string, error) {
	return securejoin.SecureJoin(s.root(), path)
}

// inside is the reverse: what a real path is called below the root.
func (s *Store) inside(real string) string {
	rel, err := filepath.Rel(s.root(), real)
	if err != nil {
		return real
	}
	return "/" + rel
}

// Follow gives the path below the root that a path leads to, links followed.
func (s *Store) Follow(path string) (string, error) {
	real, err := s.resolve(path)
	if err != nil {
		return "", err
	}
	return s.inside(real), nil
}

// Read reads a file below the root. A file that does not exist is not an
// error; anything but a regular file is.
func (s *Store) Read(path string) (File, error) {
	real, err := s.resolve(path)
	if err != nil {
		return File{}, err
	}
	f, err := readFile(real)
	f.Path, f.Target = path, s.inside(real)
	if err != nil {
		return File{}, err
	}
	return f, nil
}

func readFile(real string) (File, error) {
	// O_NONBLOCK: opening a fifo must not wait for its writer.
	fd, err := os.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, err
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		return File{}, err
	}
	if !info.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s is not a regular file (%s)", real, info.Mode().Type())
	}
	if info.Size() > maxFileSize {
		return File{}, fmt.Errorf("%s has %d bytes: that is no configuration file", real, info.Size())
	}
	buf := bytes.NewBuffer(make([]byte, 0, info.Size()+1))
	if _, err := buf.ReadFrom(fd); err != nil {
		return File{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return File{}, fmt.Errorf("%s: no owner to be had on this system", real)
	}
	return File{
		Bytes: buf.Bytes(),
		Mode:  info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky),
		UID:   int(st.Uid), GID: int(st.Gid), Links: int(st.Nlink),
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
	for _, f := range j.Record.Files {
		if err := f.check(); err != nil {
			return nil, &DamagedError{Path: path, Err: err}
		}
	}
	return j.Record, nil
}

func (s *Store) statePath(name string) string { return filepath.Join(s.Dir, name) }

// makeStateDir makes the state directory, readable by its owner only.
func (s *Store) makeStateDir() (string, error) {
	real, err := s.resolve(s.Dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(real, 0o700); err != nil {
		return "", err
	}
	return real, nil
}

// writeSuffix ends the name of the temporary file of [Store.WriteFile].
const writeSuffix = ".amsagent-tmp"

// WriteFile atomically replaces a file of our own below the root: temporary
// file beside it, fsync, rename, fsync of the directory. Missing directories
// are made with dirMode. Nothing is written when the file already holds data
// with that mode.
func (s *Store) WriteFile(path string, data []byte, mode, dirMode fs.FileMode) error {
	real, err := s.resolve(path)
	if err != nil {
		return err
	}
	if f, err := readFile(real); err == nil && f.Exists() && bytes.Equal(f.Bytes, data) && f.Mode == mode {
		return nil
	}
	dir := filepath.Dir(real)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	temp := filepath.Join(dir, "."+filepath.Base(real)+writeSuffix)
	if err := removeIfThere(temp); err != nil {
		return err
	}
	if err := writeNew(temp, data, func(f *os.File) error { return f.Chmod(mode) }); err != nil {
		return errors.Join(err, removeIfThere(temp))
	}
	if err := os.Rename(temp, real); err != nil {
		return errors.Join(err, removeIfThere(temp))
	}
	return syncDir(dir)
}

// RemoveFile removes a file below the root and makes that durable; a file that
// is not there is no error.
func (s *Store) RemoveFile(path string) error {
	real, err := s.resolve(path)
	if err != nil {
		return err
	}
	if err := os.Remove(real); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(real))
}

// Stat tells about a file below the root, itself and not what it leads to.
func (s *Store) Stat(path string) (fs.FileInfo, error) {
	dir, err := s.resolve(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return os.Lstat(filepath.Join(dir, filepath.Base(path)))
}

// Empty makes a file below the root empty where it stands: one that something is
// mounted on cannot be replaced.
func (s *Store) Empty(path string) error {
	real, err := s.resolve(path)
	if err != nil {
		return err
	}
	return os.Truncate(real, 0)
}

// List names the regular files of a folder below the root, sorted; none where it
// is not there.
func (s *Store) List(dir string) ([]string, error) {
	real, err := s.resolve(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(real)
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, ignore(err, fs.ErrNotExist)
}

// writeNew makes a file that must not exist, sets it up with prepare before a
// byte of data is in it, writes and fsyncs it.
func writeNew(real string, data []byte, prepare func(*os.File) error) error {
	f, err := createNew(real, data, prepare)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// createNew is writeNew without the fsync; the caller syncs and closes.
func createNew(real string, data []byte, prepare func(*os.File) error) (*os.File, error) {
	// 0600 until prepare has given it its owner: data may hold a password.
	f, err := os.OpenFile(real, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := prepare(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyMeta gives f the owner, the ACL and the other extended attributes, and
// the permission bits of the file at real.
func copyMeta(f *os.File, real string, mode fs.FileMode) error {
	info, err := os.Lstat(real)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no owner to be had on this system", real)
	}
	if int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := copyXattrs(f, real); err != nil {
		return err
	}
	// After the ACL: where there is one, the group bits are its mask.
	return f.Chmod(mode)
}

func copyXattrs(f *os.File, real string) error {
	names, err := listXattrs(real)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return fmt.Errorf("reading the extended attributes of %s: %w", real, err)
	}
	for _, name := range names {
		value, err := getXattr(real, name)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("reading the extended attribute %s of %s: %w", name, real, err)
		}
		err = unix.Fsetxattr(int(f.Fd()), name, value, 0)
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "security.") {
			// A label that no module of this kernel looks after, as that of a SELinux which is switched off: only
			// CAP_SYS_ADMIN may write it, and the daemon has no such thing. Who switches it on labels all files.
			continue
		}
		if err != nil {
			return fmt.Errorf("keeping the extended attribute %s of %s: %w", name, real, err)
		}
	}
	return nil
}

func listXattrs(real string) ([]string, error) {
	size, err := unix.Llistxattr(real, nil)
	if err != nil || size == 0 {
		return nil, err
	}
	buf := make([]byte, size+256) // room for one that appears in between
	if size, err = unix.Llistxattr(real, buf); err != nil {
		return nil, err
	}
	return attributeNames(buf[:size]), nil
}

// attributeNames splits what listxattr gave. It may have given nothing where it
// announced something: an overlay counts its own attributes and does not show
// them.
func attributeNames(list []byte) []string {
	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 })
}

func getXattr(real, name string) ([]byte, error) {
	size, err := unix.Lgetxattr(real, name, nil)
	if err != nil || size == 0 {
		return nil, err
	}
	buf := make([]byte, size)
	size, err = unix.Lgetxattr(real, name, buf)
	return buf[:max(size, 0)], err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // this file system does not sync directories
	}
	return errors.Join(err, d.Close())
}

func removeIfThere(real string) error {
	err := os.Remove(real)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A read-only file system refuses to remove even what is not there.
	if _, serr := os.Lstat(real); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	return err
}

// recordVersion is the version of the format of [Record] and of the journal.
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
	return fmt.Sprintf("%s was written by another release of amsagent (format %d, this one reads %d)", e.Path, e.Version, recordVersion)
}

func (s *Store) loadJournal(name string) (*journal, error) {
	real, err := s.resolve(s.statePath(name))
	if err != nil {
		return nil, err
	}
	f, err := readFile(real)
	if err != nil || !f.Exists() {
		return nil, err
	}
	j := &journal{}
	if err := json.Unmarshal(f.Bytes, j); err != nil {
		return nil, &DamagedError{Path: s.statePath(name), Err: err}
	}
	switch j.Version {
	case recordVersion:
		return j, nil
	case 0:
		return nil, &DamagedError{Path: s.statePath(name), Err: errors.New("it does not say its format")}
	}
	return nil, &VersionError{Path: s.statePath(name), Version: j.Version}
}
