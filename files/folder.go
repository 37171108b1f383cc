// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ID identifies an existing file.
type ID struct{ Dev, Ino uint64 }

// Info is a file's metadata.
type Info struct {
	ID       ID
	Mode     fs.FileMode // with type, setuid, setgid and sticky
	UID, GID int
	Links    int
	Size     int64
	// Modified can be set.
	Modified time.Time
	// Changed is of content, owner or mode, and cannot be set.
	Changed time.Time
}

const special = fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// Plain removes setuid, setgid and sticky.
func Plain(mode fs.FileMode) fs.FileMode { return mode &^ special }

func infoOf(st *unix.Stat_t) Info {
	mode := fs.FileMode(st.Mode & 0o777)
	for bit, m := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if st.Mode&bit != 0 {
			mode |= m
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	default:
		mode |= fs.ModeIrregular
	}
	return Info{
		ID: ID{st.Dev, st.Ino}, Mode: mode, UID: int(st.Uid), GID: int(st.Gid),
		Links: int(st.Nlink), Size: st.Size, Modified: time.Unix(st.Mtim.Unix()), Changed: time.Unix(st.Ctim.Unix()),
	}
}

func statFD(fd int, path string) (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return infoOf(&st), nil
}

// Folder is an open folder. Its methods take one name in it.
type Folder struct {
	root Root
	fd   int
	path string
	info Info
}

func (r Root) newFolder(fd int, path string) (*Folder, error) {
	info, err := statFD(fd, path)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Folder{root: r, fd: fd, path: path, info: info}, nil
}

// Path is below the root, without links.
func (d *Folder) Path() string { return d.path }

// Info is from the time of opening.
func (d *Folder) Info() Info { return d.info }

// Close closes the descriptor.
func (d *Folder) Close() { _ = unix.Close(d.fd) }

