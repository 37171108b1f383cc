// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
)

// The agent's own files, and its line in /etc/hosts, are no part of conf's transaction: no server writes them. A join writes
// them first, and a leave restores them last. [State.Own] has their undo records, and is saved before each write.
func agentsOwn(path string) bool {
	return slices.ContainsFunc([]string{ams.DropInPath, MongoPath, hostsPath}, func(own string) bool {
		return path == own || strings.HasPrefix(path, conf.SavedName(own)) // a copy of an edited one
	})
}

// isSecret also accepts a copy.
func isSecret(path string) bool { return strings.HasPrefix(path, MongoPath) }

func isServers(path string) bool { return !agentsOwn(path) }

// loadOwn returns the undo records of the agent's own files. If the state file is damaged or missing, the files are known by
// name.
func loadOwn(store *conf.Store, record *conf.Record) ([]*conf.FileRecord, error) {
	s, err := readState(store)
	_, damaged := errors.AsType[*conf.DamagedError](err)
	switch {
	case damaged, err == nil && s == nil && record != nil:
		return ownByName(store)
	case s == nil:
		return nil, err
	}
	return s.Own, nil
}

// ownByName returns records that remove the files, and the line.
func ownByName(store *conf.Store) (own []*conf.FileRecord, _ error) {
	for _, path := range []string{MongoPath, ams.DropInPath, hostsPath} {
		f, err := store.Read(path)
		if err != nil {
			return nil, err
		}
		switch {
		case !f.Exists(), path == hostsPath && !conf.HasMarkedHost(f.Bytes):
		case path == hostsPath:
			own = append(own, f.Made(conf.KindHosts))
		default:
			own = append(own, f.Made(conf.KindWhole))
		}
	}
	return own, nil
}

// removeTemps removes what a process that was killed left beside the agent's own files.
func removeTemps(store *conf.Store) error {
	dirs := []string{path.Dir(lockPath), path.Dir(MongoPath), path.Dir(ams.DropInPath), path.Dir(hostsPath)}
	var errs []error
	for _, dir := range dirs {
		if err := store.RemoveTemps(dir); !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
