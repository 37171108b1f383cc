// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/redact"
)

const (
	schemePlain = "mongodb://"
	schemeSRV   = "mongodb+srv://"

	// maxTargetLen is far above any real connection string.
	maxTargetLen = 8 << 10
)

// Target is a connection string. Every way of printing it gives [Target.Redacted].
type Target struct {
	// fmt prints unexported fields without their methods, but follows only one pointer.
	p **target
}

type target struct {
	scheme   string // "" for a list of hosts
	user     string // percent-encoded, as password
	password string
	hosts    []string
	path     string // percent-encoded, with its slash
	options  []option
}

type option struct{ name, raw, value string }

// ParseTarget parses hosts with optional ports (IPv6 in brackets), or a mongodb:// or mongodb+srv:// URI.
//
// It refuses ambiguous strings and normalises others, so that AMS's Java driver, the Go driver and Spring agree:
//   - invalid URI characters are percent-encoded. This also disables Spring's ${…}.
//   - + in user name and password becomes %2B: old Java drivers read it as a space.
//   - / and ? in options become %2F and %3F: Java drivers before 3.7 expect the database after the last slash.
//   - a / is added before ?, empty options are dropped, ; becomes &, the scheme lower case.
//
// An error holds at most single characters of the string.
func ParseTarget(s string) (Target, error) {
	p := &target{}
	t := Target{p: &p}
	if err := cmp.Or(p.parse(s), t.checkPassword(), t.checkByDriver()); err != nil {
		return Target{}, err
	}
	return t, nil
}

// TargetError is an error in a connection string, without the string.
type TargetError struct {
	Where   string // such as "host, character 11"; "" is the whole
	Problem string
	Hint    string
}

