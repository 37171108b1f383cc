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

// Attributes are those of a new file.
type Attributes struct {
	// Mode is without setuid, setgid and sticky.
	Mode     fs.FileMode
	UID, GID int

	xattrs []xattr
	// like reports a replacement, which gets exactly the extended attributes of the old file.
	like bool
}

type xattr struct {
	name  string
	value []byte
}

const (
	accessACL    = "system.posix_acl_access"
	capabilities = "security.capability"
	// ownersXattrs begins names that the file's owner sets, perhaps without a limit.
	ownersXattrs = "user."

	// maxXattrs and maxXattrBytes bound a new file's, with names. maxXattrValue is the kernel's bound for a value,
	// and for all names.
	maxXattrs     = 64
	maxXattrBytes = 256 << 10
	maxXattrValue = 64 << 10
)

// processAttributes returns those of a file of this process's user.
func processAttributes(mode fs.FileMode) Attributes {
	return Attributes{Mode: mode, UID: os.Geteuid(), GID: os.Getegid()}
}

// In returns those of a new file with the folder's owner.
func (d *Folder) In(mode fs.FileMode) Attributes {
	if trusted(d.info.UID) {
		return processAttributes(mode)
	}
	return Attributes{Mode: mode, UID: d.info.UID, GID: d.info.GID}
}

// AttributesOf returns those of an open file, for its replacement.
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

// keptXattrs drops all of the owner's attributes (user.*) if they exceed the bounds: an error would let the owner block a
// restore.
func keptXattrs(names []string, get func(name string) ([]byte, error)) ([]xattr, error) {
	names = slices.DeleteFunc(names, func(name string) bool { return name == capabilities })
	// Access rights first: they always fit.
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

func (a Attributes) apply(f *os.File) error {
	if err := f.Chown(a.UID, a.GID); err != nil {
		return err
	}
	hasACL := false
	for _, x := range a.xattrs {
		hasACL = hasACL || x.name == accessACL
		err := unix.Fsetxattr(int(f.Fd()), x.name, x.value, 0)
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(x.name, "security.") {
			// The kernel lacks this label's module, such as a disabled SELinux. Writing the label needs
			// CAP_SYS_ADMIN, which the daemon lacks. Enabling the module relabels all files.
			continue
		}
		if err != nil {
			return fmt.Errorf("keeping the extended attribute %s of %s: %w", x.name, f.Name(), err)
		}
	}
	if a.like && !hasACL {
		// The folder may have a default ACL.
		_ = unix.Fremovexattr(int(f.Fd()), accessACL)
	}
	// After the ACL, whose mask is the group bits.
	return f.Chmod(a.Mode.Perm())
}

// listXattrs returns the essential names if there are too many for the kernel.
func listXattrs(fd int) ([]string, error) {
	buf := make([]byte, maxXattrValue)
	size, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE) {
		return []string{accessACL, "security.selinux", "security.SMACK64"}, nil
	}
	return attributeNames(buf[:max(size, 0)]), err
}

// attributeNames may get none: an overlay counts attributes that it hides.
func attributeNames(list []byte) []string {
	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 })
}

func getXattr(fd int, name string) ([]byte, error) {
	buf := make([]byte, maxXattrValue)
	size, err := unix.Fgetxattr(fd, name, buf)
	return slices.Clone(buf[:max(size, 0)]), err
}
