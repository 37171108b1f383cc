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

// Errors that a caller can branch on. What they are about was not touched.
var (
	// ErrLink says that a link leads to what its owner has no right to name.
	ErrLink = errors.New("link refused")
	// ErrNotRegular says that something else stands in the place of a file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge says that a file is larger than what is read of it.
	ErrTooLarge = errors.New("too large")
	// ErrHindered says that the owner of a folder, who is not root, may have brought
	// about what the kernel says.
	ErrHindered = errors.New("cannot be read, because of the owner of the folder")
	// ErrEncoding says that a path is not valid UTF-8, as names in the records of changes are.
	ErrEncoding = errors.New("not valid UTF-8")
	// ErrForeign says that somebody else than root may change what root would run.
	ErrForeign = errors.New("not only root may change it")
)

// Refused reports whether an error is one of those: what another user can make so at any
// time, and which must not stand in the way of the other files.
func Refused(err error) bool {
	return errors.Is(err, ErrLink) || errors.Is(err, ErrNotRegular) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrHindered) || errors.Is(err, ErrEncoding)
}

// hindered marks an error that the owner of a folder brings about at will: by a file in
// the place of a folder, links in a circle, a lease on a file, a file system of his own
// mounted on it. EIO is not among them: where a disk gives it, what is known of the file
// must not be forgotten.
func (d *Folder) hindered(err error) error {
	if _, foreign := d.info.ruler(); err == nil || !foreign || !slices.ContainsFunc([]unix.Errno{
		unix.ENOTDIR, unix.ELOOP, unix.EAGAIN, unix.EACCES, unix.EPERM, unix.ENXIO, unix.ENODEV, unix.ENAMETOOLONG, unix.EBUSY,
	}, func(e unix.Errno) bool { return errors.Is(err, e) }) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrHindered, err)
}

// maxLinks is how many links one path may lead through, as in the kernel. Each may stand for 2,047
// names: what they lead to is bounded by unix.PathMax.
const maxLinks = 40

