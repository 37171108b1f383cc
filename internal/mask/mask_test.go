// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mask_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/mask"
)

func TestName(t *testing.T) {
	for _, name := range []string{
		"pass", "passwd", "pwd", "password", "passphrase", "secret", "token", "apikey", "api_key", "apiKey", "api-key",
		"privateKey", "private_key", "jwtKey", "jwt.key", "key_pass", "accesskey", "settings.s3AccessKey", "credential",
		"rtmps.keystorepass", "jmx.keystorepass", "clusterdb.password", "dbPwd", "DB_PASSWORD", "tlsCertificateKeyFilePassword",
		"license_key", "server.jwtServerSecretKey", "p:password", "clusterCommunicationKey", "settings.firebaseAccountKeyJSON",
		"subscriberAuthenticationKey", "auth_key", "azure.masterKey", "streamKey", "SharedKey", "webhook.hmac",
		"authMechanismProperties",
	} {
		if !mask.Name(name) {
			t.Errorf("%s is not masked", name)
		}
	}
	for _, name := range []string{
		"bypass", "settings.bypass", "compass", "passive", "webrtc.passiveMode", "db.host", "http.port", "key", "keyframe", "monkey",
		"useGlobalIp", "passenger.count",
	} {
		if mask.Name(name) {
			t.Errorf("%s is masked", name)
		}
	}
}

