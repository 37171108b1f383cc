// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
)

// printouts renders v in every way something could end in a log or a file.
func printouts(t *testing.T, v any) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, verb := range []string{
		"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%t", "%e", "%p", "%10s", "%-40v|", "% x", "%#x", "%.3s", "%w",
	} {
		out[verb] = fmt.Sprintf(verb, v)
	}
	out["Sprint"] = fmt.Sprint(v)
	out["error"] = fmt.Errorf("wrapped: %v", v).Error()
	var text, js bytes.Buffer
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelError} {
		opts := &slog.HandlerOptions{Level: slog.LevelDebug}
		slog.New(slog.NewTextHandler(&text, opts)).Log(t.Context(), level, "m", "v", v, slog.Group("g", "v", v))
		slog.New(slog.NewJSONHandler(&js, opts)).Log(t.Context(), level, "m", "v", v, slog.Group("g", "v", v))
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
	if b, err := bson.MarshalExtJSON(bson.M{"v": v}, false, false); err == nil {
		out["bson"] = string(b)
	}
	var g bytes.Buffer
	if err := gob.NewEncoder(&g).Encode(v); err == nil {
		out["gob"] = g.String()
	}
	return out
}

func TestNothingPrintsASecret(t *testing.T) {
	target, err := ParseTarget("mongodb://u:" + secretMark + "@h/?proxyPassword=" + secretMark)
	must.OK(t, err)
	secret := Secret(secretMark)
	for name, v := range map[string]any{
		"secret":         secret,
		"secret pointer": &secret,
		"secrets":        []Secret{secret},
		"map":            map[string]Secret{"k": secret},
		"struct":         struct{ Password Secret }{secret},
		"target":         target,
		"target pointer": &target,
		"targets":        []Target{target},
		"in a struct":    struct{ T Target }{target},
		"unexported":     struct{ t Target }{target},
		"deep":           map[string][]struct{ t *Target }{"x": {{&target}}},
	} {
		for how, out := range printouts(t, v) {
			if (how == "%p" || how == "%w") && slices.Contains([]string{"secret", "secrets", "secret pointer", "map", "struct"}, name) {
				continue // fmt asks no method; go vet reports them
			}
			for _, leak := range []string{secretMark, fmt.Sprintf("%x", secretMark), fmt.Sprintf("%X", secretMark), fmt.Sprintf("% x", secretMark), fmt.Sprint([]byte(secretMark))} {
				if strings.Contains(out, leak) {
					t.Errorf("%s, %s: %s", name, how, out)
				}
			}
		}
	}
	if got := fmt.Sprintf("%v %s %q %#v %x", secret, secret, secret, secret, secret); got != `*** *** "***" "***" ***` {
		t.Errorf("Format: %s", got)
	}
	if got := fmt.Sprintf("%v %q", Secret(""), Secret("")); got != ` ""` {
		t.Errorf("an empty secret shows as %s", got)
	}
	if secret.Reveal() != secretMark {
		t.Error("Reveal does not")
	}
	var back struct{ P Secret }
	if err := json.Unmarshal([]byte(`{"P":"`+secretMark+`"}`), &back); err != nil || back.P != secret {
		t.Errorf("a secret cannot be read from JSON: %v", err)
	}
}