// Root is the folder that every path begins at. Links are followed as if it were
// "/": they cannot lead out of it.
type Root struct {
	// Path is that folder; "" is the real root.
	Path string
	// Hook, if not nil, is called before each call that reads or changes
	// something, with its name and the file's: an error is what the call returns,
	// without being made. Tests let calls fail by it.
	Hook func(call, name string) error
	// noOpenat2 lets openat2 fail, as on kernels before 5.6. Tests set it.
	noOpenat2 bool
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

// Place is where a path leads to: a name in a folder that is open.
type Place struct {
	// Folder is the deepest folder that is there. The caller closes it.
	Folder *Folder
	// Missing are the folders below it that are not there, outermost first.
	Missing []string
	// Name is that of the file; "" is the folder itself.
	Name string
}

// Path is the path below the root, without a link in it.
func (p *Place) Path() string {
	return filepath.Join(p.Folder.path, filepath.Join(p.Missing...), p.Name)
}

// Close closes the folder.
func (p *Place) Close() { p.Folder.Close() }

// Follow says what becomes of the last name of a path.
type follow int

const (
	followAll  follow = iota // a link is followed
	followDirs               // a link is the file that is meant
	followNone               // no link is followed anywhere
	followOwn                // see OwnFolder
)

// Locate finds the file that path leads to, links followed. Neither the file nor
// its folder has to be there.
//
// It fails with [ErrLink], or with what the kernel says.
func (r Root) Locate(path string) (*Place, error) { return r.walk(path, followAll) }

// LocateName finds the folder of path, links followed, and means by the last name
// what has it, be it a link.
func (r Root) LocateName(path string) (*Place, error) { return r.walk(path, followDirs) }

// Folder opens a folder, links followed. Its error is fs.ErrNotExist where it is
// not there, and [ErrLink].
func (r Root) Folder(path string) (*Folder, error) { return r.folder(path, followAll) }

// OwnFolder is Folder for whoever removes files: a link of root's that another user may have moved leads only
// to a folder of that user.
func (r Root) OwnFolder(path string) (*Folder, error) { return r.folder(path, followOwn) }

// ResolvedFolder opens a folder by a path that was resolved before: there must be
// no link in it.
func (r Root) ResolvedFolder(path string) (*Folder, error) { return r.folder(path, followNone) }

func (r Root) folder(path string, f follow) (*Folder, error) {
	if err := r.hook("openat", path); err != nil {
		return nil, err
	}
	if folder, err := r.direct(path); err == nil {
		return folder, nil
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

// Stat looks at what path leads to, a file or a folder.
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

// Open opens the regular file that path leads to for reading, and gives its path
// without a link in it. It fails as [Root.Locate] and [Folder.Open] do.
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

// Read reads the regular file that path leads to, of at most limit bytes. It fails
// as [Root.Open] does, and with [ErrTooLarge].
func (r Root) Read(path string, limit int64) ([]byte, string, error) {
	f, info, at, err := r.Open(path)
	if err != nil {
		return nil, at, err
	}
	defer f.Close()
	b, err := readAll(f, info, limit)
	return b, at, err
}

// direct opens a folder whose path has no link in it, in one call where the kernel
// can refuse links; any error means that the path has to be walked.
func (r Root) direct(path string) (*Folder, error) {
	if r.noOpenat2 {
		return nil, unix.ENOSYS
	}
	root, err := r.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(root) }()
	path = filepath.Join("/", path)
	fd, err := unix.Openat2(root, "."+path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return r.newFolder(fd, path)
}

// walker is one walk under way.
type walker struct {
	root  Root
	asked string // the path, for errors
	// stack are the folders from the root to where the walk is.
	stack []*Folder
	rest  []step
	links int
	// passed sees each folder and file on the way.
	passed func(path string, i Info)
}

// step is a name still to be walked, or the end of what a link stands for: what
// was reached then must belong to owner. The name "." says that what was reached
// must be a folder.
type step struct {
	name  string
	link  string // the link's own path
	owner int
	// fileOnly lets folders belong to anybody.
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

// close closes what the walk opened, but for keep.
func (w *walker) close(keep *Folder) {
	for _, f := range w.stack {
		if f != keep {
			f.Close()
		}
	}
}

// walk goes along a path by itself: the kernel follows nothing.
func (r Root) walk(path string, how follow) (*Place, error) {
	if err := r.hook("openat", path); err != nil {
		return nil, err
	}
	path = filepath.Join("/", path)
	if how != followDirs {
		// Most paths have no link in them.
		if p := r.walkDirect(path); p != nil {
			return p, nil
		}
	}
	return r.walkNames(path, how, func(string, Info) {})
}

// walkNames is a walk name by name.
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

// RootsAlone reports by [ErrForeign] where somebody else than root, or who runs this, may change
// the file of a path, or let the path lead to another one. What is not there is nobody's.
func (r Root) RootsAlone(path string) error {
	var found error
	p, err := r.walkNames(filepath.Join("/", path), followAll, func(at string, i Info) {
		uid, foreign := i.ruler()
		switch {
		case found != nil || !foreign:
		case uid == anybody:
			found = fmt.Errorf("%w: a group, or everybody, may write to %s", ErrForeign, at)
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

// walkDirect is a walk without links; nil where there is one, or anything else
// in the way.
func (r Root) walkDirect(path string) *Place {
	if path == "/" {
		return nil
	}
	folder, err := r.direct(filepath.Dir(path))
	if err != nil {
		return nil
	}
	name := filepath.Base(path)
	var st unix.Stat_t
	err = unix.Fstatat(folder.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK || errors.Is(err, unix.ENOENT) {
		return &Place{Folder: folder, Name: name}
	}
	folder.Close()
	return nil
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
			continue // it is one
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
			return nil, w.hindered(err)
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
			return nil, w.hindered(&fs.PathError{Op: "open", Path: filepath.Join(w.top().path, s.name), Err: unix.ENOTDIR})
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

// last reports whether no name follows.
func (w *walker) last() bool {
	for _, s := range w.rest {
		if s.name != "" && s.name != "." {
			return false
		}
	}
	return true
}

// end is a walk that came to its last name.
func (w *walker) end(name string, info Info) (*Place, error) {
	w.passed(filepath.Join(w.top().path, name), info)
	for _, s := range w.rest {
		switch {
		case s.name == "":
			if err := w.owned(s, info); err != nil {
				return nil, err
			}
		case !info.Mode.IsDir():
			return nil, w.hindered(&fs.PathError{Op: "open", Path: filepath.Join(w.top().path, name), Err: unix.ENOTDIR})
		}
	}
	return &Place{Folder: w.top(), Name: name}, nil
}

// missing is a walk that came to a name which is not there. Who leads there by a
// link must own the folder, in which he could make it himself.
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
			return nil, w.hindered(&fs.PathError{Op: "open", Path: w.asked, Err: unix.ENOENT})
		default:
			p.Missing = append(p.Missing, p.Name)
			p.Name = s.name
		}
	}
	return p, w.fits(p.Path())
}

// fits refuses a path that no other program can use: each of its folders stays open.
func (w *walker) fits(path string) error {
	if len(path) < unix.PathMax {
		return nil
	}
	return w.hindered(&fs.PathError{Op: "open", Path: w.asked, Err: unix.ENAMETOOLONG})
}

// hindered marks an error of a walk that a link of another user led to, or that a folder's owner
// brought about, as [Folder.hindered] does: he can make it so at any time.
func (w *walker) hindered(err error) error {
	i := slices.IndexFunc(w.rest, func(s step) bool { return s.name == "" })
	if i >= 0 && slices.ContainsFunc([]unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG}, func(e unix.Errno) bool { return errors.Is(err, e) }) {
		return fmt.Errorf("%s: %w: %w", w.rest[i].link, ErrLink, err)
	}
	return w.top().hindered(err)
}

// look opens what has the name, whatever it is, without reading it.
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

// trusted are the owners whose links are followed: root, and whoever runs this,
// which in a test may be another one.
func trusted(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// anybody is in the place of a user who is not known.
const anybody = -1

// ruler gives the user who decides what has a name in a folder, and whether he is one who is not
// trusted: its owner, or anybody in a folder of root's that a group, or everybody, may write. One
// with the sticky bit, as /tmp, is not meant. With an ACL the group bits are its mask.
func (i Info) ruler() (uid int, foreign bool) {
	switch {
	case !trusted(i.UID):
		return i.UID, true
	case i.Mode&0o022 != 0 && i.Mode&fs.ModeSticky == 0:
		return anybody, true
	}
	return i.UID, false
}

// link puts what a link says in the place of its name.
func (w *walker) link(name string, fd int, info Info, how follow) error {
	path := filepath.Join(w.top().path, name)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	to := string(buf[:n])
	if w.links++; w.links > maxLinks {
		return w.hindered(&fs.PathError{Op: "open", Path: path, Err: unix.ELOOP})
	}
	if how == followNone {
		return fmt.Errorf("%s: %w: there was none before", path, ErrLink)
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

// owned checks what a link led to.
func (w *walker) owned(s step, info Info) error {
	if info.UID == s.owner || s.fileOnly && info.Mode.IsDir() {
		return nil
	}
	if s.owner == anybody {
		return fmt.Errorf("%s: %w: not only root may move the link", s.link, ErrLink)
	}
	return fmt.Errorf("%s: %w: it leads to what belongs to uid %d, and uid %d made the link or may move it", s.link, ErrLink, info.UID, s.owner)
}

// retry makes a call again that a signal interrupted.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