// TestNamesOfAMS looks at all names of the settings of known releases. Who adds a name to the list has seen that its value
// opens nothing.
func TestNamesOfAMS(t *testing.T) {
	const corpus = "../../../shared/corpus"
	if _, err := os.Stat(corpus); err != nil {
		t.Skipf("%s not present", corpus)
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
			case mask.Name(one):
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
func TestShown(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		find             func(string) []mask.Span
	}{
		{"keystore", "rtmps.keystorepass=hunter2\n", "rtmps.keystorepass=***\n", mask.Lines},
		{"comment", "#clusterdb.password=hunter2\n", "#clusterdb.password=***\n", mask.Lines},
		{"comment, blank", "! clusterdb.password hunter2\n", "! clusterdb.password ***\n", mask.Lines},
		{"spaces", "api_key = hunter2, or so\r\n", "api_key = ***\r\n", mask.Lines},
		{"yaml", "  password: hunter2\n", "  password: ***\n", mask.Lines},
		{"shell", "export DB_PWD='hunter2'\n", "export DB_PWD=***\n", mask.Lines},
		{"switch", "settings.publishTokenControlEnabled=true\n", "settings.publishTokenControlEnabled=true\n", mask.Lines},
		{"sentence", "# the password of the server\n", "# the password of the server\n", mask.Lines},

		{"attribute", `<bean password="hunter2" x="y"/>`, `<bean password="***" x="y"/>`, mask.XML},
		{"namespace", `<bean p:apiKey = 'hunter2'/>`, `<bean p:apiKey = '***'/>`, mask.XML},
		{"property", "<property name=\"passphrase\"\n  value=\"hunter2\"/>", "<property name=\"passphrase\"\n  value=\"***\"/>", mask.XML},
		{"property, value first", `<property value="hunter2" name="jwtKey"/>`, `<property value="***" name="jwtKey"/>`, mask.XML},
		{"nested", "<property name=\"privateKey\">\n <value>hunter2</value>\n</property>\n<value>5080</value>", "<property name=\"privateKey\">\n <value>***</value>\n</property>\n<value>5080</value>", mask.XML},
		{"entry", `<entry key="secret"><value>hunter2</value></entry>`, `<entry key="secret"><value>***</value></entry>`, mask.XML},
		{"element", "<keystorePass>hunter2</keystorePass><port>1</port>", "<keystorePass>***</keystorePass><port>1</port>", mask.XML},
		{"CDATA", `<property name="password"><value><![CDATA[hunter2]]></value></property>`, `<property name="password"><value><![CDATA[***]]></value></property>`, mask.XML},
		{"CDATA with tags", "<a><![CDATA[<keystorePass>hunter2</keystorePass>]]></a>", "<a><![CDATA[<keystorePass>***</keystorePass>]]></a>", mask.XML},
		{"CDATA without an end", "<!-- use <![CDATA[ here --><keystorePass>hunter2</keystorePass>", "<!-- use <![CDATA[ here --><keystorePass>***</keystorePass>", mask.XML},
		{"CDATA without an end, of a secret", "<keystorePass><![CDATA[hunter2", "<keystorePass><![CDATA[***", mask.XML},
		{"CDATA after text", "<keystorePass> <![CDATA[]]>\n<![CDATA[ <hunter2> ]]></keystorePass><port>1</port>", "<keystorePass> <![CDATA[]]>\n<![CDATA[ *** ]]></keystorePass><port>1</port>", mask.XML},
		{"commented out", `<!-- <property name="key_pass" value="hunter2"/> -->`, `<!-- <property name="key_pass" value="***"/> -->`, mask.XML},
		{"text in a comment", `<!-- password=hunter2 -->`, `<!-- password=*** -->`, mask.XML},

		{"in an error", `bad line "token=hunter2" in x`, `bad line "token=***" in x`, mask.Assignments},
		{"quoted", `credential="hunter2 x" y`, `credential="***" y`, mask.Assignments},
		{"json", `{"accessKey" : "hunter2", "port": "1"}`, `{"accessKey" : "***", "port": "1"}`, mask.Assignments},
		{"option of a URI", "mongodb://h/?tlsCertificateKeyFilePassword=hunter2&w=1", "mongodb://h/?tlsCertificateKeyFilePassword=***&w=1", mask.Assignments},
		{"token of AWS", "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2&w=1", "mongodb://h/?authMechanismProperties=***&w=1", mask.Assignments},
		{"a quote in a value", `mongodb://h/?appName=it's&tlsCertificateKeyFilePassword=a'b"hunter2&w=1`, "mongodb://h/?appName=it's&tlsCertificateKeyFilePassword=***&w=1", mask.Assignments},
		{"a quoted URI", `{"a":"mongodb://h/?proxyPassword=hunter2","b":"x"}`, `{"a":"mongodb://h/?proxyPassword=***","b":"x"}`, mask.Assignments},
		{"PEM", "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\nx", "-----BEGIN RSA PRIVATE KEY-----***\n\n-----END RSA PRIVATE KEY-----\nx", mask.Lines},
		{"two in PEM", strings.Repeat("-----BEGIN PRIVATE KEY-----hunter2-----END PRIVATE KEY-----", 3), strings.Repeat("-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----", 3), mask.Lines},
		{"PEM in JSON", `{"a":"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"}`, `{"a":"-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----\n"}`, mask.Assignments},
		{"PEM, cut off", "<x>-----BEGIN PRIVATE KEY-----hunter2", "<x>-----BEGIN PRIVATE KEY-----***", mask.XML},
		{"a certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", mask.Lines},

		{"escaped quotes", `why="password=\"hunter2 x\" y"`, `why="password=\"***\" y"`, mask.Assignments},
		{"escaped twice", `"a=\"token=\\\"hunter2\\\" b\""`, `"a=\"token=\\\"***\\\" b\""`, mask.Assignments},
		{"json in a string", `"{\"apiKey\": \"hunter2\", \"port\": 1}"`, `"{\"apiKey\": \"***\", \"port\": 1}"`, mask.Assignments},

		{"property in an error", `bad <property name="password" value="hunter2"/> here`, `bad <property name="password" value="***"/> here`, mask.Text},
		{"property, quoted", `bad "<property name=\"password\" value=\"hunter2\"/>" here`, `bad "<property name=\"password\" value=\"***\"/>" here`, mask.Text},
		{"attributes, quoted", `"start property name=\"password\" value=\"hunter2\"" became "x"`, `"start property name=\"password\" value=\"***\"" became "x"`, mask.Text},
		{"attributes, value first", `value="hunter2" name="jwtKey"`, `value="***" name="jwtKey"`, mask.Text},
		{"other attributes", `name="port" value="5080", name="jwtKey"`, `name="port" value="5080", name="jwtKey"`, mask.Text},
		{"element in an error", `bad <passphrase>hunter2</passphrase> here`, `bad <passphrase>***</passphrase> here`, mask.Text},
		{"yaml in an error", "cannot read:\n  passphrase: hunter2\nport: 1", "cannot read:\n  passphrase: ***\nport: 1", mask.Text},
		{"yaml, quoted", "in \"passphrase: hunter2\" of x", "in \"passphrase: ***\" of x", mask.Text},
		{"yaml, a quoted value", `- apiKey: "hunter2 x" # old`, `- apiKey: "***" # old`, mask.Text},
		{"a sentence", "password: authentication failed", "password: authentication failed", mask.Text},
		{"a cause", "cannot read the password: EOF", "cannot read the password: EOF", mask.Text},
		{"what is to be put in", "use mongodb://USER:<password>@HOST, and restart", "use mongodb://USER:<password>@HOST, and restart", mask.Text},
	} {
		got := mask.Replace(tt.text, tt.find(tt.text), "***")
		if got != tt.want || strings.Contains(got, hidden) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Whoever writes a file decides how many signs it has. A hundred times as long as a line that
// takes the square of its length may take.
func TestLongWord(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("a=", 4<<20), strings.Repeat("a=b&", 2<<20), "x://" + strings.Repeat("a=b&", 2<<20), "x://" + strings.Repeat("a=", 4<<20),
		strings.Repeat("a'b=", 2<<20),
	} {
		if found := mask.Lines(text + "&pwd=hunter2"); len(found) != 1 || found[0].To != len(text)+len("&pwd=hunter2") {
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
		for _, find := range []func(string) []mask.Span{mask.Lines, mask.XML, mask.Assignments, mask.Text} {
			got := mask.Replace(text, find(text), "***")
			if strings.Count(got, "\n") != strings.Count(text, "\n") {
				t.Errorf("%q became %q", text, got)
			}
		}
	})
}
