// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
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

	// defaultPort is where a MongoDB server listens when nothing else is said.
	defaultPort = "27017"

	// maxTargetLen is far above any real connection string; more is a file
	// that was given by mistake.
	maxTargetLen = 8 << 10
)

// Target is where MongoDB is, and who we are there. Get one from
// [ParseTarget]; the zero Target points nowhere. Printing it in
// any way shows [Target.Redacted].
type Target struct {
	// Behind two pointers, because fmt walks into unexported fields without
	// calling their methods: it follows one pointer at most, and shows the
	// second as an address.
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

// ParseTarget reads what an operator gives for MongoDB's address: an IP, host
// or host:port, several of these with commas, or a full mongodb:// or
// mongodb+srv:// URI. IPv6 addresses are written in brackets.
//
// It is stricter than the drivers, because a string that one of them
// understands differently from the other is worse than an error. What has
// exactly one meaning is normalised in [Target.Raw] instead of refused, so
// that AMS's Java driver, our Go driver and Spring, which reads AMS's files,
// agree about it:
//   - in the user name, the password, the database and the options, characters
//     that no URI may hold ({ } \ ^ | < > " [ ] ` and all beyond ASCII) are
//     percent-encoded. That also takes the meaning from Spring's ${…}.
//   - + in the user name or the password becomes %2B: old Java drivers read a
//     blank there.
//   - / and ? in options become %2F and %3F: Java drivers before 3.7 take the
//     last slash for the one before the database.
//   - a missing / before ? is added, empty options are dropped, ; between
//     options becomes &, the scheme is put in lower case.
//
// Refused, with the place and the remedy: blanks and control characters, a
// raw # (so also Spring's #{…}), raw @ : / ? or a stray % in the user name or
// the password, bytes that are not UTF-8, an unfilled <password>, asterisks in
// place of one, a missing host, a bad port, several hosts or a port with
// mongodb+srv, & or = in the name of the database. No error holds
// any part of the given string but its position and single characters. Names and
// values of options are judged by the driver.
func ParseTarget(s string) (Target, error) {
	p, err := parseTarget(s)
	if err != nil {
		return Target{}, err
	}
	return Target{p: &p}, nil
}

// TargetError says what is wrong with a connection string, and where. It
// never holds the string.
type TargetError struct {
	Part    string // "host", "password", "options"…; empty: the whole
	Pos     int    // 1-based character in the given string; 0: no single place
	Problem string
	Hint    string // how to put it right; may be empty
}

// Error gives place, problem and hint in one line.
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

// reader carries the given string, so that a problem found in any part of it
// can be reported by its place in the whole.
type reader struct {
	given string // untrimmed
}

// at makes an error about the byte offset of given.
func (r reader) at(off int, part, problem, hint string) *TargetError {
	return &TargetError{
		Part: part, Pos: utf8.RuneCountInString(r.given[:min(off, len(r.given))]) + 1,
		Problem: problem, Hint: hint,
	}
}

func parseTarget(given string) (*target, error) {
	const blanks = " \t\r\n"
	s := strings.Trim(given, blanks)
	r := reader{given: given}
	off := len(given) - len(strings.TrimLeft(given, blanks))
	switch {
	case s == "":
		return nil, &TargetError{
			Problem: "it is empty",
			Hint:    "give an IP address, host:port or a mongodb:// URI",
		}
	case len(s) > maxTargetLen:
		return nil, &TargetError{Problem: fmt.Sprintf("it is longer than %d bytes", maxTargetLen)}
	case !utf8.ValidString(s):
		return nil, &TargetError{Problem: "it is not UTF-8 text"}
	}
	if err := r.checkCharacters(s, off); err != nil {
		return nil, err
	}
	scheme, rest, err := r.splitScheme(s, off)
	if err != nil {
		return nil, err
	}
	restOff := off + len(s) - len(rest)
	if scheme == "" {
		return r.parseBare(rest, restOff)
	}
	return r.parseURI(scheme, rest, restOff)
}

// checkCharacters refuses what stands in no connection string at all.
func (r reader) checkCharacters(s string, off int) error {
	for i, c := range s {
		switch {
		case c == ' ':
			return r.at(off+i, "", "there is a blank", "remove it, or percent-encode it in a password: a blank is %20")
		case unicode.IsControl(c) || unicode.IsSpace(c) || c == '\u200b' || c == '\ufeff':
			return r.at(off+i, "", "there is a tab, a line end or another invisible character", "remove it")
		}
	}
	return nil
}

// splitScheme returns the scheme, "" for a bare list of hosts, and the rest.
func (r reader) splitScheme(s string, off int) (scheme, rest string, err error) {
	name, rest, found := strings.Cut(s, "://")
	if !found {
		return "", s, nil
	}
	switch scheme = strings.ToLower(name) + "://"; scheme {
	case schemePlain, schemeSRV:
		return scheme, rest, nil
	}
	// The text is not shown: it may be anything, a password too.
	return "", "", r.at(off, partScheme, "what stands before :// is not a scheme of MongoDB",
		"MongoDB's URIs start with mongodb:// or mongodb+srv://")
}

func (r reader) parseBare(s string, off int) (*target, error) {
	if i := strings.IndexByte(s, '@'); i >= 0 {
		return nil, r.at(off+i, "", "a user name and a password need a full URI",
			"write mongodb://USER:PASSWORD@HOST/")
	}
	if i := strings.IndexAny(s, "/?#"); i >= 0 {
		return nil, r.at(off+i, "", "a database or options need a full URI",
			"write mongodb://HOST/?OPTION=VALUE")
	}
	hosts, err := r.parseHosts(s, off, false)
	if err != nil {
		return nil, err
	}
	return &target{raw: strings.Join(hosts, ","), bare: true, hosts: hosts}, nil
}

// endOfUser is where the @ stands that ends user and password; -1 where there are none. It
// is the last one, since a password may have an @ that somebody forgot to encode, but for
// those in the values of options: Azure's strings end in appName=@account@.
func endOfUser(rest string) int {
	hosts, query, found := strings.Cut(rest, "/?")
	for part := range strings.SplitSeq(query, "&") {
		name, _, is := strings.Cut(part, "=")
		found = found && is && strings.Trim(name, letters) == ""
	}
	if at := strings.LastIndexByte(hosts, '@'); found && at >= 0 {
		return at
	}
	return strings.LastIndexByte(rest, '@')
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// atInOptions returns the index of the first @ in the options of a string that names hosts and no user, and -1 for
// every other string. Without it the hosts and the options before that @ would be read as a user name.
func (r reader) atInOptions(rest string) int {
	hosts, query, _ := strings.Cut(rest, "?")
	hosts, _, _ = strings.Cut(hosts, "/")
	name, _, isOption := strings.Cut(query, "=")
	i := strings.IndexByte(query, '@')
	if _, err := r.parseHosts(hosts, 0, false); err != nil || !isOption || i <= len(name) || strings.Trim(name, letters) != "" {
		return -1
	}
	return len(rest) - len(query) + i
}

func (r reader) parseURI(scheme, rest string, off int) (*target, error) {
	t := &target{srv: scheme == schemeSRV}
	if i := r.atInOptions(rest); i >= 0 {
		return nil, r.at(off+i, partOptions, "there is a raw @", "percent-encode it: @ is %40")
	}
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
		// AMS's driver refuses it, and AMS does not start.
		return nil, &TargetError{Part: partPassword, Problem: "there is a user name without a password", Hint: "write mongodb://USER:PASSWORD@HOST/"}
	}
	t.raw = t.render(scheme, t.rawPassword, func(o option) string { return o.rawValue })
	return t, checkByDriver(t)
}

// checkByDriver lets the driver judge what the parts mean together, where it needs neither DNS nor files for that.
func checkByDriver(t *target) error {
	if t.srv || slices.ContainsFunc(t.options, func(o option) bool { return isFile(o.name) }) {
		return nil
	}
	if err := options.Client().ApplyURI(t.raw).Validate(); err != nil {
		return &TargetError{Problem: "MongoDB's driver says: " + redact.Text(err.Error(), Target{&t}.Secrets()...)}
	}
	return nil
}

// parseUserinfo reads all before the last @. Every reserved character in it is
// one that somebody forgot to encode: the drivers would cut the string at it
// and take a piece of the password for a host.
func (r reader) parseUserinfo(t *target, s string, off int) error {
	colon := strings.IndexByte(s, ':')
	part := func(i int) string {
		if colon >= 0 && i > colon {
			return partPassword
		}
		return partUser
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '@':
			return r.at(off+i, part(i), "there is more than one @", "percent-encode it: @ is %40, except before the host")
		case c == '/' || c == '?' || c == '#' || c == ':' && i != colon:
			return r.at(off+i, part(i), fmt.Sprintf("there is a raw %c before the @", c),
				fmt.Sprintf("percent-encode it: %c is %%%02X (and an @ in an option is %%40)", c, c))
		case c == '%' && !isEscape(s[i:]):
			return r.at(off+i, part(i), "% is not followed by two hexadecimal digits", "percent-encode it: % is %25")
		}
	}
	t.hasUser, t.rawUser = true, s
	if colon >= 0 {
		t.rawUser, t.rawPassword, t.hasPassword = s[:colon], s[colon+1:], true
	}
	var err error
	if t.rawUser, t.user, err = r.normalise(t.rawUser, off, partUser, keepUserinfo); err != nil {
		return err
	}
	if t.rawPassword, t.password, err = r.normalise(t.rawPassword, off+colon+1, partPassword, keepUserinfo); err != nil {
		return err
	}
	const masked, fill = "it is only asterisks, with which a console hides it", "put the real one in"
	switch {
	case t.user == "":
		return r.at(off, partUser, "it is missing", "write mongodb://USER:PASSWORD@HOST/")
	case isMasked(t.rawUser):
		return r.at(off, partUser, masked, fill)
	case isMasked(t.rawPassword):
		return r.at(off+colon+1, partPassword, masked, fill)
	case isUnfilled(t.user):
		return r.at(off, partUser, "it is still a placeholder in angle brackets", "put the real one in, without the brackets")
	case isUnfilled(t.password):
		return r.at(off+colon+1, partPassword, "it is still a placeholder in angle brackets", "put the real one in, without the brackets")
	}
	if strings.IndexFunc(t.user+t.password, unicode.IsControl) >= 0 {
		// What "echo secret | encode" makes: a line end at the end.
		t.warnings = append(t.warnings, "the user name or the password holds an encoded line end or another control character")
	}
	return nil
}

