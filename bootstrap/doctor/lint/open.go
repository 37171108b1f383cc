// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

const (
	// maxOpened is what a text may be once it is opened: more than any cloud takes, and
	// less than what a small file can be made to swell to.
	maxOpened = 1 << 20
	// maxLayers is how often something is packed into something else.
	maxLayers = 4
)

// ErrNoText is what cannot be read.
var ErrNoText = errors.New("it is no text")

// Open gives the text that a machine reads in the end: clouds open base64, and
// cloud-init gzip, and the parts of a MIME message. The layers are what was opened.
func Open(src []byte) (text []byte, layers []string, err error) {
	text = src
	for range maxLayers {
		switch inner, ok, err := ungzip(text); {
		case err != nil:
			return nil, layers, err
		case ok:
			text, layers = inner, append(layers, "gzip")
			continue
		}
		inner, ok := unbase64(text)
		if !ok {
			break
		}
		text, layers = inner, append(layers, "base64")
	}
	if wide, ok := utf16Text(text); ok {
		return text, layers, readable(wide)
	}
	if err := readable(text); err != nil {
		return nil, layers, err
	}
	if inner, ok := openParts(text); ok {
		text, layers = inner, append(layers, "parts in base64")
	}
	return text, layers, nil
}

func ungzip(src []byte) (text []byte, ok bool, err error) {
	if !bytes.HasPrefix(src, []byte("\x1f\x8b")) {
		return nil, false, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(src))
	if err != nil {
		return nil, false, fmt.Errorf("opening gzip: %w", err)
	}
	text, err = io.ReadAll(io.LimitReader(r, maxOpened+1))
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("opening gzip: %w", err)
	case len(text) > maxOpened:
		return nil, false, fmt.Errorf("opening gzip: more than %d KiB", maxOpened>>10)
	}
	return text, true, nil
}

// unbase64 opens what is base64 as a whole, and only where something that we know
// comes out: many a word is base64 by chance.
func unbase64(src []byte) ([]byte, bool) {
	text, ok := decode(string(src))
	if !ok {
		return nil, false
	}
	if bytes.HasPrefix(text, []byte("\x1f\x8b")) || known(firstLine(text)) || Recognize(text) != UserData {
		return text, true
	}
	return nil, false
}

func decode(s string) ([]byte, bool) {
	s = strings.Join(strings.Fields(s), "")
	if s == "" {
		return nil, false
	}
	b, err := base64.StdEncoding.DecodeString(s)
	return b, err == nil
}

func firstLine(text []byte) string {
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	return string(line)
}

// openParts opens the parts of a MIME message that are base64, so that all of it can
// be read. A part that is no text stays as it is.
func openParts(text []byte) ([]byte, bool) {
	first := strings.ToLower(firstLine(text))
	if !strings.HasPrefix(first, "mime-version:") && !strings.HasPrefix(first, "content-type:") && !strings.HasPrefix(first, "from ") {
		return nil, false
	}
	var out []string
	opened := false
	header, coded := true, -1 // where the header of this part says base64
	lines := strings.SplitAfter(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		l := strings.TrimRight(lines[i], "\r\n")
		switch {
		case strings.HasPrefix(l, "--"):
			header, coded = true, -1
		case header && isBase64(l):
			coded = len(out)
		case header && l == "":
			header = false
			if coded < 0 {
				break
			}
			end := i + 1
			for end < len(lines) && !strings.HasPrefix(lines[end], "--") {
				end++
			}
			part, ok := decode(strings.Join(lines[i+1:end], ""))
			if !ok || readable(part) != nil {
				break
			}
			eol := lines[i][len(l):]
			out[coded] = "Content-Transfer-Encoding: 8bit" + eol
			out = append(out, lines[i], string(part))
			if !bytes.HasSuffix(part, []byte("\n")) {
				out = append(out, eol)
			}
			opened = true
			i = end - 1
			continue
		}
		out = append(out, lines[i])
	}
	return []byte(strings.Join(out, "")), opened
}

func isBase64(l string) bool {
	name, value, _ := strings.Cut(l, ":")
	return strings.EqualFold(strings.TrimSpace(name), "Content-Transfer-Encoding") && strings.EqualFold(strings.TrimSpace(value), "base64")
}

// utf16Text decodes what an editor of Windows calls Unicode: each letter two bytes.
func utf16Text(src []byte) ([]byte, bool) {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(src, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(src, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return nil, false
	}
	if len(src)%2 != 0 {
		return nil, false
	}
	var words []uint16
	for i := 2; i+1 < len(src); i += 2 {
		words = append(words, order.Uint16(src[i:]))
	}
	return []byte(string(utf16.Decode(words))), true
}

// readable reports as an error what no text has in it. Letters of any alphabet, and
// in any of its encodings, are no matter.
func readable(text []byte) error {
	for i, c := range text {
		if c >= ' ' && c != 0x7f || strings.IndexByte("\t\n\r\f\v\b\x1b", c) >= 0 {
			continue
		}
		return fmt.Errorf("%w: there is a byte %#02x at %d", ErrNoText, c, i)
	}
	return nil
}
