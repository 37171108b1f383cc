// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Release is a release of Ant Media Server, or the honest absence of one. The
// zero value is an unknown release. The manifest of its jar or a person says which it
// is, and nothing else: not the age of a file, not its layout, because upgrades carry
// old configuration into new servers.
type Release struct {
	Version string `json:"version,omitempty"` // as written, without a leading v; "" = unknown
	Build   string `json:"build,omitempty"`   // Build-Number of the manifest
	Note    string `json:"note,omitempty"`    // why it is not known
}

// ParseRelease reads a release as a person or a manifest writes it: 2.4.2.1,
// 3.0.3-SNAPSHOT, v2.13.2, ams-v2.8.0.
func ParseRelease(s string) (Release, error) {
	v := strings.TrimSpace(s)
	v = strings.TrimPrefix(v, "ams-")
	if len(v) > 1 && (v[0] == 'v' || v[0] == 'V') {
		v = v[1:]
	}
	if _, _, err := splitVersion(v); err != nil {
		return Release{}, fmt.Errorf("reading release %q: %w", s, err)
	}
	return Release{Version: v}, nil
}

// splitVersion takes a version apart: up to four numbers, and whether a suffix
// marks it as coming before the release of these numbers.
func splitVersion(v string) (numbers [4]int, before bool, err error) {
	digits, suffix := v, ""
	if i := strings.IndexFunc(v, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		digits, suffix = v[:i], v[i:]
	}
	parts := strings.Split(digits, ".")
	if len(parts) > len(numbers) {
		return numbers, false, fmt.Errorf("%q has more than %d numbers", digits, len(numbers))
	}
	for i, p := range parts {
		// Five digits are more than any release has; a date or a hash is none.
		if p == "" || len(p) > 5 {
			return numbers, false, fmt.Errorf("want numbers with dots, as in 2.4.2.1 or 3.0.3-SNAPSHOT")
		}
		numbers[i], _ = strconv.Atoi(p)
	}
	if suffix == "" {
		return numbers, false, nil
	}
	word := strings.ToLower(strings.TrimLeft(suffix, "-_"))
	if word == "" || len(word) == len(suffix) || strings.ContainsFunc(word, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	}) {
		return numbers, false, fmt.Errorf("%q after the numbers is no suffix such as -SNAPSHOT", suffix)
	}
	for _, pre := range []string{"snapshot", "alpha", "beta", "rc"} {
		if strings.HasPrefix(word, pre) {
			return numbers, true, nil
		}
	}
	// Any other word names a build of the release itself.
	return numbers, false, nil
}

// Known says whether the release is known at all.
func (r Release) Known() bool { return r.Version != "" }

// String is the version with its build, or "unknown".
func (r Release) String() string {
	switch {
	case !r.Known():
		return "unknown"
	case r.Build != "":
		return r.Version + " (build " + r.Build + ")"
	}
	return r.Version
}

// Compare orders releases. Missing numbers count as 0, a SNAPSHOT comes before
// its release, an unknown release before every known one.
func (r Release) Compare(other Release) int {
	if !r.Known() || !other.Known() {
		return cmp.Compare(boolInt(r.Known()), boolInt(other.Known()))
	}
	a, preA, _ := splitVersion(r.Version)
	b, preB, _ := splitVersion(other.Version)
	if c := slices.Compare(a[:], b[:]); c != 0 {
		return c
	}
	return cmp.Compare(boolInt(preB), boolInt(preA))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// AtLeast says whether the release is known and not older than the numbers, as
// in AtLeast(2, 5). A SNAPSHOT of 2.5 may or may not have what 2.5 has: not at
// least.
func (r Release) AtLeast(numbers ...int) bool {
	if !r.Known() {
		return false
	}
	have, before, _ := splitVersion(r.Version)
	var want [4]int
	copy(want[:], numbers)
	c := slices.Compare(have[:], want[:])
	return c > 0 || c == 0 && !before
}

// current says whether the release is to be treated like one from the numbers
// on. Where nothing tells the release, it is treated like the current ones:
// most machines run these, and what we write for them harms no older one.
func (r Release) current(numbers ...int) bool { return !r.Known() || r.AtLeast(numbers...) }

// HonoursHostAddress says whether the release takes its node address from the
// environment variable AMS_HOST_ADDRESS (2.5 and later). An unknown release is
// treated like the current ones: ask Known first where that matters.
func (r Release) HonoursHostAddress() bool { return r.current(2, 5) }

// HasLiveness says whether the release answers /rest/v2/liveness (2.5.1 and
// later). An unknown release is treated like the current ones.
func (r Release) HasLiveness() bool { return r.current(2, 5, 1) }
