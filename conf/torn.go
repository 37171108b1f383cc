// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"time"
)

// ErrTorn reports a half-written settings file without a record to restore it.
var ErrTorn = errors.New("the file is half written")

// torn reports whether a settings file is incomplete. The server writes in place, so that a crash or a full disk
// leaves a part, nothing or zeros. rec may be nil. A file that the server stored ends in a newline and has every
// key. Files of an operator or an installer may lack keys.
func torn(rec *FileRecord, now []byte) bool {
	if rec != nil && bytes.IndexByte(now, 0) >= 0 {
		return true // after a power cut; the server escapes NUL
	}
	stored := storedByJava(now)
	cut := stored && !bytes.HasSuffix(now, []byte("\n"))
	p, err := ParseProperties(now)
	if err != nil || cut {
		return cut
	}
	if rec == nil || !rec.Existed {
		return len(p.last) == 0 && bytes.HasPrefix(now, []byte("#")) && !bytes.HasSuffix(now, []byte("\n")) // cut in the date
	}
	if len(p.last) == 0 {
		was, err := ParseProperties(rec.Original)
		return err == nil && len(was.last)+len(rec.Keys) > 0
	}
	return stored && slices.ContainsFunc(rec.Keys, func(k Key) bool { _, ok := p.last[k.Name]; return !ok })
}

// storedByJava reports whether the first line is the date of java.util.Properties.store:
// "#Sat Nov 21 00:34:56 UTC 2026".
func storedByJava(src []byte) bool {
	line, _, _ := bytes.Cut(src, []byte("\n"))
	words := strings.Fields(strings.TrimPrefix(string(line), "#"))
	if len(words) != 6 || !bytes.HasPrefix(line, []byte("#")) {
		return false
	}
	_, err := time.Parse("Mon Jan _2 15:04:05 2006", strings.Join(append(words[:4:4], words[5]), " "))
	return err == nil
}
