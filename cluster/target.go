// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
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

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/redact"
)

const (
	schemePlain = "mongodb://"
	schemeSRV   = "mongodb+srv://"

	defaultPort = "27017"

	// maxTargetLen is far above any real connection string.
	maxTargetLen = 8 << 10
)

// Target is a connection string from [ParseTarget]. The zero Target is empty. Every way of printing it gives
// [Target.Redacted].
type Target struct {
	// Two pointers: fmt prints unexported fields without calling their methods, but follows only one pointer.
	p **target
}

type target struct {
	raw         string
	bare, srv   bool
	user        string // decoded
	hasUser     bool
	password    string // decoded
	hasPassword bool
	rawUser     string // as in raw
	rawPassword string
	hosts       []string
	rawPath     string // with its slash, or empty
	options     []option
	warnings    []string
}

type option struct {
	name, rawValue, value string
}

// ParseTarget parses MongoDB's address: an IP address, host or host:port, several of these with commas, or a full mongodb:// or
// mongodb+srv:// URI. IPv6 addresses are written in brackets.
//
// It is stricter than the drivers, because two drivers may read a string differently. An unambiguous string is normalised in
// [Target.Raw], so that AMS's Java driver, the Go driver and Spring, which reads AMS's files, agree:
//   - in the user name, the password, the database and the options, characters that are not allowed in a URI ({ } \ ^ | < > "
//     [ ] ` and all beyond ASCII) are percent-encoded. This also disables Spring's ${…}.
//   - + in the user name or the password becomes %2B: old Java drivers read it as a space.
//   - / and ? in options become %2F and %3F: Java drivers before 3.7 expect the database after the last slash.
//   - a missing / before ? is added, empty options are dropped, ; between options becomes &, the scheme becomes lower case.
//
// Refused, with the position and a hint: spaces and control characters, a raw # (and so Spring's #{…}), raw @ : / ? or a stray
// % in the user name or the password, bytes that are not UTF-8, a placeholder such as <password> or asterisks, a missing host,
// an invalid port, several hosts or a port with mongodb+srv, & or = in the name of the database. An error holds at most single
// characters of the string. The driver checks names and values of options.
func ParseTarget(s string) (Target, error) {
	p, err := parseTarget(s)
	if err != nil {
		return Target{}, err
	}
	return Target{p: &p}, nil
}

// TargetError is an error in a connection string. It does not hold the string.
type TargetError struct {
	Part    string // "host", "password", "options"…; empty: the whole
	Pos     int    // 1-based character in the given string; 0: no position
	Problem string
	Hint    string // may be empty
}

// Error returns part, position, problem and hint in one line.
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

// reader holds the whole string, because errors report positions in it.
type reader struct{ given string }

// at returns an error at a byte offset of given.
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

// optionLike matches the beginning of the options. A password may have a question mark that is not encoded.
var optionLike = regexp.MustCompile(`^[A-Za-z]+=`)

// endOfUser returns the position of the @ after user and password, or -1. It is the last one before the options: Azure's
// strings end in appName=@account@.
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
	if t.hasUser && t.password == "" && !slices.Contains([]string{"MONGODB-X509", "GSSAPI", "MONGODB-OIDC"}, mechanism) {
		// AMS's driver refuses it, so AMS would not start.
		return nil, &TargetError{Part: partPassword, Problem: "there is a user name without a password", Hint: "write mongodb://USER:PASSWORD@HOST/"}
	}
	t.raw = t.render(scheme, t.rawPassword, func(o option) string { return o.rawValue })
	return t, checkByDriver(t)
}

// checkByDriver validates the URI with the driver, unless that needs DNS or files.
func checkByDriver(t *target) error {
	if t.srv || slices.ContainsFunc(t.options, func(o option) bool { return isFile(o.name) }) {
		return nil
	}
	if err := options.Client().ApplyURI(t.raw).Validate(); err != nil {
		return &TargetError{Problem: "MongoDB's driver says: " + redact.Text(err.Error(), Target{&t}.Secrets()...)}
	}
	return nil
}

// parseUserinfo parses the text before the last @. If a reserved character is not encoded, the drivers would treat a part of
// the password as a host.
func (r reader) parseUserinfo(t *target, s string, off int) (err error) {
	user, password, hasPassword := strings.Cut(s, ":")
	t.hasUser, t.hasPassword = true, hasPassword
	for _, part := range []struct {
		name, text   string
		off          int
		raw, decoded *string
	}{
		{partUser, user, off, &t.rawUser, &t.user},
		{partPassword, password, off + len(user) + 1, &t.rawPassword, &t.password},
	} {
		if i := strings.IndexAny(part.text, "@/?#:"); i >= 0 {
			c := part.text[i]
			return r.at(part.off+i, part.name, fmt.Sprintf("there is a raw %c", c), fmt.Sprintf("percent-encode it: %c is %%%02X (and an @ in an option is %%40)", c, c))
		}
		if *part.raw, *part.decoded, err = r.normalise(part.text, part.off, part.name, keepUserinfo); err != nil {
			return err
		}
		switch {
		case part.name == partUser && *part.decoded == "":
			return r.at(part.off, part.name, "it is missing", "write mongodb://USER:PASSWORD@HOST/")
		case notFilled.MatchString(part.text):
			return r.at(part.off, part.name, "it is a placeholder", "put the real one in")
		case strings.IndexFunc(*part.decoded, unicode.IsControl) >= 0:
			// As from "echo secret | encode".
			t.warnings = append(t.warnings, "the "+part.name+" holds an encoded line end or another control character")
		}
	}
	return nil
}

