// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/redact"
)

// secretMark is a password that appears in no message by accident.
const secretMark = "Sw0rdf1sh"

func TestParseTargetAccepts(t *testing.T) {
	tests := []struct {
		name, in string
		raw      string // "" means unchanged
		uri      string // "" means as raw
		bare     bool
		srv      bool
		hosts    []string
		addrs    []string
		user     string
		password string
		redacted string // "" means as raw
	}{
		{
			name: "ipv4", in: "10.0.2.4", uri: "mongodb://10.0.2.4", bare: true,
			hosts: []string{"10.0.2.4"}, addrs: []string{"10.0.2.4:27017"},
		},
		{
			name: "surrounding spaces", in: " 10.0.2.4\r\n", raw: "10.0.2.4", uri: "mongodb://10.0.2.4", bare: true,
			hosts: []string{"10.0.2.4"}, addrs: []string{"10.0.2.4:27017"},
		},
		{
			name: "host and port", in: "mongo_1.internal:27018", uri: "mongodb://mongo_1.internal:27018", bare: true,
			hosts: []string{"mongo_1.internal:27018"}, addrs: []string{"mongo_1.internal:27018"},
		},
		{
			name: "a host called mongodb", in: "mongodb", uri: "mongodb://mongodb", bare: true,
			hosts: []string{"mongodb"}, addrs: []string{"mongodb:27017"},
		},
		{
			name: "a host called mongodb with a port", in: "mongodb:27017", uri: "mongodb://mongodb:27017", bare: true,
			hosts: []string{"mongodb:27017"}, addrs: []string{"mongodb:27017"},
		},
		{
			name: "list", in: "10.0.2.4,10.0.2.5:27018,[fd00::1]", uri: "mongodb://10.0.2.4,10.0.2.5:27018,[fd00::1]", bare: true,
			hosts: []string{"10.0.2.4", "10.0.2.5:27018", "[fd00::1]"},
			addrs: []string{"10.0.2.4:27017", "10.0.2.5:27018", "[fd00::1]:27017"},
		},
		{
			name: "ipv6 and port", in: "[fd00::1]:27018", uri: "mongodb://[fd00::1]:27018", bare: true,
			hosts: []string{"[fd00::1]:27018"}, addrs: []string{"[fd00::1]:27018"},
		},
		{
			name: "root dot", in: "db.example.com.", uri: "mongodb://db.example.com.", bare: true,
			hosts: []string{"db.example.com."}, addrs: []string{"db.example.com.:27017"},
		},
		{
			name: "full", in: "mongodb://amsagent:" + secretMark + "@h1,h2:27018/admin?replicaSet=rs0&tls=true",
			hosts: []string{"h1", "h2:27018"}, addrs: []string{"h1:27017", "h2:27018"},
			user: "amsagent", password: secretMark,
			redacted: "mongodb://amsagent:***@h1,h2:27018/admin?replicaSet=rs0&tls=true",
		},
		{
			name: "every reserved character encoded", in: "mongodb://u:%40%3A%2F%3F%23%25%26%5C%20+@h/",
			raw:   "mongodb://u:%40%3A%2F%3F%23%25%26%5C%20%2B@h/",
			hosts: []string{"h"}, addrs: []string{"h:27017"}, user: "u", password: `@:/?#%&\ +`,
			redacted: "mongodb://u:***@h/",
		},
		{
			name: "characters no URI may hold", in: "mongodb://ü:a{b}c\\d^e|f\"g`h[i]$j<k@h/",
			raw:   "mongodb://%C3%BC:a%7Bb%7Dc%5Cd%5Ee%7Cf%22g%60h%5Bi%5D$j%3Ck@h/",
			hosts: []string{"h"}, addrs: []string{"h:27017"}, user: "ü", password: "a{b}c\\d^e|f\"g`h[i]$j<k",
			redacted: "mongodb://%C3%BC:***@h/",
		},
		{
			name: "Spring's placeholder", in: "mongodb://u:${HOME}@h/", raw: "mongodb://u:$%7BHOME%7D@h/",
			hosts: []string{"h"}, addrs: []string{"h:27017"}, user: "u", password: "${HOME}",
			redacted: "mongodb://u:***@h/",
		},
		{
			name: "missing slash, empty options, semicolons", in: "mongodb://h?a=b;;c=d&",
			raw: "mongodb://h/?a=b&c=d", hosts: []string{"h"}, addrs: []string{"h:27017"},
			redacted: "mongodb://h/?a=***&c=***",
		},
		{name: "no options after all", in: "mongodb://h/?", raw: "mongodb://h/", hosts: []string{"h"}, addrs: []string{"h:27017"}},
		{
			name: "slash in an option", in: "mongodb://h/?tlsCAFile=/etc/ca.pem", raw: "mongodb://h/?tlsCAFile=%2Fetc%2Fca.pem",
			hosts: []string{"h"}, addrs: []string{"h:27017"},
		},
		{name: "scheme in capitals", in: "MongoDB://h", raw: "mongodb://h", hosts: []string{"h"}, addrs: []string{"h:27017"}},
		{
			name: "srv", in: "mongodb+srv://u:" + secretMark + "@cluster0.abcde.mongodb.net/?retryWrites=true&w=majority",
			srv: true, hosts: []string{"cluster0.abcde.mongodb.net"}, addrs: []string{"cluster0.abcde.mongodb.net"}, user: "u", password: secretMark,
			redacted: "mongodb+srv://u:***@cluster0.abcde.mongodb.net/?retryWrites=true&w=majority",
		},
		{
			name: "& and = encoded in the database", in: "mongodb://h/a%26b%3Dc",
			hosts: []string{"h"}, addrs: []string{"h:27017"},
		},
		{
			name: "a password of encoded asterisks, a name with brackets in it", in: "mongodb://<u:%2A%2A@h/", raw: "mongodb://%3Cu:%2A%2A@h/",
			hosts: []string{"h"}, addrs: []string{"h:27017"}, user: "<u", password: "**", redacted: "mongodb://%3Cu:***@h/",
		},
		{
			name: "Azure's own string", in: "mongodb://acct:" + secretMark + "@h:10255/?tls=true&appName=@acct@", raw: "mongodb://acct:" + secretMark + "@h:10255/?tls=true&appName=%40acct%40",
			hosts: []string{"h:10255"}, addrs: []string{"h:10255"}, user: "acct", password: secretMark,
			redacted: "mongodb://acct:***@h:10255/?tls=true&appName=%40acct%40",
		},
		{
			name: "an @ in an option of a string without a user", in: "mongodb://h1:1,[fd00::1]/db?tls=true&appName=@acct@",
			raw: "mongodb://h1:1,[fd00::1]/db?tls=true&appName=%40acct%40", hosts: []string{"h1:1", "[fd00::1]"}, addrs: []string{"h1:1", "[fd00::1]:27017"},
		},
		{
			name: "x509 needs no password", in: "mongodb://CN%3Dnode@h/?authMechanism=MONGODB-X509",
			hosts: []string{"h"}, addrs: []string{"h:27017"}, user: "CN=node",
		},
		{
			name: "secret options", in: "mongodb://h/?tlsCertificateKeyFilePassword=" + secretMark +
				"&authMechanismProperties=AWS_SESSION_TOKEN:" + secretMark + "&proxyPassword=" + secretMark,
			hosts: []string{"h"}, addrs: []string{"h:27017"},
			redacted: "mongodb://h/?tlsCertificateKeyFilePassword=***&authMechanismProperties=***&proxyPassword=***",
		},
		{
			name: "empty tags mean any", in: "mongodb://h/?readPreference=nearest&readPreferenceTags=dc:a&readPreferenceTags=",
			hosts: []string{"h"}, addrs: []string{"h:27017"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseTarget(tt.in)
			if err != nil {
				t.Fatalf("ParseTarget: %v", err)
			}
			or := func(s, other string) string {
				if s == "" {
					return other
				}
				return s
			}
			raw := or(tt.raw, tt.in)
			want := map[string]any{
				"raw": raw, "uri": or(tt.uri, raw), "bare": tt.bare, "srv": tt.srv,
				"hosts": tt.hosts, "addrs": tt.addrs, "user": tt.user, "password": tt.password,
				"redacted": or(tt.redacted, raw),
			}
			have := map[string]any{
				"raw": got.Raw().Reveal(), "uri": got.URI().Reveal(), "bare": got.Bare(), "srv": got.SRV(),
				"hosts": got.Hosts(), "addrs": got.addresses(), "user": got.Username(), "password": decoded(got.get().password),
				"redacted": got.Redacted(),
			}
			must.NoDiff(t, "target", have, want)
			checkTarget(t, got)
		})
	}
}

