// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
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

const (
	// clusterBean makes the server a node.
	clusterBean = "tomcat.cluster"
	// clusterValve serves other nodes' HTTP streams. Every release with marked sections has it in one.
	clusterValve = "io.antmedia.enterprise.cluster.HttpLiveStreamValve"
	// remoteIPValve takes the client's address from X-Forwarded-For. Azure's Application Gateway writes ip:port there,
	// which AMS answers with 403.
	remoteIPValve = "org.apache.catalina.valves.RemoteIpValve"
	// anchorValve marks spans that remove the valve.
	anchorValve = "valve:RemoteIpValve"
)

var (
	startWords = []byte("cluster start")
	endWords   = []byte("cluster end")
)

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
	// body and bodyEnd bound the beans: outside of an active section's markers.
	body, bodyEnd int
}

// ParseContainer finds the cluster sections. Its errors are a [*SyntaxError] for invalid XML and a [*LayoutError]
// for sections that are unpaired, in different states, or inactive with a nested comment. A file without sections
// is valid.
func ParseContainer(src []byte) (*Container, error) {
	c := &Container{src: bytes.Clone(src)}
	var err error
	if c.toks, err = parseXML(c.src); err != nil {
		return nil, err
	}
	if err := c.findSections(); err != nil {
		return nil, err
	}
	c.mode = modeOf(c.toks)
	for _, s := range c.sections {
		first := c.sections[0]
		if s.active != first.active {
			word := map[bool]string{true: "active", false: "commented out"}
			return nil, c.layout(s.word, "cluster sections disagree: this one is %s, the one of line %d is %s",
				word[s.active], lineAt(c.src, first.word), word[first.active])
		}
	}
	if c.Marked() && c.sections[0].active != (c.mode == ModeCluster) {
		says := map[Mode]Mode{ModeCluster: ModeStandalone, ModeStandalone: ModeCluster}[c.mode]
		return nil, c.layout(c.sections[0].word, "the marked sections say %s, but bean %s makes it %s", says, clusterBean, c.mode)
	}
	return c, nil
}

func modeOf(toks []xmlToken) Mode {
	if countBeans(toks, clusterBean) > 0 {
		return ModeCluster
	}
	return ModeStandalone
}

func (c *Container) layout(off int, format string, args ...any) *LayoutError {
	return &LayoutError{lineAt(c.src, off), fmt.Sprintf(format, args...)}
}

// findSections pairs the markers.
func (c *Container) findSections() error {
	var open *section // an active start marker without an end so far
	for _, t := range c.toks {
		raw := c.src[t.off:t.end]
		if n := bytes.Index(raw, []byte("-->")); n >= 0 && t.kind == isText && !bytes.HasPrefix(raw, []byte("<![CDATA[")) {
			return c.layout(t.off+n, "a comment ends here that did not begin: a comment inside a commented section, or a marker edited by hand")
		}
		if t.kind != isComment {
			continue
		}
		word := t.off + bytes.Index(raw, startWords) + len(startWords)
		last := t.off + bytes.LastIndex(raw, endWords)
		behind, begins := strings.CutPrefix(strings.TrimLeft(t.text, " \t"), string(startWords))
		line := strings.TrimLeft(behind, " \t")
		_, commented := sectionText(t.text)
		switch text := strings.TrimSpace(t.text); {
		case text == string(startWords) && open != nil:
			return c.layout(t.off, "a second cluster start, the section of line %d has no end yet", lineAt(c.src, open.word))
		case text == string(startWords):
			open = &section{active: true, word: word, body: t.end}
		case text == string(endWords) && open == nil:
			return c.layout(t.off, "cluster end without a cluster start")
		case text == string(endWords):
			open.bodyEnd, open.close = t.off, last
			c.sections, open = append(c.sections, *open), nil
		case begins && isNameByte(behind[0]): // "cluster started": prose
		case begins && line[0] != '\n' && line[0] != '\r':
			return c.layout(t.off, "text behind the opening marker of a cluster section")
		case begins && open != nil:
			return c.layout(t.off, "a cluster section inside the one of line %d", lineAt(c.src, open.word))
		case commented:
			c.sections = append(c.sections, section{word: word, close: last, body: word, bodyEnd: last})
		case begins:
			return c.layout(t.off, "this cluster section does not end in `cluster end -->`")
		case strings.HasSuffix(text, string(endWords)) && strings.ContainsAny(t.text, "\n\r"):
			return c.layout(t.end-1, "cluster end closes a comment that is no cluster section")
		}
	}
	if open != nil {
		return c.layout(open.word, "this cluster section has no end")
	}
	return nil
}

func isNameByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '-'
}

// Mode returns the mode: cluster if the bean tomcat.cluster is live.
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
// without trailing whitespace of the vendor's script.
func (c *Container) SetMode(m Mode) error {
	if m == c.mode {
		return nil
	}
	if !c.Marked() {
		return ErrUnmarked
	}
	open, end := "", ""
	if m == ModeCluster {
		open, end = " -->", "<!-- "
	}
	var spans []Span
	for i, s := range c.sections {
		body := c.src[s.body:s.bodyEnd]
		if n := bytes.Index(body, []byte("--")); n >= 0 {
			msg := "`--` inside a cluster section: XML allows it nowhere in a comment, so the section cannot be commented out"
			if bytes.HasSuffix(body[:n], []byte("<!")) {
				msg = "a comment inside a cluster section: XML cannot nest comments, so the section cannot be commented out; remove it"
			}
			return c.layout(s.body+n, "%s", msg)
		}
		text := bytes.TrimLeft(body, " \t\f")
		at := s.bodyEnd - len(text)
		if len(text) > 0 && text[0] != '\n' && text[0] != '\r' {
			return c.layout(at, "text behind the opening marker of a cluster section")
		}
		anchor := fmt.Sprintf("section:%d", i+1)
		spans = append(spans, c.span(anchor+":start", s.word, at, open), c.span(anchor+":end", s.bodyEnd, s.close, end))
	}
	return c.edit(spans, "", func(after []xmlToken) error {
		switch n := countBeans(after, clusterBean); {
		case (n > 0) != (m == ModeCluster):
			return &LayoutError{0, fmt.Sprintf("the marked sections hold no bean %s: toggling them does not make it %s", clusterBean, m)}
		case (countBeans(after, clusterValve) > 0) != (m == ModeCluster):
			return &LayoutError{0, fmt.Sprintf("the marked sections hold no bean of class %s: this is no cluster section of AMS", clusterValve)}
		case n > 1:
			return &LayoutError{0, fmt.Sprintf("bean %s would be defined %d times", clusterBean, n)}
		}
		return nil
	})
}

// edit adds spans if the result is valid and differs only in its sections and in beans of the class without.
func (c *Container) edit(spans []Span, without string, check func(after []xmlToken) error) error {
	spans = slices.Concat(c.spans, spans)
	sortSpans(spans)
	out, err := applySpans(c.src, spans)
	if err != nil {
		return err
	}
	after, err := parseXML(out)
	if err != nil {
		return fmt.Errorf("verifying the edit: %w", err)
	}
	if err := check(after); err != nil {
		return err
	}
	if err := proveEdit(c.Bytes(), out, without); err != nil {
		return err
	}
	c.spans = spans
	return nil
}

func (c *Container) span(anchor string, off, end int, repl string) Span {
	return Span{Anchor: anchor, Off: off, Old: c.src[off:end], New: []byte(repl)}
}

// HasRemoteIPValve reports whether a RemoteIpValve bean is live.
func (c *Container) HasRemoteIPValve() bool { return countBeans(c.toks, remoteIPValve) > 0 }

// RemoveRemoteIPValve removes every live RemoteIpValve bean, with its line if that is then empty.
func (c *Container) RemoveRemoteIPValve() error {
	var spans []Span
	for i := 0; i < len(c.toks); i++ {
		t := c.toks[i]
		if t.bean == nil || t.bean.class != remoteIPValve {
			continue
		}
		for depth := 1; depth > 0; {
			i++
			switch c.toks[i].kind {
			case isStart:
				depth++
			case isEnd:
				depth--
			}
		}
		off, end := c.wholeLine(t.off, c.toks[i].end)
		spans = append(spans, c.span(anchorValve, off, end, ""))
	}
	if len(spans) == 0 {
		return nil
	}
	return c.edit(spans, remoteIPValve, func([]xmlToken) error { return nil })
}

// wholeLine extends a span to its line if nothing else is on it.
func (c *Container) wholeLine(off, end int) (int, int) {
	before := len(bytes.TrimRight(c.src[:off], " \t\f"))
	rest := bytes.TrimLeft(c.src[end:], " \t\f")
	if before > 0 && c.src[before-1] != '\n' && c.src[before-1] != '\r' || len(rest) > 0 && rest[0] != '\n' && rest[0] != '\r' {
		return off, end
	}
	rest = bytes.TrimPrefix(bytes.TrimPrefix(rest, []byte{'\r'}), []byte{'\n'})
	return before, len(c.src) - len(rest)
}
