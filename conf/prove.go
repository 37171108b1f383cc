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
	"sort"
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"github.com/amsagent/amsagent/internal/redact"
)

const (
	// clusterBean makes the server a node.
	clusterBean = "tomcat.cluster"
	// clusterValve serves other nodes' HTTP streams. Every release with marked sections has it in one.
	clusterValve = "io.antmedia.enterprise.cluster.HttpLiveStreamValve"
)

type beansDoc struct{ doc *etree.Document }

// readBeans requires one root element <beans>, matching tags and no "--" in comments.
func readBeans(src []byte) (*beansDoc, error) {
	if err := wellFormed(src); err != nil {
		return nil, err
	}
	doc := etree.NewDocument()
	doc.ReadSettings = etree.ReadSettings{PreserveCData: true}
	if err := doc.ReadFromBytes(src); err != nil {
		return nil, &SyntaxError{lineAt(src, len(src)), "not well-formed XML: " + err.Error()}
	}
	if tag := doc.Root().Tag; tag != "beans" {
		return nil, &LayoutError{1, fmt.Sprintf("the root element is <%s>, not the <beans> of a jee-container.xml", tag)}
	}
	return &beansDoc{doc}, nil
}

// wellFormed is needed because etree checks neither tag names nor the number of root elements.
func wellFormed(src []byte) error {
	d := xml.NewDecoder(bytes.NewReader(src))
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	depth, roots := 0, 0
	for {
		tok, err := d.Token()
		line, _ := d.InputPos()
		if errors.Is(err, io.EOF) {
			break
		}
		var xerr *xml.SyntaxError
		if errors.As(err, &xerr) {
			return &SyntaxError{xerr.Line, "not well-formed XML: " + xerr.Msg}
		}
		if err != nil {
			return &SyntaxError{line, "not well-formed XML: " + err.Error()}
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			if roots > 1 {
				return &SyntaxError{line, "not well-formed XML: a second root element"}
			}
			depth++
		case xml.EndElement:
			depth--
		case xml.CharData:
			if depth == 0 && len(bytes.TrimSpace(bytes.TrimPrefix(tok, []byte("\ufeff")))) > 0 {
				return &SyntaxError{line, "not well-formed XML: text outside the root element"}
			}
		}
	}
	if roots == 0 {
		return &SyntaxError{1, "no XML element in this file"}
	}
	return nil
}

// walk is depth first.
func walk(e *etree.Element, f func(*etree.Element)) {
	f(e)
	for _, c := range e.ChildElements() {
		walk(c, f)
	}
}

func (d *beansDoc) count(match func(*etree.Element) bool) int {
	n := 0
	walk(d.doc.Root(), func(e *etree.Element) {
		if e.Tag == "bean" && match(e) {
			n++
		}
	})
	return n
}

func (d *beansDoc) hasID(id string) bool {
	return d.count(func(e *etree.Element) bool { return e.SelectAttrValue("id", "") == id }) > 0
}

func (d *beansDoc) hasClass(class string) bool {
	return d.count(func(e *etree.Element) bool { return e.SelectAttrValue("class", "") == class }) > 0
}

func (d *beansDoc) mode() Mode {
	if d.hasID(clusterBean) {
		return ModeCluster
	}
	return ModeStandalone
}

// proveMode verifies that only the sections changed: with all sections opened, both documents have the same
// tokens, and the cluster's beans are present or absent.
func proveMode(before, after []byte, m Mode) error {
	a, err := readBeans(before)
	if err != nil {
		return fmt.Errorf("proving the edit: before it: %w", err)
	}
	b, err := readBeans(after)
	if err != nil {
		return fmt.Errorf("proving the edit: after it: %w", err)
	}
	if got := b.mode(); got != m {
		return &LayoutError{0, fmt.Sprintf("the marked sections hold no bean %s: toggling them does not make it %s", clusterBean, m)}
	}
	if got := b.hasClass(clusterValve); got != (m == ModeCluster) {
		return &LayoutError{0, fmt.Sprintf("the marked sections hold no bean of class %s: this is no cluster section of AMS", clusterValve)}
	}
	if n := b.count(func(e *etree.Element) bool { return e.SelectAttrValue("id", "") == clusterBean }); n > 1 {
		return &LayoutError{0, fmt.Sprintf("bean %s would be defined %d times", clusterBean, n)}
	}
	return sameTokens(a, b)
}