func decoded(s string) string {
	s, _ = url.PathUnescape(s)
	return s
}

// checkTarget checks a valid target: it renders to itself, the driver reads it alike, and only Reveal returns the password.
func checkTarget(t *testing.T, got Target) {
	t.Helper()
	again, err := ParseTarget(got.Raw().Reveal())
	if err != nil {
		t.Fatalf("parsing Raw again: %v", err)
	}
	if again.Raw() != got.Raw() || !again.Equal(got) || again.get().password != got.get().password || again.get().user != got.get().user {
		t.Errorf("parsing Raw again gives something else")
	}
	full, err := ParseTarget(got.URI().Reveal())
	if err != nil {
		t.Fatalf("parsing URI: %v", err)
	}
	must.NoDiff(t, "hosts of URI (-Raw +URI)", full.Hosts(), got.Hosts())
	if less := got.Schemeless().Reveal(); !got.SRV() && schemePlain+less != got.URI().Reveal() {
		t.Errorf("Schemeless is not the URI without its scheme")
	} else if got.SRV() && less != "" {
		t.Errorf("an SRV URI has a schemeless form: %q", less)
	}

	// Spring evaluates these in AMS's files.
	for _, bad := range []string{"${", "#{", "\\", " "} {
		if strings.Contains(got.Raw().Reveal(), bad) {
			t.Errorf("Raw contains %q", bad)
		}
	}

	// The redacted form must not depend on the password.
	if p := got.get(); p.password != "" {
		other := *p
		other.password = "x"
		hidden := &other
		must.Equal(t, "Redacted depends on the password", (Target{&hidden}).Redacted(), got.Redacted())
	}
}

