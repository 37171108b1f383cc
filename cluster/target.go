// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"log/slog"
	"net"
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

	defaultPort = "27017"

	// maxTargetLen is far above any real connection string.
	maxTargetLen = 8 << 10
)

// Target is a connection string. Every way of printing it gives [Target.Redacted].
type Target struct {
	// fmt prints unexported fields without their methods, but follows only one pointer.
	p **target
}

type target struct {
	raw       string
	bare, srv bool
	user      string // percent-encoded, as password
	password  string
	hosts     []string
	path      string // percent-encoded, with its slash
	options   []option
	warnings  []string
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
	p, err := parseTarget(s)
	if err != nil {
		return Target{}, err
	}
	return Target{p: &p}, nil
}

// TargetError is an error in a connection string, without the string.
type TargetError struct {
	Part    string // such as "host"; "" is the whole
	Pos     int    // 1-based character; 0 is unknown
	Problem string
	Hint    string
}

// Error returns all fields in one line.
func (e *TargetError) Error() string {
	var b strings.Builder
	b.WriteString("connection string")
	if e.Part != "" {
		b.WriteString(", " + e.Part)
	}
	if e.Pos > 0 {
		fmt.Fprintf(&b, ", character %d", e.Pos)
	}
	b.WriteString(": " + e.Problem)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

const (
	partScheme   = "scheme"
	partUser     = "user name"
	partPassword = "password"
	partHost     = "host"
	partDatabase = "database"
	partOptions  = "options"
)

type reader struct{ given string }

func (r reader) at(off int, part, problem, hint string) *TargetError {
	return &TargetError{Part: part, Pos: utf8.RuneCountInString(r.given[:min(off, len(r.given))]) + 1, Problem: problem, Hint: hint}
}

func parseTarget(given string) (*target, error) {
	r := reader{given}
	s := strings.TrimLeft(given, " \t\r\n")
	off := len(given) - len(s)
	s = strings.TrimRight(s, " \t\r\n")
	switch {
	case s == "":
		return nil, &TargetError{Problem: "it is empty", Hint: "give an IP address, host:port or a mongodb:// URI"}
	case len(s) > maxTargetLen:
		return nil, &TargetError{Problem: fmt.Sprintf("it is longer than %d bytes", maxTargetLen)}
	case !utf8.ValidString(s):
		return nil, &TargetError{Problem: "it is not UTF-8 text"}
	}
	if i := strings.IndexFunc(s, func(c rune) bool { return !unicode.IsGraphic(c) || unicode.IsSpace(c) }); i >= 0 {
		return nil, r.at(off+i, "", "there is a blank, a line end or another invisible character", "remove it, or percent-encode it in a password: a blank is %20")
	}
	name, rest, found := strings.Cut(s, "://")
	scheme := strings.ToLower(name) + "://"
	switch {
	case found && scheme != schemePlain && scheme != schemeSRV:
		// Do not show the text: it may be a password.
		return nil, r.at(off, partScheme, "it is not a scheme of MongoDB", "MongoDB's URIs start with mongodb:// or mongodb+srv://")
	case found:
		return r.parseURI(scheme, rest, off+len(scheme))
	}
	if i := strings.IndexAny(s, "@/?#"); i >= 0 {
		return nil, r.at(off+i, "", "a user name, a database and options need a full URI", "write mongodb://USER:PASSWORD@HOST/DATABASE?OPTION=VALUE")
	}
	hosts, err := r.parseHosts(s, off, false)
	return &target{raw: s, bare: true, hosts: hosts}, err
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

func (r reader) parseURI(scheme, rest string, off int) (*target, error) {
	t := &target{srv: scheme == schemeSRV}
	if at := endOfUser(rest); at >= 0 {
		if err := r.parseUserinfo(t, rest[:at], off); err != nil {
			return nil, err
		}
		rest, off = rest[at+1:], off+at+1
	}
	hosts, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		hosts, tail = rest[:i], rest[i:]
	}
	var err error
	if t.hosts, err = r.parseHosts(hosts, off, t.srv); err != nil {
		return nil, err
	}
	off += len(hosts)
	if i := strings.IndexByte(tail, '#'); i >= 0 {
		return nil, r.at(off+i, "", "there is a raw #", "percent-encode it: # is %23")
	}
	path, query := tail, ""
	queryOff := off + len(tail)
	if i := strings.IndexByte(tail, '?'); i >= 0 {
		path, query, queryOff = tail[:i], tail[i+1:], off+i+1
	}
	if err := r.parseDatabase(t, path, off); err != nil {
		return nil, err
	}
	if err := r.parseOptions(t, query, queryOff); err != nil {
		return nil, err
	}
	mechanism := strings.ToUpper(t.option("authMechanism"))
	if t.user != "" && t.password == "" && !slices.Contains([]string{"MONGODB-X509", "GSSAPI", "MONGODB-OIDC"}, mechanism) {
		// AMS's driver refuses it, so AMS would not start.
		return nil, &TargetError{Part: partPassword, Problem: "there is a user name without a password", Hint: "write mongodb://USER:PASSWORD@HOST/"}
	}
	t.raw = t.render(false)
	return t, checkByDriver(t)
}

// checkByDriver skips URIs that need DNS or files.
func checkByDriver(t *target) error {
	if t.srv || slices.ContainsFunc(t.options, func(o option) bool { return isFile(o.name) }) {
		return nil
	}
	if err := options.Client().ApplyURI(t.raw).Validate(); err != nil {
		return &TargetError{Problem: "MongoDB's driver says: " + redact.Text(err.Error(), Target{&t}.Secrets()...)}
	}
	return nil
}

// parseUserinfo refuses raw reserved characters: drivers would treat a part of the password as a host.
func (r reader) parseUserinfo(t *target, s string, off int) (err error) {
	user, password, _ := strings.Cut(s, ":")
	if t.user, err = r.parseLogin(partUser, user, off); err != nil {
		return err
	}
	if user == "" {
		return r.at(off, partUser, "it is missing", "write mongodb://USER:PASSWORD@HOST/")
	}
	t.password, err = r.parseLogin(partPassword, password, off+len(user)+1)
	return err
}

func (r reader) parseLogin(part, s string, off int) (raw string, err error) {
	if i := strings.IndexAny(s, "@/?#:"); i >= 0 {
		return "", r.at(off+i, part, fmt.Sprintf("there is a raw %c", s[i]),
			fmt.Sprintf("percent-encode it: %c is %%%02X (and an @ in an option is %%40)", s[i], s[i]))
	}
	if notFilled.MatchString(s) {
		return "", r.at(off, part, "it is a placeholder", "put the real one in")
	}
	raw, _, err = r.normalise(s, off, part, keepUserinfo)
	return raw, err
}

// notFilled matches Atlas's <password>, and asterisks (a real password can use %2A).
var notFilled = regexp.MustCompile(`^(?:\*+|<[A-Za-z0-9_ -]+>)$`)

// Characters that stay, besides letters and digits.
const (
	unreserved   = "-._~"
	keepUserinfo = unreserved + "!$&'()*,;=" // without +, see ParseTarget
	keepDatabase = unreserved + "!'()*,;+"
	keepOption   = unreserved + "!$'()*,=+:"
)

// normalise percent-encodes all but letters, digits, keep and escapes.
func (r reader) normalise(s string, off int, part, keep string) (raw, decoded string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && escape.MatchString(s[i:]):
			b.WriteString(s[i : i+3])
			i += 2
		case c == '%':
			return "", "", r.at(off+i, part, "% is not followed by two hexadecimal digits", "percent-encode it: % is %25")
		case isAlnum(c) || strings.IndexByte(keep, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	raw = b.String()
	if part == partOptions {
		decoded, err = url.QueryUnescape(raw) // both drivers read + as a space
	} else {
		decoded, err = url.PathUnescape(raw)
	}
	if err != nil || !utf8.ValidString(decoded) {
		return "", "", r.at(off, part, "its percent-encoded bytes are not UTF-8",
			"encode the UTF-8 bytes of each character: é is %C3%A9")
	}
	return raw, decoded, nil
}

var escape = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`)

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// hostSyntax is [ADDRESS] or NAME with an optional port.
var hostSyntax = regexp.MustCompile(`^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(:[^:]*)?$`)

func (r reader) parseHosts(s string, off int, srv bool) ([]string, error) {
	hosts := strings.Split(s, ",")
	for _, h := range hosts {
		problem, hint := checkHost(h, srv, len(hosts))
		if problem != "" {
			return nil, r.at(off, partHost, problem, hint)
		}
		off += len(h) + 1
	}
	return hosts, nil
}

func checkHost(s string, srv bool, of int) (problem, hint string) {
	if s == "" || s[0] == ':' {
		return "it is missing", "write HOST or HOST:PORT"
	}
	const invalid, write = "it is neither a host name nor an IP address", "write HOST:PORT, an IPv6 address in brackets, an international name in its xn-- form"
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
	case srv && (of > 1 || !isName || port != ""):
		return "mongodb+srv:// takes one host name without a port, DNS knows the servers", "write mongodb:// before a list, an address or a port"
	case port != "" && (portErr != nil || number == 0):
		return "the port is not a number from 1 to 65535", "if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"
	}
	return "", ""
}

func (r reader) parseDatabase(t *target, path string, off int) error {
	if path == "" {
		return nil
	}
	name := path[1:]
	if i := strings.IndexAny(name, "&="); i >= 0 {
		return r.at(off+1+i, partDatabase, fmt.Sprintf("there is a raw %c: an option has the wrong mark before it", name[i]),
			"write ? before the first option: HOST/DATABASE?OPTION=VALUE")
	}
	raw, decoded, err := r.normalise(name, off+1, partDatabase, keepDatabase)
	if err != nil {
		return err
	}
	if strings.ContainsAny(decoded, "/\\. \"$*<>:|?\x00") || len(decoded) > 63 {
		return r.at(off+1, partDatabase, "it is not a name that MongoDB allows for a database", "percent-encode a / that belongs to the password: / is %2F")
	}
	t.path = "/" + raw
	return nil
}

var optionName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

func (r reader) parseOptions(t *target, query string, off int) error {
	for pair := range strings.SplitSeq(strings.ReplaceAll(query, ";", "&"), "&") {
		at := off
		off += len(pair) + 1
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		raw, decoded, err := r.normalise(value, at+len(name)+1, partOptions, keepOption)
		switch {
		case err != nil:
			return err
		case !optionName.MatchString(name) || decoded == "" && !strings.EqualFold(name, "readPreferenceTags"):
			return r.at(at, partOptions, "there is an option without a name or a value", "write OPTION=VALUE")
		case isFile(name):
			t.warnings = append(t.warnings, "option "+name+": AMS's Java driver ignores it and uses the trust and key stores of its JVM")
		}
		t.options = append(t.options, option{name, raw, decoded})
	}
	if len(t.options) > 0 && t.path == "" {
		t.path = "/"
	}
	return nil
}

// Drivers use an option's last value.
func (t *target) option(name string) string {
	for _, o := range slices.Backward(t.options) {
		if strings.EqualFold(o.name, name) {
			return o.value
		}
	}
	return ""
}

func (t *target) render(redacted bool) string {
	var b strings.Builder
	if t.srv {
		b.WriteString(schemeSRV)
	} else {
		b.WriteString(schemePlain)
	}
	if t.user != "" {
		b.WriteString(t.user)
		if t.password != "" && redacted {
			b.WriteString(":" + redact.Placeholder)
		} else if t.password != "" {
			b.WriteString(":" + t.password)
		}
		b.WriteString("@")
	}
	b.WriteString(strings.Join(t.hosts, ",") + t.path)
	for i, o := range t.options {
		value := o.raw
		if redacted && !isShown(o.name) && !isFile(o.name) {
			value = redact.Placeholder
		}
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(o.name + "=" + value)
	}
	return b.String()
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
func (t Target) Equal(u Target) bool { return t.get().raw == u.get().raw }

// Bare reports whether the string had no scheme.
func (t Target) Bare() bool { return t.get().bare }

// SRV reports whether DNS knows the hosts.
func (t Target) SRV() bool { return t.get().srv }

// Raw returns the normalised string. Parsing it gives an equal Target.
func (t Target) Raw() redact.Secret { return redact.Secret(t.get().raw) }

// URI returns the full URI, also for a bare list of hosts.
func (t Target) URI() redact.Secret {
	p := t.get()
	if p.bare {
		return redact.Secret(schemePlain + p.raw)
	}
	return redact.Secret(p.raw)
}

// Schemeless omits mongodb://, as AMS up to 2.4.1 needs it; "" for mongodb+srv.
func (t Target) Schemeless() redact.Secret {
	p := t.get()
	if p.srv {
		return ""
	}
	return redact.Secret(strings.TrimPrefix(p.raw, schemePlain))
}

// Hosts returns the hosts with any ports.
func (t Target) Hosts() []string { return slices.Clone(t.get().hosts) }

// addresses returns host:port of every host; for mongodb+srv the name.
func (t Target) addresses() []string {
	var addrs []string
	for _, h := range t.get().hosts {
		if !t.SRV() && (strings.HasSuffix(h, "]") || !strings.Contains(h, ":")) {
			h = net.JoinHostPort(strings.Trim(h, "[]"), defaultPort)
		}
		addrs = append(addrs, h)
	}
	return addrs
}

func (t Target) hostList() string { return strings.Join(t.addresses(), ", ") }

// HostNames returns the hosts without ports.
func (t Target) HostNames() []string {
	var names []string
	for _, h := range t.get().hosts {
		m := hostSyntax.FindStringSubmatch(h)
		names = append(names, m[1]+m[2])
	}
	return names
}

// NamesSet reports whether a replica set or several hosts are named.
func (t Target) NamesSet() bool {
	return t.SRV() || len(t.get().hosts) > 1 || t.option("replicaSet") != ""
}

// namesOne reports whether one host is named, perhaps of a replica set.
func (t Target) namesOne() bool {
	return !t.IsZero() && !t.NamesSet() && t.option("directConnection") == "" && t.option("loadBalanced") != "true"
}

// UsesTLS reports whether the drivers use TLS, which several options imply.
func (t Target) UsesTLS() bool {
	on := t.SRV()
	for _, o := range t.get().options {
		if name := strings.ToLower(o.name); name == "tls" || name == "ssl" {
			on = o.value == "true"
		} else if isFile(name) {
			on = true
		}
	}
	return on
}

// Loopback reports whether every host is a loopback address.
func (t Target) Loopback() bool {
	for _, name := range t.HostNames() {
		if addr, err := netip.ParseAddr(name); err == nil && addr.Unmap().IsLoopback() {
			continue
		}
		if h := strings.ToLower(strings.TrimSuffix(name, ".")); h != "localhost" && !strings.HasSuffix(h, ".localhost") {
			return false
		}
	}
	return !t.IsZero()
}

// Username returns the decoded name, or "".
func (t Target) Username() string {
	name, _ := url.PathUnescape(t.get().user)
	return name
}

func (t Target) option(name string) string { return t.get().option(name) }

// HasCredentials reports whether there is a user or a secret option.
func (t Target) HasCredentials() bool { return t.get().user != "" || len(t.Secrets()) > 0 }

// Secrets returns the values for [redact.Text].
func (t Target) Secrets() []redact.Secret {
	p := t.get()
	var all []redact.Secret
	add := func(values ...string) {
		for _, v := range values {
			if v != "" && !slices.Contains(all, redact.Secret(v)) {
				all = append(all, redact.Secret(v))
			}
		}
	}
	add(p.password)
	after := false // the rest of a secret with a raw & looks like an option
	for _, o := range p.options {
		secret := !isShown(o.name) && !isFile(o.name) && (after || redact.Name(o.name))
		if after = secret; !secret {
			continue
		}
		add(o.value, o.raw)
		// authMechanismProperties=AWS_SESSION_TOKEN:x,OTHER:y
		for prop := range strings.SplitSeq(o.value, ",") {
			if _, v, found := strings.Cut(prop, ":"); found {
				add(v)
			}
		}
	}
	return all
}

func isShown(name string) bool {
	switch strings.ToLower(name) {
	case "appname", "authmechanism", "authsource", "compressors", "connecttimeoutms", "directconnection", "loadbalanced", "maxpoolsize",
		"readconcernlevel", "readpreference", "readpreferencetags", "replicaset", "retryreads", "retrywrites",
		"serverselectiontimeoutms", "sockettimeoutms", "srvmaxhosts", "srvservicename", "ssl", "sslinvalidhostnameallowed", "tls",
		"tlsallowinvalidhostnames", "tlsinsecure", "w", "wtimeoutms":
		return true
	}
	return false
}

func isFile(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, "file") && (strings.HasPrefix(name, "tls") || strings.HasPrefix(name, "ssl"))
}

// Warnings returns probable mistakes.
func (t Target) Warnings() []string { return slices.Clone(t.get().warnings) }

// Redacted omits the password and values that may be secret.
func (t Target) Redacted() string {
	p := t.get()
	if p.bare || t.IsZero() {
		return p.raw
	}
	return p.render(true)
}

// String returns the redacted form.
func (t Target) String() string { return t.Redacted() }

// Format formats the redacted form.
func (t Target) Format(f fmt.State, verb rune) {
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), t.Redacted())
}

// LogValue returns the redacted form.
func (t Target) LogValue() slog.Value { return slog.StringValue(t.Redacted()) }

// MarshalText returns the redacted form.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.Redacted()), nil }