func (d *Folder) call(op, name string) (string, error) {
	path := filepath.Join(d.path, name)
	if name == "" {
		return path, fmt.Errorf("%s is %w (a folder)", path, ErrNotRegular)
	}
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return path, &fs.PathError{Op: op, Path: path, Err: unix.EINVAL}
	}
	return path, d.root.hook(op, path)
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// Stat does not follow a link.
func (d *Folder) Stat(name string) (Info, error) {
	path, err := d.call("fstatat", name)
	if err != nil {
		return Info{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Info{}, pathError("stat", path, err)
	}
	return infoOf(&st), nil
}

// Open opens a regular file for reading and never blocks. It returns [ErrLink] or [ErrNotRegular].
func (d *Folder) Open(name string) (*os.File, Info, error) {
	path, err := d.call("openat", name)
	if err != nil {
		return nil, Info{}, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, Info{}, fmt.Errorf("%s: %w: it was no link before", path, ErrLink)
	case errors.Is(err, unix.ENXIO):
		return nil, Info{}, fmt.Errorf("%s is %w (a socket or a device)", path, ErrNotRegular)
	case err != nil:
		return nil, Info{}, d.markForeign(pathError("open", path, err))
	}
	info, err := statFD(fd, path)
	switch {
	case err != nil:
	case !info.Mode.IsRegular():
		err = fmt.Errorf("%s is %w (%s)", path, ErrNotRegular, info.Mode.Type())
	default:
		err = d.mayHold(path, info)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, Info{}, err
	}
	return os.NewFile(uintptr(fd), path), info, nil
}

// mayHold refuses another user's file that was perhaps linked or moved here to make root read it.
func (d *Folder) mayHold(path string, info Info) error {
	ruler, foreign := d.info.ruler()
	if !foreign || info.UID == ruler {
		return nil
	}
	if info.Links > 1 {
		return fmt.Errorf("%s: %w: it is another name of a file of uid %d, and another user may have made it", path, ErrLink, info.UID)
	}
	group := info.GID == d.info.GID && info.Mode&0o040 != 0
	if ruler != anyUser && info.Mode&0o004 == 0 && !group {
		return fmt.Errorf("%s: %w: it belongs to uid %d, and uid %d, whose folder it is in, may not read it", path, ErrLink, info.UID, ruler)
	}
	return nil
}

// Read reads at most limit bytes, or returns the errors of [Folder.Open] or [ErrTooLarge].
func (d *Folder) Read(name string, limit int64) ([]byte, Info, error) {
	f, info, err := d.Open(name)
	if err != nil {
		return nil, Info{}, err
	}
	defer f.Close()
	b, err := readAll(f, info, limit)
	return b, info, err
}

// ReadOpen reads the rest of an open file, at most limit bytes, or returns [ErrTooLarge].
func ReadOpen(f *os.File, limit int64) ([]byte, error) {
	info, err := statFD(int(f.Fd()), f.Name())
	if err != nil {
		return nil, err
	}
	return readAll(f, info, limit)
}

// readAll allows for a change of size.
func readAll(f *os.File, info Info, limit int64) ([]byte, error) {
	tooLarge := func(n int64) error {
		return fmt.Errorf("%s is %w: %d bytes, and at most %d are read", f.Name(), ErrTooLarge, n, limit)
	}
	if info.Size > limit {
		return nil, tooLarge(info.Size)
	}
	buf := bytes.NewBuffer(make([]byte, 0, info.Size+bytes.MinRead))
	n, err := buf.ReadFrom(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, tooLarge(n)
	}
	return buf.Bytes(), nil
}

// Write makes a new file durably, with its attributes before data.
func (d *Folder) Write(name string, data []byte, a Attributes) error {
	path, err := d.call("openat", name)
	if err != nil {
		return err
	}
	// 0600 until it has its owner: data may contain a password.
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return pathError("open", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	return errors.Join(d.fill(f, data, a), f.Close())
}

func (d *Folder) fill(f *os.File, data []byte, a Attributes) error {
	if err := d.root.hook("fchmod", f.Name()); err != nil {
		return err
	}
	if err := a.apply(f); err != nil {
		return err
	}
	if err := d.root.hook("write", f.Name()); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := d.root.hook("fsync", f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

// Rename replaces to. It returns [ErrHindered] for what the folder's owner can cause.
func (d *Folder) Rename(from, to string) error {
	path, err := d.call("renameat", from)
	if err != nil {
		return err
	}
	return d.markForeign(pathError("rename", path, unix.Renameat(d.fd, from, d.fd, to)))
}

// Remove ignores a missing file and an impossible name.
func (d *Folder) Remove(name string) error {
	path, err := d.call("unlinkat", name)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(d.fd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	// A read-only file system refuses even a missing file.
	if _, serr := d.Stat(name); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	return pathError("remove", path, err)
}

// Free is [Folder.Remove] that also renames a folder made in the file's place. It returns [ErrHindered] for a
// mount point.
func (d *Folder) Free(name string) error {
	switch err := d.Remove(name); {
	case errors.Is(err, unix.EBUSY):
		return d.markForeign(err)
	case !errors.Is(err, unix.EISDIR):
		return err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	return d.Rename(name, name+".folder-"+hex.EncodeToString(id[:]))
}

// RemoveFolder ignores a missing or used folder.
func (d *Folder) RemoveFolder(name string) error {
	path, err := d.call("unlinkat", name)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR)
	for _, fine := range []error{nil, unix.ENOENT, unix.ENOTEMPTY, unix.EEXIST, unix.ENOTDIR, unix.EBUSY} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	if _, serr := d.Stat(name); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	return pathError("rmdir", path, err)
}

// MakeFolder makes and opens a new folder with that mode, despite the umask. It gets this folder's owner if that
// is untrusted.
func (d *Folder) MakeFolder(name string, mode fs.FileMode) (*Folder, error) {
	path, err := d.call("mkdirat", name)
	if err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(d.fd, name, uint32(mode.Perm())); err != nil {
		return nil, pathError("mkdir", path, err)
	}
	if err := d.root.hook("openat", path); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	made, err := d.root.newFolder(fd, path)
	if err != nil {
		return nil, err
	}
	if !trusted(d.info.UID) {
		err = made.give(d.info)
	}
	if err == nil && made.info.Mode.Perm() != mode.Perm() {
		err = made.chmod(mode.Perm())
	}
	if err != nil {
		made.Close()
		return nil, err
	}
	return made, nil
}

// give changes a new folder's owner. The parent's owner may have exchanged it, and must get only an empty folder
// of root.
func (d *Folder) give(owner Info) error {
	if d.info.UID == owner.UID {
		return nil // as on a file system with one owner
	}
	entries, err := d.Entries(1)
	switch {
	case err != nil && !errors.Is(err, ErrTooLarge):
		return err
	case err != nil || len(entries) > 0 || d.info.UID != os.Geteuid():
		return fmt.Errorf("%w: %s was exchanged while it was made", ErrHindered, d.path)
	}
	if err := unix.Fchownat(d.fd, "", owner.UID, owner.GID, unix.AT_EMPTY_PATH); err != nil {
		return pathError("chown", d.path, err)
	}
	d.info, err = statFD(d.fd, d.path)
	return err
}

// chmod restores permissions that the umask removed.
func (d *Folder) chmod(mode fs.FileMode) error {
	if err := d.root.hook("fchmod", d.path); err != nil {
		return err
	}
	f, err := d.reopen()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	d.info, err = statFD(int(f.Fd()), f.Name())
	return err
}

// Overwrite writes a regular file in place: a mount point cannot be replaced. Newlines fill its former length first, so that
// a process that is killed leaves no part of the former content.
func (d *Folder) Overwrite(name string, data []byte) error {
	path, err := d.call("openat", name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := statFD(fd, path)
	if err != nil {
		return err
	}
	if !info.Mode.IsRegular() {
		return fmt.Errorf("%s is %w", path, ErrNotRegular)
	}
	rest := max(0, int(info.Size)-len(data))
	if err := d.root.hook("write", path); err != nil {
		return err
	}
	if _, err := f.Write(append(bytes.Clone(data), bytes.Repeat([]byte{'\n'}, rest)...)); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	return f.Sync()
}

// LockFile opens or creates a file.
func (d *Folder) LockFile(name string, mode fs.FileMode) (*os.File, error) {
	path, err := d.call("openat", name)
	if err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(mode.Perm()))
	})
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// reopen adds rights: an O_PATH descriptor has none.
func (d *Folder) reopen() (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, pathError("open", d.path, err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Sync makes changes of names durable.
func (d *Folder) Sync() error {
	if err := d.root.hook("fsync", d.path); err != nil {
		return err
	}
	f, err := d.reopen()
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // not supported here
	}
	return errors.Join(err, f.Close())
}

// Entries lists the folder by name, or returns [ErrTooLarge].
func (d *Folder) Entries(limit int) ([]fs.DirEntry, error) {
	if err := d.root.hook("getdents64", d.path); err != nil {
		return nil, err
	}
	f, err := d.reopen()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(limit + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > limit {
		return nil, fmt.Errorf("%s is %w: it has more than %d entries", d.path, ErrTooLarge, limit)
	}
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// Each calls f with each name, unordered, until it returns false. Its memory is bounded: any process can make a
// folder of /proc large.
func (d *Folder) Each(f func(name string) bool) error {
	if err := d.root.hook("getdents64", d.path); err != nil {
		return err
	}
	open, err := d.reopen()
	if err != nil {
		return err
	}
	defer open.Close()
	for {
		names, err := open.Readdirnames(eachNames)
		for _, name := range names {
			if !f(name) {
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

const eachNames = 256

// Space describes the folder's file system.
func (d *Folder) Space() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	return st, pathError("statfs", d.path, unix.Fstatfs(d.fd, &st))
}

// Writable also takes "." for the folder. It opens the file, because access(2) ignores chattr +i and +a for root.
func (d *Folder) Writable(name string) error {
	path := filepath.Join(d.path, name)
	if name == "." {
		return pathError("write", path, unix.Faccessat(d.fd, name, unix.W_OK, 0))
	}
	var st unix.Statx_t // before Linux 5.8 it knows no mounts
	if unix.Statx(d.fd, name, unix.AT_SYMLINK_NOFOLLOW, 0, &st) == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return pathError("replace", path, unix.EBUSY)
	}
	fd, err := unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("write", path, err)
	}
	return unix.Close(fd)
}
