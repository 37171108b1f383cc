// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"fmt"
)

// Mode is standalone or cluster.
type Mode string

// The modes.
const (
	ModeStandalone Mode = "standalone"
	ModeCluster    Mode = "cluster"
)

// ErrUnmarked reports a jee-container.xml without marked cluster sections, as in releases before 1.9.1.
var ErrUnmarked = errors.New("no marked cluster section")

// LayoutError reports sections that cannot be toggled.
type LayoutError struct {
	Line int // 1-based; 0 means the whole file
	Msg  string
}

func (e *LayoutError) Error() string {
	if e.Line == 0 {
		return e.Msg
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Msg)
}

// Container is a jee-container.xml with marked cluster sections, which are inactive or active:
//
//	<!-- cluster start            <!-- cluster start -->
//	… beans …                     … beans …
//	cluster end -->               <!-- cluster end -->
//
// Use [ParseContainer].
type Container struct {
	src      []byte
	toks     []xmlToken
	sections []section
	mode     Mode
	spans    []Span
}

type section struct {
	active bool
	// word is the end of "cluster start", close the beginning of "cluster end".
	word, close int
	openTok     int
	closeTok    int // equal to openTok if inactive
}

var (
	startWords = []byte("cluster start")
	endWords   = []byte("cluster end")
)

// ParseContainer finds the cluster sections. Its errors are a [*SyntaxError] for invalid XML and a [*LayoutError]
// for sections that are unpaired, in different states, or inactive with a nested comment. A file without sections
// is valid.
func ParseContainer(src []byte) (*Container, error) {
	c := &Container{src: bytes.Clone(src)}
	var err error
	if c.toks, err = scanXML(c.src); err != nil {
		return nil, err
	}
	if err := c.findSections(); err != nil {
		return nil, err
	}
	doc, err := readBeans(c.src)
	if err != nil {
		return nil, err
	}
	c.mode = doc.mode()
	if len(c.sections) > 0 {
		c.mode = ModeStandalone
		if c.sections[0].active {
			c.mode = ModeCluster
		}
		if got := doc.mode(); got != c.mode {
			return nil, &LayoutError{c.sectionLine(0), fmt.Sprintf("the marked sections say %s, but bean %s makes it %s", c.mode, clusterBean, got)}
		}
	}
	return c, nil
}

func (c *Container) sectionLine(i int) int {
	return lineAt(c.src, c.toks[c.sections[i].openTok].off)
}

