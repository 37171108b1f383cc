// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func opened(t *testing.T, changes map[string]string) *Installation {
	t.Helper()
	in, err := Open(tree(t, changes), "")
	must.OK(t, err)
	return in
}

var shipped = Ports{HTTP: 5080, HTTPS: 5443, RTMP: 1935, SRT: 4200, Origin: 5000}

func TestPorts(t *testing.T) {
	for name, c := range map[string]struct {
		properties string
		want       Ports
	}{
		"nothing set": {"", shipped},
		"all set": {
			"http.port=80\nhttps.port=443\nrtmp.port=1936\nrtmps.enabled=true\nrtmps.port=8444\nserver.srt_port=4201\nserver.origin_port=5001\n",
			Ports{HTTP: 80, HTTPS: 443, RTMP: 1936, RTMPS: 8444, SRT: 4201, Origin: 5001},
		},
		"java spelling": {"http.port : 8\\\n  080 \nrtmps.enabled: ON\nhttps.port=1\nhttps.port=2\n", Ports{HTTP: 8080, HTTPS: 2, RTMP: 1935, RTMPS: 8443, SRT: 4200, Origin: 5000}},
		"placeholders":  {"http.port=${PORT:80}\nhttps.port=${tls}\ntls=443\nrtmps.enabled=${R:true}\nrtmps.port=${P}\n", Ports{HTTP: 80, HTTPS: 5443, RTMP: 1935, RTMPS: 8443, SRT: 4200, Origin: 5000}},
		"no ports":      {"http.port=${port}\nhttps.port=0\nrtmp.port=65536\nserver.srt_port=-1\nserver.origin_port=\nrtmps.enabled=false\nrtmps.port=8443\n", shipped},
	} {
		t.Run(name, func(t *testing.T) {
			if in := opened(t, map[string]string{"conf/red5.properties": c.properties}); in.ServerErr != nil || in.Ports != c.want {
				t.Errorf("%+v, %v, want %+v", in.Ports, in.ServerErr, c.want)
			}
		})
	}
	t.Run("broken", func(t *testing.T) {
		in := opened(t, map[string]string{"conf/red5.properties": "http.port=1\nx=\\u00g0\n"})
		if in.ServerErr == nil || in.Ports != shipped {
			t.Errorf("malformed: %+v, %v", in.Ports, in.ServerErr)
		}
		must.OK(t, os.Remove(in.Server.Real))
		if _, err := in.ServerToken(time.Now()); !says(err, "unreadable: ") || says(err, "no token for the server's statistics") {
			t.Errorf("gone: %v", err)
		}
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file string
		want       Limits
	}{
		{"as shipped with 3.0", "server.cpu_limit=75\nserver.min_free_ram=10\nserver.memory_limit_percentage=75\n", Limits{CPU: 75, Memory: 75}},
		{"empty", "", Limits{}},
		{"set by the operator", "server.cpu_limit = 90 \nserver.memory_limit_percentage=85\n", Limits{CPU: 90, Memory: 85}},
		{"below and above what the server takes", "server.cpu_limit=1\nserver.memory_limit_percentage=1000\n", Limits{CPU: 10, Memory: 100}},
		{"no numbers", "server.cpu_limit=most\nserver.memory_limit_percentage=\n", Limits{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			must.Equal(t, "limits", opened(t, map[string]string{"conf/red5.properties": tt.file}).Limits, tt.want)
		})
	}
}

func TestDatabases(t *testing.T) {
	in := opened(t, map[string]string{"webapps/again/WEB-INF/red5-web.properties": appProperties("live")})
	got, err := in.Databases()
	must.OK(t, err)
	must.NoDiff(t, "databases", got, []string{"livedb", "mydb", "yayindb"})
	in = opened(t, map[string]string{
		"webapps/bad/WEB-INF/red5-web.properties":   "db.name=\\u12\n",
		"webapps/no-db/WEB-INF/red5-web.properties": "",
		"webapps/long/WEB-INF/red5-web.properties":  appProperties(strings.Repeat("x", 50<<10)),
		"webapps/most/WEB-INF/red5-web.properties":  appProperties(strings.Repeat("x", 61)),
		"webapps/root/WEB-INF/red5-web.properties":  "",
	})
	got, err = in.Databases()
	if err == nil || !strings.Contains(err.Error(), "bad") || !strings.Contains(err.Error(), "no-db") || strings.Contains(err.Error(), "root") {
		t.Errorf("two applications are not known: %v", err)
	}
	if !strings.Contains(err.Error(), "db.name has 51202 bytes") || len(err.Error()) > 2000 {
		t.Errorf("a name that is too long: %.2000v", err)
	}
	must.Equal(t, fmt.Sprintf("the others: %q", got), len(got), 4)
}

const jwt = "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey="

// The secret and the token are from the vendor's documentation.
func TestTokenOfTheDocumentation(t *testing.T) {
	want := "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.tA6sZwz_MvD9Nocf3Xv_DXhJaeTNgfsHPlg3RHEoZRk"
	must.Equal(t, "token", token("cizvvh7f6ys0w3x0s1gzg6c2qzpk0gb9", "{}"), want)
}

func TestServerToken(t *testing.T) {
	for name, c := range map[string]struct{ spelled, secret string }{
		"plain":          {"s3cret", "s3cret"},
		"escaped":        {`a\\b\=c\u00e9 `, `a\b=cé `}, // the space belongs to it
		"over two lines": {"ab\\\n  cd", "abcd"},
		"dollar":         {"a$b{c}", "a$b{c}"},
	} {
		t.Run(name, func(t *testing.T) {
			in := opened(t, map[string]string{"conf/red5.properties": jwt + c.spelled + "\n"})
			token, err := in.ServerToken(time.Unix(1_800_000_000, 0))
			must.OK(t, err)
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
				if shown := fmt.Sprintf(verb, in) + token; strings.Contains(shown, c.secret) || strings.Contains(shown, fmt.Sprintf("%x", c.secret)) {
					t.Errorf("the secret is shown: %s", shown)
				}
			}
			parts := strings.Split(token, ".")
			if len(parts) != 3 {
				t.Fatalf("%q", parts)
			}
			mac := hmac.New(sha256.New, []byte(c.secret))
			mac.Write([]byte(parts[0] + "." + parts[1]))
			must.Equal(t, "signature", parts[2], base64.RawURLEncoding.EncodeToString(mac.Sum(nil)))
			var decoded [2]map[string]any
			for i := range decoded {
				b, err := base64.RawURLEncoding.DecodeString(parts[i])
				if err == nil {
					err = json.Unmarshal(b, &decoded[i])
				}
				must.OK(t, err)
			}
			want := [2]map[string]any{{"alg": "HS256", "typ": "JWT"}, {"exp": float64(1_800_000_060)}}
			must.NoDiff(t, "payload", decoded, want)
		})
	}
}

