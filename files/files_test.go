// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// hostile is a user other than root; tree is the folder that this user owns.
const (
	hostile = 4711
	third   = 4712
	tree    = "/srv/tree"
)

// newRoot makes a root with a tree of another user in it, and files of root's
// outside.
func newRoot(t *testing.T) Root {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	r := Root{Path: t.TempDir()}
	for _, dir := range []string{"/etc", "/mnt/disk", "/home/him", "/tmp", tree + "/conf", tree + "/webapps/app"} {
		must.OK(t, os.MkdirAll(r.Path+dir, 0o755))
	}
	put(t, r, "/etc/passwd", "root", 0, 0o644)
	put(t, r, "/mnt/disk/his", "his", hostile, 0o644)
	put(t, r, "/mnt/disk/roots", "roots", 0, 0o600)
	put(t, r, "/mnt/disk/thirds", "thirds", third, 0o600)
	put(t, r, tree+"/conf/settings", "settings", hostile, 0o640)
	for _, dir := range []string{"/mnt/disk", "/home/him", tree, tree + "/conf", tree + "/webapps", tree + "/webapps/app"} {
		chown(t, r.Path+dir, hostile)
	}
	return r
}

func put(t *testing.T, r Root, path, content string, uid int, mode fs.FileMode) {
	t.Helper()
	must.OK(t, os.WriteFile(r.Path+path, []byte(content), 0o600))
	chown(t, r.Path+path, uid)
	must.OK(t, os.Chmod(r.Path+path, mode))
}

func chown(t *testing.T, real string, uid int) {
	t.Helper()
	must.OK(t, os.Lchown(real, uid, uid))
}

func symlink(t *testing.T, r Root, to, path string, uid int) {
	t.Helper()
	_ = os.Remove(r.Path + path)
	must.OK(t, os.Symlink(to, r.Path+path))
	chown(t, r.Path+path, uid)
}

