// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package brief_test

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/brief"
)

func TestText(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"12345678", "12345678"},
		{"123456789", "12345…"},
		{"1234éé789", "1234…"},
		{strings.Repeat("\x80", 9), "…"},
	} {
		if got := brief.Text(tt.text, 8); got != tt.want {
			t.Errorf("%q becomes %q, want %q", tt.text, got, tt.want)
		}
	}
}
