// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Errors that a caller can branch on.
var (
	// ErrLink reports a link whose owner must not refer to its target.
	ErrLink = errors.New("link refused")
	// ErrNotRegular reports anything but a regular file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge reports a file beyond the limit.
	ErrTooLarge = errors.New("too large")
	// ErrHindered reports an error that the folder's untrusted owner may have caused.
	ErrHindered = errors.New("cannot be read, because of the owner of the folder")
	// ErrEncoding reports a path that is not valid UTF-8.
	ErrEncoding = errors.New("not valid UTF-8")
	// ErrForeign reports that another user could change what root runs.
	ErrForeign = errors.New("not only root may change it")
)

// Refused reports an error that another user can cause at any time. Other files must not be affected.
func Refused(err error) bool {
	return errors.Is(err, ErrLink) || errors.Is(err, ErrNotRegular) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrHindered) || errors.Is(err, ErrEncoding)
}

// markForeign marks what a folder's owner can cause: a replaced folder, a loop of links, a lease, a mount. EIO is not
// one: after a disk error the records must stay.
func (d *Folder) markForeign(err error) error {
	if _, foreign := d.info.ruler(); err == nil || !foreign || !slices.ContainsFunc([]unix.Errno{
		unix.ENOTDIR, unix.ELOOP, unix.EAGAIN, unix.EACCES, unix.EPERM, unix.ENXIO, unix.ENODEV, unix.ENAMETOOLONG, unix.EBUSY,
	}, func(e unix.Errno) bool { return errors.Is(err, e) }) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrHindered, err)
}

// maxLinks is the kernel's. unix.PathMax bounds the resulting path.
const maxLinks = 40

// Root is the start of every path. Links cannot lead out of it.
type Root struct {
	// Path is the folder; "" is the real root.
	Path string
	// Hook, if not nil, is for tests. Its error replaces the system call.
	Hook func(call, name string) error
}

func (r Root) hook(call, name string) error {
	if r.Hook == nil {
		return nil
	}
	if err := r.Hook(call, name); err != nil {
		return &fs.PathError{Op: call, Path: name, Err: err}
	}
	return nil
}

