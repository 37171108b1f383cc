// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestXattrsWithoutAdmin: a daemon without CAP_SYS_ADMIN, which its unit takes away, can write a file with the label of a
// security module that this kernel does not run, as of a SELinux that is switched off, and keeps its other attributes.
func TestXattrsWithoutAdmin(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can write such a label at all")
	}
	dir := t.TempDir()
	real := filepath.Join(dir, "labelled")
	if err := os.WriteFile(real, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"security.elsewhere": "a label", "user.mine": "kept"} {
		if err := unix.Setxattr(real, name, []byte(value), 0); err != nil {
			t.Skipf("no %s can be written here: %v", name, err)
		}
	}
	f, err := os.Create(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	labelled, err := os.Open(real)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = labelled.Close() }()
	info, err := statFD(int(labelled.Fd()), real)
	if err != nil {
		t.Fatal(err)
	}
	a, err := AttributesOf(labelled, info)
	if err != nil {
		t.Fatal(err)
	}
	type outcome struct{ label, copied error }
	ch := make(chan outcome, 1)
	go func() {
		// The thread ends with this goroutine, because nobody unlocks it.
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
	if o.copied != nil {
		t.Errorf("copying: %v", o.copied)
	}
	if value, err := getXattr(int(f.Fd()), "user.mine"); err != nil || string(value) != "kept" {
		t.Errorf("the other attribute is %q, %v", value, err)
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