func (e *TargetError) Error() string {
	s := "connection string"
	if e.Where != "" {
		s += ", " + e.Where
	}
	s += ": " + e.Problem
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

const (
	partPassword = "password"
	partOptions  = "options"
)

type piece struct {
	part string
	text string
	skip int // characters before it
}

func (p piece) slice(part string, from, to int) piece {
	return piece{part, p.text[from:to], p.skip + utf8.RuneCountInString(p.text[:from])}
}

func (p piece) errorAt(i int, problem, hint string) error {
	where := fmt.Sprintf("character %d", p.skip+utf8.RuneCountInString(p.text[:i])+1)
	if p.part != "" {
		where = p.part + ", " + where
	}
	return &TargetError{Where: where, Problem: problem, Hint: hint}
}

func (t *target) parse(given string) error {
	const blank = " \t\r\n"
	s := strings.Trim(given, blank)
	switch {
	case s == "":
		return &TargetError{Problem: "it is empty", Hint: "give an IP address, host:port or a mongodb:// URI"}
	case len(s) > maxTargetLen:
		return &TargetError{Problem: fmt.Sprintf("it is longer than %d bytes", maxTargetLen)}
	case !utf8.ValidString(s):
		return &TargetError{Problem: "it is not UTF-8 text"}
	}
	p := piece{text: s, skip: len(given) - len(strings.TrimLeft(given, blank))}
	if i := strings.IndexFunc(s, func(c rune) bool { return !unicode.IsGraphic(c) || unicode.IsSpace(c) }); i >= 0 {
		return p.errorAt(i, "there is a blank, a line end or another invisible character",
			"remove it, or percent-encode it in a password: a blank is %20")
	}
	scheme, _, found := strings.Cut(s, "://")
	if !found {
		if i := strings.IndexAny(s, "@/?#"); i >= 0 {
			return p.errorAt(i, "a user name, a database and options need a full URI",
				"write mongodb://USER:PASSWORD@HOST/DATABASE?OPTION=VALUE")
		}
		return t.parseHosts(p)
	}
	t.scheme = strings.ToLower(scheme) + "://"
	if t.scheme != schemeSRV && t.scheme != schemePlain {
		// Do not show the text: it may be a password.
		return p.slice("scheme", 0, len(s)).errorAt(0, "it is not a scheme of MongoDB",
			"MongoDB's URIs start with mongodb:// or mongodb+srv://")
	}
	return t.parseURI(p.slice("", len(t.scheme), len(s)))
}

// optionLike begins the options: a password may have a raw question mark.
var optionLike = regexp.MustCompile(`^[A-Za-z]+=`)

// endOfUser returns the last @ before the options, or -1: Azure's strings end in appName=@account@.
func endOfUser(rest string) int {
	if hosts, query, found := strings.Cut(rest, "?"); found && optionLike.MatchString(query) {
		return strings.LastIndexByte(hosts, '@')
	}
	return strings.LastIndexByte(rest, '@')
}

// afterUser is hosts, database and options.
var afterUser = regexp.MustCompile(`^([^/?]*)([^?]*)\??(.*)$`)

func (t *target) parseURI(p piece) error {
	if at := endOfUser(p.text); at >= 0 {
		if err := t.parseUserinfo(p.slice("", 0, at)); err != nil {
			return err
		}
		p = p.slice("", at+1, len(p.text))
	}
	if i := strings.IndexByte(p.text, '#'); i >= 0 {
		return p.errorAt(i, "there is a raw #", "percent-encode it: # is %23")
	}
	m := afterUser.FindStringSubmatchIndex(p.text)
	return cmp.Or(
		t.parseHosts(p.slice("", m[2], m[3])),
		t.parseDatabase(p.slice("database", m[4], m[5])),
		t.parseOptions(p.slice(partOptions, m[6], m[7])),
	)
}

// parseUserinfo refuses raw reserved characters: drivers would treat a part of the password as a host.
func (t *target) parseUserinfo(p piece) (err error) {
	name, password, _ := strings.Cut(p.text, ":")
	user := p.slice("user name", 0, len(name))
	if t.user, err = parseLogin(user); err != nil {
		return err
	}
	if name == "" {
		return user.errorAt(0, "it is missing", "write mongodb://USER:PASSWORD@HOST/")
	}
	t.password, err = parseLogin(p.slice(partPassword, len(p.text)-len(password), len(p.text)))
	return err
}

// notFilled matches Atlas's <password>, and asterisks (a real password can use %2A).
var notFilled = regexp.MustCompile(`^(?:\*+|<[A-Za-z0-9_ -]+>)$`)

func parseLogin(p piece) (raw string, err error) {
	if i := strings.IndexAny(p.text, "@/?#:"); i >= 0 {
		c := p.text[i]
		return "", p.errorAt(i, fmt.Sprintf("there is a raw %c", c),
			fmt.Sprintf("percent-encode it: %c is %%%02X (and an @ in an option is %%40)", c, c))
	}
	if notFilled.MatchString(p.text) {
		return "", p.errorAt(0, "it is a placeholder", "put the real one in")
	}
	raw, _, err = p.normalise(notInLogin)
	return raw, err
}

// Characters to percent-encode, in a login also +: see ParseTarget.
var (
	notInLogin    = regexp.MustCompile(`[^A-Za-z0-9%._~!$&'()*,;=-]`)
	notInDatabase = regexp.MustCompile(`[^A-Za-z0-9%._~!'()*,;+-]`)
	notInOption   = regexp.MustCompile(`[^A-Za-z0-9%._~!$'()*,=+:-]`)
)

var invalidEscape = regexp.MustCompile(`%(?:[^0-9A-Fa-f]|.[^0-9A-Fa-f]|.?$)`)

func (p piece) normalise(encode *regexp.Regexp) (raw, decoded string, err error) {
	if at := invalidEscape.FindStringIndex(p.text); at != nil {
		return "", "", p.errorAt(at[0], "% is not followed by two hexadecimal digits", "percent-encode it: % is %25")
	}
	raw = encode.ReplaceAllStringFunc(p.text, url.QueryEscape)
	unescape := url.PathUnescape
	if p.part == partOptions {
		unescape = url.QueryUnescape // both drivers read + as a space
	}
	if decoded, err = unescape(raw); err != nil || !utf8.ValidString(decoded) {
		return "", "", p.errorAt(0, "its percent-encoded bytes are not UTF-8",
			"encode the UTF-8 bytes of each character: é is %C3%A9")
	}
	return raw, decoded, nil
}

const label = `[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?`

// hostSyntax is [ADDRESS] or NAME with an optional port.
var hostSyntax = regexp.MustCompile(`^(?:\[([0-9A-Fa-f:.]+)\]|(` + label + `(?:\.` + label + `)*\.?))(:[^:]*)?$`)

func (t *target) parseHosts(p piece) error {
	t.hosts = strings.Split(p.text, ",")
	at := 0
	for _, h := range t.hosts {
		problem, hint := t.checkHost(h)
		if problem == invalidPort { // its value may be a password
			return p.slice("port", at+strings.LastIndex(h, ":")+1, len(p.text)).errorAt(0, problem, hint)
		}
		if problem != "" {
			return p.slice("host", at, len(p.text)).errorAt(0, problem, hint)
		}
		at += len(h) + 1
	}
	return nil
}

const invalidPort = "the port is not a number from 1 to 65535"

func (t *target) checkHost(s string) (problem, hint string) {
	if s == "" || s[0] == ':' {
		return "it is missing", "write HOST or HOST:PORT"
	}
	const invalid = "it is neither a host name nor an IP address"
	const write = "write HOST:PORT, an IPv6 address in brackets, an international name in its xn-- form"
	m := hostSyntax.FindStringSubmatch(s)
	if m == nil {
		return invalid, write
	}
	address, name, port := m[1], m[2], m[3]
	addr, err := netip.ParseAddr(address + name)
	isName := strings.Trim(name, "0123456789.") != ""
	number, portErr := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
	switch {
	case !isName && (err != nil || addr.Is6() != (address != "")):
		return invalid, write
	case addr.IsUnspecified():
		return "other machines cannot connect to this address", "give the server's own address"
	case t.scheme == schemeSRV && (len(t.hosts) > 1 || !isName || port != ""):
		return "mongodb+srv:// takes one host name without a port, DNS knows the servers", "write mongodb:// before a list, an address or a port"
	case port != "" && (portErr != nil || number == 0):
		return invalidPort, "if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"
	}
	return "", ""
}

func (t *target) parseDatabase(p piece) error {
	if p.text == "" {
		return nil
	}
	p = p.slice(p.part, len("/"), len(p.text))
	if i := strings.IndexAny(p.text, "&="); i >= 0 {
		return p.errorAt(i, fmt.Sprintf("there is a raw %c: an option has the wrong mark before it", p.text[i]),
			"write ? before the first option: HOST/DATABASE?OPTION=VALUE")
	}
	raw, decoded, err := p.normalise(notInDatabase)
	if err != nil {
		return err
	}
	if strings.ContainsAny(decoded, "/\\. \"$*<>:|?\x00") || len(decoded) > 63 {
		return p.errorAt(0, "it is not a name that MongoDB allows for a database", "percent-encode a / that belongs to the password: / is %2F")
	}
	t.path = "/" + raw
	return nil
}

var optionName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

func (t *target) parseOptions(p piece) error {
	end := -1
	for pair := range strings.SplitSeq(strings.ReplaceAll(p.text, ";", "&"), "&") {
		at := end + 1
		if end = at + len(pair); pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		raw, decoded, err := p.slice(p.part, end-len(value), end).normalise(notInOption)
		switch {
		case err != nil:
			return err
		case !optionName.MatchString(name) || decoded == "" && !strings.EqualFold(name, "readPreferenceTags"):
			return p.errorAt(at, "there is an option without a name or a value", "write OPTION=VALUE")
		}
		t.options = append(t.options, option{name, raw, decoded})
	}
	if len(t.options) > 0 && t.path == "" {
		t.path = "/"
	}
	return nil
}

func (t *target) render(redacted bool) string {
	s := t.user
	if t.password != "" && redacted {
		s += ":" + redact.Placeholder
	} else if t.password != "" {
		s += ":" + t.password
	}
	if t.user != "" {
		s += "@"
	}
	s += strings.Join(t.hosts, ",") + t.path
	for i, o := range t.options {
		value := o.raw
		if redacted && !o.isShown() {
			value = redact.Placeholder
		}
		s += string("?&"[min(i, 1)]) + o.name + "=" + value
	}
	return s
}

// checkPassword: AMS's driver refuses a user name alone, so AMS would not start.
func (t Target) checkPassword() error {
	mechanism := strings.ToUpper(t.option("authMechanism"))
	if t.get().user == "" || t.get().password != "" || slices.Contains([]string{"MONGODB-X509", "GSSAPI", "MONGODB-OIDC"}, mechanism) {
		return nil
	}
	return &TargetError{Where: partPassword, Problem: "there is a user name without a password", Hint: "write mongodb://USER:PASSWORD@HOST/"}
}

// checkByDriver skips URIs that need DNS or files.
func (t Target) checkByDriver() error {
	if t.SRV() || slices.ContainsFunc(t.get().options, option.isFile) {
		return nil
	}
	if err := options.Client().ApplyURI(t.URI().Reveal()).Validate(); err != nil {
		return &TargetError{Problem: "MongoDB's driver says: " + redact.Text(err.Error(), t.Secrets()...)}
	}
	return nil
}

func (t Target) get() *target {
	if t.p == nil {
		return &target{}
	}
	return *t.p
}

// IsZero reports whether t is the zero Target.
func (t Target) IsZero() bool { return t.p == nil }

// Equal reports whether both are the same string.
func (t Target) Equal(u Target) bool { return t.Raw() == u.Raw() }

// Bare reports whether the string had no scheme.
func (t Target) Bare() bool { return t.get().scheme == "" }

// SRV reports whether DNS knows the hosts.
func (t Target) SRV() bool { return t.get().scheme == schemeSRV }

// Raw returns the normalised string. Parsing it gives an equal Target.
func (t Target) Raw() redact.Secret { return redact.Secret(t.get().scheme + t.get().render(false)) }

// URI returns the full URI, also for a bare list of hosts.
func (t Target) URI() redact.Secret {
	if t.Bare() && !t.IsZero() {
		return schemePlain + t.Raw()
	}
	return t.Raw()
}

// Schemeless omits mongodb://, as AMS up to 2.4.1 needs it; "" for mongodb+srv.
func (t Target) Schemeless() redact.Secret {
	if t.SRV() {
		return ""
	}
	return redact.Secret(t.get().render(false))
}

// Redacted omits the password and values that may be secret.
func (t Target) Redacted() string { return t.get().scheme + t.get().render(true) }

func (t Target) String() string { return t.Redacted() }

// Format formats the redacted form.
func (t Target) Format(f fmt.State, verb rune) {
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), t.Redacted())
}

