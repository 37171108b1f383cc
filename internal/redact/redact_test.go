// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package redact_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/redact"
)

// printouts renders v in every way something could end in a log or a file.
func printouts(v any) map[string]string {
	out := make(map[string]string)
	for _, verb := range []string{
		"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%t", "%e", "%10s", "%-40v|", "% x", "%#x", "%.3s",
	} {
		out[verb] = fmt.Sprintf(verb, v)
	}
	out["Sprint"] = fmt.Sprint(v)
	out["error"] = fmt.Errorf("wrapped: %v", v).Error()
	var text, js bytes.Buffer
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelError} {
		opts := &slog.HandlerOptions{Level: slog.LevelDebug}
		slog.New(slog.NewTextHandler(&text, opts)).Log(context.Background(), level, "m", "v", v, slog.Group("g", "v", v))
		slog.New(slog.NewJSONHandler(&js, opts)).Log(context.Background(), level, "m", "v", v, slog.Group("g", "v", v))
	}
	out["slog text"], out["slog json"] = text.String(), js.String()
	if b, err := json.Marshal(v); err == nil {
		out["json"] = string(b)
	}
	if b, err := yaml.Marshal(v); err == nil {
		out["yaml"] = string(b)
	}
	if b, err := xml.Marshal(v); err == nil {
		out["xml"] = string(b)
	}
	return out
}

func TestNothingPrintsASecret(t *testing.T) {
	const mark = "hunter2-Ä"
	secret := redact.Secret(mark)
	for name, v := range map[string]any{
		"secret":  secret,
		"pointer": &secret,
		"secrets": []redact.Secret{secret},
		"map":     map[string]redact.Secret{"k": secret},
		"struct":  struct{ Password redact.Secret }{secret},
	} {
		for how, out := range printouts(v) {
			for _, leak := range []string{mark, fmt.Sprintf("%x", mark), fmt.Sprintf("%X", mark), fmt.Sprintf("% x", mark), fmt.Sprint([]byte(mark))} {
				if strings.Contains(out, leak) {
					t.Errorf("%s, %s: %s", name, how, out)
				}
			}
		}
	}
	must.Equal(t, "Format", fmt.Sprintf("%v %s %q %#v %x", secret, secret, secret, secret, secret), `*** *** "***" "***" ***`)
	must.Equal(t, "an empty secret shows as", fmt.Sprintf("%v %q", redact.Secret(""), redact.Secret("")), ` ""`)
	if kind, b, err := secret.MarshalBSONValue(); kind != 2 || string(b) != "\x04\x00\x00\x00***\x00" || err != nil {
		t.Errorf("in BSON: %d %q, %v", kind, b, err)
	}
	must.Equal(t, "Reveal()", secret.Reveal(), mark)
	var back struct{ P redact.Secret }
	if err := json.Unmarshal([]byte(`{"P":"`+mark+`"}`), &back); err != nil || back.P != secret {
		t.Errorf("a secret cannot be read from JSON: %v", err)
	}
}

