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

// journal is what a commit writes before it touches anything and what recovery
// goes by. Renamed, it is the undo record.
type journal struct {
	Version int           `json:"version"` // journalVersion, or 1
	ID      string        `json:"id"`
	Purpose string        `json:"purpose"`
	Files   []journalFile `json:"files"`
	// MakeDirs are made before staging, RemoveDirs removed if they are empty
	// after it; both real paths below the root, outermost first.
	MakeDirs   []string `json:"make_dirs,omitempty"`
	RemoveDirs []string `json:"remove_dirs,omitempty"`
	Record     *Record  `json:"record,omitempty"`
}

// journalVersion is the version of the format of the journal and the undo record.
// Version 1 was the bare journal, without a checksum.
const journalVersion = 2

// maxRecordSize bounds the journal and the undo record, for writing as for
// reading: what was written can always be read again.
const maxRecordSize = 16 << 20

// ErrRecordTooLarge says that a change cannot be made because its undo record
// would be larger than what is read again. Nothing was changed.
var ErrRecordTooLarge = errors.New("the undo record would be too large")

// envelope is how a journal is on the disk. SHA256 is the checksum of the bytes
// of Journal, so that no letter of it can change unnoticed, paths included.
type envelope struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Journal json.RawMessage `json:"journal"`
}

// encode gives the bytes of the journal for the disk. A journal that [decodeJournal]
// would refuse is an error.
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

// decodeJournal reads what [journal.encode] gave, or what a release with format
// 1 wrote. What cannot be used is a [DamagedError] or a [VersionError].
func decodeJournal(path string, data []byte) (*journal, error) {
	damaged := func(err error) error { return &DamagedError{Path: path, Err: err} }
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, damaged(err)
	}
	body := data
	switch e.Version {
	case 1:
	case journalVersion:
		if body = e.Journal; sum(body) != e.SHA256 {
			return nil, damaged(errors.New("its checksum is wrong"))
		}
	case 0:
		return nil, damaged(errors.New("it does not say its format"))
	default:
		return nil, &VersionError{Path: path, Version: e.Version}
	}
	j := &journal{}
	if err := json.Unmarshal(body, j); err != nil {
		return nil, damaged(err)
	}
	if err := j.check(); err != nil {
		return nil, damaged(err)
	}
	return j, nil
}

// check proves that a journal can be gone by.
func (j *journal) check() error {
	if j.ID == "" {
		// Every commit has one: this is an [envelope], whose version was changed.
		return errors.New("it has no id")
	}
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

// check proves that the names belong together: whatever else the journal says,
// only a target and the names of a commit beside it are touched.
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

// isClean reports whether path is absolute and has no dots and no empty parts. JSON replaces what is not UTF-8.
func isClean(path string) bool {
	return len(path) > 1 && filepath.IsAbs(path) && filepath.Clean(path) == path && !strings.ContainsRune(path, 0) && utf8.ValidString(path)
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

// idSize is how many random bytes tell one commit from all others.
const idSize = 6

// newJournal plans names and sums, and opens the folders of all files.
func (t *transaction) newJournal(purpose string, changes []Change, record *Record, removeDirs []string) (*journal, error) {
	var id [idSize]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	j := &journal{Version: journalVersion, ID: hex.EncodeToString(id[:]), Purpose: purpose, Record: record}
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
		record.Version = recordVersion
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
