// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes are what a new file gets besides its content.
type Attributes struct {
	// Mode is the permission bits; setuid, setgid and sticky are left out.
	Mode     fs.FileMode
	UID, GID int

	xattrs []xattr
	// like tells that the file replaces another one, whose extended attributes it
	// gets and no others.
	like bool
}

type xattr struct {
	name  string
	value []byte
}

const (
	accessACL    = "system.posix_acl_access"
	capabilities = "security.capability"
	// ownersXattrs begins the names of those that the owner of a file may make, any
	// number of them on some file systems.
	ownersXattrs = "user."

	// maxXattrs and maxXattrBytes bound the attributes that a new file gets, names and
	// values. maxXattrValue is the kernel's bound for one value, and for all names.
	maxXattrs     = 64
	maxXattrBytes = 256 << 10
	maxXattrValue = 64 << 10
)

// Own are the attributes of a file that belongs to whoever runs this.
func Own(mode fs.FileMode) Attributes {
	return Attributes{Mode: mode, UID: os.Geteuid(), GID: os.Getegid()}
}

// In are the attributes of a new file in the folder: it belongs to the folder's
// owner.
func (d *Folder) In(mode fs.FileMode) Attributes {
	if trusted(d.info.UID) {
		return Own(mode)
	}
	return Attributes{Mode: mode, UID: d.info.UID, GID: d.info.GID}
}

// AttributesOf reads those of an open file, to be given to the one that replaces
// it.
func AttributesOf(f *os.File, info Info) (Attributes, error) {
	a := Attributes{Mode: info.Mode.Perm(), UID: info.UID, GID: info.GID, like: true}
	names, err := listXattrs(int(f.Fd()))
	if errors.Is(err, unix.ENOTSUP) {
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("reading the extended attributes of %s: %w", f.Name(), err)
	}
	a.xattrs, err = keptXattrs(names, func(name string) ([]byte, error) {
		value, err := getXattr(int(f.Fd()), name)
		if err != nil {
			err = fmt.Errorf("reading the extended attribute %s of %s: %w", name, f.Name(), err)
		}
		return value, err
	})
	return a, err
}

// keptXattrs reads those attributes that a new file gets. Where they are more than the
// bounds allow, it gets none of its owner's (user.*): a refusal would let him close
// the way back.
func keptXattrs(names []string, get func(name string) ([]byte, error)) ([]xattr, error) {
	names = slices.DeleteFunc(names, func(name string) bool { return name == capabilities })
	// Those that say who may read the file come first, and fit in any case.
	slices.SortStableFunc(names, func(a, b string) int { return xattrOrder(a) - xattrOrder(b) })
	var kept []xattr
	others, size := 0, 0
	for _, name := range names {
		value, err := get(name)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		size += len(name) + len(value)
		if len(kept) == maxXattrs || size > maxXattrBytes {
			return kept[:others], nil
		}
		kept = append(kept, xattr{name, value})
		if !strings.HasPrefix(name, ownersXattrs) {
			others++
		}
	}
	return kept, nil
}

func xattrOrder(name string) int {
	switch {
	case name == accessACL:
		return 0
	case !strings.HasPrefix(name, ownersXattrs):
		return 1
	}
	return 2
}

// apply gives f the attributes.
func (a Attributes) apply(f *os.File) error {
	if err := f.Chown(a.UID, a.GID); err != nil {
		return err
	}
	hasACL := false
	for _, x := range a.xattrs {
		hasACL = hasACL || x.name == accessACL
		err := unix.Fsetxattr(int(f.Fd()), x.name, x.value, 0)
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(x.name, "security.") {
			// A label that no module of this kernel looks after, as that of a SELinux which is switched off: only
			// CAP_SYS_ADMIN may write it, and the daemon has no such thing. Who switches it on labels all files.
			continue
		}
		if err != nil {
			return fmt.Errorf("keeping the extended attribute %s of %s: %w", x.name, f.Name(), err)
		}
	}
	if a.like && !hasACL {
		// The folder may have given it one.
		_ = unix.Fremovexattr(int(f.Fd()), accessACL)
	}
	// After the ACL: where there is one, the group bits are its mask.
	return f.Chmod(a.Mode.Perm())
}

// listXattrs names the attributes of a file. Where the kernel refuses to, as there are
// too many, it names those that must not be lost.
func listXattrs(fd int) ([]string, error) {
	buf := make([]byte, maxXattrValue)
	size, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE) {
		return []string{accessACL, "security.selinux", "security.SMACK64"}, nil
	}
	return attributeNames(buf[:max(size, 0)]), err
}

// attributeNames splits what listxattr gave. It may have given nothing where it
// announced something: an overlay counts its own attributes and does not show
// them.
func attributeNames(list []byte) []string {
	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 })
}

func getXattr(fd int, name string) ([]byte, error) {
	buf := make([]byte, maxXattrValue)
	size, err := unix.Fgetxattr(fd, name, buf)
	return slices.Clone(buf[:max(size, 0)]), err
}
