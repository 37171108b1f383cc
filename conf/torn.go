// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"strings"
	"time"
)

// ErrTorn says that a settings file is half written, and that nothing is known
// of it to make it whole.
var ErrTorn = errors.New("the file is half written")

// torn reports whether a settings file is the beginning of one only. AMS writes
// in place, so that a crash or a full disk leaves a part, or nothing, or zeros. rec is what
// is known of the file; nil where nothing is.
//
// A file that the server stored ends in a newline and keeps every key: one that
// does not was cut short. A file that a person, or an installer, wrote may lack
// some.
func torn(rec *FileRecord, now []byte) bool {
	if rec != nil && bytes.IndexByte(now, 0) >= 0 {
		return true // a power cut leaves zeros; the server writes NUL as an escape
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
	written, err := applySpans(rec.Original, rec.Spans)
	if err != nil {
		return false
	}
	w, err := ParseProperties(written)
	if err != nil {
		return false
	}
	if len(p.last) == 0 {
		return len(w.last) > 0
	}
	for _, s := range rec.Spans {
		if _, ok := p.last[strings.TrimPrefix(s.Anchor, "key:")]; stored && !ok {
			return true
		}
	}
	return false
}

// storedByJava reports whether the first line is the date that
// java.util.Properties.store begins with: "#Sat Nov 21 00:34:56 UTC 2026".
func storedByJava(src []byte) bool {
	line, _, _ := bytes.Cut(src, []byte("\n"))
	words := strings.Fields(strings.TrimPrefix(string(line), "#"))
	if len(words) != 6 || !bytes.HasPrefix(line, []byte("#")) {
		return false
	}
	_, err := time.Parse("Mon Jan _2 15:04:05 2006", strings.Join(append(words[:4:4], words[5]), " "))
	return err == nil
}
