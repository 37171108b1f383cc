// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import "strings"

// suggest finds the candidate that was probably meant, "" where none is near. Case, and dash or underscore, do not count as
// difference.
func suggest(word string, candidates []string) string {
	norm := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	w := norm(word)
	// One slip in a short word, two in a middling one, three in a long one; more is another word.
	best, bestDist := "", 2+min(2, max(0, len(w)-1)/4)
	for _, c := range candidates {
		n := norm(c)
		d := distance(w, n)
		// A beginning counts as near however much is missing: `comp` means completion.
		if len(w) >= 3 && strings.HasPrefix(n, w) && d > 1 {
			d = 1
		}
		if d < bestDist && d < len(n) {
			best, bestDist = c, d
		}
	}
	return best
}

// distance is Damerau-Levenshtein in its optimal string alignment form: swapped neighbours, the commonest slip of a
// hand, cost one.
func distance(a, b string) int {
	ra, rb := []rune(a), []rune(b)
	var prev2 []int
	prev := make([]int, len(rb)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(ra); i++ {
		cur := make([]int, len(rb)+1)
		cur[0] = i
		for j := 1; j <= len(rb); j++ {
			cost := 1
			if ra[i-1] == rb[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && ra[i-1] == rb[j-2] && ra[i-2] == rb[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, cur
	}
	return prev[len(rb)]
}
