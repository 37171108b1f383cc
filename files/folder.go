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

// ID tells a file from every other one as long as it is there.
type ID struct{ Dev, Ino uint64 }

// Info is what the kernel knows of a file.
type Info struct {
	ID       ID
	Mode     fs.FileMode // with its type, setuid, setgid and sticky
	UID, GID int
	Links    int
	Size     int64
	// Modified is when its content was last changed, as far as nobody set it.
	Modified time.Time
	// Changed is when its content, its owner or its mode was last changed; nobody
	// can set it.
	Changed time.Time
}

// special are the permission bits that never survive.
const special = fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// Plain is a mode without setuid, setgid and the sticky bit.
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

// InfoOf is what the kernel knows of an open file by now. An overlay may give a file
// another number when it is first changed; one that is open stays the same file.
func InfoOf(f *os.File) (Info, error) { return statFD(int(f.Fd()), f.Name()) }

// Folder is a folder that is open. Its methods take the name of one file in it.
type Folder struct {
	root Root
	fd   int
	path string
	info Info
}

// newFolder takes over fd.
func (r Root) newFolder(fd int, path string) (*Folder, error) {
	info, err := statFD(fd, path)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Folder{root: r, fd: fd, path: path, info: info}, nil
}

// Path is the folder's path below the root, without a link in it.
func (d *Folder) Path() string { return d.path }

// Info is what the folder was when it was opened.
func (d *Folder) Info() Info { return d.info }

// Close closes the folder.
func (d *Folder) Close() { _ = unix.Close(d.fd) }

// call begins a call: the name must be one name.
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

// Stat looks at what has the name, be it a link.
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

// Open opens a regular file for reading. It never waits, as for the writer of a
// pipe. It fails with [ErrLink] and [ErrNotRegular].
func (d *Folder) Open(name string) (*os.File, Info, error) {
	f, info, err := d.OpenAny(name)
	if err == nil {
		err = d.mayHold(f.Name(), info)
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, Info{}, err
	}
	return f, info, nil
}

// OpenAny is [Folder.Open] for whoever compares a file with one that he knows, and passes
// nothing of it on: it may be another user's.
func (d *Folder) OpenAny(name string) (*os.File, Info, error) {
	path, err := d.call("openat", name)
	if err != nil {
		return nil, Info{}, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, Info{}, fmt.Errorf("%s: %w: there was none before", path, ErrLink)
	case errors.Is(err, unix.ENXIO):
		return nil, Info{}, fmt.Errorf("%s is %w (a socket or a device)", path, ErrNotRegular)
	case err != nil:
		return nil, Info{}, d.hindered(pathError("open", path, err))
	}
	info, err := statFD(fd, path)
	switch {
	case err != nil:
	case !info.Mode.IsRegular():
		err = fmt.Errorf("%s is %w (%s)", path, ErrNotRegular, info.Mode.Type())
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, Info{}, err
	}
	return os.NewFile(uintptr(fd), path), info, nil
}

// mayHold refuses a file of another user that whoever may write the folder may have given a name
// here, or that its owner may have moved here, to have root read it.
func (d *Folder) mayHold(path string, info Info) error {
	ruler, foreign := d.info.ruler()
	if !foreign || info.UID == ruler {
		return nil
	}
	if info.Links > 1 {
		return fmt.Errorf("%s: %w: it is another name of a file of uid %d, which others than he may have made", path, ErrLink, info.UID)
	}
	group := info.GID == d.info.GID && info.Mode&0o040 != 0
	if ruler != anybody && info.Mode&0o004 == 0 && !group {
		return fmt.Errorf("%s: %w: it belongs to uid %d, and uid %d, whose folder it is in, may not read it", path, ErrLink, info.UID, ruler)
	}
	return nil
}

// Read reads a regular file of at most limit bytes. It fails as [Folder.Open] does,
// and with [ErrTooLarge].
func (d *Folder) Read(name string, limit int64) ([]byte, Info, error) {
	f, info, err := d.Open(name)
	if err != nil {
		return nil, Info{}, err
	}
	defer f.Close()
	b, err := readAll(f, info, limit)
	return b, info, err
}

// ReadAny is [Folder.Read] of what [Folder.OpenAny] opens.
func (d *Folder) ReadAny(name string, limit int64) ([]byte, Info, error) {
	f, info, err := d.OpenAny(name)
	if err != nil {
		return nil, Info{}, err
	}
	defer f.Close()
	b, err := readAll(f, info, limit)
	return b, info, err
}

// ReadOpen reads a file of at most limit bytes that was opened and not read yet. It
// fails with [ErrTooLarge].
func ReadOpen(f *os.File, limit int64) ([]byte, error) {
	info, err := InfoOf(f)
	if err != nil {
		return nil, err
	}
	return readAll(f, info, limit)
}

// readAll reads a file that somebody may be writing to: it may have another size
// than a moment before.
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

