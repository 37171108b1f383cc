// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// HostAddressVariable is the environment variable from which the server takes
// its node address (2.5 and later). In every release it comes before whatever
// that release would find out by itself.
const HostAddressVariable = "AMS_HOST_ADDRESS"

// DropInPath is our drop-in for the vendor's unit. The unit file itself is
// written anew by every upgrade; a drop-in stays.
const DropInPath = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"

// RuntimeDropInPath is where a drop-in lies that no reboot keeps. Of two with one
// name the one in /etc counts.
const RuntimeDropInPath = "/run/systemd/system/antmedia.service.d/50-amsagent.conf"

// dropInMark begins our drop-in; by it we know our own again.
const dropInMark = "# Written by amsagent"

// Endless is a stop timeout that never ends.
const Endless = time.Duration(math.MaxInt64)

// StopTimeout is how long a server with so many applications may need to stop
// in order. It ends them one after the other, up to about 17 seconds each where
// streams run; the vendor's unit gives 10 seconds for all of them, kills it, and
// its streams stay "broadcasting" in the database.
func StopTimeout(apps int) time.Duration {
	return time.Duration(60+20*max(apps, 0)) * time.Second
}

// BeforeStart is what the agent is called with just before each start of the server.
const BeforeStart = "converge --before-start"

// DropIn is the text of our drop-in. An address that is not valid, a timeout of 0
// and a program "" leave their line out; without all there is nothing to say, and
// the result is nil. program is the agent's own path.
func DropIn(address netip.Addr, stopTimeout time.Duration, program string) []byte {
	if !address.IsValid() && stopTimeout <= 0 && program == "" {
		return nil
	}
	var b bytes.Buffer
	b.WriteString(dropInMark + `: the address under which this node registers in
# its cluster, time to end its streams when it stops, and the command that puts
# the node's settings right before it starts. 'amsagent leave' removes this file;
# until then 'amsagent join' puts back what is changed here. To override it, add a
# file with a later name, as 60-local.conf.
[Service]
`)
	if address.IsValid() {
		fmt.Fprintf(&b, "Environment=%s\n", quoteUnit(HostAddressVariable+"="+address.String()))
	}
	if stopTimeout > 0 {
		// Whole seconds, and never less than was asked for.
		fmt.Fprintf(&b, "TimeoutStopSec=%d\n", int64(math.Ceil(stopTimeout.Seconds())))
	}
	if program != "" {
		// "-": its failure does not keep the server from starting. "+": as root, whatever User= says; systemd 231 and later.
		// Older ones ignore the line.
		fmt.Fprintf(&b, "ExecStartPre=-+%s %s\n", quoteUnit(strings.ReplaceAll(program, "$", "$$")), BeforeStart)
	}
	return b.Bytes()
}

// quoteUnit makes one word of a unit file: a percent sign begins a specifier,
// and what is not plain stands in quotes with C escapes.
func quoteUnit(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	plain := !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_=.:%-/", r)
	})
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// DropInValues is what a drop-in sets of the things that concern us.
type DropInValues struct {
	Exists      bool          `json:"exists"`
	Ours        bool          `json:"ours"`                      // it begins as ours do
	HostAddress string        `json:"host_address,omitempty"`    // AMS_HOST_ADDRESS; "" = not set
	StopTimeout time.Duration `json:"stop_timeout_ns,omitempty"` // 0 = not set
	BeforeStart string        `json:"before_start,omitempty"`    // the agent's path; "" = not called before a start
	Other       []string      `json:"other,omitempty"`           // settings of somebody else, as "Service.Nice"
}

// ReadDropIn reads our drop-in below root. That there is none is no error.
func ReadDropIn(root string) (DropInValues, error) {
	b, _, err := readBelow(root, DropInPath, maxConfigSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return DropInValues{}, nil
	case err != nil:
		return DropInValues{}, fmt.Errorf("reading %s: %w", shown(root, DropInPath), unreadable(err))
	}
	v, err := ParseDropIn(b)
	if err != nil {
		err = fmt.Errorf("reading %s: %w", shown(root, DropInPath), err)
	}
	return v, err
}