// failsWith reports an error that is not the wanted one.
func failsWith(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestLinks: the owner of a link decides which targets are allowed.
func TestLinks(t *testing.T) {
	for name, tt := range map[string]struct {
		to, at  string
		uid     int
		ask     string // "": at
		want    string // the resolved path
		refused bool
		own     bool // asked by OwnFolder
	}{
		"root's, to another disk":                    {to: "/mnt/disk", at: tree + "/streams", ask: tree + "/streams/his", want: "/mnt/disk/his"},
		"root's, of the whole tree":                  {to: tree, at: "/opt", ask: "/opt/conf/settings", want: tree + "/conf/settings"},
		"root's, to the owner's file":                {to: "/mnt/disk/his", at: tree + "/conf/x", want: "/mnt/disk/his"},
		"root's, to root's file":                     {to: "/etc/passwd", at: tree + "/conf/x", refused: true},
		"root's, outside":                            {to: "/etc/passwd", at: "/etc/x", want: "/etc/passwd"},
		"root's, climbing":                           {to: "../../../../../../mnt/disk/his", at: tree + "/conf/x", want: "/mnt/disk/his"},
		"his, inside":                                {to: "settings", at: tree + "/conf/x", uid: hostile, want: tree + "/conf/settings"},
		"his, by a folder":                           {to: "../conf", at: tree + "/webapps/x", uid: hostile, ask: tree + "/webapps/x/settings", want: tree + "/conf/settings"},
		"his, to his own elsewhere":                  {to: "/mnt/disk/his", at: tree + "/conf/x", uid: hostile, want: "/mnt/disk/his"},
		"his, to root's file":                        {to: "/etc/passwd", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, to root's file in his folder":          {to: "/mnt/disk/roots", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, to a third user's file":                {to: "/mnt/disk/thirds", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, to root's folder":                      {to: "/etc", at: tree + "/webapps/x", uid: hostile, ask: tree + "/webapps/x/passwd", refused: true},
		"his, to root's folder, not there":           {to: "/etc", at: tree + "/webapps/x", uid: hostile, ask: tree + "/webapps/x/nothing", refused: true},
		"his, to nothing in root's folder":           {to: "/etc/nothing", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, to nothing in his":                     {to: "nothing", at: tree + "/conf/x", uid: hostile, want: tree + "/conf/nothing"},
		"his, to a link of root's":                   {to: "/etc/link", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, by folders of root's":                  {to: "/mnt/disk/../disk/his", at: tree + "/conf/x", uid: hostile, want: "/mnt/disk/his"},
		"a third user's, to his":                     {to: "settings", at: tree + "/conf/x", uid: third, refused: true},
		"his, to himself":                            {to: "x", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, out of the root and back":              {to: "../../../../../../../../srv/tree/conf/settings", at: tree + "/conf/x", uid: hostile, want: tree + "/conf/settings"},
		"his, to a folder that is not there":         {to: "/etc/a", at: tree + "/webapps/x", uid: hostile, ask: tree + "/webapps/x/b/c", refused: true},
		"root's, to root's folder":                   {to: "/etc", at: tree + "/conf/x", ask: tree + "/conf/x/passwd", want: "/etc/passwd"},
		"root's, to root's, to remove":               {to: "/etc", at: tree + "/conf/x", own: true, refused: true},
		"root's, to his, to remove":                  {to: "/mnt/disk", at: tree + "/conf/x", own: true, want: "/mnt/disk"},
		"root's, outside, to remove":                 {to: "/etc", at: "/opt", own: true, want: "/etc"},
		"none, to remove":                            {to: "/etc", at: "/opt", ask: tree + "/conf", own: true, want: tree + "/conf"},
		"his, out of a folder that is not there":     {to: "nothing/../settings", at: tree + "/conf/x", uid: hostile, refused: true},
		"his, out of a folder of root's that is not": {to: "/etc/nothing/../passwd", at: tree + "/conf/x", uid: hostile, refused: true},
		"root's in his, out of a folder that is not": {to: "nothing/../settings", at: tree + "/conf/x", refused: true},
		"his, to a path that is too long":            {to: strings.Repeat("d/", 2047), at: tree + "/conf/x", uid: hostile, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t)
			symlink(t, r, "passwd", "/etc/link", 0)
			symlink(t, r, tt.to, tt.at, tt.uid)
			ask := tt.ask
			if ask == "" {
				ask = tt.at
			}
			got, err := leads(r, ask, tt.own)
			if tt.refused {
				if !Refused(err) {
					t.Fatalf("%v, want it refused", err)
				}
				return
			}
			must.OK(t, err)
			must.Equal(t, "leads to", got, tt.want)
		})
	}
}

func leads(r Root, path string, own bool) (string, error) {
	if !own {
		p, err := r.Locate(path)
		if err != nil {
			return "", err
		}
		defer p.Close()
		return p.Path(), nil
	}
	d, err := r.OwnFolder(path)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return d.Path(), nil
}

// TestResolvedFolder: a path that was resolved before contains no link, not even root's.
func TestResolvedFolder(t *testing.T) {
	r := newRoot(t)
	symlink(t, r, "/mnt/disk", "/srv/link", 0)
	_, err := r.ResolvedFolder("/srv/link")
	failsWith(t, "a link", err, ErrLink)
	_, err = r.ResolvedFolder("/srv/nothing")
	failsWith(t, "not there", err, fs.ErrNotExist)
	d, err := r.ResolvedFolder(tree + "/conf")
	must.OK(t, err)
	defer d.Close()
	// The folder is exchanged for a link: what is open stays what it was.
	must.OK(t, os.Rename(r.Path+tree+"/conf", r.Path+tree+"/other"))
	symlink(t, r, "/etc", tree+"/conf", hostile)
	b, _, err := d.Read("settings", 100)
	must.OK(t, err)
	must.Equal(t, "settings", string(b), "settings")
	_, _, err = d.Read("passwd", 100)
	failsWith(t, "a file where the link leads", err, fs.ErrNotExist)
}

// TestOpenRefuses: what its owner can put in the place of a file.
func TestOpenRefuses(t *testing.T) {
	r := newRoot(t)
	must.OK(t, unix.Mkfifo(r.Path+tree+"/fifo", 0o644))
	must.OK(t, os.Link(r.Path+"/etc/passwd", r.Path+tree+"/second"))
	put(t, r, tree+"/large", strings.Repeat("x", 101), hostile, 0o644)
	symlink(t, r, "circle", tree+"/circle", hostile)
	symlink(t, r, strings.Repeat("x", 300), tree+"/endless", hostile)
	for path, want := range map[string]error{
		tree + "/fifo":           ErrNotRegular,
		tree + "/conf":           ErrNotRegular,
		tree + "/second":         ErrLink,
		tree + "/large":          ErrTooLarge,
		"/":                      ErrNotRegular,
		tree + "/circle":         unix.ELOOP,
		tree + "/endless":        unix.ENAMETOOLONG,
		tree + "/large/settings": unix.ENOTDIR,
	} {
		if _, _, err := r.Read(path, 100); !errors.Is(err, want) || !Refused(err) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	d, err := r.Folder(tree)
	must.OK(t, err)
	defer d.Close()
	for _, name := range []string{"", ".", "..", "conf/settings", "a\x00b"} {
		if _, _, err := d.Read(name, 100); err == nil {
			t.Errorf("%q was read", name)
		}
	}
	_, err = d.Entries(2)
	failsWith(t, "entries", err, ErrTooLarge)
	entries, err := d.Entries(10)
	must.OK(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	must.NoDiff(t, "entries", got, []string{"circle", "conf", "endless", "fifo", "large", "second", "webapps"})
}

// TestMovedFile: a user moves a file of root's into an own folder, so that root reads it.
func TestMovedFile(t *testing.T) {
	r := newRoot(t)
	for name, tt := range map[string]struct {
		uid, gid int
		mode     fs.FileMode
		refused  bool
	}{
		"root's alone":               {0, 0, 0o600, true},
		"of a group that is not his": {0, third, 0o640, true},
		"another user's":             {third, third, 0o640, true},
		"of his group":               {0, hostile, 0o640, false},
		"not even for his group":     {0, hostile, 0o600, true},
		"everybody's":                {0, 0, 0o644, false},
		"his":                        {hostile, third, 0o600, false},
	} {
		path := tree + "/conf/" + name
		put(t, r, path, "secret", tt.uid, tt.mode)
		must.OK(t, os.Chown(r.Path+path, tt.uid, tt.gid))
		if b, _, err := r.Read(path, 100); errors.Is(err, ErrLink) != tt.refused || tt.refused && len(b) > 0 || !tt.refused && err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	put(t, r, "/etc/secret", "secret", 0, 0o600)
	_, _, err := r.Read("/etc/secret", 100)
	must.OK(t, err)
}

// TestSharedFolder: a folder of root's that others may write is like one of theirs, for what they may have put there.
func TestSharedFolder(t *testing.T) {
	for mode, refused := range map[fs.FileMode]bool{0o755: false, 0o775: true, 0o757: true, fs.ModeSticky | 0o777: false} {
		r := newRoot(t)
		put(t, r, "/etc/file", "root", 0, 0o600)
		symlink(t, r, "/etc/file", "/srv/link", 0)
		symlink(t, r, tree, "/srv/folder", 0)
		put(t, r, "/srv/alone", "x", 0, 0o600)
		must.OK(t, errors.Join(os.Link(r.Path+"/etc/passwd", r.Path+"/srv/second"), os.Chmod(r.Path+"/srv", mode)))
		for path, can := range map[string]bool{"/srv/link": true, "/srv/second": true, "/srv/alone": false, "/srv/folder/conf/settings": false} {
			if _, _, err := r.Read(path, 100); (err != nil) != (can && refused) || err != nil && !errors.Is(err, ErrLink) {
				t.Errorf("%v: %s: %v", mode, path, err)
			}
		}
	}
}

// TestRootsAlone: only root may change a program that root runs, or redirect its path.
func TestRootsAlone(t *testing.T) {
	r := newRoot(t)
	put(t, r, "/etc/run", "run", 0, 0o755)
	put(t, r, "/etc/shared", "run", 0, 0o775)
	put(t, r, "/tmp/run", "run", 0, 0o755)
	put(t, r, "/tmp/his", "run", hostile, 0o755)
	put(t, r, tree+"/run", "run", 0, 0o755)
	symlink(t, r, "/etc/run", "/etc/link", 0)
	symlink(t, r, "/etc/run", tree+"/link", 0)
	symlink(t, r, tree+"/link", "/etc/far", 0)
	must.OK(t, os.Chmod(r.Path+"/tmp", fs.ModeSticky|0o777))
	for path, want := range map[string]string{
		"/etc/run": "", "/etc/link": "", "/tmp/run": "", "/etc/../etc/run": "",
		"/etc/shared":  "a group, or every user, may write to /etc/shared",
		"/tmp/his":     "/tmp/his belongs to uid 4711",
		tree + "/run":  tree + " belongs to uid 4711",
		tree + "/link": tree + " belongs to uid 4711",
		"/etc/far":     tree + " belongs to uid 4711",
	} {
		err := r.RootsAlone(path)
		if errors.Is(err, ErrForeign) != (want != "") || want == "" && err != nil || want != "" && !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestMakeFolderExchanged: no folder of root's is given away that was put in the place of a new one.
func TestMakeFolderExchanged(t *testing.T) {
	r := newRoot(t)
	roots := r.Path + "/srv/roots"
	must.OK(t, errors.Join(os.Mkdir(roots, 0o755), os.WriteFile(roots+"/file", nil, 0o600)))
	r.Hook = func(call, name string) error {
		if call != "openat" || name != tree+"/new" {
			return nil
		}
		return errors.Join(os.Remove(r.Path+name), os.Rename(roots, r.Path+name))
	}
	d, err := r.Folder(tree)
	must.OK(t, err)
	defer d.Close()
	if _, err := d.MakeFolder("new", 0o755); !Refused(err) {
		t.Errorf("made: %v", err)
	}
	r.Hook = nil
	if info, err := r.Stat(tree + "/new"); err != nil || info.UID != 0 {
		t.Errorf("it belongs to uid %d, %v", info.UID, err)
	}
}

// TestHindered: what the kernel says because of what the owner of a folder did there.
func TestHindered(t *testing.T) {
	r := newRoot(t)
	put(t, r, tree+"/webapps/file", "", hostile, 0o644)
	symlink(t, r, "circle", tree+"/webapps/circle", hostile)
	put(t, r, "/etc/file", "", 0, 0o644)
	symlink(t, r, "circle", "/etc/circle", 0)
	// Folders that a link makes longer than any path.
	const half = 8
	long := strings.Repeat("d", 255)
	d, err := r.Folder(tree + "/webapps")
	for range 2 * half {
		must.OK(t, err)
		up := d
		d, err = up.MakeFolder(long, 0o755)
		up.Close()
	}
	must.OK(t, err)
	defer d.Close()
	must.OK(t, d.Write("settings", nil, d.In(0o644)))
	symlink(t, r, strings.Repeat(long+"/", half), tree+"/webapps/long", hostile)
	// Links of the hostile user end in an error in a folder of root's.
	for name, to := range map[string]string{"byfile": "/etc/file/settings", "bycircle": "/etc/circle", "bylong": "/etc/" + strings.Repeat("x", 256)} {
		symlink(t, r, to, tree+"/webapps/"+name, hostile)
	}
	for path, refused := range map[string]bool{
		tree + "/webapps/file/settings":                                       true,
		tree + "/webapps/circle":                                              true,
		tree + "/webapps/circle/settings":                                     true,
		tree + "/webapps/" + strings.Repeat("x", 256):                         true,
		tree + "/webapps/" + strings.Repeat("x", 256) + "/y":                  true,
		tree + "/webapps/missing/settings":                                    false,
		tree + "/webapps/long/" + strings.Repeat(long+"/", half) + "settings": true,
		tree + "/webapps/byfile":                                              true,
		tree + "/webapps/bycircle":                                            true,
		tree + "/webapps/bylong":                                              true,
		"/etc/file/settings":                                                  false,
		"/etc/circle":                                                         false,
	} {
		_, _, err := r.Read(path, 100)
		if err == nil || Refused(err) != refused {
			t.Errorf("%s: %v, refused: %t, want %t", path, err, Refused(err), refused)
		}
	}
}

// TestRemoveNothing: neither a file that is not there nor a name that no file can have is in the way.
func TestRemoveNothing(t *testing.T) {
	d, err := newRoot(t).Folder(tree + "/conf")
	must.OK(t, err)
	defer d.Close()
	for _, name := range []string{"nothing", strings.Repeat("x", 256)} {
		must.OK(t, errors.Join(d.Remove(name), d.Free(name)))
	}
}

func TestEach(t *testing.T) {
	r := Root{Path: t.TempDir()}
	const n = 3*eachNames + 1
	for i := range n {
		must.OK(t, os.WriteFile(filepath.Join(r.Path, strconv.Itoa(i)), nil, 0o600))
	}
	d, err := r.Folder("/")
	must.OK(t, err)
	defer d.Close()
	for most, want := range map[int]int{1: 1, eachNames + 1: eachNames + 1, 2 * n: n} {
		seen := map[string]bool{}
		if err := d.Each(func(name string) bool { seen[name] = true; return len(seen) < most }); err != nil || len(seen) != want {
			t.Errorf("%d names, %v; want %d", len(seen), err, want)
		}
	}
}

// TestCreate: a new file has the given owner and never set-user-ID, set-group-ID or capabilities.
func TestCreate(t *testing.T) {
	r := newRoot(t)
	d, err := r.Folder(tree + "/conf")
	must.OK(t, err)
	defer d.Close()
	check := func(name string, a Attributes, uid int, mode fs.FileMode) {
		t.Helper()
		must.OK(t, d.Write(name, []byte("x"), a))
		if info, err := d.Stat(name); err != nil || info.UID != uid || info.GID != uid || info.Mode != mode {
			t.Errorf("%s: %d:%d %v, %v; want %d %v", name, info.UID, info.GID, info.Mode, err, uid, mode)
		}
	}
	check("new", d.In(fs.ModeSetuid|0o644), hostile, 0o644)
	check("own", processAttributes(0o600), 0, 0o600)
	put(t, r, tree+"/conf/setuid", "x", hostile, fs.ModeSetuid|fs.ModeSetgid|0o755)
	f, info, err := d.Open("setuid")
	must.OK(t, err)
	defer f.Close()
	t.Run("capabilities", func(t *testing.T) {
		err := unix.Setxattr(filepath.Join(r.Path, tree, "conf/setuid"), capabilities,
			[]byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
			t.Skipf("a file can have no capabilities here: %v", err)
		}
		must.OK(t, err)
		a, err := AttributesOf(f, info)
		must.OK(t, err)
		if len(a.xattrs) > 0 {
			t.Errorf("capabilities go on: %v", a.xattrs)
		}
	})
	a, err := AttributesOf(f, info)
	must.OK(t, err)
	check("copy", a, hostile, 0o755)
	failsWith(t, "writing over another file", d.Write("new", nil, d.In(0o600)), fs.ErrExist)
	symlink(t, r, "/etc/made", tree+"/conf/link", hostile)
	failsWith(t, "writing through a link", d.Write("link", nil, d.In(0o600)), fs.ErrExist)
	sub, err := d.MakeFolder("sub", 0o755)
	must.OK(t, err)
	defer sub.Close()
	must.Equal(t, "the folder's owner", sub.Info().UID, hostile)
}

// TestCreateMode: the mode is the one that was asked for, whatever rights the umask takes away: that of a unit, or of an
// operator's shell.
func TestCreateMode(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	r := Root{Path: t.TempDir()}
	d, err := r.Folder("/")
	must.OK(t, err)
	defer d.Close()
	sub, err := d.MakeFolder("sub", 0o755)
	must.OK(t, err)
	defer sub.Close()
	must.OK(t, sub.Write("file", nil, processAttributes(0o644)))
	must.Equal(t, "the mode in Info", sub.Info().Mode, fs.ModeDir|0o755)
	for path, want := range map[string]fs.FileMode{"/sub": fs.ModeDir | 0o755, "/sub/file": 0o644} {
		info, err := r.Stat(path)
		must.OK(t, err)
		must.Equal(t, path, info.Mode, want)
	}
}

// TestHook: a call whose hook fails is not made.
func TestHook(t *testing.T) {
	r := newRoot(t)
	r.Hook = func(call, _ string) error {
		if call == "unlinkat" {
			return unix.EIO
		}
		return nil
	}
	d, err := r.Folder(tree + "/conf")
	must.OK(t, err)
	defer d.Close()
	failsWith(t, "Remove", d.Remove("settings"), unix.EIO)
	_, err = d.Stat("settings")
	must.OK(t, err)
}
