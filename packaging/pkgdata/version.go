// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
	"time"
)

// described is v1.2.3, v1.2.3-rc.1, and either with the commits since and the last one's hash.
var described = regexp.MustCompile(`^v?([0-9]+(?:\.[0-9]+)+)(?:-([A-Za-z][0-9A-Za-z.]*))?(?:-([0-9]+)-(g[0-9a-f]+))?$`)

// packageVersion makes of what git describe says a version that is valid for dpkg and rpm, and that both sort in the order
// of time: 0~git… < 1.2.3~rc.1 < 1.2.3 < 1.2.3+5.gabc < 1.2.4. A tilde sorts before the end of a version, a plus after it.
//
// Without a tag there is only a hash, which sorts by chance: the time of the commit stands before it, and all of it before
// every release.
func packageVersion(describe string, commit time.Time) string {
	describe, changed := strings.CutSuffix(describe, "-dirty")
	dirty := ""
	if changed {
		dirty = "+dirty"
	}
	if m := described.FindStringSubmatch(describe); m != nil {
		v := m[1]
		if m[2] != "" {
			v += "~" + m[2]
		}
		if m[3] != "" {
			v += "+" + m[3] + "." + m[4]
		}
		return v + dirty
	}
	word := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '.'
	}, describe)
	return "0~git" + commit.UTC().Format("20060102150405") + "." + word + dirty
}
