// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Kind is what a text is.
type Kind string

// The kinds.
const (
	UserData Kind = "user-data" // a script or a cloud-config
	HAProxy  Kind = "haproxy"
	Mongod   Kind = "mongod"
)

// Kinds lists them.
func Kinds() []Kind { return []Kind{UserData, HAProxy, Mongod} }

// The ids of what is found.
const (
	IDSwitch    = "AMS-LINT-SWITCH"    // the vendor's script, asked in a way that it cancels
	IDRestart   = "AMS-LINT-RESTART"   // a restart of the server that a join has just verified
	IDPassword  = "AMS-LINT-PASSWORD"  // a password on a command line
	IDSecret    = "AMS-LINT-SECRET"    // a secret in user data
	IDCurl      = "AMS-LINT-CURL"      // an error page that is run
	IDHeader    = "AMS-LINT-HEADER"    // cloud-init does not know what it is
	IDCRLF      = "AMS-LINT-CRLF"      // line ends of Windows
	IDOpen      = "AMS-LINT-MONGOD"    // a database for everybody
	IDDuplicate = "AMS-LINT-DUPLICATE" // one server twice
	IDReqAdd    = "AMS-LINT-REQADD"    // what HAProxy does not know any more
	IDEncoding  = "AMS-LINT-ENCODING"  // two bytes for each letter
	IDYAML      = "AMS-LINT-YAML"      // what no reader of YAML takes
)

// IDs lists them.
func IDs() []string {
	return []string{IDSwitch, IDRestart, IDPassword, IDSecret, IDCurl, IDHeader, IDCRLF, IDOpen, IDDuplicate, IDReqAdd, IDEncoding, IDYAML}
}

// Finding is one thing that is wrong.
type Finding struct {
	ID string `json:"id"`
	// Line counts from 1; 0 is the whole text.
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// Fixed tells that the corrected text has it no more.
	Fixed bool `json:"fixed"`
}

// Result is what was found, and the corrected text.
type Result struct {
	Kind     Kind
	Findings []Finding
	// Source is what was read, and Text what is made of it: the same where nothing
	// could be corrected. They differ from what was given where that is UTF-16.
	Source, Text []byte
	// Secrets are what must not be shown of it.
	Secrets []string
}

var (
	haproxySection = regexp.MustCompile(`(?m)^[ \t]*(global|defaults|frontend|backend|listen)([ \t]+\S+)?[ \t]*\r?$`)
	haproxyWord    = regexp.MustCompile(`(?m)^[ \t]*(server[ \t]+\S+[ \t]+\S+|bind[ \t]+\S+|default_backend[ \t]+\S+|mode[ \t]+(http|tcp))`)
	mongodWord     = regexp.MustCompile(`(?m)^(storage|systemLog|net|processManagement|replication|security):[ \t]*([#{].*)?\r?$|^[ \t]*bind_ip[ \t]*=`)
)

// Recognize tells what a text is, by what stands in it.
func Recognize(src []byte) Kind {
	if text, ok := utf16Text(src); ok {
		src = text
	}
	head := bytes.TrimLeft(bytes.TrimPrefix(src, []byte("\xef\xbb\xbf")), " \t\r\n")
	switch {
	case bytes.HasPrefix(head, []byte("#!")), bytes.HasPrefix(head, []byte("#cloud-config")):
		return UserData
	case haproxySection.Match(src) && haproxyWord.Match(src):
		return HAProxy
	case mongodWord.Match(src):
		return Mongod
	}
	return UserData
}

// Check reads a text that is opened; see [Open]. What is ignored is neither found nor
// corrected.
func Check(kind Kind, src []byte, ignore ...string) Result {
	d := &document{kind: kind, ignore: ignore}
	text, wide := utf16Text(src)
	switch {
	case !wide:
		text = src
	case d.wants(IDEncoding):
		d.find(IDEncoding, -1, true, "it is UTF-16, two bytes for each letter: what is to read it sees no word of it", "save it as UTF-8, without a mark at its begin")
	}
	d.read(text)
	switch kind {
	case HAProxy:
		d.haproxy()
	case Mongod:
		d.mongod()
	case UserData:
		d.userData()
	}
	r := Result{Kind: kind, Findings: d.findings, Source: text, Text: src, Secrets: d.secrets}
	sort.SliceStable(r.Findings, func(i, j int) bool { return r.Findings[i].Line < r.Findings[j].Line })
	if d.changed {
		r.Text = d.text()
	}
	return r
}

// document is a text under correction.
type document struct {
	kind     Kind
	ignore   []string
	lines    []line
	bom      bool
	eol      string
	open     bool // the last line has no end
	changed  bool
	findings []Finding
	secrets  []string
}

// line is one line of the source, and what it becomes.
type line struct {
	text string
	// before and after are lines that are added around it; gone takes it away.
	before, after []string
	gone          bool
}

func (d *document) read(src []byte) {
	src, d.bom = bytes.CutPrefix(src, []byte("\xef\xbb\xbf"))
	text := string(src)
	d.eol = "\n"
	switch {
	case strings.Contains(text, "\r\n"):
		d.eol = "\r\n"
	case strings.Contains(text, "\r") && !strings.Contains(text, "\n"):
		// As the first Macs had it.
		d.eol = "\r"
		text = strings.ReplaceAll(text, "\r", "\n")
	}
	d.open = !strings.HasSuffix(text, "\n")
	for l := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		d.lines = append(d.lines, line{text: strings.TrimSuffix(l, "\r")})
	}
}

func (d *document) text() []byte {
	var out []string
	for _, l := range d.lines {
		out = append(out, l.before...)
		if !l.gone {
			out = append(out, l.text)
		}
		out = append(out, l.after...)
	}
	text := strings.Join(out, d.eol)
	if !d.open {
		text += d.eol
	}
	if d.bom {
		text = "\xef\xbb\xbf" + text
	}
	return []byte(text)
}

// wants reports whether something is to be found, and corrected.
func (d *document) wants(id string) bool { return !slices.Contains(d.ignore, id) }

// find notes what is wrong with a line (from 0; -1 is the whole).
func (d *document) find(id string, at int, fixed bool, text, hint string) {
	d.findings = append(d.findings, Finding{ID: id, Line: at + 1, Text: text, Hint: hint, Fixed: fixed})
	d.changed = d.changed || fixed
}

// indent is the white space before a line.
func indent(s string) string { return s[:len(s)-len(strings.TrimLeft(s, " \t"))] }

// comment reports whether nothing on a line is read.
func comment(s string) bool {
	s = strings.TrimSpace(s)
	return s == "" || strings.HasPrefix(s, "#")
}