// isMasked recognises **** in place of a name or a password. A real one of asterisks can be written as %2A.
func isMasked(s string) bool { return s != "" && strings.Trim(s, "*") == "" }

// isUnfilled recognises <password>, <db_password> and <pw1>, which Atlas's pages put
// into the strings they offer for copying.
func isUnfilled(s string) bool {
	return len(s) > 2 && s[0] == '<' && s[len(s)-1] == '>' &&
		strings.Trim(strings.ToLower(s[1:len(s)-1]), "abcdefghijklmnopqrstuvwxyz0123456789_- ") == ""
}

// Characters that stay as they are, beside letters and digits.
const (
	unreserved   = "-._~"
	keepUserinfo = unreserved + "!$&'()*,;=" // not +, see ParseTarget
	keepDatabase = unreserved + "!'()*,;+"
	keepOption   = unreserved + "!$'()*,=+:"
)

// normalise percent-encodes all but letters, digits, the characters of keep
// and what is an escape already, and returns that and the decoded text.
func (r reader) normalise(s string, off int, part, keep string) (raw, decoded string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && isEscape(s[i:]):
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
		decoded, err = url.QueryUnescape(raw) // + is a blank there, for both drivers
	} else {
		decoded, err = url.PathUnescape(raw)
	}
	if err != nil || !utf8.ValidString(decoded) {
		return "", "", r.at(off, part, "its percent-encoded bytes are not UTF-8",
			"encode the UTF-8 bytes of each character: é is %C3%A9")
	}
	return raw, decoded, nil
}