// proveRemoved verifies that only the beans of the class were removed.
func proveRemoved(before, after []byte, class string) error {
	a, err := readBeans(before)
	if err != nil {
		return fmt.Errorf("proving the edit: before it: %w", err)
	}
	var gone []*etree.Element
	walk(a.doc.Root(), func(e *etree.Element) {
		if e.Tag == "bean" && e.SelectAttrValue("class", "") == class {
			gone = append(gone, e)
		}
	})
	for _, e := range gone {
		if p := e.Parent(); p != nil {
			p.RemoveChild(e)
		}
	}
	b, err := readBeans(after)
	if err != nil {
		return fmt.Errorf("proving the edit: after it: %w", err)
	}
	return sameTokens(a, b)
}

func sameTokens(a, b *beansDoc) error {
	ta, err := a.tokens()
	if err != nil {
		return fmt.Errorf("proving the edit: before it: %w", err)
	}
	tb, err := b.tokens()
	if err != nil {
		return fmt.Errorf("proving the edit: after it: %w", err)
	}
	if !slices.Equal(ta, tb) {
		return &LayoutError{0, "the edit would change more than its sections: " + firstDifference(ta, tb)}
	}
	return nil
}

func firstDifference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("%s became %s", tokenShown(a[i]), tokenShown(b[i]))
		}
	}
	return fmt.Sprintf("%d tokens became %d", len(a), len(b))
}

// tokenShown hides text, which may be a password.
func tokenShown(token string) string {
	if kind, data, ok := strings.Cut(token, " "); ok && (kind == "text" || kind == "comment") {
		return fmt.Sprintf("a %s of %d bytes", kind, len(data))
	}
	return strconv.Quote(redact.Text(token))
}

// tokens opens every section, so that a file has the same tokens in both modes. It skips blank text.
func (d *beansDoc) tokens() ([]string, error) {
	return flatten(nil, d.doc.Child)
}

func flatten(out []string, toks []etree.Token) ([]string, error) {
	var err error
	for _, tok := range toks {
		switch t := tok.(type) {
		case *etree.Element:
			var b strings.Builder
			b.WriteString("start " + t.FullTag())
			for _, a := range t.Attr {
				fmt.Fprintf(&b, " %s=%q", a.FullKey(), a.Value)
			}
			out = append(out, b.String())
			if out, err = flatten(out, t.Child); err != nil {
				return nil, err
			}
			out = append(out, "end "+t.FullTag())
		case *etree.CharData:
			if strings.TrimSpace(t.Data) != "" {
				out = append(out, "text "+t.Data)
			}
		case *etree.Comment:
			if out, err = flattenComment(out, t.Data); err != nil {
				return nil, err
			}
		case *etree.ProcInst:
			out = append(out, "pi "+t.Target+" "+t.Inst)
		case *etree.Directive:
			out = append(out, "directive "+t.Data)
		}
	}
	return out, nil
}

// flattenComment opens a commented section. Other comments are tokens.
func flattenComment(out []string, data string) ([]string, error) {
	inner, ok := sectionText(data)
	if !ok {
		if w := strings.TrimSpace(data); w == string(startWords) || w == string(endWords) {
			return append(out, "marker "+w), nil
		}
		return append(out, "comment "+data), nil
	}
	frag := etree.NewDocument()
	frag.ReadSettings.PreserveCData = true
	if err := frag.ReadFromString("<section>" + inner + "</section>"); err != nil {
		return nil, &LayoutError{0, "a commented cluster section is not well-formed XML: " + err.Error()}
	}
	out = append(out, "marker "+string(startWords))
	out, err := flatten(out, frag.Root().Child)
	return append(out, "marker "+string(endWords)), err
}

// sectionText returns the XML of a commented section.
func sectionText(comment string) (inner string, ok bool) {
	s := strings.TrimLeft(comment, " \t")
	s, ok = strings.CutPrefix(s, string(startWords))
	if !ok {
		return "", false
	}
	s = strings.TrimLeft(s, " \t")
	if s == "" || (s[0] != '\n' && s[0] != '\r') {
		return "", false
	}
	s, ok = strings.CutSuffix(strings.TrimRight(s, " \t\r\n"), string(endWords))
	return s, ok
}

func sortSpans(s []Span) {
	sort.SliceStable(s, func(i, j int) bool { return s[i].Off < s[j].Off })
}