// notFilled matches placeholders: Atlas's <password> and <db_password>, and asterisks. A real password of asterisks can be
// written as %2A.
var notFilled = regexp.MustCompile(`^(?:\*+|<[A-Za-z0-9_ -]+>)$`)

// Characters that are not encoded, besides letters and digits.
const (
	unreserved   = "-._~"
	keepUserinfo = unreserved + "!$&'()*,;=" // not +, see ParseTarget
	keepDatabase = unreserved + "!'()*,;+"
	keepOption   = unreserved + "!$'()*,=+:"
)

// normalise percent-encodes all but letters, digits, the characters of keep and existing escapes. It returns the result and
// the decoded text.
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
		decoded, err = url.QueryUnescape(raw) // both drivers read + as a space in options
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

var hostName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

func (r reader) parseHosts(s string, off int, srv bool) ([]string, error) {
	hosts := strings.Split(s, ",")
	for _, h := range hosts {
		if problem, hint := checkHost(h, srv); problem != "" {
			return nil, r.at(off, partHost, problem, hint)
		}
		off += len(h) + 1
	}
	if srv && len(hosts) > 1 {
		return nil, r.at(off-len(s)+len(hosts[0])-1, partHost, "mongodb+srv:// takes one host name, DNS knows the others", "remove the others, or write mongodb://")
	}
	return hosts, nil
}

// checkHost checks HOST, HOST:PORT or [ADDRESS]:PORT.
func checkHost(s string, srv bool) (problem, hint string) {
	host, port, err := net.SplitHostPort(s)
	hasPort := err == nil
	if !hasPort {
		host = s
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			host = s[1 : len(s)-1]
		}
	}
	n, portErr := strconv.ParseUint(port, 10, 16)
	addr, err := netip.ParseAddr(host)
	switch bracket := strings.HasPrefix(s, "["); {
	case host == "":
		return "it is missing", ""
	case err == nil && addr.Is6() != bracket:
		return "an IPv6 address needs brackets, and nothing else has them", "write [ADDRESS]:PORT"
	case err == nil && (addr.IsUnspecified() || addr.Zone() != ""):
		return "it is no address that other machines can connect to", "give the server's own address"
	case err == nil && srv:
		return "mongodb+srv:// takes a host name, not an address", "write mongodb:// before an address"
	case err != nil && (bracket || !hostName.MatchString(host) || strings.Trim(host, "0123456789.") == ""):
		return "it is neither a host name nor an IP address", "write HOST:PORT, an IPv6 address in brackets, an international name in its xn-- form"
	case hasPort && srv:
		return "mongodb+srv:// takes no port, DNS knows it", "remove it, or write mongodb://"
	case hasPort && (portErr != nil || n == 0):
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
	t.rawPath = "/" + raw
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
			t.warnings = append(t.warnings, fmt.Sprintf("option %s: AMS's Java driver ignores it and uses the trust and key stores of its JVM",
				plain.Truncate(name, 43)))
		}
		t.options = append(t.options, option{name: name, rawValue: raw, value: decoded})
	}
	if len(t.options) > 0 && t.rawPath == "" {
		t.rawPath = "/"
	}
	return nil
}

// option returns the last value of an option, which is the one that the drivers use.
func (t *target) option(name string) string {
	for _, o := range slices.Backward(t.options) {
		if strings.EqualFold(o.name, name) {
			return o.value
		}
	}
	return ""
}

func (t *target) render(scheme, password string, value func(option) string) string {
	var b strings.Builder
	b.WriteString(scheme)
	if t.hasUser {
		b.WriteString(t.rawUser)
		if t.hasPassword {
			b.WriteString(":" + password)
		}
		b.WriteString("@")
	}
	b.WriteString(strings.Join(t.hosts, ","))
	b.WriteString(t.rawPath)
	for i, o := range t.options {
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(o.name + "=" + value(o))
	}
	return b.String()
}

// get also works for the zero Target.
func (t Target) get() *target {
	if t.p == nil {
		return &target{}
	}
	return *t.p
}

// IsZero reports whether t is the zero Target.
func (t Target) IsZero() bool { return t.p == nil }

// Equal reports whether both are the same connection string.
func (t Target) Equal(u Target) bool { return t.get().raw == u.get().raw }

