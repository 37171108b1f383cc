// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import "bytes"

type tokenKind int

const (
	tokText tokenKind = iota
	tokComment
	tokCDATA
	tokOther // processing instruction or declaration
	tokTag   // start, end or empty-element tag
)

// xmlToken is src[off:end]. Tokens have no gaps.
type xmlToken struct {
	kind     tokenKind
	off, end int
}

// scanXML knows only where comments can begin. A real parser checks the result.
func scanXML(src []byte) ([]xmlToken, error) {
	var toks []xmlToken
	add := func(k tokenKind, off, end int) { toks = append(toks, xmlToken{k, off, end}) }
	for off := 0; off < len(src); {
		rest := src[off:]
		if rest[0] != '<' {
			n := bytes.IndexByte(rest, '<')
			if n < 0 {
				n = len(rest)
			}
			add(tokText, off, off+n)
			off += n
			continue
		}
		var kind tokenKind
		var n int
		switch {
		case bytes.HasPrefix(rest, []byte("<!--")):
			kind = tokComment
			if n = bytes.Index(rest[4:], []byte("-->")); n < 0 {
				return nil, &SyntaxError{lineAt(src, off), "this comment is never closed"}
			}
			n += 4 + 3
		case bytes.HasPrefix(rest, []byte("<![CDATA[")):
			kind = tokCDATA
			if n = bytes.Index(rest, []byte("]]>")); n < 0 {
				return nil, &SyntaxError{lineAt(src, off), "this CDATA section is never closed"}
			}
			n += 3
		case bytes.HasPrefix(rest, []byte("<?")):
			kind = tokOther
			if n = bytes.Index(rest, []byte("?>")); n < 0 {
				return nil, &SyntaxError{lineAt(src, off), "this processing instruction is never closed"}
			}
			n += 2
		case bytes.HasPrefix(rest, []byte("<!")):
			kind = tokOther
			if n = declarationEnd(rest); n < 0 {
				return nil, &SyntaxError{lineAt(src, off), "this declaration is never closed"}
			}
		default:
			kind = tokTag
			if n = tagEnd(rest); n < 0 {
				return nil, &SyntaxError{lineAt(src, off), "this tag is never closed"}
			}
		}
		add(kind, off, off+n)
		off += n
	}
	return toks, nil
}

// tagEnd returns the length of the tag, or -1. Quotes may contain ">".
func tagEnd(b []byte) int {
	var quote byte
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i + 1
		}
	}
	return -1
}

// declarationEnd returns the length of the <!DOCTYPE …> with its internal subset, or -1.
func declarationEnd(b []byte) int {
	var quote byte
	depth := 0
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '[':
			depth++
		case c == ']':
			depth--
		case c == '>' && depth <= 0:
			return i + 1
		}
	}
	return -1
}
