// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// journal is what a commit writes before it touches anything and what recovery
// goes by. Renamed, it is the undo record.
type journal struct {
	Version int           `json:"version"`
	ID      string        `json:"id"`
	Purpose string        `json:"purpose"`
	Files   []journalFile `json:"files"`
	// MakeDirs are made before staging, RemoveDirs removed if they are empty
	// after it; both real paths below the root, outermost first.
	MakeDirs   []string `json:"make_dirs,omitempty"`
	RemoveDirs []string `json:"remove_dirs,omitempty"`
	Record     *Record  `json:"record,omitempty"`
}

// journalFile names the files of one change, below the root.
type journalFile struct {
	Target string `json:"target"`
	Temp   string `json:"temp,omitempty"`
	Backup string `json:"backup,omitempty"`
	// Sums are SHA-256; "" means no file.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Modes are the permission bits before and after.
	BeforeMode fs.FileMode `json:"before_mode,omitempty"`
	AfterMode  fs.FileMode `json:"after_mode,omitempty"`
}

// standing is where a file is in a commit.
type standing int

const (
	isOld     standing = iota
	isNew              // replaced
	isForeign          // written by somebody else
)

func (f journalFile) standing(now File) standing {
	got := fileSum(now)
	switch {
	case f.Before == f.After && got == f.After:
		// Only its mode changes.
		if now.Mode == f.AfterMode {
			return isNew
		}
		return isOld
	case got == f.After:
		return isNew
	case got == f.Before:
		return isOld
	}
	return isForeign
}

// newJournal plans names and sums.
func (s *Store) newJournal(purpose string, changes []Change, record *Record, removeDirs []string) (*journal, error) {
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	j := &journal{Version: recordVersion, ID: hex.EncodeToString(id[:]), Purpose: purpose, Record: record}
	seen := map[string]bool{}
	for _, c := range changes {
		real, err := s.resolve(c.Before.Path)
		if err != nil {
			return nil, err
		}
		if seen[real] {
			return nil, fmt.Errorf("%s is changed twice: two names lead to it", s.inside(real))
		}
		seen[real] = true
		f := journalFile{Target: s.inside(real), BeforeMode: c.Before.Mode, AfterMode: c.Mode}
		if c.Before.Exists() {
			f.Before = sum(c.Before.Bytes)
			f.Backup = besideName(f.Target, j.ID, backupSuffix)
			if f.AfterMode == 0 {
				f.AfterMode = c.Before.Mode
			}
		}
		if !c.Remove {
			f.After = sum(c.After)
			f.Temp = besideName(f.Target, j.ID, tempSuffix)
		}
		j.Files = append(j.Files, f)
		for _, d := range s.missingDirs(filepath.Dir(real)) {
			if !slices.Contains(j.MakeDirs, d) {
				j.MakeDirs = append(j.MakeDirs, d)
			}
		}
	}
	if record != nil {
		record.Version = recordVersion
		for _, d := range j.MakeDirs {
			if !slices.Contains(record.Dirs, d) {
				record.Dirs = append(record.Dirs, d)
			}
		}
	}
	for _, d := range removeDirs {
		real, err := s.resolve(d)
		if err != nil {
			return nil, err
		}
		j.RemoveDirs = append(j.RemoveDirs, s.inside(real))
	}
	return j, nil
}
