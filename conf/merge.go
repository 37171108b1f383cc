// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import "bytes"

// maxMergeCells bounds the table of the line comparison, of four bytes a cell:
// 1000 changed lines against 1000, 4 MB. The files meant here have two hundred
// lines, and whoever may write one must not decide how much memory this takes.
const maxMergeCells = 1_000_000

// merge3 is a three-way merge by lines: it applies to current what turns base
// into want. Clean is false where both changed the same lines, or where the
// files are too large to compare; nothing is returned then.
func merge3(base, want, current []byte) (merged []byte, clean bool) {
	b, w, c := bytes.SplitAfter(base, []byte{'\n'}), bytes.SplitAfter(want, []byte{'\n'}), bytes.SplitAfter(current, []byte{'\n'})
	bw, ok1 := matchLines(b, w)
	bc, ok2 := matchLines(b, c)
	if !ok1 || !ok2 {
		return nil, false
	}
	i, j, k := 0, 0, 0
	for {
		// Up to the next line of base that all three have, whoever changed
		// the piece alone has his way.
		n := i
		for n < len(b) && (bw[n] < 0 || bc[n] < 0) {
			n++
		}
		jEnd, kEnd := len(w), len(c)
		if n < len(b) {
			jEnd, kEnd = bw[n], bc[n]
		}
		base, want, current := bytes.Join(b[i:n], nil), bytes.Join(w[j:jEnd], nil), bytes.Join(c[k:kEnd], nil)
		switch {
		case bytes.Equal(base, current), bytes.Equal(want, current):
			merged = append(merged, want...)
		case bytes.Equal(base, want):
			merged = append(merged, current...)
		default:
			return nil, false
		}
		if n == len(b) {
			return merged, true
		}
		merged = append(merged, b[n]...)
		i, j, k = n+1, jEnd+1, kEnd+1
	}
}

// matchLines gives for every line of a the index of its partner in b in a
// longest common subsequence, or -1.
func matchLines(a, b [][]byte) ([]int, bool) {
	match := make([]int, len(a))
	for i := range match {
		match[i] = -1
	}
	lo := 0
	for lo < len(a) && lo < len(b) && bytes.Equal(a[lo], b[lo]) {
		match[lo] = lo
		lo++
	}
	ha, hb := len(a), len(b)
	for ha > lo && hb > lo && bytes.Equal(a[ha-1], b[hb-1]) {
		ha--
		hb--
		match[ha] = hb
	}
	rows, cols := ha-lo, hb-lo
	if rows == 0 || cols == 0 {
		return match, true
	}
	if (rows+1)*(cols+1) > maxMergeCells {
		return nil, false
	}
	table := make([]int32, (rows+1)*(cols+1)) // length of the LCS of the rests
	at := func(i, j int) *int32 { return &table[i*(cols+1)+j] }
	for i := rows - 1; i >= 0; i-- {
		for j := cols - 1; j >= 0; j-- {
			if bytes.Equal(a[lo+i], b[lo+j]) {
				*at(i, j) = *at(i+1, j+1) + 1
			} else {
				*at(i, j) = max(*at(i+1, j), *at(i, j+1))
			}
		}
	}
	for i, j := 0, 0; i < rows && j < cols; {
		switch {
		case bytes.Equal(a[lo+i], b[lo+j]):
			match[lo+i] = lo + j
			i++
			j++
		case *at(i+1, j) >= *at(i, j+1):
			i++
		default:
			j++
		}
	}
	return match, true
}