// findSections pairs the markers.
func (c *Container) findSections() error {
	open := -1 // an active start marker without an end so far
	for i, t := range c.toks {
		if t.kind != tokComment {
			if t.kind == tokText && bytes.Contains(c.src[t.off:t.end], []byte("-->")) {
				at := t.off + bytes.Index(c.src[t.off:t.end], []byte("-->"))
				return &LayoutError{lineAt(c.src, at), "a comment ends here that did not begin: a comment inside a commented section, or a marker edited by hand"}
			}
			continue
		}
		inner := c.src[t.off+4 : t.end-3]
		lead := len(inner) - len(bytes.TrimLeft(inner, " \t"))
		body := inner[lead:]
		line := lineAt(c.src, t.off)
		switch {
		case bytes.Equal(bytes.TrimSpace(inner), startWords):
			if open >= 0 {
				return &LayoutError{line, fmt.Sprintf("a second cluster start, the section of line %d has no end yet", lineAt(c.src, c.toks[open].off))}
			}
			open = i
		case bytes.Equal(bytes.TrimSpace(inner), endWords):
			if open < 0 {
				return &LayoutError{line, "cluster end without a cluster start"}
			}
			o := c.toks[open]
			c.sections = append(c.sections, section{
				active:   true,
				word:     o.off + bytes.Index(c.src[o.off:], startWords) + len(startWords),
				close:    t.off + bytes.Index(c.src[t.off:], endWords),
				openTok:  open,
				closeTok: i,
			})
			open = -1
		case bytes.HasPrefix(body, startWords):
			word := t.off + 4 + lead + len(startWords)
			if rest := bytes.TrimLeft(c.src[word:t.end-3], " \t"); len(rest) == 0 || (rest[0] != '\n' && rest[0] != '\r') {
				if len(rest) > 0 && isNameByte(c.src[word]) {
					continue // "cluster started": prose
				}
				return &LayoutError{line, "text behind the opening marker of a cluster section"}
			}
			if open >= 0 {
				return &LayoutError{line, fmt.Sprintf("a cluster section inside the one of line %d", lineAt(c.src, c.toks[open].off))}
			}
			if n := bytes.Index(inner, []byte("<!--")); n >= 0 {
				return &LayoutError{lineAt(c.src, t.off+4+n), "a comment inside a commented cluster section: XML cannot nest comments; remove it"}
			}
			trimmed := bytes.TrimRight(inner, " \t\r\n")
			if !bytes.HasSuffix(trimmed, endWords) {
				return &LayoutError{line, "this cluster section does not end in `cluster end -->`"}
			}
			c.sections = append(c.sections, section{
				word:     word,
				close:    t.off + 4 + len(trimmed) - len(endWords),
				openTok:  i,
				closeTok: i,
			})
		case bytes.HasSuffix(bytes.TrimSpace(inner), endWords) && bytes.ContainsAny(inner, "\n\r"):
			return &LayoutError{lineAt(c.src, t.end-1), "cluster end closes a comment that is no cluster section"}
		}
	}
	if open >= 0 {
		return &LayoutError{lineAt(c.src, c.toks[open].off), "this cluster section has no end"}
	}
	for i, s := range c.sections {
		if s.active != c.sections[0].active {
			word := map[bool]string{true: "active", false: "commented out"}
			return &LayoutError{c.sectionLine(i), fmt.Sprintf("cluster sections disagree: this one is %s, the one of line %d is %s",
				word[s.active], c.sectionLine(0), word[c.sections[0].active])}
		}
	}
	return nil
}

func isNameByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '-'
}

// Mode returns the mode of the sections or, without any, the presence of the bean tomcat.cluster.
func (c *Container) Mode() Mode { return c.mode }

// Marked reports whether the file has marked sections.
func (c *Container) Marked() bool { return len(c.sections) > 0 }

// Spans returns the edits by offset.
func (c *Container) Spans() []Span { return c.spans }

// Bytes returns the edited file.
func (c *Container) Bytes() []byte {
	out, err := applySpans(c.src, c.spans)
	if err != nil {
		panic("conf: " + err.Error()) // our scan gives no overlaps
	}
	return out
}

// SetMode toggles every section, and verifies by parsing that nothing else changes. It returns [ErrUnmarked] or,
// if commenting a section out is not valid XML, a [*LayoutError]. The standalone form is that of a release,
// without trailing blanks of the vendor's script.
func (c *Container) SetMode(m Mode) error {
	if m == c.mode {
		return nil
	}
	if !c.Marked() {
		return ErrUnmarked
	}
	var spans []Span
	for i, s := range c.sections {
		anchor := fmt.Sprintf("section:%d", i+1)
		if m == ModeCluster {
			blanks := s.word
			for isBlank(c.src[blanks]) {
				blanks++
			}
			spans = append(spans,
				c.span(anchor+":start", s.word, blanks, " -->"),
				c.span(anchor+":end", s.close, s.close, "<!-- "))
			continue
		}
		open, end := c.toks[s.openTok], c.toks[s.closeTok]
		if n := bytes.Index(c.src[open.end:end.off], []byte("--")); n >= 0 {
			at := open.end + n
			msg := "`--` inside a cluster section: XML allows it nowhere in a comment, so the section cannot be commented out"
			if bytes.HasPrefix(c.src[max(at-2, 0):], []byte("<!--")) {
				msg = "a comment inside a cluster section: XML cannot nest comments, so the section cannot be commented out; remove it"
			}
			return &LayoutError{lineAt(c.src, at), msg}
		}
		tail := open.end
		for tail < end.off && isBlank(c.src[tail]) {
			tail++
		}
		if tail < end.off && c.src[tail] != '\n' && c.src[tail] != '\r' {
			return &LayoutError{lineAt(c.src, tail), "text behind the opening marker of a cluster section"}
		}
		spans = append(spans,
			c.span(anchor+":start", s.word, tail, ""),
			c.span(anchor+":end", end.off, s.close, ""))
	}
	out, err := applySpans(c.src, spans)
	if err != nil {
		return err
	}
	if err := proveMode(c.src, out, m); err != nil {
		return err
	}
	c.addSpans(spans)
	return nil
}

