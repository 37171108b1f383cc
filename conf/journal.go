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
	"strings"
	"unicode/utf8"

	"github.com/amsagent/amsagent/files"
)

// journal is a redo log: it has all that an interrupted commit still has to do. The undo record is the same document
// without files.
type journal struct {
	ID      string        `json:"id"`
	Purpose string        `json:"purpose"`
	Files   []journalFile `json:"files,omitempty"`
	Record  *Record       `json:"record,omitempty"`
}

// journalFile is the change of one file.
type journalFile struct {
	Target string `json:"target"` // below the root, without links
	// Before and After are SHA-256; "" means no file.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	Data   []byte `json:"data,omitempty"` // the content of After
	// AfterMode is the permissions of the new file.
	AfterMode fs.FileMode `json:"after_mode,omitempty"`
	// Was is the former file's owner, and Owner the new one's. A nil Owner keeps the owner, or takes the folder's.
	Was   *Owner `json:"was,omitempty"`
	Owner *Owner `json:"owner,omitempty"`
}

// journalVersion is of the journal and the undo record.
const journalVersion = 1

// These bound reads and writes, so that each file can be read again. The journal has the former files of a plan and the
// new ones, as base64, and names.
const (
	maxRecordSize = 16 << 20
	maxJournal    = 64 << 20
)

// idSize is the number of random bytes in a commit's id. A folder's owner cannot occupy the names beside its files.
const idSize = 6

// ErrRecordTooLarge reports that the journal or the undo record would be too large. Nothing was changed.
var ErrRecordTooLarge = errors.New("the record of the change would be too large")

// envelope is the format on disk. SHA256 is the checksum of Journal's bytes.
type envelope struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Journal json.RawMessage `json:"journal"`
}

// encode returns an error if [decodeJournal] would refuse the result.
func (j *journal) encode(limit int) ([]byte, error) {
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
	if len(data) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrRecordTooLarge, len(data), limit)
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

// undo is the document of the undo record.
func (j *journal) undo() *journal { return &journal{ID: j.ID, Purpose: j.Purpose, Record: j.Record} }

// check ensures that only targets and the names beside them are used, whatever the journal contains.
func (j *journal) check() error {
	if len(j.Files) > 0 && (j.ID == "" || strings.ContainsAny(j.ID, "./\x00")) {
		return fmt.Errorf("%q is no id", j.ID)
	}
	for _, f := range j.Files {
		if !isClean(f.Target) {
			return fmt.Errorf("%q is no path of a file", f.Target)
		}
		if f.After != "" && sum(f.Data) != f.After {
			return fmt.Errorf("the new content of %q has another checksum", f.Target)
		}
	}
	if j.Record == nil {
		return nil
	}
	return j.Record.check()
}

// isClean accepts an absolute, clean path. JSON would replace invalid UTF-8.
func isClean(path string) bool {
	return len(path) > 1 && filepath.IsAbs(path) && filepath.Clean(path) == path && !strings.ContainsRune(path, 0) && utf8.ValidString(path)
}

// newJournal also opens the folders of all files.
func (t *transaction) newJournal(purpose string, changes []Change, record *Record) (*journal, error) {
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
		j.Files = append(j.Files, newJournalFile(target, c))
	}
	return j, nil
}

func newJournalFile(target string, c Change) journalFile {
	f := journalFile{Target: target, Before: sumOf(c.Before.Bytes), AfterMode: files.Plain(c.Mode)}
	if c.Before.Exists() {
		f.Was = &Owner{c.Before.UID, c.Before.GID}
		if f.AfterMode == 0 {
			f.AfterMode = files.Plain(c.Before.Mode)
		}
	}
	if !c.Remove {
		f.After, f.Data = sum(c.After), c.After
	}
	if c.Like != nil {
		f.Owner = &Owner{c.Like.UID, c.Like.GID}
	}
	return f
}
