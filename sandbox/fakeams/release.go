// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"archive/zip"
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// release is a version as three numbers; a suffix like -SNAPSHOT does not count.
type release [3]int

func parseRelease(s string) (release, error) {
	var r release
	number, _, _ := strings.Cut(s, "-")
	parts := strings.Split(number, ".")
	if len(parts) > len(r) {
		parts = parts[:len(r)]
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return release{}, fmt.Errorf("release %q is not a version", s)
		}
		r[i] = n
	}
	return r, nil
}

func (r release) atLeast(o release) bool {
	for i := range r {
		if r[i] != o[i] {
			return r[i] > o[i]
		}
	}
	return true
}

// manifestOf reads version and build out of a jar; both are empty without a jar.
func manifestOf(jar string) (version, build string, err error) {
	z, err := zip.OpenReader(jar)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("reading %s: %w", jar, err)
	}
	defer z.Close()
	f, err := z.Open("META-INF/MANIFEST.MF")
	if err != nil {
		return "", "", fmt.Errorf("reading the manifest of %s: %w", jar, err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch key {
		case "Implementation-Version":
			version = strings.TrimSpace(value)
		case "Build-Number":
			build = strings.TrimSpace(value)
		}
	}
	if err := lines.Err(); err != nil {
		return "", "", fmt.Errorf("reading the manifest of %s: %w", jar, err)
	}
	return version, build, nil
}

// mongoURI is the connection string that a server of release r makes of what its
// files say.
//
//	up to 2.4.0   always mongodb:// and, if there is a user, user:password@ in front
//	2.4.1         a host that begins with mongodb+srv is taken as it is
//	2.4.2.x       a host that begins with the word mongodb is taken as it is
//	from 2.4.3    one that begins with mongodb:// or mongodb+srv:// is
//	from 3.0      as before, but user and password are not read any more
//
// Nothing is percent-encoded. The cluster's store still takes user and password in
// 3.x; its source is not public, and it is taken to work as before there.
func mongoURI(r release, store bool, host, user, password string) string {
	var whole bool
	switch {
	case r.atLeast(release{2, 4, 3}):
		whole = strings.HasPrefix(host, "mongodb://") || strings.HasPrefix(host, "mongodb+srv://")
	case r.atLeast(release{2, 4, 2}):
		whole = strings.HasPrefix(host, "mongodb")
	case r.atLeast(release{2, 4, 1}):
		whole = strings.HasPrefix(host, "mongodb+srv")
	}
	if whole {
		return host
	}
	if user != "" && (store || !r.atLeast(release{3, 0, 0})) {
		return "mongodb://" + user + ":" + password + "@" + host
	}
	return "mongodb://" + host
}
