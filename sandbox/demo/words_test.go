// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

// TestWords: every cloud that can be pretended has its words, and none of them is
// wider than a screen.
func TestWords(t *testing.T) {
	const margin, wide = len("   "), screenWidth + 5
	for _, name := range fakecloud.Names() {
		w, err := wordsOf(name)
		if err != nil || w.cloud != name {
			t.Fatalf("%s: %v: %+v", name, err, w)
		}
		if w.short == "" || w.reason == "" || w.lead <= 0 || w.told == "" {
			t.Errorf("%s: words are missing: %+v", name, w)
		}
		for _, l := range append([]string{w.title + ".", w.books}, w.shrink...) {
			if n := margin + utf8.RuneCountInString(l); n > wide {
				t.Errorf("%s: %d columns: %s", name, n, l)
			}
		}
	}
}

func TestFold(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"":            {""},
		"one":         {"one"},
		"one two":     {"one two"},
		"one two bed": {"one two", "bed"},
		"é é é é é":   {"é é é é", "é"},
		"unbreakable": {"unbreakable"},
		"a unbreakable b": {
			"a", "unbreakable", "b",
		},
	} {
		if diff := cmp.Diff(want, fold(text, 7)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestUnknownCloud(t *testing.T) {
	if _, err := wordsOf("nowhere"); err == nil {
		t.Error("a cloud that nobody can pretend has words")
	}
}