func isEscape(s string) bool {
	return len(s) >= 3 && s[0] == '%' && isHex(s[1]) && isHex(s[2])
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func (r reader) parseHosts(s string, off int, srv bool) ([]string, error) {
	if s == "" {
		return nil, r.at(off, partHost, "it is missing", "")
	}
	var hosts []string
	for tok := range strings.SplitSeq(s, ",") {
		if tok == "" {
			return nil, r.at(off, partHost, "there is a comma too many, or a host is missing", "")
		}
		if err := r.checkHost(tok, off, srv); err != nil {
			return nil, err
		}
		hosts = append(hosts, tok)
		off += len(tok) + 1
	}
	if srv && len(hosts) > 1 {
		return nil, r.at(off-len(s)+len(hosts[0])-1, partHost, "mongodb+srv:// takes one host name, DNS knows the others",
			"remove the others, or write mongodb://")
	}
	return hosts, nil
}

func (r reader) checkHost(tok string, off int, srv bool) error {
	fail := func(i int, problem, hint string) error { return r.at(off+i, partHost, problem, hint) }
	host, port, portAt := tok, "", -1
	switch {
	case tok[0] == '[':
		end := strings.IndexByte(tok, ']')
		if end < 0 {
			return fail(0, "the bracket of the IPv6 address is not closed", "write [ADDRESS]:PORT")
		}
		addr, err := netip.ParseAddr(tok[1:end])
		switch {
		case err != nil || !addr.Is6():
			return fail(1, "what stands in brackets is not an IPv6 address", "")
		case addr.Zone() != "":
			return fail(1, "an address with a zone works on one machine only", "give a global or unique-local address")
		case addr.IsUnspecified():
			return fail(1, "[::] is no address to connect to", "give the server's own address")
		case srv:
			return fail(0, "mongodb+srv:// takes a host name, not an address", "write mongodb:// before an address")
		}
		host = ""
		switch tail := tok[end+1:]; {
		case tail == "":
		case tail[0] == ':':
			port, portAt = tail[1:], end+2
		default:
			return fail(end+1, "only :PORT may follow the bracket", "")
		}
	case strings.Count(tok, ":") > 1:
		if addr, err := netip.ParseAddr(tok); err == nil && addr.Is6() {
			return fail(0, "an IPv6 address needs brackets", "write ["+addr.String()+"]")
		}
		return fail(strings.LastIndexByte(tok, ':'), "there is more than one :",
			"write HOST:PORT, an IPv6 address in brackets, a user and a password before an @")
	default:
		if i := strings.IndexByte(tok, ':'); i >= 0 {
			host, port, portAt = tok[:i], tok[i+1:], i+1
		}
	}
	if host != "" || tok[0] != '[' {
		if err := r.checkName(host, off, srv); err != nil {
			return err
		}
	}
	if portAt < 0 {
		return nil
	}
	if srv {
		return fail(portAt, "mongodb+srv:// takes no port, DNS knows it", "remove it, or write mongodb://")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case port == "":
		return fail(portAt, "the port is missing after :", "")
	case errors.Is(err, strconv.ErrRange) || err == nil && n == 0:
		return fail(portAt, "the port is not between 1 and 65535", "")
	case err != nil:
		return fail(portAt, "the port is not a number",
			"if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/")
	}
	return nil
}

// checkName checks a host name or an IPv4 address.
func (r reader) checkName(host string, off int, srv bool) error {
	fail := func(i int, problem, hint string) error { return r.at(off+i, partHost, problem, hint) }
	if host == "" {
		return fail(0, "it is missing before the port", "")
	}
	for i, c := range host {
		switch {
		case c == '%' || c > unicode.MaxASCII:
			return fail(i, "there is a character that no host name has",
				"write an international name in its xn-- form; a Unix socket is of no use to AMS")
		case !isAlnum(byte(c)) && c != '.' && c != '-' && c != '_':
			return fail(i, fmt.Sprintf("%c is in no host name", c), "")
		}
	}
	if strings.Trim(host, "0123456789.") == "" {
		addr, err := netip.ParseAddr(host)
		switch {
		case err != nil:
			return fail(0, "it looks like an IPv4 address and is none", "")
		case addr.IsUnspecified():
			return fail(0, "0.0.0.0 is no address to connect to", "give the server's own address")
		case srv:
			return fail(0, "mongodb+srv:// takes a host name, not an address", "write mongodb:// before an address")
		}
		return nil
	}
	return nil
}

func (r reader) parseDatabase(t *target, path string, off int) error {
	if path == "" {
		return nil
	}
	name := path[1:]
	if i := strings.IndexByte(name, '/'); i >= 0 {
		return r.at(off+1+i, partDatabase, "there is a second /", "percent-encode it if it belongs to the password: / is %2F")
	}
	if i := strings.IndexAny(name, "&="); i >= 0 {
		return r.at(off+1+i, partDatabase, fmt.Sprintf("there is a raw %c: an option has the wrong mark before it", name[i]),
			"write ? before the first option: HOST/DATABASE?OPTION=VALUE")
	}
	raw, decoded, err := r.normalise(name, off+1, partDatabase, keepDatabase)
	if err != nil {
		return err
	}
	if i := strings.IndexAny(decoded, "/\\. \"$*<>:|?\x00"); i >= 0 || len(decoded) > 63 {
		return r.at(off+1, partDatabase, "it is not a name that MongoDB allows for a database", "")
	}
	t.rawPath = "/" + raw
	return nil
}

func (r reader) parseOptions(t *target, query string, off int) error {
	for start := 0; start < len(query); {
		pair := query[start:]
		if i := strings.IndexAny(pair, "&;"); i >= 0 {
			pair = pair[:i]
		}
		at := off + start
		start += len(pair) + 1
		if pair == "" {
			continue
		}
		name, value, found := strings.Cut(pair, "=")
		switch {
		case !found:
			return r.at(at, partOptions, "there is an option without a value", "write OPTION=VALUE")
		case name == "":
			return r.at(at, partOptions, "there is a value without the name of its option", "write OPTION=VALUE")
		case strings.IndexFunc(name, func(c rune) bool {
			return c > unicode.MaxASCII || !isAlnum(byte(c)) && c != '_' && c != '.' && c != '-'
		}) >= 0:
			return r.at(at, partOptions, "the name of an option has characters that none has", "")
		}
		raw, decoded, err := r.normalise(value, at+len(name)+1, partOptions, keepOption)
		if err != nil {
			return err
		}
		if decoded == "" && !strings.EqualFold(name, "readPreferenceTags") {
			return r.at(at, partOptions, "there is an option without a value", "write OPTION=VALUE")
		}
		if isFile(name) {
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

// option returns the last value of an option, as the drivers do.
func (t *target) option(name string) string {
	for _, o := range slices.Backward(t.options) {
		if strings.EqualFold(o.name, name) {
			return o.value
		}
	}
	return ""
}

// render puts the parts together again.
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

// get returns the parts, of the zero Target too.
func (t Target) get() *target {
	if t.p == nil {
		return &target{}
	}
	return *t.p
}

// IsZero reports whether t points nowhere.
func (t Target) IsZero() bool { return t.p == nil }

// Equal reports whether both are the same connection string.
func (t Target) Equal(u Target) bool { return t.get().raw == u.get().raw }

// Bare reports whether the string was one host or a list of hosts, without a
// scheme.
func (t Target) Bare() bool { return t.get().bare }

// SRV reports whether the hosts have to be asked from DNS (mongodb+srv).
func (t Target) SRV() bool { return t.get().srv }

// Raw returns the string as it was given, normalised as [ParseTarget] says.
// Parsing it again gives the same Target.
func (t Target) Raw() redact.Secret { return redact.Secret(t.get().raw) }

// URI returns the full URI, for a bare list of hosts too.
func (t Target) URI() redact.Secret {
	p := t.get()
	if p.bare {
		return redact.Secret(schemePlain + p.raw)
	}
	return redact.Secret(p.raw)
}

// Schemeless returns the URI without mongodb:// in front, as AMS up to 2.4.1
// needs it. It is empty for mongodb+srv, which has no such form.
func (t Target) Schemeless() redact.Secret {
	p := t.get()
	if p.srv {
		return ""
	}
	return redact.Secret(strings.TrimPrefix(p.raw, schemePlain))
}

// Hosts returns the hosts as they were given, with the port where one was.
func (t Target) Hosts() []string { return slices.Clone(t.get().hosts) }

// Addresses returns host:port of every host, ready to be dialled. It is empty
// for mongodb+srv, whose hosts only DNS knows.
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

// Loopback reports whether every host is this very machine, which is of no
// use to the other nodes of a cluster.
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

// Option returns the value of an option, whatever the case of its name; the
// last one where it is repeated. Those that may be secret are not given.
func (t Target) Option(name string) string {
	if !isShown(name) {
		return ""
	}
	return t.get().option(name)
}

// HasCredentials reports whether the string must be kept from other users of
// the machine: it names a user or holds a secret option.
func (t Target) HasCredentials() bool { return t.get().hasUser || len(t.Secrets()) > 0 }

// Secrets returns all that must not be shown, for [redact.Text].
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
	after := false // a secret; with a raw & in it, its rest looks like an option that nobody knows
	for _, o := range p.options {
		secret := !isShown(o.name) && !isFile(o.name) && (after || soundsSecret(o.name))
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

// isShown reports options whose values are no secrets, and tell a reader what the connection is.
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

// isFile reports options that name a file of certificates or keys.
func isFile(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, "file") && (strings.HasPrefix(name, "tls") || strings.HasPrefix(name, "ssl"))
}

func soundsSecret(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{"pass", "pwd", "secret", "token", "key", "cred", "mechanismproperties"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// Warnings returns what is legal and probably not meant.
func (t Target) Warnings() []string { return slices.Clone(t.get().warnings) }

// Redacted returns the string with the password hidden, and the values of all options but those that tell what the connection
// is.
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

// Format answers every verb with the redacted form.
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
