// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	section = regexp.MustCompile(`^[ \t]*(global|defaults|frontend|backend|listen|userlist|peers|resolvers|cache|program|mailers|ring)\b`)
	// server NAME ADDRESS …
	serverLine = regexp.MustCompile(`^[ \t]*server[ \t]+(\S+)[ \t]+(\S+)`)
	// use-server NAME, track BACKEND/NAME, srv_is_up(BACKEND/NAME)
	serverUse = regexp.MustCompile(`\buse-server[ \t]+(\S+)|\btrack[ \t]+(?:\S+/)?(\S+)|\([^()]*?([^()/, \t]+)\)`)
	// The commands that went away with HAProxy 2.1; what they are called now.
	headerLine = regexp.MustCompile(`^([ \t]*)(reqadd|rspadd)[ \t]+(.*)$`)
	goneLine   = regexp.MustCompile(`^[ \t]*(req|rsp)(i?(?:rep|del|allow|deny|tarpit|pass|setbe))\b`)
	condition  = regexp.MustCompile(`[ \t]+(if|unless)[ \t].*$`)
)

// haproxy finds what guides of Ant Media Server's clusters have in their haproxy.cfg.
func (d *document) haproxy() {
	type server struct {
		line int
		name string
	}
	addresses := map[string]server{}
	for i := range d.lines {
		l := &d.lines[i]
		if comment(l.text) {
			continue
		}
		if section.MatchString(l.text) {
			addresses = map[string]server{}
		}
		if m := serverLine.FindStringSubmatch(l.text); m != nil && d.wants(IDDuplicate) {
			if first, dup := addresses[m[2]]; dup {
				// Who is named elsewhere cannot go: HAProxy would not start.
				fixed := !d.names(m[1], i)
				d.find(IDDuplicate, i, fixed, fmt.Sprintf("server %s has the address of server %s in line %d: one node gets the load of two, and the other none", m[1], first.name, first.line),
					"give it the address of another node")
				if !fixed {
					continue
				}
				l.before = append(l.before, indent(l.text)+"# the address of another node belongs here: "+m[2]+" is that of line "+strconv.Itoa(first.line))
				l.text = indent(l.text) + "#" + strings.TrimLeft(l.text, " \t")
				continue
			}
			addresses[m[2]] = server{i + 1, m[1]}
		}
		if !d.wants(IDReqAdd) {
			continue
		}
		if m := headerLine.FindStringSubmatch(l.text); m != nil {
			text, ok := addHeader(m[2], m[3])
			d.find(IDReqAdd, i, ok, m[2]+" went away with HAProxy 2.1: it does not start with it", "http-request set-header, http-response set-header")
			if ok {
				l.text = m[1] + text
			}
		} else if m := goneLine.FindStringSubmatch(l.text); m != nil {
			d.find(IDReqAdd, i, false, m[1]+m[2]+" went away with HAProxy 2.1: it does not start with it", "http-request and http-response have replace-header, del-header, deny and more")
		}
	}
}

// names reports whether another line speaks of a server by its name.
func (d *document) names(server string, but int) bool {
	for i, l := range d.lines {
		if i == but || comment(l.text) {
			continue
		}
		for _, m := range serverUse.FindAllStringSubmatch(l.text, -1) {
			if slices.Contains(m[1:], server) {
				return true
			}
		}
	}
	return false
}