// Create makes a file that must not exist, gives it its attributes before a byte
// is in it, and writes the data. The caller syncs and closes it.
func (d *Folder) Create(name string, data []byte, a Attributes) (*os.File, error) {
	path, err := d.call("openat", name)
	if err != nil {
		return nil, err
	}
	// 0600 until it has its owner: data may hold a password.
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return nil, pathError("open", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := d.root.hook("fchmod", path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := a.apply(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := d.root.hook("write", path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// SyncFile brings a file that [Folder.Create] made to the disk, and closes it.
func (d *Folder) SyncFile(f *os.File) error {
	err := d.root.hook("fsync", f.Name())
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Write is [Folder.Create] and [Folder.SyncFile] in one.
func (d *Folder) Write(name string, data []byte, a Attributes) error {
	f, err := d.Create(name, data, a)
	if err != nil {
		return err
	}
	return d.SyncFile(f)
}

// Rename gives a file another name in this folder; what had that name is gone. What the
// folder's owner brought about is [ErrHindered].
func (d *Folder) Rename(from, to string) error {
	path, err := d.call("renameat", from)
	if err != nil {
		return err
	}
	return d.hindered(pathError("rename", path, unix.Renameat(d.fd, from, d.fd, to)))
}

// Link gives a file a second name in this folder. A link gets one itself; what it
// leads to is not touched.
func (d *Folder) Link(name, second string) error {
	path, err := d.call("linkat", name)
	if err != nil {
		return err
	}
	return pathError("link", path, unix.Linkat(d.fd, name, d.fd, second, 0))
}

// LinkOpen gives the file that is open a second name in this folder, whatever its
// first name stands for by now. An overlay may number the two names differently,
// so that comparing them afterwards would prove nothing.
func (d *Folder) LinkOpen(f *os.File, second string) error {
	path, err := d.call("linkat", second)
	if err != nil {
		return err
	}
	// Linking by the descriptor alone needs CAP_DAC_READ_SEARCH; by its link in /proc it does not.
	err = unix.Linkat(int(f.Fd()), "", d.fd, second, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), d.fd, second, unix.AT_SYMLINK_FOLLOW)
	}
	return pathError("link", path, err)
}

// Remove removes a file; one that is not there is no error, nor is a name that no file can have.
func (d *Folder) Remove(name string) error {
	path, err := d.call("unlinkat", name)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(d.fd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	// A read-only file system refuses to remove even what is not there.
	if _, serr := d.Stat(name); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	return pathError("remove", path, err)
}

// Free removes a file as [Folder.Remove] does. A folder that its owner made in its place
// gets another name: what is in it is his, and his folder must not keep the name. What he has
// mounted there cannot be removed: that is [ErrHindered].
func (d *Folder) Free(name string) error {
	switch err := d.Remove(name); {
	case errors.Is(err, unix.EBUSY):
		return d.hindered(err)
	case !errors.Is(err, unix.EISDIR):
		return err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	return d.Rename(name, name+".folder-"+hex.EncodeToString(id[:]))
}

// RemoveFolder removes an empty folder; one that is not there, not empty, or in
// use is no error: whoever uses it keeps it.
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

// MakeFolder makes a folder that must not exist and opens it. It gets the mode, whatever
// the umask is, and the owner of this one where that is no user who is trusted.
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

// give gives a folder that was just made to the owner of the one that it is in. He may have put
// another one in its place before it was opened: of root's he gets an empty one at most.
func (d *Folder) give(owner Info) error {
	if d.info.UID == owner.UID {
		return nil // as on a file system that knows one owner only
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

// chmod gives the folder the rights that an umask took away.
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
	d.info, err = InfoOf(f)
	return err
}

// Truncate makes a regular file empty where it stands.
func (d *Folder) Truncate(name string) error {
	path, err := d.call("openat", name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	info, err := statFD(fd, path)
	if err != nil {
		return err
	}
	if !info.Mode.IsRegular() {
		return fmt.Errorf("%s is %w", path, ErrNotRegular)
	}
	return pathError("truncate", path, unix.Ftruncate(fd, 0))
}

// LockFile opens a file for locking, and makes it where it is not there.
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

// reopen opens the folder itself for what a descriptor without rights cannot do.
func (d *Folder) reopen() (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, pathError("open", d.path, err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Sync makes what happened to the names in the folder durable.
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
		err = nil // this file system does not sync folders
	}
	return errors.Join(err, f.Close())
}

// Entries lists the folder, sorted by name; more than limit is [ErrTooLarge].
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

// Each calls f with the names in the folder, in no order, until it returns false. It
// needs the same memory for any number of names: for folders of /proc, of which any
// process makes a large one.
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

// eachNames is how many names [Folder.Each] reads at a time.
const eachNames = 256

// Space is the file system that the folder is on.
func (d *Folder) Space() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	return st, pathError("statfs", d.path, unix.Fstatfs(d.fd, &st))
}

// Writable says why what has the name cannot be written; "." is the folder itself. A file is opened for it: access(2) by way
// of x/sys answers root with yes, also for one that chattr +i or +a protects.
func (d *Folder) Writable(name string) error {
	path := filepath.Join(d.path, name)
	if name == "." {
		return pathError("write", path, unix.Faccessat(d.fd, name, unix.W_OK, 0))
	}
	fd, err := unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("write", path, err)
	}
	return unix.Close(fd)
}