func TestServerTokenNotPossible(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	for name, c := range map[string]struct{ properties, why string }{
		"missing":        {"", "server.jwtServerControlEnabled is not true"},
		"off":            {"server.jwtServerControlEnabled=false\nserver.jwtServerSecretKey=" + secret + "\n", "server.jwtServerControlEnabled is not true"},
		"no secret":      {jwt + "\n", "server.jwtServerSecretKey is empty"},
		"jwks only":      {jwt + "\nserver.jwksURL=https://example.org/\n", "server.jwksURL is set"},
		"jwks wins":      {jwt + secret + "\nserver.jwksURL=https://example.org/\n", "server.jwksURL is set"},
		"placeholder":    {jwt + "${" + secret + "}\n", "a placeholder"},
		"the last wins":  {jwt + secret + "\nserver.jwtServerSecretKey=\n", "server.jwtServerSecretKey is empty"},
		"off in the end": {jwt + secret + "\nserver.jwtServerControlEnabled=0\n", "server.jwtServerControlEnabled is not true"},
	} {
		t.Run(name, func(t *testing.T) {
			in := opened(t, map[string]string{"conf/red5.properties": c.properties})
			_, err := in.ServerToken(time.Now())
			if !says(err, "no token for the server's statistics") || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), "red5.properties") {
				t.Errorf("%v", err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
	for _, yes := range []string{"true", "TRUE", " true ", "on", "yes", "1"} {
		in := opened(t, map[string]string{"conf/red5.properties": "server.jwtServerControlEnabled=" + yes + "\nserver.jwtServerSecretKey=" + secret + "\n"})
		if _, err := in.ServerToken(time.Now()); err != nil {
			t.Errorf("%q: %v", yes, err)
		}
	}
}