func TestParseTargetRefuses(t *testing.T) {
	const neither = "it is neither a host name nor an IP address; write HOST:PORT, an IPv6 address in brackets, an international name in its xn-- form"
	tests := []struct{ in, want string }{
		{"", "it is empty; give an IP address, host:port or a mongodb:// URI"},
		{" \n", "it is empty; give an IP address, host:port or a mongodb:// URI"},
		{strings.Repeat("h", maxTargetLen+1), "it is longer than 8192 bytes"},
		{"mongodb://\xff", "it is not UTF-8 text"},
		{"h1, h2", "character 4: there is a blank, a line end or another invisible character; remove it, or percent-encode it in a password: a blank is %20"},
		{"mongodb://u:" + secretMark + " x@h/", "character 22: there is a blank, a line end or another invisible character; remove it, or percent-encode it in a password: a blank is %20"},
		{"mongodb://h\n/", "character 12: there is a blank, a line end or another invisible character; remove it, or percent-encode it in a password: a blank is %20"},
		{secretMark + "://h", "scheme, character 1: it is not a scheme of MongoDB; MongoDB's URIs start with mongodb:// or mongodb+srv://"},
		{"u:" + secretMark + "@h", "character 12: a user name, a database and options need a full URI; write mongodb://USER:PASSWORD@HOST/DATABASE?OPTION=VALUE"},
		{"h/?replicaSet=rs0", "character 2: a user name, a database and options need a full URI; write mongodb://USER:PASSWORD@HOST/DATABASE?OPTION=VALUE"},
		{"mongodb://u:" + secretMark + "@x@h/", "password, character 22: there is a raw @; percent-encode it: @ is %40 (and an @ in an option is %40)"},
		{"mongodb://u:" + secretMark + "/x@h/", "password, character 22: there is a raw /; percent-encode it: / is %2F (and an @ in an option is %40)"},
		{"mongodb://u:" + secretMark + "?x@h/", "password, character 22: there is a raw ?; percent-encode it: ? is %3F (and an @ in an option is %40)"},
		{"mongodb://u:" + secretMark + "#{x}@h/", "password, character 22: there is a raw #; percent-encode it: # is %23 (and an @ in an option is %40)"},
		{"mongodb://u:" + secretMark + ":x@h/", "password, character 22: there is a raw :; percent-encode it: : is %3A (and an @ in an option is %40)"},
		{"mongodb://u:" + secretMark + "%x@h/", "password, character 22: % is not followed by two hexadecimal digits; percent-encode it: % is %25"},
		{"mongodb://u:" + secretMark + "%E9@h/", "password, character 13: its percent-encoded bytes are not UTF-8; encode the UTF-8 bytes of each character: é is %C3%A9"},
		{"mongodb://é:" + secretMark + ":x@h/", "password, character 22: there is a raw :; percent-encode it: : is %3A (and an @ in an option is %40)"},
		{"mongodb://u:<db_password>@h/", "password, character 13: it is a placeholder; put the real one in"},
		{"mongodb://<user1>:<pw1>@h/", "user name, character 11: it is a placeholder; put the real one in"},
		{"mongodb://u:<pw1>@h/", "password, character 13: it is a placeholder; put the real one in"},
		{"mongodb://root:****@h/admin", "password, character 16: it is a placeholder; put the real one in"},
		{"mongodb://***:" + secretMark + "@h/admin", "user name, character 11: it is a placeholder; put the real one in"},
		{"mongodb://u:a/?" + secretMark + "@h/", "password, character 14: there is a raw /; percent-encode it: / is %2F (and an @ in an option is %40)"},
		{"mongodb://:" + secretMark + "@h/", "user name, character 11: it is missing; write mongodb://USER:PASSWORD@HOST/"},
		{"mongodb://u@h/", "password: there is a user name without a password; write mongodb://USER:PASSWORD@HOST/"},
		{"mongodb://u:@h/", "password: there is a user name without a password; write mongodb://USER:PASSWORD@HOST/"},
		{"mongodb://", "host, character 11: it is missing; write HOST or HOST:PORT"},
		{"mongodb://u:" + secretMark + "@/db", "host, character 23: it is missing; write HOST or HOST:PORT"},
		{"h1,,h2", "host, character 4: it is missing; write HOST or HOST:PORT"},
		{"h1,", "host, character 4: it is missing; write HOST or HOST:PORT"},
		{":27017", "host, character 1: it is missing; write HOST or HOST:PORT"},
		{"h:", "port, character 3: the port is not a number from 1 to 65535; if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"},
		{"h:0", "port, character 3: the port is not a number from 1 to 65535; if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"},
		{"a.b:1,h:99999", "port, character 9: the port is not a number from 1 to 65535; if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"},
		{"h:65536", "port, character 3: the port is not a number from 1 to 65535; if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"},
		{"mongodb://u:" + secretMark, "port, character 13: the port is not a number from 1 to 65535; if this is a user and a password, the host is missing: mongodb://USER:PASSWORD@HOST/"},
		{"[::]", "host, character 1: other machines cannot connect to this address; give the server's own address"},
		{"0.0.0.0", "host, character 1: other machines cannot connect to this address; give the server's own address"},
		{"mongodb://-h/", "host, character 11: " + neither},
		{"h1,.h2", "host, character 4: " + neither},
		{"mongodb://%2Ftmp%2Fm.sock/", "host, character 11: " + neither},
		{"mongodb+srv://a.b.c,d.e.f/", "host, character 15: mongodb+srv:// takes one host name without a port, DNS knows the servers; write mongodb:// before a list, an address or a port"},
		{"mongodb+srv://a.b.c:27017/", "host, character 15: mongodb+srv:// takes one host name without a port, DNS knows the servers; write mongodb:// before a list, an address or a port"},
		{"mongodb+srv://10.0.2.4/", "host, character 15: mongodb+srv:// takes one host name without a port, DNS knows the servers; write mongodb:// before a list, an address or a port"},
		{"mongodb://h/a/b", "database, character 13: it is not a name that MongoDB allows for a database; percent-encode a / that belongs to the password: / is %2F"},
		{"mongodb://u:" + secretMark + "@h/admin&replicaSet=rs0", "database, character 30: there is a raw &: an option has the wrong mark before it; write ? before the first option: HOST/DATABASE?OPTION=VALUE"},
		{"mongodb://h/replicaSet=rs0", "database, character 23: there is a raw =: an option has the wrong mark before it; write ? before the first option: HOST/DATABASE?OPTION=VALUE"},
		{"mongodb://h/a.b", "database, character 13: it is not a name that MongoDB allows for a database; percent-encode a / that belongs to the password: / is %2F"},
		{"mongodb://h/a#b", "character 14: there is a raw #; percent-encode it: # is %23"},
		{"mongodb://h/?replicaSet", "options, character 14: there is an option without a name or a value; write OPTION=VALUE"},
		{"mongodb://h/?tls=true&replicaSet=", "options, character 23: there is an option without a name or a value; write OPTION=VALUE"},
		{"mongodb://h/?=rs0", "options, character 14: there is an option without a name or a value; write OPTION=VALUE"},
		{"mongodb://h/?replica%53et=rs0", "options, character 14: there is an option without a name or a value; write OPTION=VALUE"},
		{"mongodb://h/?retryWrites=yes", `MongoDB's driver says: error parsing uri: invalid value for "retryWrites": "yes"`},
		{"mongodb://h/?srvMaxHosts=1", "MongoDB's driver says: error parsing uri: cannot specify srvMaxHosts on non-SRV URI"},
		{"mongodb://h/?appName=a%zz", "options, character 23: % is not followed by two hexadecimal digits; percent-encode it: % is %25"},
	}
	for _, host := range []string{
		`"10.0.2.4"`, "fd00::1", "a:b:c", "[fd00::1", "[10.0.2.4]", "[fe80::1%eth0]", "[fd00::1]x", "10.0.2.256",
		"10.0.2", "27017", "-", "h-.example.net", "a..b", "...", strings.Repeat("h", 64), "a$b",
	} {
		tests = append(tests, struct{ in, want string }{host, "host, character 1: " + neither})
	}
	for _, tt := range tests {
		got, err := ParseTarget(tt.in)
		if te, ok := errors.AsType[*TargetError](err); !ok || strings.TrimLeft(strings.TrimPrefix(te.Error(), "connection string"), ",: ") != tt.want {
			t.Errorf("%.60s: %v, want: %s", tt.in, err, tt.want)
		}
		if strings.Contains(fmt.Sprint(err), secretMark) {
			t.Errorf("the error shows the password: %v", err)
		}
		if !got.IsZero() || got.Raw() != "" {
			t.Errorf("%.60s: a refused string gave a Target", tt.in)
		}
	}
}