// addHeader says what reqadd and rspadd said: a header, escaped for HAProxy's words,
// and perhaps a condition.
func addHeader(command, rest string) (string, bool) {
	cond := condition.FindString(rest)
	rest = strings.TrimSpace(strings.TrimSuffix(rest, cond))
	name, value, ok := strings.Cut(strings.NewReplacer(`\ `, " ", `\:`, ":").Replace(strings.Trim(rest, `"`)), ":")
	value = strings.TrimSpace(value)
	if !ok || name == "" || value == "" || strings.ContainsAny(name, " \t\\") || strings.ContainsAny(value, `"\`) {
		return "", false
	}
	// A percent sign begins a variable there.
	value = strings.ReplaceAll(value, "%", "%%")
	if strings.ContainsAny(value, " \t#'") {
		value = `"` + value + `"`
	}
	rule := "http-request"
	if command == "rspadd" {
		rule = "http-response"
	}
	// Not add-header, which reqadd was: a client may send the header, too, and the
	// server would read the client's.
	return rule + " set-header " + name + " " + value + strings.TrimRight(cond, " \t"), true
}

var (
	bindAll   = regexp.MustCompile(`^[ \t]+bindIp:[ \t]*["']?[^#]*(?:0\.0\.0\.0|::(?:[,\s"']|$)|\*)`)
	bindFlag  = regexp.MustCompile(`^[ \t]+bindIpAll:[ \t]*true\b`)
	iniBind   = regexp.MustCompile(`^[ \t]*bind_ip[ \t]*=[ \t]*(?:.*0\.0\.0\.0|.*::(?:,|\s|$))|^[ \t]*bind_ip_all[ \t]*=[ \t]*true`)
	iniAuth   = regexp.MustCompile(`^[ \t]*(auth[ \t]*=[ \t]*true|keyFile[ \t]*=)`)
	iniNoAuth = regexp.MustCompile(`^[ \t]*(auth[ \t]*=[ \t]*false|noauth[ \t]*=[ \t]*true)`)
	iniLine   = regexp.MustCompile(`^[ \t]*[A-Za-z_.]+[ \t]*=`)
	topKey    = regexp.MustCompile(`^[A-Za-z#][A-Za-z]*:`)
	authOn    = regexp.MustCompile(`^[ \t]+(authorization:[ \t]*["']?enabled|keyFile:|clusterAuthMode:)`)
	authOff   = regexp.MustCompile(`^([ \t]+authorization:[ \t]*)["']?disabled["']?`)
	security  = regexp.MustCompile(`^security:[ \t]*(#.*)?$`)
	securityC = regexp.MustCompile(`^#[ \t]*security:[ \t]*$`)
)

// mongod finds a database that everybody on the network reads and deletes.
func (d *document) mongod() {
	// The old form is no YAML.
	if !slices.ContainsFunc(d.lines, func(l line) bool { return iniLine.MatchString(l.text) }) {
		d.yaml("mongod does not start with it")
	}
	if !d.wants(IDOpen) {
		return
	}
	open, off, at, commented, last := -1, -1, -1, -1, -1
	ini := false
	for i, l := range d.lines {
		switch {
		case authOn.MatchString(l.text), iniAuth.MatchString(l.text):
			return
		case securityC.MatchString(l.text):
			commented = i
		case comment(l.text):
			continue
		case iniBind.MatchString(l.text):
			open, ini = i, true
		case bindAll.MatchString(l.text), bindFlag.MatchString(l.text):
			open = i
		case authOff.MatchString(l.text), iniNoAuth.MatchString(l.text):
			off = i
		case security.MatchString(l.text):
			at = i
		}
		last = i
	}
	if open < 0 {
		if at, text := d.flow(); at > 0 {
			d.find(IDOpen, at-1, false, text, openHint)
		}
		return
	}
	fixed := true
	switch {
	case ini && off >= 0:
		d.lines[off].text = "auth = true"
	case ini:
		d.lines[open].after = append(d.lines[open].after, "auth = true")
	case off >= 0:
		d.lines[off].text = authOff.ReplaceAllString(d.lines[off].text, "${1}enabled")
	case at >= 0:
		d.lines[at].after = append(d.lines[at].after, d.depth(at)+"authorization: enabled")
	case commented >= 0:
		d.lines[commented].text = "security:"
		d.lines[commented].after = append(d.lines[commented].after, "  authorization: enabled")
	case topKey.MatchString(firstText(d.lines)) || last >= 0:
		d.lines[len(d.lines)-1].after = append(d.lines[len(d.lines)-1].after, "security:", "  authorization: enabled")
	default:
		fixed = false
	}
	d.find(IDOpen, open, fixed, openText, openHint)
}

const (
	openText = "MongoDB listens on every address and asks nobody for a password: whoever reaches the port reads and deletes all of it"
	openHint = "authorization first, then make a user over the loopback, which MongoDB allows once; better the private address in place of 0.0.0.0"
)

// flow finds the same where it is not written line by line: net: {bindIp: 0.0.0.0}.
func (d *document) flow() (line int, text string) {
	var c struct {
		Net struct {
			BindIP    yaml.Node `yaml:"bindIp"`
			BindIPAll yaml.Node `yaml:"bindIpAll"`
		} `yaml:"net"`
		Security struct {
			Authorization   string `yaml:"authorization"`
			KeyFile         string `yaml:"keyFile"`
			ClusterAuthMode string `yaml:"clusterAuthMode"`
		} `yaml:"security"`
	}
	if yaml.Unmarshal(d.text(), &c) != nil || c.Security.Authorization == "enabled" || c.Security.KeyFile != "" || c.Security.ClusterAuthMode != "" {
		return 0, ""
	}
	for a := range strings.SplitSeq(c.Net.BindIP.Value, ",") {
		if a = strings.TrimSpace(a); a == "0.0.0.0" || a == "::" || a == "*" {
			return min(c.Net.BindIP.Line, len(d.lines)), openText
		}
	}
	if c.Net.BindIPAll.Value == "true" {
		return min(c.Net.BindIPAll.Line, len(d.lines)), openText
	}
	return 0, ""
}

// yaml finds what no reader of YAML takes. Tabs at the begin of a line are what is wrong
// most often, and they can be corrected.
func (d *document) yaml(harm string) {
	if !d.wants(IDYAML) {
		return
	}
	parse := func() error {
		var n yaml.Node
		return yaml.Unmarshal(d.text(), &n)
	}
	err := parse()
	if err == nil {
		return
	}
	const hint = "blanks and no tabs before a word, two more for each level"
	first := -1
	was := slices.Clone(d.lines)
	for i := range d.lines {
		l := &d.lines[i]
		if in := indent(l.text); strings.Contains(in, "\t") && !comment(l.text) {
			if first < 0 {
				first = i
			}
			l.text = strings.ReplaceAll(in, "\t", "  ") + l.text[len(in):]
		}
	}
	if first >= 0 && parse() == nil {
		d.find(IDYAML, first, true, "a tab stands before the first word of a line: YAML takes none, and "+harm, hint)
		return
	}
	d.lines = was
	at := 0
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		at, _ = strconv.Atoi(m[1])
	}
	d.find(IDYAML, min(at, len(d.lines))-1, false, "it is no YAML, here or a line before or after it, and "+harm, hint)
}

var yamlLine = regexp.MustCompile(`\bline (\d+):`)

// depth is how far the keys below a line are indented.
func (d *document) depth(at int) string {
	for _, l := range d.lines[at+1:] {
		if comment(l.text) {
			continue
		}
		if in := indent(l.text); in != "" {
			return in
		}
		break
	}
	return "  "
}

func firstText(lines []line) string {
	for _, l := range lines {
		if !comment(l.text) {
			return l.text
		}
	}
	return ""
}