func TestText(t *testing.T) {
	const pw = "p@s:s/w=o#r!d\\ ä𝄞"
	spelled := map[string]string{
		"raw":              pw,
		"query encoded":    url.QueryEscape(pw),
		"path encoded":     url.PathEscape(pw),
		"all encoded":      percent(pw),
		"lower hex":        strings.ToLower(percent(pw)),
		"properties":       `p@s\:s/w\=o\#r\!d\\ \u00e4\ud834\udd1e`,
		"properties upper": `p@s\:s/w\=o\#r\!d\\\ \u00E4\uD834\uDD1E`,
		"properties, our":  `p@s:s/w=o#r!d\\ \u00E4\uD834\uDD1E`,
		"Go":               fmt.Sprintf("%q", pw),
		"Go, ASCII":        fmt.Sprintf("%+q", pw),
	}
	js, err := json.Marshal(pw)
	must.OK(t, err)
	spelled["json"] = string(js)
	for name, s := range spelled {
		got := redact.Text("connecting with ["+s+"] failed", redact.Secret(pw))
		must.Equal(t, fmt.Sprintf("%s: %q", name, s), strings.ReplaceAll(got, `"`, ""), "connecting with [***] failed")
		// The same, when the secret is known in its encoded form only.
		got = redact.Text("connecting with ["+s+"] failed", redact.Secret(percent(pw)))
		must.Equal(t, fmt.Sprintf("%s, secret encoded: %q", name, s), strings.ReplaceAll(got, `"`, ""), "connecting with [***] failed")
	}

	tests := []struct {
		name, in, want string
		secrets        []redact.Secret
	}{
		{"nothing to hide", "dial tcp: connection refused", "dial tcp: connection refused", nil},
		{"empty secret", "abc", "abc", []redact.Secret{""}},
		{"several, overlapping", "abcdefgh", "***", []redact.Secret{"abcdef", "cdefgh"}},
		{"one inside another", "abcdefgh", "***", []redact.Secret{"cdef", "abcdefgh"}},
		{"twice", "hunter2, hunter2", "***, ***", []redact.Secret{"hunter2"}},
		{"short, alone", "user a:a@h failed at all", "user ***:***@h failed at all", []redact.Secret{"a"}},
		{"a word of ours, in our text", "the secrets: a secret, and the secret's file", "the secrets: a secret, and the secret's file", []redact.Secret{"secret"}},
		{"a word of ours, as a value", "x='admin', <v>admin</v> \"admin\" admin", "x='***', <v>***</v> \"***\" admin", []redact.Secret{"admin"}},
		{"a word of ours, alone", "Root", "***", []redact.Secret{"Root"}},
		{"a word of ours, by its name", "password: secret\nDB_PASSWORD=secret x\nuse mongodb://u:secret@h/", "password: ***\nDB_PASSWORD=***\nuse mongodb://u:***@h/", []redact.Secret{"secret"}},
		{"a word of ours in a longer secret", "the secret1 of secret", "the *** of secret", []redact.Secret{"secret1"}},
		{"xml", "<v>a&amp;b&lt;c</v>", "<v>***</v>", []redact.Secret{"a&b<c"}},
		{"unknown password in a URI", "cannot use mongodb://u:hunter2@h/?x=y now", "cannot use mongodb://u:***@h/?x=y now", nil},
		{"unencoded password in a URI", `"mongodb://u:hun@ter/2@h/"`, `"mongodb://u:***@h/"`, nil},
		{"quotes in a password", `use mongodb://u:pa'hun"t` + "`" + `er2@h/, not x`, "use mongodb://u:***@h/, not x", nil},
		{"a quote in a quoted URI", `"mongodb://u:hun\"ter2@h/"`, `"mongodb://u:***@h/"`, nil},
		{"a quoted URI before an address", `Get "https://h:80/a": ask 'me@h'`, `Get "https://h:80/a": ask 'me@h'`, nil},
		{"JSON on a line", `{"a":[{"u":"https://h:80/a"},{"n":5}],"b":"me@h"}`, `{"a":[{"u":"https://h:80/a"},{"n":5}],"b":"me@h"}`, nil},
		{"a password in JSON on a line", `{"a":"mongodb://u:hun\"ter2@h","b":"x"}`, `{"a":"mongodb://u:***@h","b":"x"}`, nil},
		{"URI without password", "see https://h:80/a and mongodb://h", "see https://h:80/a and mongodb://h", nil},
		{"not UTF-8", "x\xff hunter2", "x\xff ***", []redact.Secret{"hunter2"}},
	}
	for _, tt := range tests {
		must.Equal(t, tt.name, redact.Text(tt.in, tt.secrets...), tt.want)
	}
}

