// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// TestXattrsWithoutAdmin: a daemon without CAP_SYS_ADMIN, which its unit takes away, can write a file with the label of a
// security module that this kernel does not run, as of a SELinux that is switched off, and keeps its other attributes.
func TestXattrsWithoutAdmin(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can write such a label at all")
	}
	dir := t.TempDir()
	real := filepath.Join(dir, "labelled")
	must.OK(t, os.WriteFile(real, nil, 0o600))
	for name, value := range map[string]string{"security.elsewhere": "a label", "user.mine": "kept"} {
		if err := unix.Setxattr(real, name, []byte(value), 0); err != nil {
			t.Skipf("no %s can be written here: %v", name, err)
		}
	}
	f, err := os.Create(filepath.Join(dir, "new"))
	must.OK(t, err)
	defer func() { _ = f.Close() }()
	labelled, err := os.Open(real)
	must.OK(t, err)
	defer func() { _ = labelled.Close() }()
	info, err := statFD(int(labelled.Fd()), real)
	must.OK(t, err)
	a, err := AttributesOf(labelled, info)
	must.OK(t, err)
	type outcome struct{ label, copied error }
	ch := make(chan outcome, 1)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine.
		runtime.LockOSThread()
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&head, &caps[0]); err != nil {
			ch <- outcome{err, err}
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err := unix.Capset(&head, &caps[0]); err != nil {
			ch <- outcome{err, err}
			return
		}
		ch <- outcome{unix.Setxattr(real, "security.elsewhere", []byte("x"), 0), a.apply(f)}
	}()
	o := <-ch
	if !errors.Is(o.label, unix.EPERM) {
		t.Skipf("this kernel looks after the label itself: %v", o.label)
	}
	must.OK(t, o.copied)
	if value, err := getXattr(int(f.Fd()), "user.mine"); err != nil || string(value) != "kept" {
		t.Errorf("the other attribute is %q, %v", value, err)
	}
}

// The owner of a file makes any number of attributes. None of them costs more memory than the bounds say, none keeps the file
// from being replaced, and those that say who may read it are kept.
func TestXattrBounds(t *testing.T) {
	given := map[string]int{} // sizes of values
	reads := 0
	get := func(name string) ([]byte, error) {
		reads++
		if given[name] < 0 {
			return nil, unix.ENODATA
		}
		return make([]byte, given[name]), nil
	}
	kept := func() []string {
		t.Helper()
		reads = 0
		list, err := keptXattrs(slices.Sorted(maps.Keys(given)), get)
		must.OK(t, err)
		var names []string
		for _, x := range list {
			names = append(names, x.name)
		}
		return names
	}
	given = map[string]int{"user.b": 10, "user.a": maxXattrValue, accessACL: 44, capabilities: 20, "security.selinux": 30, "user.gone": -1}
	must.NoDiff(t, "kept", kept(), []string{accessACL, "security.selinux", "user.a", "user.b"})
	for i := range 1000 {
		given[fmt.Sprintf("user.%d", i)] = 1
	}
	if got, want := kept(), []string{accessACL, "security.selinux"}; !slices.Equal(got, want) || reads > maxXattrs+1 {
		t.Errorf("many: %d are kept after %d reads, want %q", len(got), reads, want)
	}
	given = map[string]int{accessACL: maxXattrValue, "security.selinux": 30}
	for i := range maxXattrs / 2 {
		given[fmt.Sprintf("user.%d", i)] = maxXattrValue
	}
	if got, want := kept(), []string{accessACL, "security.selinux"}; !slices.Equal(got, want) || reads > 6 {
		t.Errorf("large: %d are kept after %d reads, want %q", len(got), reads, want)
	}
}

// A file with so many attributes that the kernel does not list them can be replaced.
func TestXattrsUnlisted(t *testing.T) {
	// Most disks have room for some kilobytes alone; a tmpfs has it since Linux 6.6.
	dir, err := os.MkdirTemp("/dev/shm", "xattrs") //nolint:usetesting // in memory, where there is room for them
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f, err := os.Create(filepath.Join(dir, "file"))
	must.OK(t, err)
	defer func() { _ = f.Close() }()
	for i := range maxXattrValue/200 + 1 {
		if err := unix.Fsetxattr(int(f.Fd()), fmt.Sprintf("user.%0200d", i), nil, 0); err != nil {
			t.Skipf("no attribute can be written here: %v", err)
		}
	}
	// An ACL: user 4711 may read the file, its group may not.
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x67\x12\x00\x00" +
		"\x04\x00\x00\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	hasACL := unix.Fsetxattr(int(f.Fd()), accessACL, acl, 0) == nil
	info, err := statFD(int(f.Fd()), f.Name())
	must.OK(t, err)
	a, err := AttributesOf(f, info)
	must.OK(t, err)
	if hasACL != (len(a.xattrs) == 1) {
		t.Errorf("kept: %v", a.xattrs)
	}
	second, err := os.Create(filepath.Join(dir, "new"))
	must.OK(t, err)
	defer func() { _ = second.Close() }()
	must.OK(t, a.apply(second))
	if got, err := getXattr(int(second.Fd()), accessACL); hasACL && !slices.Equal(got, acl) {
		t.Errorf("the new file has the ACL %x, %v", got, err)
	}
}

// On an overlay, as in a container, listxattr announces a list and then gives an
// empty one: that is no attribute, not one without a name.
func TestAttributeNames(t *testing.T) {
	for list, want := range map[string][]string{
		"":                     {},
		"user.a\x00":           {"user.a"},
		"user.a\x00user.b\x00": {"user.a", "user.b"},
	} {
		if got := attributeNames([]byte(list)); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", list, got, want)
		}
	}
}