func TestTargetWarnings(t *testing.T) {
	got, err := ParseTarget("mongodb+srv://db.internal/?tlsCAFile=x&w=1&w=2&apiToken=" + secretMark)
	must.OK(t, err)
	want := []string{"option tlsCAFile: AMS's Java driver ignores it and uses the trust and key stores of its JVM"}
	must.NoDiff(t, "warnings", got.Warnings(), want)
	if strings.Contains(got.Redacted(), secretMark) {
		t.Errorf("an unknown option shows its value: %v", got)
	}
	if !got.HasCredentials() {
		t.Error("an option that sounds secret does not count as a credential")
	}
	must.Equal(t, "option: w", got.option("W"), "2")
}

func TestTargetProperties(t *testing.T) {
	for in, want := range map[string][2]bool{ // loopback, credentials
		"127.0.0.1":            {true, false},
		"localhost:1,[::1]:2":  {true, false},
		"localhost,10.0.2.4":   {false, false},
		"mongodb://u:p@10.1.1": {},
		"mongodb://u:p@10.1.1.1/?authMechanism=PLAIN":      {false, true},
		"mongodb://h/?authMechanismProperties=SERVICE:x":   {false, true},
		"mongodb+srv://localhost.example.com":              {false, false},
		"mongodb://CN%3Da@h/?authMechanism=MONGODB-X509":   {false, true},
		"mongodb://localhost/?tlsCertificateKeyFile=a.pem": {true, false},
	} {
		got, err := ParseTarget(in)
		if (err != nil) != (want == [2]bool{} && strings.Contains(in, "10.1.1") && !strings.Contains(in, "10.1.1.1")) {
			t.Fatalf("ParseTarget(%q): %v", in, err)
		}
		must.Equal(t, in+": loopback, credentials", [2]bool{got.Loopback(), got.HasCredentials()}, want)
	}
	var zero Target
	if zero.Loopback() || zero.HasCredentials() || !zero.IsZero() || zero.Redacted() != "" || zero.URI() != "" {
		t.Error("the zero Target is not empty")
	}
}