// FuzzText: whatever the text around it, a secret of a length worth the
// name is never left in it.
func FuzzText(f *testing.F) {
	f.Add("a", "hunter2", "b")
	f.Add("mongodb://u:", "p%40ss", "@h")
	f.Add(`\u00`, "e4e4", "")
	f.Add("0", "**\n\n", ">00")
	f.Add("mongodb://u:", `a'b"c`, `@h","x":"y@z"}`)
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		if len([]rune(secret)) < 4 || strings.Contains(redact.Placeholder, secret) || redact.IsOwnWord(secret) {
			return
		}
		for _, form := range []string{secret, percent(secret), url.QueryEscape(secret)} {
			got := redact.Text(before+form+after, redact.Secret(secret))
			// Line ends of what is masked stay.
			masked := redact.Placeholder + strings.Repeat("\n", strings.Count(form, "\n"))
			if strings.Contains(secret, redact.Placeholder) || strings.Contains(before+after, form) || strings.Contains(masked, form) {
				continue // put together from what was around it, or shown in its place
			}
			if strings.Contains(got, form) {
				t.Errorf("%q in %q", form, got)
			}
		}
	})
}

func TestName(t *testing.T) {
	for _, name := range []string{
		"pass", "passwd", "pwd", "password", "passphrase", "secret", "token", "apikey", "api_key", "apiKey", "api-key",
		"privateKey", "private_key", "jwtKey", "jwt.key", "key_pass", "accesskey", "settings.s3AccessKey", "credential",
		"rtmps.keystorepass", "jmx.keystorepass", "clusterdb.password", "dbPwd", "DB_PASSWORD", "tlsCertificateKeyFilePassword",
		"license_key", "server.jwtServerSecretKey", "p:password", "clusterCommunicationKey", "settings.firebaseAccountKeyJSON",
		"subscriberAuthenticationKey", "auth_key", "azure.masterKey", "streamKey", "SharedKey", "webhook.hmac",
		"authMechanismProperties",
	} {
		if !redact.Name(name) {
			t.Errorf("%s is not masked", name)
		}
	}
	for _, name := range []string{
		"bypass", "settings.bypass", "compass", "passive", "webrtc.passiveMode", "db.host", "http.port", "key", "keyframe", "monkey",
		"useGlobalIp", "passenger.count",
	} {
		if redact.Name(name) {
			t.Errorf("%s is masked", name)
		}
	}
}

// TestNamesOfAMS looks at all names of the settings of known releases. Who adds a name to the list has seen that its value
// opens nothing.
func TestNamesOfAMS(t *testing.T) {
	const corpus = "../../../shared/corpus"
	if _, err := os.Stat(corpus); err != nil {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	reviewed := []string{
		"SSLCertificateKeyFile", "http.ssl_certificate_key_file", "keystoreFile", "rtmps.keystorefile", // paths
		"apnKeyId", "clientAuth",
		"webhookAuthenticateURL", "webhookPlayAuthUrl", // what is secret in a URL is masked by its place
		"keyframe.cache.entry.max", "webRTCKeyframeTime",
	}
	// A setting, also one that is commented out; a setting that XML uses; what a property or an attribute is called.
	name := regexp.MustCompile(`(?m)^[#! \t]*([\w.-]+)[ \t]*[=:]|\$\{([\w.-]+)|(?:name|key|property)="([\w.-]+)"`)
	telling := regexp.MustCompile(`(?i)key|secret|token|pass|auth`)
	var masked, shown []string
	err := filepath.WalkDir(corpus, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !slices.Contains([]string{".properties", ".xml"}, filepath.Ext(path)) {
			return err
		}
		b, err := os.ReadFile(path)
		for _, found := range name.FindAllStringSubmatch(string(b), -1) {
			switch one := strings.Join(found[1:], ""); {
			case redact.Name(one):
				masked = append(masked, one)
			case telling.MatchString(one) && !slices.Contains(reviewed, one):
				shown = append(shown, one)
			}
		}
		return err
	})
	slices.Sort(masked)
	slices.Sort(shown)
	masked, shown = slices.Compact(masked), slices.Compact(shown)
	t.Logf("masked: %q", masked)
	if err != nil || len(shown) > 0 || !slices.Contains(masked, "subscriberAuthenticationKey") {
		t.Errorf("may be secrets, and are not masked: %q, %v", shown, err)
	}
}