// MarshalText returns the redacted form.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.Redacted()), nil }

// Hosts returns the hosts with any ports.
func (t Target) Hosts() []string { return slices.Clone(t.get().hosts) }

// addresses returns host:port of every host; for mongodb+srv the name.
func (t Target) addresses() []string {
	addrs := t.Hosts()
	for i, h := range addrs {
		if !t.SRV() && (strings.HasSuffix(h, "]") || !strings.Contains(h, ":")) {
			addrs[i] = h + ":27017"
		}
	}
	return addrs
}

func (t Target) hostList() string { return strings.Join(t.addresses(), ", ") }

// HostNames returns the hosts without ports.
func (t Target) HostNames() []string {
	names := t.Hosts()
	for i, h := range names {
		m := hostSyntax.FindStringSubmatch(h)
		names[i] = m[1] + m[2]
	}
	return names
}

// NamesSet reports whether a replica set or several hosts are named.
func (t Target) NamesSet() bool {
	return t.SRV() || len(t.get().hosts) > 1 || t.option("replicaSet") != ""
}

// namesOne reports whether the string names one host, perhaps of a set.
func (t Target) namesOne() bool {
	return !t.IsZero() && !t.NamesSet() && t.option("directConnection") == "" && t.option("loadBalanced") != "true"
}

