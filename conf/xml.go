// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// xmlToken is src[off:end]. The one that ends an empty element has no bytes.
type xmlToken struct {
	off, end int
	kind     byte   // one of the list below
	text     string // decoded; of a start tag its name and sorted attributes
	bean     *bean  // of the start tag of one
}

type bean struct{ id, class string }

const (
	isStart, isEnd, isText, isComment, isDirective, isInstruction = '<', '/', 't', '!', 'd', '?'
)

// parseXML requires one root element <beans>, matching tags and no "--" in comments. Its errors are a [*SyntaxError]
// or a [*LayoutError].
func parseXML(src []byte) ([]xmlToken, error) {
	d := xml.NewDecoder(bytes.NewReader(src))
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	var toks []xmlToken
	var open []string // names of elements
	root := ""
	for {
		t := xmlToken{off: int(d.InputOffset())}
		fail := func(msg string) error {
			return &SyntaxError{lineAt(src, t.off), "not well-formed XML: " + msg}
		}
		tok, err := d.RawToken() // with prefixes instead of namespaces, which may be long
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, xmlError(src, t.off, err)
		}
		t.end = int(d.InputOffset())
		switch tok := tok.(type) {
		case xml.StartElement:
			name := fullName(tok.Name)
			if len(open) == 0 && root != "" {
				return nil, fail("a second root element")
			}
			if len(open) == 0 {
				root = tok.Name.Local
			}
			open = append(open, name)
			t.kind = isStart
			t.text, t.bean = readStart(tok)
		case xml.EndElement:
			name := fullName(tok.Name)
			if len(open) == 0 || open[len(open)-1] != name {
				return nil, fail("unexpected end tag </" + name + ">")
			}
			open = open[:len(open)-1]
			t.kind = isEnd
		case xml.CharData:
			t.kind, t.text = isText, string(tok)
			if len(open) == 0 && strings.TrimSpace(strings.TrimPrefix(t.text, "\ufeff")) != "" {
				return nil, fail("text outside the root element")
			}
		case xml.Comment:
			t.kind, t.text = isComment, string(tok)
		case xml.Directive:
			if len(open) > 0 {
				return nil, fail("a declaration inside an element")
			}
			t.kind, t.text = isDirective, string(tok)
		case xml.ProcInst:
			t.kind = isInstruction
		}
		toks = append(toks, t)
	}
	switch {
	case root == "":
		return nil, &SyntaxError{1, "no XML element in this file"}
	case len(open) > 0:
		return nil, &SyntaxError{lineAt(src, len(src)), "not well-formed XML: element <" + open[len(open)-1] + "> is never closed"}
	case root != "beans":
		return nil, &LayoutError{1, fmt.Sprintf("the root element is <%s>, not the <beans> of a jee-container.xml", root)}
	}
	return toks, nil
}

func fullName(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

func readStart(tok xml.StartElement) (text string, b *bean) {
	var attrs []string
	if tok.Name.Local == "bean" {
		b = &bean{}
	}
	for _, a := range tok.Attr {
		attrs = append(attrs, fmt.Sprintf("%s=%q", fullName(a.Name), a.Value))
		switch name := fullName(a.Name); { // not p:id, which sets a property
		case b == nil:
		case name == "id":
			b.id = a.Value
		case name == "class":
			b.class = a.Value
		}
	}
	slices.Sort(attrs)
	return strings.Join(append([]string{fullName(tok.Name)}, attrs...), " "), b
}

// xmlError explains an error of the token at off.
func xmlError(src []byte, off int, err error) error {
	if inner, ok := bytes.CutPrefix(src[off:], []byte("<!--")); ok {
		end := bytes.Index(inner, []byte("-->"))
		if end < 0 {
			return &SyntaxError{lineAt(src, off), "this comment is never closed"}
		}
		if n := bytes.Index(inner[:end], []byte("<!--")); n >= 0 && bytes.HasPrefix(bytes.TrimLeft(inner, " \t"), startWords) {
			return &LayoutError{lineAt(src, off+len("<!--")+n), "a comment inside a commented cluster section: XML cannot nest comments; remove it"}
		}
	}
	line, msg := lineAt(src, off), err.Error()
	if e, ok := errors.AsType[*xml.SyntaxError](err); ok {
		line, msg = e.Line, e.Msg
	}
	return &SyntaxError{line, "not well-formed XML: " + msg}
}

// countBeans counts live beans with this id or class.
func countBeans(toks []xmlToken, is string) (n int) {
	for _, t := range toks {
		if t.bean != nil && (t.bean.id == is || t.bean.class == is) {
			n++
		}
	}
	return n
}

// meaning lists what the server reads: no comments, no whitespace between elements.
func meaning(toks []xmlToken) []string {
	var out []string
	var text strings.Builder // split by CDATA and comments
	for _, t := range toks {
		switch t.kind {
		case isText:
			text.WriteString(t.text)
		case isStart, isEnd, isDirective:
			if s := text.String(); strings.TrimSpace(s) != "" {
				out = append(out, "text "+s)
			}
			text.Reset()
			out = append(out, string(t.kind)+t.text)
		}
	}
	return out
}