func TestRedactText(t *testing.T) {
	const pw = "p@s:s/w=o#r!d\\ ä𝄞"
	spelled := map[string]string{
		"raw":              pw,
		"query encoded":    url.QueryEscape(pw),
		"path encoded":     url.PathEscape(pw),
		"all encoded":      encode(pw),
		"lower hex":        strings.ToLower(encode(pw)),
		"properties":       `p@s\:s/w\=o\#r\!d\\ \u00e4\ud834\udd1e`,
		"properties upper": `p@s\:s/w\=o\#r\!d\\\ \u00E4\uD834\uDD1E`,
		"properties, our":  `p@s:s/w=o#r!d\\ \u00e4\uD834\uDD1E`,
		"Go":               fmt.Sprintf("%q", pw),
		"Go, ASCII":        fmt.Sprintf("%+q", pw),
		"mixed":            "p%40s:s%2fw=o%23r!d\\ %C3%A4𝄞",
	}
	js, err := json.Marshal(pw)
	must.OK(t, err)
	spelled["json"] = string(js)
	for name, s := range spelled {
		got := RedactText("connecting with ["+s+"] failed", Secret(pw))
		if want := "connecting with [***] failed"; strings.ReplaceAll(got, `"`, "") != want {
			t.Errorf("%s: %q becomes %q", name, s, got)
		}
		// The same, when the secret is known in its encoded form only.
		got = RedactText("connecting with ["+s+"] failed", Secret(encode(pw)))
		if want := "connecting with [***] failed"; strings.ReplaceAll(got, `"`, "") != want {
			t.Errorf("%s, secret encoded: %q becomes %q", name, s, got)
		}
	}

	tests := []struct {
		name, in, want string
		secrets        []Secret
	}{
		{"nothing to hide", "dial tcp: connection refused", "dial tcp: connection refused", nil},
		{"empty secret", "abc", "abc", []Secret{""}},
		{"several, overlapping", "abcdefgh", "***", []Secret{"abcdef", "cdefgh"}},
		{"one inside another", "abcdefgh", "***", []Secret{"cdef", "abcdefgh"}},
		{"twice", "hunter2, hunter2", "***, ***", []Secret{"hunter2"}},
		{"short, alone", "user a:a@h failed at all", "user ***:***@h failed at all", []Secret{"a"}},
		{"xml", "<v>a&amp;b&lt;c</v>", "<v>***</v>", []Secret{"a&b<c"}},
		{"unknown password in a URI", "cannot use mongodb://u:hunter2@h/?x=y now", "cannot use mongodb://u:***@h/?x=y now", nil},
		{"unencoded password in a URI", `"mongodb://u:hun@ter/2@h/"`, `"mongodb://u:***@h/"`, nil},
		{"quotes in a password", `use mongodb://u:pa'hun"t` + "`" + `er2@h/, not x`, "use mongodb://u:***@h/, not x", nil},
		{"a quote in a quoted URI", `"mongodb://u:hun\"ter2@h/"`, `"mongodb://u:***@h/"`, nil},
		{"a token of AWS", "mongodb://u@h/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2", "mongodb://u@h/?authMechanismProperties=***", nil},
		{"a quoted URI before an address", `Get "https://h:80/a": ask 'me@h'`, `Get "https://h:80/a": ask 'me@h'`, nil},
		{"JSON on a line", `{"a":[{"u":"https://h:80/a"},{"n":5}],"b":"me@h"}`, `{"a":[{"u":"https://h:80/a"},{"n":5}],"b":"me@h"}`, nil},
		{"a password in JSON on a line", `{"a":"mongodb://u:hun\"ter2@h","b":"x"}`, `{"a":"mongodb://u:***@h","b":"x"}`, nil},
		{"URI without password", "see https://h:80/a and mongodb://h", "see https://h:80/a and mongodb://h", nil},
		{"unknown password in XML", `bad <property name="password" value="hunter2"/>`, `bad <property name="password" value="***"/>`, nil},
		{"the same, quoted again", `"start property name=\"password\" value=\"hunter2\""`, `"start property name=\"password\" value=\"***\""`, nil},
		{"unknown password in YAML", "line 2:\n passphrase: hunter2\n", "line 2:\n passphrase: ***\n", nil},
		{"unknown password, quoted again", `cause="password=\"hunter2\""`, `cause="password=\"***\""`, nil},
		{"not UTF-8", "x\xff hunter2", "x\xff ***", []Secret{"hunter2"}},
	}
	for _, tt := range tests {
		if got := RedactText(tt.in, tt.secrets...); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// FuzzRedactText: whatever the text around it, a secret of a length worth the
// name is never left in it.
func FuzzRedactText(f *testing.F) {
	f.Add("a", "hunter2", "b")
	f.Add("mongodb://u:", "p%40ss", "@h")
	f.Add(`\u00`, "e4e4", "")
	f.Add("0", "**\n\n", ">00")
	f.Add("mongodb://u:", `a'b"c`, `@h","x":"y@z"}`)
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		if len([]rune(secret)) < shortSecret || strings.Contains(placeholder, secret) {
			return
		}
		for _, form := range []string{secret, encode(secret), url.QueryEscape(secret)} {
			got := RedactText(before+form+after, Secret(secret))
			// Line ends of what is masked stay.
			masked := placeholder + strings.Repeat("\n", strings.Count(form, "\n"))
			if strings.Contains(secret, placeholder) || strings.Contains(before+after, form) || strings.Contains(masked, form) {
				continue // put together from what was around it, or shown in its place
			}
			if strings.Contains(got, form) {
				t.Errorf("%q in %q", form, got)
			}
		}
	})
}

// encode percent-encodes all but the unreserved characters.
func encode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; isAlnum(c) || strings.IndexByte(unreserved, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