// UsesTLS reports whether the drivers use TLS, which several options imply.
func (t Target) UsesTLS() bool {
	if given := cmp.Or(t.option("tls"), t.option("ssl")); given != "" {
		return given == "true"
	}
	return t.SRV() || slices.ContainsFunc(t.get().options, option.isFile)
}

// Loopback reports whether every host is a loopback address.
func (t Target) Loopback() bool {
	other := func(name string) bool {
		h := strings.ToLower(strings.TrimSuffix(name, "."))
		addr, _ := netip.ParseAddr(name)
		return !addr.Unmap().IsLoopback() && h != "localhost" && !strings.HasSuffix(h, ".localhost")
	}
	return !t.IsZero() && !slices.ContainsFunc(t.HostNames(), other)
}

// Username returns the decoded name, or "".
func (t Target) Username() string {
	name, _ := url.PathUnescape(t.get().user)
	return name
}

// option returns an option's last value, as drivers use it.
func (t Target) option(name string) string {
	for _, o := range slices.Backward(t.get().options) {
		if strings.EqualFold(o.name, name) {
			return o.value
		}
	}
	return ""
}

// HasCredentials reports whether there is a user or a secret option.
func (t Target) HasCredentials() bool { return t.get().user != "" || len(t.Secrets()) > 0 }

