// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// savedSettings are the settings that the server adds when it saves those of an
// application.
//
//go:embed saved.properties
var savedSettings []byte

// OwnSettings are the settings of an application, as the server reads its file, one
// line each, without those that the server adds when it saves them. Two files with the
// same ones are the same to it.
func OwnSettings(file []byte) (string, error) {
	props, err := parseProperties(file)
	if err != nil {
		return "", err
	}
	added, err := parseProperties(savedSettings)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(props)) {
		if v, ok := added[k]; k == "appName" || ok && v == props[k] {
			continue
		}
		fmt.Fprintf(&b, "%s=%q\n", k, props[k])
	}
	return b.String(), nil
}

// settingsFile is where an application's settings are.
func (s *Server) settingsFile(app string) string {
	return filepath.Join(s.o.Root, "webapps", app, "WEB-INF", "red5-web.properties")
}

// SaveSettings changes settings of an application, as the web panel does: the
// server saves all of them, in place.
func (s *Server) SaveSettings(ctx context.Context, app string, change map[string]string) error {
	if _, ok := s.app(app); !ok {
		return fmt.Errorf("saving settings: no application %q", app)
	}
	return s.save(ctx, app, change)
}

// save writes the file as the server's PreferenceStore does: what the file has,
// what the server adds, what is changed, in java.util.Properties' order and
// escapes, into the same inode. Comments are lost.
func (s *Server) save(ctx context.Context, app string, change map[string]string) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	file := s.settingsFile(app)
	props, err := readProperties(file)
	if err != nil {
		return err
	}
	added, err := parseProperties(savedSettings)
	if err != nil {
		return err
	}
	added["appName"] = app
	maps.Copy(added, props)
	maps.Copy(added, change)
	text := javaProperties(added, s.now())

	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("saving settings: %w", err)
	}
	half := len(text) / 2
	_, err = io.WriteString(f, text[:half])
	if err == nil && s.o.SavePause > 0 && !wait(ctx, s.o.SavePause) {
		// The server died in the middle: half a file is what it leaves.
		return errors.Join(ctx.Err(), f.Close())
	}
	if err == nil {
		_, err = io.WriteString(f, text[half:])
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("saving settings: %w", err)
	}
	return nil
}

// javaProperties is what java.util.Properties.store writes without a comment.
func javaProperties(props map[string]string, now time.Time) string {
	var b strings.Builder
	b.WriteString("#" + now.UTC().Format("Mon Jan 02 15:04:05 UTC 2006") + "\n")
	for _, k := range javaOrder(slices.Sorted(maps.Keys(props))) {
		b.WriteString(javaEscape(k, true) + "=" + javaEscape(props[k], false) + "\n")
	}
	return b.String()
}

// javaOrder is the order in which java.util.Properties (since Java 9 a
// ConcurrentHashMap of 16 buckets that doubles when three quarters full) lists keys.
func javaOrder(keys []string) []string {
	buckets := 16
	for len(keys) >= buckets-buckets/4 {
		buckets *= 2
	}
	bucket := func(key string) int {
		var h uint32
		for _, u := range utf16.Encode([]rune(key)) {
			h = 31*h + uint32(u)
		}
		return int((h ^ h>>16) & (1<<bits.TrailingZeros(uint(buckets)) - 1))
	}
	slices.SortStableFunc(keys, func(a, b string) int { return bucket(a) - bucket(b) })
	return keys
}

// javaEscape writes a key or a value. Every blank of a key is escaped, of a value
// the first only.
func javaEscape(s string, key bool) string {
	var b strings.Builder
	for i, u := range utf16.Encode([]rune(s)) {
		switch {
		case u == ' ':
			if key || i == 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(' ')
		case u == '\t':
			b.WriteString(`\t`)
		case u == '\n':
			b.WriteString(`\n`)
		case u == '\r':
			b.WriteString(`\r`)
		case u == '\f':
			b.WriteString(`\f`)
		case u == '\\' || u == '=' || u == ':' || u == '#' || u == '!':
			b.WriteByte('\\')
			b.WriteByte(byte(u))
		case u < 0x20 || u > 0x7e:
			fmt.Fprintf(&b, `\u%04X`, u)
		default:
			b.WriteByte(byte(u))
		}
	}
	return b.String()
}
