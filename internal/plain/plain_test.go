// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package plain_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/plain"
)

// hostile has a control character, a C1 control, every kind of bidirectional mark, and a byte that is no UTF-8.
const hostile = "a\x07\x7f\u0085\u009b31m\u061c\u200e\u200f\u202a\u202e\u2066\u2069\x9bz"

func dangerous(b []byte) bool {
	return !utf8.Valid(b) || bytes.ContainsFunc(b, func(r rune) bool {
		return r != '\n' && r != '\t' && (r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0x061c || r >= 0x200e && r <= 0x200f ||
			r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069)
	})
}

func TestTruncate(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"12345678", "12345678"},
		{"123456789", "12345…"},
		{"1234éé789", "1234…"},
		{strings.Repeat("\x80", 9), "…"},
	} {
		must.Equal(t, fmt.Sprintf("%q becomes", tt.text), plain.Truncate(tt.text, 8), tt.want)
	}
}

func TestText(t *testing.T) {
	got := plain.Text("\x1b[31m" + hostile + "\n\tä")
	if dangerous([]byte(got)) || !strings.HasPrefix(got, `\u001b[31ma\u0007\u007f\u0085\u009b31m`) || !strings.HasSuffix(got, "z\n\tä") {
		t.Errorf("%q", got)
	}
}

// A program that reads JSON gets back what was said, but for what is no character.
func TestWriter(t *testing.T) {
	var out bytes.Buffer
	must.OK(t, json.NewEncoder(plain.Writer{To: &out}).Encode("\x1b"+hostile))
	var back string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back != strings.ToValidUTF8("\x1b"+hostile, "\ufffd") {
		t.Errorf("%q, %v", back, err)
	}
	if dangerous(out.Bytes()) {
		t.Errorf("%q", out.String())
	}
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte(hostile))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out := plain.Output(b); dangerous(bytes.ReplaceAll(out, []byte("\x1b"), nil)) {
			t.Errorf("%q became %q", b, out)
		}
	})
}
