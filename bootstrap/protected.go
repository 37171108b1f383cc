// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"path"
	"slices"
	"syscall"

	"github.com/amsagent/amsagent/conf"
)

// protected lists what changing these files touches, and the folders around it, that somebody
// made immutable (chattr +i, +a): root itself is refused then, with an error that
// does not say why.
func protected(store *conf.Store, files []conf.PlannedFile) []string {
	paths := []string{StateDir}
	if names, err := store.List(StateDir); err == nil {
		for _, name := range names {
			paths = append(paths, path.Join(StateDir, name))
		}
	}
	for _, f := range files {
		paths = append(paths, f.Before.Target, path.Dir(f.Before.Target))
	}
	slices.Sort(paths)
	var found []string
	for _, name := range slices.Compact(paths) {
		p, err := store.Files().LocateName(name)
		if err != nil {
			continue
		}
		last := p.Name
		if last == "" {
			last = "."
		}
		if len(p.Missing) == 0 && p.Folder.Protected(last) {
			found = append(found, path.Join("/", store.Root, name))
		}
		p.Close()
	}
	return found
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