func (c *Container) span(anchor string, off, end int, repl string) Span {
	return Span{Anchor: anchor, Off: off, Old: c.src[off:end], New: []byte(repl)}
}

func (c *Container) addSpans(spans []Span) {
	c.spans = append(c.spans, spans...)
	sortSpans(c.spans)
}

// remoteIPValve takes the client's address from X-Forwarded-For. Azure's Application Gateway writes ip:port there,
// which AMS answers with 403.
const remoteIPValve = "org.apache.catalina.valves.RemoteIpValve"

// anchorValve marks spans that remove the valve.
const anchorValve = "valve:RemoteIpValve"

// HasRemoteIPValve reports whether a RemoteIpValve bean is live.
func (c *Container) HasRemoteIPValve() bool {
	doc, err := readBeans(c.src)
	return err == nil && doc.hasClass(remoteIPValve)
}

// RemoveRemoteIPValve removes every live RemoteIpValve bean, with its line if that is then empty.
func (c *Container) RemoveRemoteIPValve() error {
	var spans []Span
	for i := 0; i < len(c.toks); i++ {
		t := c.toks[i]
		if t.kind != tokTag || !isBeanOf(c.src[t.off:t.end], remoteIPValve) {
			continue
		}
		last, err := c.elementEnd(i)
		if err != nil {
			return err
		}
		off, end := t.off, c.toks[last].end
		for off > 0 && isBlank(c.src[off-1]) {
			off--
		}
		after := end
		for after < len(c.src) && isBlank(c.src[after]) {
			after++
		}
		alone := (off == 0 || c.src[off-1] == '\n' || c.src[off-1] == '\r') && (after == len(c.src) || c.src[after] == '\n' || c.src[after] == '\r')
		if alone {
			end = after
			if end < len(c.src) && c.src[end] == '\r' {
				end++
			}
			if end < len(c.src) && c.src[end] == '\n' {
				end++
			}
		} else {
			off = t.off
		}
		spans = append(spans, c.span(anchorValve, off, end, ""))
		i = last
	}
	if len(spans) == 0 {
		return nil
	}
	out, err := applySpans(c.src, append(spans, c.spans...))
	if err != nil {
		return err
	}
	before, err := applySpans(c.src, c.spans)
	if err != nil {
		return err
	}
	if err := proveRemoved(before, out, remoteIPValve); err != nil {
		return err
	}
	c.addSpans(spans)
	return nil
}

// elementEnd returns the token that closes the element of token i.
func (c *Container) elementEnd(i int) (int, error) {
	depth := 0
	for j := i; j < len(c.toks); j++ {
		t := c.toks[j]
		if t.kind != tokTag {
			continue
		}
		tag := c.src[t.off:t.end]
		switch {
		case bytes.HasPrefix(tag, []byte("</")):
			depth--
		case !bytes.HasSuffix(tag, []byte("/>")):
			depth++
		}
		if depth <= 0 {
			return j, nil
		}
	}
	return 0, &SyntaxError{lineAt(c.src, c.toks[i].off), "this element is never closed"}
}

func isBeanOf(tag []byte, class string) bool {
	if !bytes.HasPrefix(tag, []byte("<bean")) {
		return false
	}
	return bytes.Contains(tag, []byte(`"`+class+`"`)) || bytes.Contains(tag, []byte(`'`+class+`'`))
}