// Bare reports whether the string was a host or a list of hosts, without a scheme.
func (t Target) Bare() bool { return t.get().bare }

// SRV reports whether the hosts are looked up in DNS (mongodb+srv).
func (t Target) SRV() bool { return t.get().srv }

// Raw returns the given string, normalised as described at [ParseTarget]. Parsing it again gives an equal Target.
func (t Target) Raw() redact.Secret { return redact.Secret(t.get().raw) }

// URI returns the full URI, also for a bare list of hosts.
func (t Target) URI() redact.Secret {
	p := t.get()
	if p.bare {
		return redact.Secret(schemePlain + p.raw)
	}
	return redact.Secret(p.raw)
}

// Schemeless returns the URI without mongodb://, as AMS up to 2.4.1 needs it. It is empty for mongodb+srv, which has no such
// form.
func (t Target) Schemeless() redact.Secret {
	p := t.get()
	if p.srv {
		return ""
	}
	return redact.Secret(strings.TrimPrefix(p.raw, schemePlain))
}

// Hosts returns the hosts as given, with the port if there is one.
func (t Target) Hosts() []string { return slices.Clone(t.get().hosts) }

// Addresses returns host:port of every host. It is empty for mongodb+srv, whose hosts are in DNS.
func (t Target) Addresses() []string {
	p := t.get()
	if p.srv {
		return nil
	}
	var addrs []string
	for _, h := range p.hosts {
		if strings.HasSuffix(h, "]") || !strings.Contains(h, ":") {
			h = net.JoinHostPort(strings.Trim(h, "[]"), defaultPort)
		}
		addrs = append(addrs, h)
	}
	return addrs
}

// Loopback reports whether every host is a loopback address, which the other nodes of a cluster cannot use.
func (t Target) Loopback() bool {
	addrs := t.Addresses()
	for _, a := range addrs {
		host, _, _ := net.SplitHostPort(a)
		if addr, err := netip.ParseAddr(host); err == nil && addr.Unmap().IsLoopback() {
			continue
		}
		if h := strings.ToLower(strings.TrimSuffix(host, ".")); h != "localhost" && !strings.HasSuffix(h, ".localhost") {
			return false
		}
	}
	return len(addrs) > 0
}

// Username returns the decoded user name, or "".
func (t Target) Username() string { return t.get().user }

// Option returns the last value of an option, whatever the case of its name, or "" if the value may be secret.
func (t Target) Option(name string) string {
	if !isShown(name) {
		return ""
	}
	return t.get().option(name)
}

// HasCredentials reports whether the string has a user or a secret option, so that other users of the machine must not read it.
func (t Target) HasCredentials() bool { return t.get().hasUser || len(t.Secrets()) > 0 }

// Secrets returns the values that must not be shown, for [redact.Text].
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
	add(p.password, p.rawPassword)
	after := false // a secret: if it has a raw &, its rest looks like an unknown option
	for _, o := range p.options {
		secret := !isShown(o.name) && !isFile(o.name) && (after || redact.Name(o.name))
		if after = secret; !secret {
			continue
		}
		add(o.value, o.rawValue)
		// authMechanismProperties=AWS_SESSION_TOKEN:x,OTHER:y
		for prop := range strings.SplitSeq(o.value, ",") {
			if _, v, found := strings.Cut(prop, ":"); found {
				add(v)
			}
		}
	}
	return all
}

// isShown reports whether the value of an option describes the connection and is not secret.
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

// isFile reports whether an option names a file of certificates or keys.
func isFile(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, "file") && (strings.HasPrefix(name, "tls") || strings.HasPrefix(name, "ssl"))
}

// Warnings returns what is valid but probably a mistake.
func (t Target) Warnings() []string { return slices.Clone(t.get().warnings) }

// Redacted returns the string without the password and the values of options that may be secret.
func (t Target) Redacted() string {
	p := t.get()
	if p.bare || t.IsZero() {
		return p.raw
	}
	scheme := schemePlain
	if p.srv {
		scheme = schemeSRV
	}
	return p.render(scheme, redact.Placeholder, func(o option) string {
		if !isShown(o.name) && !isFile(o.name) {
			return redact.Placeholder
		}
		return o.rawValue
	})
}

// String returns the redacted form.
func (t Target) String() string { return t.Redacted() }

// GoString returns the redacted form.
func (t Target) GoString() string { return fmt.Sprintf("cluster.Target(%q)", t.Redacted()) }

// Format formats the redacted form for every verb.
func (t Target) Format(f fmt.State, verb rune) {
	out := t.Redacted()
	switch {
	case verb == 'v' && f.Flag('#'):
		out = t.GoString()
	case verb == 'q':
		out = strconv.Quote(out)
	}
	_, _ = io.WriteString(f, out)
}

// LogValue returns the redacted form.
func (t Target) LogValue() slog.Value { return slog.StringValue(t.Redacted()) }

// MarshalText returns the redacted form.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.Redacted()), nil }
