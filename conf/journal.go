// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/amsagent/amsagent/files"
)

// journal is written before a commit's first change, for recovery. Renamed, it is the undo record.
type journal struct {
	ID      string        `json:"id"`
	Purpose string        `json:"purpose"`
	Files   []journalFile `json:"files"`
	// MakeDirs are made before staging. RemoveDirs are removed last if empty. Both are paths without links,
	// outermost first.
	MakeDirs   []string `json:"make_dirs,omitempty"`
	RemoveDirs []string `json:"remove_dirs,omitempty"`
	Record     *Record  `json:"record,omitempty"`
}

// journalVersion is of the journal and the undo record.
const journalVersion = 1

// maxRecordSize bounds reads and writes, so that each record can be read again.
const maxRecordSize = 16 << 20

// ErrRecordTooLarge reports that the undo record would be too large. Nothing was changed.
var ErrRecordTooLarge = errors.New("the undo record would be too large")

// envelope is the format on disk. SHA256 is the checksum of Journal's bytes.
type envelope struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Journal json.RawMessage `json:"journal"`
}

// encode returns an error if [decodeJournal] would refuse the result.
func (j *journal) encode() ([]byte, error) {
	if err := j.check(); err != nil {
		return nil, fmt.Errorf("the change cannot be recorded: %w", err)
	}
	body, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(envelope{Version: journalVersion, SHA256: sum(body), Journal: body})
	if err != nil {
		return nil, err
	}
	if len(data) > maxRecordSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrRecordTooLarge, len(data), maxRecordSize)
	}
	return data, nil
}

// decodeJournal returns a [DamagedError] or a [VersionError].
func decodeJournal(path string, data []byte) (*journal, error) {
	damaged := func(err error) error { return &DamagedError{Path: path, Err: err} }
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, damaged(err)
	}
	switch {
	case e.Version == 0:
		return nil, damaged(errors.New("it does not say its format"))
	case e.Version != journalVersion:
		return nil, &VersionError{Path: path, Version: e.Version}
	case sum(e.Journal) != e.SHA256:
		return nil, damaged(errors.New("its checksum is wrong"))
	}
	j := &journal{}
	if err := json.Unmarshal(e.Journal, j); err != nil {
		return nil, damaged(err)
	}
	if err := j.check(); err != nil {
		return nil, damaged(err)
	}
	return j, nil
}

func (j *journal) check() error {
	for _, f := range j.Files {
		if err := f.check(); err != nil {
			return err
		}
	}
	for _, d := range slices.Concat(j.MakeDirs, j.RemoveDirs) {
		if !isClean(d) {
			return fmt.Errorf("%q is no path of a folder", d)
		}
	}
	if j.Record == nil {
		return nil
	}
	return j.Record.check()
}

// check ensures that only the target and the names beside it are used, whatever the journal contains.
func (f journalFile) check() error {
	if !isClean(f.Target) {
		return fmt.Errorf("%q is no path of a file", f.Target)
	}
	for _, beside := range []struct{ path, suffix string }{{f.Temp, tempSuffix}, {f.Backup, backupSuffix}} {
		if beside.path == "" {
			continue
		}
		dir, base := filepath.Split(f.Target)
		name, ok := strings.CutPrefix(beside.path, dir)
		if !ok || !isBeside(name, base, beside.suffix) {
			return fmt.Errorf("%q is not beside %q", beside.path, f.Target)
		}
	}
	return nil
}

// isClean accepts an absolute, clean path. JSON would replace invalid UTF-8.
func isClean(path string) bool {
	return len(path) > 1 && filepath.IsAbs(path) && filepath.Clean(path) == path && !strings.ContainsRune(path, 0) && utf8.ValidString(path)
}

// journalFile has paths below the root.
type journalFile struct {
	Target string `json:"target"`
	Temp   string `json:"temp,omitempty"`
	Backup string `json:"backup,omitempty"`
	// Before and After are SHA-256; "" means no file.
	Before     string      `json:"before,omitempty"`
	After      string      `json:"after,omitempty"`
	BeforeMode fs.FileMode `json:"before_mode,omitempty"`
	AfterMode  fs.FileMode `json:"after_mode,omitempty"`
}

// standing is a file's progress in a commit.
type standing int

const (
	isOld standing = iota
	isNew
	isForeign // written by another program
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

// idSize is the number of random bytes in a commit's id.
const idSize = 6

// newJournal also opens the folders of all files.
func (t *transaction) newJournal(purpose string, changes []Change, record *Record, removeDirs []string) (*journal, error) {
	var id [idSize]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	j := &journal{ID: hex.EncodeToString(id[:]), Purpose: purpose, Record: record}
	seen := map[string]bool{}
	for _, c := range changes {
		p, err := t.Files().Locate(c.Before.Path)
		if err != nil {
			return nil, err
		}
		t.adopt(p.Folder)
		target := p.Path()
		if seen[target] {
			return nil, fmt.Errorf("%s is changed twice: two names lead to it", target)
		}
		seen[target] = true
		if target != c.Before.Target || c.Before.Exists() && p.Folder.Info().ID != c.Before.folder {
			return nil, fmt.Errorf("%s: %w", c.Before.Path, ErrChanged)
		}
		f := journalFile{Target: target, BeforeMode: c.Before.Mode, AfterMode: files.Plain(c.Mode)}
		if c.Before.Exists() {
			f.Before = sum(c.Before.Bytes)
			f.Backup = besideName(f.Target, j.ID, backupSuffix)
			if f.AfterMode == 0 {
				f.AfterMode = files.Plain(c.Before.Mode)
			}
		}
		if !c.Remove {
			f.After = sum(c.After)
			f.Temp = besideName(f.Target, j.ID, tempSuffix)
		}
		j.Files = append(j.Files, f)
		dir := p.Folder.Path()
		for _, name := range p.Missing {
			dir = filepath.Join(dir, name)
			if !slices.Contains(j.MakeDirs, dir) {
				j.MakeDirs = append(j.MakeDirs, dir)
			}
		}
	}
	if record != nil {
		for _, d := range j.MakeDirs {
			if !slices.Contains(record.Dirs, d) {
				record.Dirs = append(record.Dirs, d)
			}
		}
	}
	for _, d := range removeDirs {
		real, err := t.Follow(d)
		switch {
		case files.Refused(err):
		case err != nil:
			return nil, err
		case real != "/":
			j.RemoveDirs = append(j.RemoveDirs, real)
		}
	}
	return j, nil
}
