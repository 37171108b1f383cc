// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Recovery says what [Store.Recover] found of an interrupted commit.
type Recovery struct {
	// Purpose is that of the interrupted commit; "" when there was none.
	Purpose string `json:"purpose"`
	// Finished tells that every file is now new, otherwise every file is old.
	Finished bool `json:"finished"`
	// Files that the recovery replaced.
	Files []string `json:"files"`
	// Conflicts are files that somebody else wrote after the interruption;
	// they are left as they are.
	Conflicts []Conflict `json:"conflicts"`
}

// Recover finishes or undoes a commit that a crash interrupted. It finishes
// wherever all that is still to be renamed is there, and undoes otherwise. With
// nothing to recover it only looks, and returns nil.
func (s *Store) Recover() (*Recovery, error) {
	stateDir, err := s.resolve(s.Dir)
	if err != nil {
		return nil, err
	}
	if err := s.dropStaging(stateDir); err != nil {
		return nil, err
	}
	j, err := s.loadJournal(journalName)
	if err != nil || j == nil {
		return nil, err
	}
	r := &Recovery{Purpose: j.Purpose, Finished: true}
	var todo []journalFile
	for _, f := range j.Files {
		now, err := readFile(s.real(f.Target))
		if err != nil {
			return nil, err
		}
		switch got := fileSum(now); {
		case got == f.After:
		case got == f.Before:
			todo = append(todo, f)
		default:
			r.Conflicts = append(r.Conflicts, Conflict{Path: f.Target, Msg: "was written by somebody else after the interruption; it is left as it is"})
		}
	}
	for _, f := range todo {
		if f.Temp == "" {
			continue
		}
		staged, err := readFile(s.real(f.Temp))
		if err != nil {
			return nil, err
		}
		if fileSum(staged) != f.After {
			r.Finished = false
		}
	}
	if !r.Finished {
		if err := s.rollBack(j, stateDir); err != nil {
			return nil, fmt.Errorf("undoing the interrupted %s: %w", j.Purpose, err)
		}
		for _, f := range j.Files {
			r.Files = append(r.Files, f.Target)
		}
		return r, nil
	}
	for _, f := range todo {
		if err := s.installFile(f); err != nil {
			return nil, fmt.Errorf("finishing the interrupted %s: %w", j.Purpose, err)
		}
		r.Files = append(r.Files, f.Target)
	}
	if err := errors.Join(s.syncDirs(j), s.finish(j, stateDir)); err != nil {
		return nil, fmt.Errorf("finishing the interrupted %s: %w", j.Purpose, err)
	}
	return r, nil
}

// dropStaging removes what a commit staged that never got to replacing
// anything.
func (s *Store) dropStaging(stateDir string) error {
	staging := filepath.Join(stateDir, stagingName)
	j, err := s.loadJournal(stagingName)
	switch {
	case err != nil:
		// Torn: it was not on disk yet, so nothing was staged either.
		if _, rerr := readFile(staging); rerr != nil {
			return rerr
		}
	case j == nil:
		return nil
	default:
		if err := s.unstage(j); err != nil {
			return fmt.Errorf("removing what the interrupted %s had staged: %w", j.Purpose, err)
		}
	}
	return removeIfThere(staging)
}

// Interrupted reports whether a commit was cut short, without repairing it.
func (s *Store) Interrupted() bool {
	j, err := s.loadJournal(journalName)
	return err != nil || j != nil
}
