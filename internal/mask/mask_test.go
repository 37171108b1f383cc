// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mask_test

import (
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
		{"commented out", `<!-- <property name="key_pass" value="hunter2"/> -->`, `<!-- <property name="key_pass" value="***"/> -->`, mask.XML},
		{"text in a comment", `<!-- password=hunter2 -->`, `<!-- password=*** -->`, mask.XML},

		{"in an error", `bad line "token=hunter2" in x`, `bad line "token=***" in x`, mask.Assignments},
		{"quoted", `credential="hunter2 x" y`, `credential="***" y`, mask.Assignments},
		{"json", `{"accessKey" : "hunter2", "port": "1"}`, `{"accessKey" : "***", "port": "1"}`, mask.Assignments},
		{"option of a URI", "mongodb://h/?tlsCertificateKeyFilePassword=hunter2&w=1", "mongodb://h/?tlsCertificateKeyFilePassword=***&w=1", mask.Assignments},
		{"PEM", "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\nx", "-----BEGIN RSA PRIVATE KEY-----***\n\n-----END RSA PRIVATE KEY-----\nx", mask.Lines},
		{"two in PEM", strings.Repeat("-----BEGIN PRIVATE KEY-----hunter2-----END PRIVATE KEY-----", 3), strings.Repeat("-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----", 3), mask.Lines},
		{"PEM in JSON", `{"a":"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"}`, `{"a":"-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----\n"}`, mask.Assignments},
		{"PEM, cut off", "<x>-----BEGIN PRIVATE KEY-----hunter2", "<x>-----BEGIN PRIVATE KEY-----***", mask.XML},
		{"a certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", mask.Lines},
	} {
		got := mask.Replace(tt.text, tt.find(tt.text), "***")
		if got != tt.want || strings.Contains(got, hidden) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add(`<a password="x">y</a>`)
	f.Add("#token x\r\npwd=\\")
	f.Fuzz(func(t *testing.T, text string) {
		for _, find := range []func(string) []mask.Span{mask.Lines, mask.XML, mask.Assignments} {
			got := mask.Replace(text, find(text), "***")
			if strings.Count(got, "\n") != strings.Count(text, "\n") {
				t.Errorf("%q became %q", text, got)
			}
		}
	})
}