func (r Root) open() (int, error) {
	path := r.Path
	if path == "" {
		path = "/"
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// Place is a path's file: a name in an open folder.
type Place struct {
	// Folder is the deepest existing one. The caller closes it.
	Folder *Folder
	// Missing are the folders below it, outermost first.
	Missing []string
	// Name is the file's; "" is the folder.
	Name string
}

// Path is below the root, without links.
func (p *Place) Path() string {
	return filepath.Join(p.Folder.path, filepath.Join(p.Missing...), p.Name)
}

// Close closes the folder.
func (p *Place) Close() { p.Folder.Close() }

type follow int

const (
	followAll  follow = iota // follow a link
	followDirs               // the link itself
	followNone               // refuse every link
	followOwn                // see [Root.OwnFolder]
)

// Locate follows links. File and folders may be missing. It returns [ErrLink] or the kernel's error.
func (r Root) Locate(path string) (*Place, error) { return r.walk(path, followAll) }

// LocateName does not follow the last name.
func (r Root) LocateName(path string) (*Place, error) { return r.walk(path, followDirs) }

// Folder follows links. It returns fs.ErrNotExist or [ErrLink].
func (r Root) Folder(path string) (*Folder, error) { return r.folder(path, followAll) }

// OwnFolder is for removals: a link of root that another user may have moved must lead to that user's folder.
func (r Root) OwnFolder(path string) (*Folder, error) { return r.folder(path, followOwn) }

// ResolvedFolder refuses every link in path.
func (r Root) ResolvedFolder(path string) (*Folder, error) { return r.folder(path, followNone) }

func (r Root) folder(path string, f follow) (*Folder, error) {
	if err := r.hook("openat", path); err != nil {
		return nil, err
	}
	p, err := r.walk(filepath.Join(path, "x"), f)
	if err != nil {
		return nil, err
	}
	if len(p.Missing) > 0 {
		p.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	return p.Folder, nil
}

// Stat follows links.
func (r Root) Stat(path string) (Info, error) {
	p, err := r.Locate(path)
	if err != nil {
		return Info{}, err
	}
	defer p.Close()
	switch {
	case len(p.Missing) > 0:
		return Info{}, &fs.PathError{Op: "stat", Path: path, Err: unix.ENOENT}
	case p.Name == "":
		return p.Folder.info, nil
	}
	return p.Folder.Stat(p.Name)
}

// Open opens a regular file and returns its path without links. Its errors are those of [Root.Locate] and
// [Folder.Open].
func (r Root) Open(path string) (*os.File, Info, string, error) {
	p, err := r.Locate(path)
	if err != nil {
		return nil, Info{}, "", err
	}
	defer p.Close()
	if len(p.Missing) > 0 {
		return nil, Info{}, p.Path(), &fs.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	f, info, err := p.Folder.Open(p.Name)
	return f, info, p.Path(), err
}

// Read reads at most limit bytes, or returns the errors of [Root.Open] or [ErrTooLarge].
func (r Root) Read(path string, limit int64) ([]byte, string, error) {
	f, info, at, err := r.Open(path)
	if err != nil {
		return nil, at, err
	}
	defer f.Close()
	b, err := readAll(f, info, limit)
	return b, at, err
}

type walker struct {
	root  Root
	asked string // for errors
	// stack begins at the root.
	stack  []*Folder
	rest   []step
	links  int
	passed func(path string, i Info)
}

// step is a name, "." for a required folder, or "" for the end of a link, whose target must be owner's.
type step struct {
	name  string
	link  string // the path of the link
	owner int
	// fileOnly allows any owner for folders.
	fileOnly bool
}

func names(path string) []step {
	var out []step
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			out = append(out, step{name: name})
		}
	}
	if strings.HasSuffix(path, "/") || strings.HasSuffix(path, "/.") {
		out = append(out, step{name: "."})
	}
	return out
}

func (w *walker) top() *Folder { return w.stack[len(w.stack)-1] }

func (w *walker) close(keep *Folder) {
	for _, f := range w.stack {
		if f != keep {
			f.Close()
		}
	}
}

// walk resolves the path itself: the kernel follows no link.
func (r Root) walk(path string, how follow) (*Place, error) {
	if err := r.hook("openat", path); err != nil {
		return nil, err
	}
	return r.walkNames(filepath.Join("/", path), how, func(string, Info) {})
}

func (r Root) walkNames(path string, how follow, passed func(path string, i Info)) (*Place, error) {
	fd, err := r.open()
	if err != nil {
		return nil, err
	}
	top, err := r.newFolder(fd, "/")
	if err != nil {
		return nil, err
	}
	w := &walker{root: r, asked: path, stack: []*Folder{top}, rest: names(path), passed: passed}
	p, err := w.walk(how)
	if err != nil {
		w.close(nil)
		return nil, err
	}
	w.close(p.Folder)
	return p, nil
}

// RootsAlone returns [ErrForeign] if users other than root and this process's can change or redirect the file.
func (r Root) RootsAlone(path string) error {
	var found error
	p, err := r.walkNames(filepath.Join("/", path), followAll, func(at string, i Info) {
		uid, foreign := i.ruler()
		switch {
		case found != nil || !foreign:
		case uid == anyUser:
			found = fmt.Errorf("%w: a group, or every user, may write to %s", ErrForeign, at)
		default:
			found = fmt.Errorf("%w: %s belongs to uid %d", ErrForeign, at, uid)
		}
	})
	if err != nil {
		return cmp.Or(found, err)
	}
	p.Close()
	return found
}

func (w *walker) walk(how follow) (*Place, error) {
	for len(w.rest) > 0 {
		w.passed(w.top().path, w.top().info)
		s := w.rest[0]
		w.rest = w.rest[1:]
		switch {
		case s.name == "":
			if err := w.owned(s, w.top().info); err != nil {
				return nil, err
			}
			continue
		case s.name == ".":
			continue // it is a folder
		case s.name == "..":
			if n := len(w.stack); n > 1 {
				w.top().Close()
				w.stack = w.stack[:n-1]
			}
			continue
		}
		last := w.last()
		fd, info, err := w.look(s.name)
		switch {
		case errors.Is(err, unix.ENOENT):
			return w.missing(s.name)
		case err != nil:
			return nil, w.markForeign(err)
		case info.Mode.Type() == fs.ModeSymlink && !(last && how == followDirs):
			err := w.link(s.name, fd, info, how)
			_ = unix.Close(fd)
			if err != nil {
				return nil, err
			}
		case last:
			_ = unix.Close(fd)
			return w.end(s.name, info)
		case !info.Mode.IsDir():
			_ = unix.Close(fd)
			return nil, w.markForeign(&fs.PathError{Op: "open", Path: filepath.Join(w.top().path, s.name), Err: unix.ENOTDIR})
		default:
			path := filepath.Join(w.top().path, s.name)
			if err := w.fits(path); err != nil {
				_ = unix.Close(fd)
				return nil, err
			}
			w.stack = append(w.stack, &Folder{root: w.root, fd: fd, path: path, info: info})
		}
	}
	return &Place{Folder: w.top()}, nil
}

func (w *walker) last() bool {
	for _, s := range w.rest {
		if s.name != "" && s.name != "." {
			return false
		}
	}
	return true
}

// end handles the last name.
func (w *walker) end(name string, info Info) (*Place, error) {
	w.passed(filepath.Join(w.top().path, name), info)
	for _, s := range w.rest {
		switch {
		case s.name == "":
			if err := w.owned(s, info); err != nil {
				return nil, err
			}
		case !info.Mode.IsDir():
			return nil, w.markForeign(&fs.PathError{Op: "open", Path: filepath.Join(w.top().path, name), Err: unix.ENOTDIR})
		}
	}
	return &Place{Folder: w.top(), Name: name}, nil
}

// missing requires that a link to a missing name has the folder's owner, who could create it.
func (w *walker) missing(name string) (*Place, error) {
	p := &Place{Folder: w.top(), Name: name}
	for _, s := range w.rest {
		switch s.name {
		case "":
			if err := w.owned(s, w.top().info); err != nil {
				return nil, err
			}
		case ".":
		case "..":
			return nil, w.markForeign(&fs.PathError{Op: "open", Path: w.asked, Err: unix.ENOENT})
		default:
			p.Missing = append(p.Missing, p.Name)
			p.Name = s.name
		}
	}
	return p, w.fits(p.Path())
}

// fits bounds the path, because each of its folders stays open.
func (w *walker) fits(path string) error {
	if len(path) < unix.PathMax {
		return nil
	}
	return w.markForeign(&fs.PathError{Op: "open", Path: w.asked, Err: unix.ENAMETOOLONG})
}

// markForeign also marks errors behind a link of another user.
func (w *walker) markForeign(err error) error {
	i := slices.IndexFunc(w.rest, func(s step) bool { return s.name == "" })
	if i >= 0 && slices.ContainsFunc([]unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG}, func(e unix.Errno) bool { return errors.Is(err, e) }) {
		return fmt.Errorf("%s: %w: %w", w.rest[i].link, ErrLink, err)
	}
	return w.top().markForeign(err)
}

// look opens a name of any type, without read access.
func (w *walker) look(name string) (int, Info, error) {
	path := filepath.Join(w.top().path, name)
	fd, err := retry(func() (int, error) {
		return unix.Openat(w.top().fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return -1, Info{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	info, err := statFD(fd, path)
	if err != nil {
		_ = unix.Close(fd)
		return -1, Info{}, err
	}
	return fd, info, nil
}

// trusted users' links are followed. Tests may not run as root.
func trusted(uid int) bool { return uid == 0 || uid == os.Geteuid() }

const anyUser = -1

// ruler returns the user who controls the folder's names, and whether it is untrusted: its owner, or any user if
// others may write to a folder of root without the sticky bit. With an ACL the group bits are its mask.
func (i Info) ruler() (uid int, foreign bool) {
	switch {
	case !trusted(i.UID):
		return i.UID, true
	case i.Mode&0o022 != 0 && i.Mode&fs.ModeSticky == 0:
		return anyUser, true
	}
	return i.UID, false
}

func (w *walker) link(name string, fd int, info Info, how follow) error {
	path := filepath.Join(w.top().path, name)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	to := string(buf[:n])
	if w.links++; w.links > maxLinks {
		return w.markForeign(&fs.PathError{Op: "open", Path: path, Err: unix.ELOOP})
	}
	if how == followNone {
		return fmt.Errorf("%s: %w: it was no link before", path, ErrLink)
	}
	steps := names(to)
	ruler, foreign := w.top().info.ruler()
	switch {
	case !trusted(info.UID):
		steps = append(steps, step{link: path, owner: info.UID})
	case foreign:
		steps = append(steps, step{link: path, owner: ruler, fileOnly: how != followOwn})
	}
	w.rest = append(steps, w.rest...)
	if strings.HasPrefix(to, "/") {
		for len(w.stack) > 1 {
			w.top().Close()
			w.stack = w.stack[:len(w.stack)-1]
		}
	}
	return nil
}

func (w *walker) owned(s step, info Info) error {
	if info.UID == s.owner || s.fileOnly && info.Mode.IsDir() {
		return nil
	}
	if s.owner == anyUser {
		return fmt.Errorf("%s: %w: not only root may move the link", s.link, ErrLink)
	}
	return fmt.Errorf("%s: %w: it leads to what belongs to uid %d, and uid %d made the link or may move it", s.link, ErrLink, info.UID, s.owner)
}

func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
