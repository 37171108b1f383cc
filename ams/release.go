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

// Release is a release of Ant Media Server; the zero value is unknown. It comes only from the jar's manifest or the
// operator, never from a file's age or layout: upgrades keep old configuration.
type Release struct {
	Version string `json:"version,omitempty"` // as written, without a leading v; "" = unknown
	Build   string `json:"build,omitempty"`   // Build-Number of the manifest
	Note    string `json:"note,omitempty"`    // why it is not known
}

// ParseRelease parses a release as an operator or a manifest writes it: 2.4.2.1, 3.0.3-SNAPSHOT, v2.13.2, ams-v2.8.0.
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

// splitVersion splits a version: up to four numbers, and whether a suffix marks a pre-release.
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
		// No release has five digits; a date or a hash has more.
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

// Known reports whether the release is known.
func (r Release) Known() bool { return r.Version != "" }

// String returns the version with its build, or "unknown".
func (r Release) String() string {
	switch {
	case !r.Known():
		return "unknown"
	case r.Build != "":
		return r.Version + " (build " + r.Build + ")"
	}
	return r.Version
}

// Compare orders releases. Missing numbers count as 0, a SNAPSHOT comes before its release, an unknown release before
// every known one.
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

// AtLeast reports whether the release is known and not older than the numbers, as in AtLeast(2, 5). A SNAPSHOT of 2.5
// may lack features of 2.5: not at least.
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

// current reports whether to treat the release like one from the numbers on. An unknown release counts as current: most
// machines run these, and their settings harm no older one.
func (r Release) current(numbers ...int) bool { return !r.Known() || r.AtLeast(numbers...) }

// HonoursHostAddress reports whether the release uses the environment variable AMS_HOST_ADDRESS (2.5 and later). An
// unknown release counts as current: check Known first if that matters.
func (r Release) HonoursHostAddress() bool { return r.current(2, 5) }

// HasLiveness reports whether the release has /rest/v2/liveness (2.5.1 and later). An unknown release counts as current.
func (r Release) HasLiveness() bool { return r.current(2, 5, 1) }