// ParseDropIn reads a drop-in as systemd does: sections, continued lines,
// comments, quoted words, an empty assignment that takes back the earlier ones.
// An error names the line; what was understood before it is returned too.
func ParseDropIn(b []byte) (DropInValues, error) {
	v := DropInValues{Exists: true, Ours: bytes.HasPrefix(b, []byte(dropInMark))}
	section, logical, begun := "", "", 0
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		trimmed := strings.TrimLeft(line, " \t")
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue // also between continued lines
		}
		if logical == "" {
			begun = i + 1
		}
		if rest, ok := strings.CutSuffix(line, `\`); ok {
			logical += rest + " "
			continue
		}
		logical = strings.TrimSpace(logical + line)
		if err := v.assign(&section, logical); err != nil {
			return v, fmt.Errorf("line %d: %w", begun, err)
		}
		logical = ""
	}
	return v, nil
}

func (v *DropInValues) assign(section *string, line string) error {
	if line == "" {
		return nil
	}
	if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
		*section = line[1 : len(line)-1]
		return nil
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("%q is no assignment", line)
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch *section + "." + key {
	case "Service.Environment":
		if value == "" {
			v.HostAddress = ""
			return nil
		}
		words, err := unitWords(value)
		if err != nil {
			return fmt.Errorf("reading Environment: %w", err)
		}
		for _, w := range words {
			name, val, _ := strings.Cut(w, "=")
			if name == HostAddressVariable {
				v.HostAddress = strings.ReplaceAll(val, "%%", "%")
			} else {
				// The name only: the value may be anybody's secret.
				v.Other = append(v.Other, "Service.Environment "+name)
			}
		}
	case "Service.TimeoutStopSec":
		d, err := parseSpan(value)
		if err != nil {
			return fmt.Errorf("reading TimeoutStopSec: %w", err)
		}
		v.StopTimeout = d
	case "Service.ExecStartPre":
		program, ok := strings.CutSuffix(value, " "+BeforeStart)
		if !ok {
			v.Other = append(v.Other, "Service.ExecStartPre")
			return nil
		}
		words, err := unitWords(strings.TrimLeft(program, "-+"))
		if err != nil || len(words) != 1 {
			return fmt.Errorf("reading ExecStartPre: %q is no program", program)
		}
		v.BeforeStart = strings.NewReplacer("%%", "%", "$$", "$").Replace(words[0])
	default:
		v.Other = append(v.Other, *section+"."+key)
	}
	return nil
}

// unitWords splits a value into words as systemd does for lists: quotes of both
// kinds, C escapes.
func unitWords(s string) ([]string, error) {
	var words []string
	var w []byte
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			n, text, err := unescapeUnit(s[i+1:])
			if err != nil {
				return nil, err
			}
			w, in, i = append(w, text...), true, i+n
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, in = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if in {
				words = append(words, string(w))
			}
			w, in = nil, false
		default:
			w, in = append(w, c), true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if in {
		words = append(words, string(w))
	}
	return words, nil
}

// unescapeUnit reads what follows a backslash: how many bytes, and their meaning.
func unescapeUnit(s string) (int, []byte, error) {
	if s == "" {
		return 0, nil, errors.New("a backslash at the end")
	}
	if i := strings.IndexByte(`abfnrtv\"'s`, s[0]); i >= 0 {
		return 1, []byte{"\a\b\f\n\r\t\v\\\"' "[i]}, nil
	}
	number := func(from, digits, base int) (int, []byte, error) {
		if len(s) >= from+digits {
			if n, err := strconv.ParseUint(s[from:from+digits], base, 32); err == nil && n != 0 {
				if digits > 3 { // \u and \U name a letter, the others a byte
					return from + digits, utf8.AppendRune(nil, rune(n)), nil
				}
				if n < 256 {
					return from + digits, []byte{byte(n)}, nil
				}
			}
		}
		return 0, nil, fmt.Errorf(`\%s is no escape`, s[:1])
	}
	switch {
	case s[0] == 'x':
		return number(1, 2, 16)
	case s[0] == 'u':
		return number(1, 4, 16)
	case s[0] == 'U':
		return number(1, 8, 16)
	case s[0] >= '0' && s[0] <= '7':
		return number(0, 3, 8)
	}
	return 0, nil, fmt.Errorf(`\%s is no escape`, s[:1])
}

// parseSpan reads a time span of systemd: "90", "1min 30s", "1.5h", "infinity".
// For a stop timeout 0 means endless, too.
func parseSpan(s string) (time.Duration, error) {
	if s == "infinity" {
		return Endless, nil
	}
	units := map[string]time.Duration{
		"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
		"us": time.Microsecond, "usec": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond, "msec": time.Millisecond,
		"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
		"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
		"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
		"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour, "weeks": 7 * 24 * time.Hour,
	}
	rest := strings.TrimSpace(s)
	if rest == "" {
		return 0, nil
	}
	var total float64
	for rest != "" {
		digits := strings.IndexFunc(rest, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if digits < 0 {
			digits = len(rest)
		}
		n, err := strconv.ParseFloat(rest[:digits], 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no time span", s)
		}
		rest = strings.TrimLeft(rest[digits:], " \t")
		letters := strings.IndexFunc(rest, func(r rune) bool { return r == ' ' || r == '\t' || r >= '0' && r <= '9' })
		if letters < 0 {
			letters = len(rest)
		}
		unit, ok := units[rest[:letters]]
		if !ok {
			return 0, fmt.Errorf("%q is no time span: unknown unit %q", s, rest[:letters])
		}
		total += n * float64(unit)
		rest = strings.TrimLeft(rest[letters:], " \t")
	}
	if total == 0 || total >= float64(Endless) {
		return Endless, nil
	}
	return time.Duration(math.Round(total)), nil
}