// FuzzParseTarget: a valid target passes checkTarget, and the driver splits the URI in the same way.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{
		"10.0.2.4", "h:27017", "h1,h2", "[fd00::1]:1", "mongodb://u:p@h/", "mongodb+srv://u:p@a.b.c/d?x=y",
		"mongodb://u:p%40%2F@h1,h2:1/db?replicaSet=rs0&tls=true;w=majority", "mongodb://u:a{b}\\c@h?a=b",
		"mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:abcd", "mongodb://u:<password>@h", "redis://h",
		"mongodb://u:p/w@h/?a=b@c", "mongodb://u:${x}#{y}@h", "mongodb://u:%zz@h",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			if te, ok := errors.AsType[*TargetError](err); !ok || te.Problem == "" {
				t.Fatalf("not a usable *TargetError: %#v", err)
			}
			return
		}
		checkTarget(t, got)
		if got.SRV() || usesFiles(got) {
			return // the driver would ask DNS or read files
		}
		opts := options.Client().ApplyURI(got.URI().Reveal())
		if err := opts.Validate(); err != nil {
			// The driver also refuses inconsistent options, but must not split the string differently.
			for _, word := range []string{"unescaped", "must have", "scheme", "invalid host", "invalid username", "invalid password", "invalid database"} {
				if strings.Contains(err.Error(), word) {
					t.Fatalf("the driver reads %q otherwise: %v", got.URI().Reveal(), err)
				}
			}
			return
		}
		must.NoDiff(t, "hosts, -ours +driver", opts.Hosts, got.Hosts())
		if opts.Auth != nil && (opts.Auth.Username != got.Username() || opts.Auth.Password != decoded(got.get().password)) {
			t.Errorf("the driver reads credentials %q %q, we %q %q",
				opts.Auth.Username, opts.Auth.Password, got.Username(), decoded(got.get().password))
		}
	})
}

