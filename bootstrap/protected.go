// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"os"
	"path"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/conf"
)

// protected lists what changing these files touches, and the folders around it, that somebody
// made immutable (chattr +i, +a): root itself is refused then, with an error that
// does not say why.
func protected(store *conf.Store, files []conf.PlannedFile) []string {
	root := store.Root
	if root == "" {
		root = "/"
	}
	own := path.Join(root, StateDir)
	paths := []string{own}
	if entries, err := os.ReadDir(own); err == nil {
		for _, e := range entries {
			paths = append(paths, path.Join(own, e.Name()))
		}
	}
	for _, f := range files {
		target := path.Join(root, f.Before.Target)
		paths = append(paths, target, path.Dir(target))
	}
	slices.Sort(paths)
	return slices.DeleteFunc(slices.Compact(paths), func(p string) bool {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
		return err != nil || st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) == 0
	})
}

func chattr(p string) string {
	return "somebody set that on purpose; 'chattr -i -a " + p + "' takes it away"
}

// protectedHint says what to do where a commit was refused for that reason.
func protectedHint(store *conf.Store, plan *conf.Plan, err error) string {
	if !errors.Is(err, syscall.EPERM) {
		return ""
	}
	if paths := protected(store, plan.Changed()); len(paths) > 0 {
		return chattr(paths[0])
	}
	return ""
}