const hidden = "hunter2"

// Each line holds the secret once; nothing of it may be left, and the rest of the line must be.
func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
	}{
		{"keystore", "rtmps.keystorepass=hunter2\n", "rtmps.keystorepass=***\n"},
		{"comment", "#clusterdb.password=hunter2\n", "#clusterdb.password=***\n"},
		{"comment, blank", "! clusterdb.password hunter2\n", "! clusterdb.password ***\n"},
		{"spaces", "api_key = hunter2, or so\r\n", "api_key = ***\r\n"},
		{"yaml", "  password: hunter2\n", "  password: ***\n"},
		{"shell", "export DB_PWD='hunter2'\n", "export DB_PWD=***\n"},
		{"switch", "settings.publishTokenControlEnabled=true\n", "settings.publishTokenControlEnabled=true\n"},
		{"sentence", "# the password of the server\n", "# the password of the server\n"},

		{"attribute", `<bean password="hunter2" x="y"/>`, `<bean password="***" x="y"/>`},
		{"namespace", `<bean p:apiKey = 'hunter2'/>`, `<bean p:apiKey = '***'/>`},
		{"property", "<property name=\"passphrase\"\n  value=\"hunter2\"/>", "<property name=\"passphrase\"\n  value=\"***\"/>"},
		{"property, value first", `<property value="hunter2" name="jwtKey"/>`, `<property value="***" name="jwtKey"/>`},
		{"nested", "<property name=\"privateKey\">\n <value>hunter2</value>\n</property>\n<value>5080</value>", "<property name=\"privateKey\">\n <value>***</value>\n</property>\n<value>5080</value>"},
		{"entry", `<entry key="secret"><value>hunter2</value></entry>`, `<entry key="secret"><value>***</value></entry>`},
		{"element", "<keystorePass>hunter2</keystorePass><port>1</port>", "<keystorePass>***</keystorePass><port>1</port>"},
		{"CDATA", `<property name="password"><value><![CDATA[hunter2]]></value></property>`, `<property name="password"><value><![CDATA[***]]></value></property>`},
		{"CDATA with tags", "<a><![CDATA[<keystorePass>hunter2</keystorePass>]]></a>", "<a><![CDATA[<keystorePass>***</keystorePass>]]></a>"},
		{"CDATA without an end", "<!-- use <![CDATA[ here --><keystorePass>hunter2</keystorePass>", "<!-- use <![CDATA[ here --><keystorePass>***</keystorePass>"},
		{"CDATA without an end, of a secret", "<keystorePass><![CDATA[hunter2", "<keystorePass><![CDATA[***"},
		{"commented out", `<!-- <property name="key_pass" value="hunter2"/> -->`, `<!-- <property name="key_pass" value="***"/> -->`},
		{"text in a comment", `<!-- password=hunter2 -->`, `<!-- password=*** -->`},

		{"in an error", `bad line "token=hunter2" in x`, `bad line "token=***" in x`},
		{"quoted", `credential="hunter2 x" y`, `credential=***`},
		{"json", `{"accessKey" : "hunter2", "port": "1"}`, `{"accessKey" : "***", "port": "1"}`},
		{"option of a URI", "mongodb://h/?tlsCertificateKeyFilePassword=hunter2&w=1", "mongodb://h/?tlsCertificateKeyFilePassword=***&w=1"},
		{"token of AWS", "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2&w=1", "mongodb://h/?authMechanismProperties=***&w=1"},
		{"a quote in a value", `mongodb://h/?appName=it's&tlsCertificateKeyFilePassword=a'b"hunter2&w=1`, "mongodb://h/?appName=it's&tlsCertificateKeyFilePassword=***&w=1"},
		{"a quoted URI", `{"a":"mongodb://h/?proxyPassword=hunter2","b":"x"}`, `{"a":"mongodb://h/?proxyPassword=***","b":"x"}`},
		{"PEM", "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\nx", "-----BEGIN RSA PRIVATE KEY-----***\n\n-----END RSA PRIVATE KEY-----\nx"},
		{"two in PEM", strings.Repeat("-----BEGIN PRIVATE KEY-----hunter2-----END PRIVATE KEY-----", 3), strings.Repeat("-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----", 3)},
		{"PEM in JSON", `{"a":"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"}`, `{"a":"-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----\n"}`},
		{"PEM, cut off", "<x>-----BEGIN PRIVATE KEY-----hunter2", "<x>-----BEGIN PRIVATE KEY-----***"},
		{"a certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"},

		{"escaped quotes", `why="password=\"hunter2 x\" y"`, `why="password=\"***\" y"`},
		{"escaped twice", `"a=\"token=\\\"hunter2\\\" b\""`, `"a=\"token=\\\"***\\\" b\""`},
		{"json in a string", `"{\"apiKey\": \"hunter2\", \"port\": 1}"`, `"{\"apiKey\": \"***\", \"port\": 1}"`},

		{"property in an error", `bad <property name="password" value="hunter2"/> here`, `bad <property name="password" value="***"/> here`},
		{"property, quoted", `bad "<property name=\"password\" value=\"hunter2\"/>" here`, `bad "<property name=\"password\" value=\"***\"/>" here`},
		{"attributes, quoted", `"start property name=\"password\" value=\"hunter2\"" became "x"`, `"start property name=\"password\" value=\"***\"" became "x"`},
		{"attributes, value first", `value="hunter2" name="jwtKey"`, `value="***" name="jwtKey"`},
		{"other attributes", `name="port" value="5080", name="jwtKey"`, `name="port" value="5080", name="jwtKey"`},
		{"element in an error", `bad <passphrase>hunter2</passphrase> here`, `bad <passphrase>***</passphrase> here`},
		{"yaml in an error", "cannot read:\n  passphrase: hunter2\nport: 1", "cannot read:\n  passphrase: ***\nport: 1"},
		{"yaml, quoted", "in \"passphrase: hunter2\" of x", "in \"passphrase: ***\" of x"},
		{"yaml, a quoted value", `- apiKey: "hunter2 x" # old`, `- apiKey: "***" # old`},
		{"a sentence", "password: authentication failed", "password: authentication failed"},
		{"a cause", "cannot read the password: EOF", "cannot read the password: EOF"},
		{"a placeholder", "use mongodb://USER:<password>@HOST, and restart", "use mongodb://USER:<password>@HOST, and restart"},
	} {
		got := redact.Text(tt.text)
		if got != tt.want || strings.Contains(got, hidden) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// The author of a file decides how many signs it has: the time must not grow with the square of a line.
func TestLongWord(t *testing.T) {
	texts := []string{
		strings.Repeat("a=", 4<<16), strings.Repeat("a=b&", 2<<16), "x://" + strings.Repeat("a=b&", 2<<16), "x://" + strings.Repeat("a=", 4<<16),
		strings.Repeat("a'b=", 2<<16),
	}
	for _, text := range must.Sample(texts[:1], texts) {
		if found := redact.Find(text + "&pwd=hunter2"); len(found) != 1 || found[0].To != len(text)+len("&pwd=hunter2") {
			t.Errorf("%.20s...: %v", text, found)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add(`<a password="x">y</a>`)
	f.Add("#token x\r\npwd=\\")
	f.Add(`"password=\"\`)
	f.Add(`\name="key" value=\"x`)
	f.Add("\"pass: '\\")
	f.Add("x://a:b'c@d/?pwd='a\nb\"c&w='")
	f.Fuzz(func(t *testing.T, text string) {
		if got := redact.Text(text); strings.Count(got, "\n") != strings.Count(text, "\n") {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// percent encodes all but the unreserved characters.
func percent(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