// Secrets returns the values for [redact.Text].
func (t Target) Secrets() []redact.Secret {
	all := []redact.Secret{redact.Secret(t.get().password)}
	after := false // the rest of a secret with a raw & looks like an option
	for _, o := range t.get().options {
		if after = !o.isShown() && (after || redact.Name(o.name)); !after {
			continue
		}
		all = append(all, redact.Secret(o.value), redact.Secret(o.raw))
		// authMechanismProperties=AWS_SESSION_TOKEN:x,OTHER:y
		for prop := range strings.SplitSeq(o.value, ",") {
			_, v, _ := strings.Cut(prop, ":")
			all = append(all, redact.Secret(v))
		}
	}
	return slices.DeleteFunc(all, func(s redact.Secret) bool { return s == "" })
}

// isShown: any other option may be secret.
func (o option) isShown() bool {
	switch strings.ToLower(o.name) {
	case "appname", "authmechanism", "authsource", "compressors", "connecttimeoutms", "directconnection", "loadbalanced", "maxpoolsize",
		"readconcernlevel", "readpreference", "readpreferencetags", "replicaset", "retryreads", "retrywrites",
		"serverselectiontimeoutms", "sockettimeoutms", "srvmaxhosts", "srvservicename", "ssl", "sslinvalidhostnameallowed", "tls",
		"tlsallowinvalidhostnames", "tlsinsecure", "w", "wtimeoutms":
		return true
	}
	return o.isFile()
}

func (o option) isFile() bool {
	name := strings.ToLower(o.name)
	return strings.HasSuffix(name, "file") && (strings.HasPrefix(name, "tls") || strings.HasPrefix(name, "ssl"))
}

// Warnings returns probable mistakes.
func (t Target) Warnings() (all []string) {
	for _, o := range t.get().options {
		if o.isFile() {
			all = append(all, "option "+o.name+": AMS's Java driver ignores it and uses the trust and key stores of its JVM")
		}
	}
	return all
}