func usesFiles(t Target) bool {
	for _, o := range t.get().options {
		if strings.Contains(strings.ToLower(o.name), "file") {
			return true
		}
	}
	return false
}

// FuzzTargetSecret puts arbitrary passwords, encoded and raw, into a URI: no output shows them.
func FuzzTargetSecret(f *testing.F) {
	for _, s := range []string{"@", "p@ss", "a/b?c#d", "%", "ä", "\\", "a b", "${a}", "<x>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, password string) {
		// A mark on both sides makes a partial leak recognisable.
		password = secretMark + password + secretMark
		for _, uri := range []string{
			"mongodb://u:" + password + "@h/?x=y",
			"mongodb://u:" + url.QueryEscape(password) + "@h/?x=y",
			"mongodb://h/?proxyPassword=" + password,
			"u:" + password + "@h",
		} {
			if strings.Contains(uri, "/?proxyPassword=") && namesOption(password) {
				continue // the text after the name is that option's value
			}
			got, err := ParseTarget(uri)
			shown := fmt.Sprint(got, err, got.Warnings())
			if te, ok := errors.AsType[*TargetError](err); ok {
				shown += fmt.Sprintf("%+v", *te)
			}
			if strings.Contains(shown, secretMark) {
				t.Fatalf("shown: %s", shown)
			}
			if err == nil {
				if masked := redact.Text("x "+uri+" y", got.Secrets()...); strings.Contains(masked, secretMark) {
					t.Fatalf("redact.Text left it: %s", masked)
				}
			}
		}
	})
}

// namesOption reports whether the text has an option whose value may be shown.
func namesOption(text string) bool {
	_, rest, _ := strings.Cut(strings.ReplaceAll(text, ";", "&"), "&")
	for pair := range strings.SplitSeq(rest, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if (option{name: name}).isShown() {
			return true
		}
	}
	return false
}

// printouts returns v in every form that could get into a log or a file.
func printouts(v any) map[string]string {
	out := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out[verb] = fmt.Sprintf(verb, v)
	}
	var text bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("m", "v", v)
	slog.New(slog.NewJSONHandler(&text, nil)).Info("m", "v", v)
	out["slog"] = text.String()
	if b, err := json.Marshal(v); err == nil {
		out["json"] = string(b)
	}
	if b, err := bson.MarshalExtJSON(bson.M{"v": v}, false, false); err == nil {
		out["bson"] = string(b)
	}
	return out
}

func TestNothingPrintsATarget(t *testing.T) {
	target, err := ParseTarget("mongodb://u:" + secretMark + "@h/?proxyPassword=" + secretMark + "&proxyUsername=u&proxyHost=p")
	must.OK(t, err)
	for name, v := range map[string]any{
		"target": target, "pointer": &target, "targets": []Target{target}, "in a struct": struct{ T Target }{target}, "unexported": struct{ t Target }{target},
		"deep": map[string][]struct{ t *Target }{"x": {{&target}}},
	} {
		for how, out := range printouts(v) {
			if strings.Contains(out, secretMark) || strings.Contains(out, fmt.Sprintf("%x", secretMark)) {
				t.Errorf("%s, %s: %s", name, how, out)
			}
		}
	}
}
