// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

// roff writes man(7): the macros that groff and mandoc agree on, and no others.
type roff struct {
	b            bytes.Buffer
	title, short string
	names        []string
	start        int
}

// name writes the line by which whatis(1) finds the page, anew where there are more names now.
func (r *roff) name() {
	r.b.Truncate(r.start)
	r.section("NAME")
	names := []string{escape(r.title)}
	for _, n := range r.names {
		names = append(names, escape(n))
	}
	r.b.WriteString(strings.Join(names, ",\n") + ` \- ` + escape(r.short) + "\n")
}

func (r *roff) bytes() []byte { return r.b.Bytes() }

func (r *roff) section(title string) { r.b.WriteString(".SH " + title + "\n") }

// line writes roff that is escaped already.
func (r *roff) line(s string) { r.b.WriteString(s + "\n") }

// item is a term with what it means. head is escaped already.
func (r *roff) item(head, text string) {
	r.b.WriteString(".TP\n" + head + "\n")
	first := true
	for part := range strings.SplitSeq(text, "\n\n") {
		switch {
		case strings.HasPrefix(part, "  "):
			r.b.WriteString(".IP\n")
			r.verbatim(part)
			continue
		case !first:
			r.b.WriteString(".IP\n")
		}
		r.b.WriteString(inline(part) + "\n")
		first = false
	}
}

// prose writes paragraphs, which blank lines divide. One that is indented stays as it is.
func (r *roff) prose(text string) {
	for part := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		switch {
		case part == "":
		case strings.HasPrefix(part, "  "):
			r.literal(part)
		default:
			r.paragraph()
			// A list right below its sentence.
			lines := strings.Split(part, "\n")
			for i, l := range lines {
				if strings.HasPrefix(l, "  ") {
					r.b.WriteString(inline(strings.Join(lines[:i], "\n")) + "\n")
					r.literal(strings.Join(lines[i:], "\n"))
					lines = nil
					break
				}
			}
			if lines != nil {
				r.b.WriteString(inline(part) + "\n")
			}
		}
	}
}

// paragraph begins one. The first of a section has its distance already.
func (r *roff) paragraph() {
	text := strings.TrimSuffix(r.b.String(), "\n")
	if !strings.HasPrefix(text[strings.LastIndex(text, "\n")+1:], ".SH ") {
		r.b.WriteString(".PP\n")
	}
}

// literal keeps lines as they are, indented.
func (r *roff) literal(text string) {
	r.paragraph()
	r.b.WriteString(".RS 4\n")
	r.verbatim(text)
	r.b.WriteString(".RE\n")
}

func (r *roff) verbatim(text string) {
	r.b.WriteString(".nf\n")
	for line := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		if line = strings.TrimPrefix(line, "  "); line == "" {
			r.b.WriteString(`\&` + "\n")
			continue
		}
		r.b.WriteString(guard(escape(line)) + "\n")
	}
	r.b.WriteString(".fi\n")
}

func (r *roff) flags(flags []cli.FlagReference) {
	for _, f := range flags {
		head := bold("--" + f.Name)
		if f.Letter != "" {
			head = bold("-"+f.Letter) + ", " + head
		}
		if f.Arg != "" {
			head += " " + italic(f.Arg)
		}
		text := f.Help
		if f.Default != "" && !strings.Contains(text, "default") {
			text += " (default " + f.Default + ")"
		}
		r.item(head, text)
	}
}

func (r *roff) exits(exits []cli.ExitReference) {
	for _, e := range exits {
		r.item(bold(strconv.Itoa(e.Code)), e.Meaning)
	}
}

func bold(s string) string   { return `\fB` + escape(s) + `\fR` }
func italic(s string) string { return `\fI` + escape(s) + `\fR` }

// reference names another page.
func reference(name, section string) string { return bold(name) + "(" + section + ")" }

var (
	code = regexp.MustCompile("`([^`]+)`")
	// page is another page: what a reader may want to open.
	page = regexp.MustCompile(`\b([a-z][a-z.-]*[a-z])\(([1-8])\)`)
)

// inline escapes a text, in which `code` is bold, as names of pages are.
func inline(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	var b strings.Builder
	last := 0
	for _, m := range code.FindAllStringSubmatchIndex(text, -1) {
		b.WriteString(pages(text[last:m[0]]))
		b.WriteString(bold(text[m[2]:m[3]]))
		last = m[1]
	}
	b.WriteString(pages(text[last:]))
	lines := fold(b.String(), 78)
	for i := range lines {
		lines[i] = guard(lines[i])
	}
	return strings.Join(lines, "\n")
}

func pages(text string) string {
	return page.ReplaceAllStringFunc(escape(text), func(s string) string {
		m := page.FindStringSubmatch(s)
		return `\fB` + m[1] + `\fR(` + m[2] + ")"
	})
}

var escapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// escape makes text of what roff would take for its own. Every hyphen is the one that can be typed: these pages are
// about commands, and people copy them.
func escape(s string) string { return escapes.Replace(s) }

// guard keeps a line that begins like a request from being one.
func guard(line string) string {
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}

// fold breaks a text at blanks, into lines of at most so many characters.
func fold(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
