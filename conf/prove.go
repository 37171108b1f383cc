// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// proveEdit verifies that only sections were toggled and live beans of the class without were removed. It compares
// trees of etree, apart from the tokens that made the edit.
func proveEdit(before, after []byte, without string) error {
	var b []string
	a, err := opened(before, without)
	if err == nil {
		b, err = opened(after, "")
	}
	switch {
	case err != nil:
		return &LayoutError{0, "the edit cannot be verified: " + err.Error()}
	case !slices.Equal(a, b):
		return &LayoutError{0, "the edit would change more than its sections"}
	}
	return nil
}

// opened lists all but whitespace, with every section opened, so that a file has the same list in both modes.
func opened(src []byte, without string) ([]string, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(src); err != nil {
		return nil, err
	}
	return flatten(nil, doc.Child, without)
}

func flatten(out []string, toks []etree.Token, without string) (_ []string, err error) {
	for _, tok := range toks {
		switch t := tok.(type) {
		case *etree.Element:
			if without != "" && t.Tag == "bean" && t.SelectAttrValue("class", "") == without {
				continue
			}
			var b strings.Builder
			b.WriteString("start " + t.FullTag())
			for _, a := range t.Attr {
				fmt.Fprintf(&b, " %s=%q", a.FullKey(), a.Value)
			}
			if out, err = flatten(append(out, b.String()), t.Child, without); err != nil {
				return nil, err
			}
			out = append(out, "end")
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
func flattenComment(out []string, text string) ([]string, error) {
	if word := strings.TrimSpace(text); word == string(startWords) || word == string(endWords) {
		return append(out, "marker "+word), nil
	}
	inner, ok := sectionText(text)
	if !ok {
		return append(out, "comment "+text), nil
	}
	section, err := opened([]byte("<section>"+inner+"</section>"), "")
	if err != nil {
		return nil, fmt.Errorf("a commented cluster section is not well-formed XML: %w", err)
	}
	out = append(out, "marker "+string(startWords))
	out = append(out, section[1:len(section)-1]...)
	return append(out, "marker "+string(endWords)), nil
}

// sectionText returns the XML of a commented section.
func sectionText(comment string) (inner string, ok bool) {
	s, ok := strings.CutPrefix(strings.TrimLeft(comment, " \t"), string(startWords))
	s = strings.TrimLeft(s, " \t")
	if !ok || s == "" || s[0] != '\n' && s[0] != '\r' {
		return "", false
	}
	return strings.CutSuffix(strings.TrimRight(s, " \t\r\n"), string(endWords))
}
