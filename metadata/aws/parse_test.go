// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestParseIdentity(t *testing.T) {
	good := aws.Identity{AccountID: "111122223333", InstanceID: "i-0abc1234567890def", Region: "eu-west-1", Zone: "eu-west-1a", Type: "c7i.2xlarge"}
	withIP := good
	withIP.PrivateIP = netip.MustParseAddr("10.0.1.23")
	for _, tt := range []struct {
		name, body string
		want       aws.Identity
		err        string
	}{
		{name: "documented form", body: document(`"10.0.1.23"`), want: withIP},
		{name: "null address", body: document("null"), want: good},
		{name: "empty address", body: document(`""`), want: good},
		{name: "link-local address", body: document(`"169.254.1.74"`), want: good},
		{name: "loopback address", body: document(`"127.0.0.1"`), err: `privateIp is "127.0.0.1"`},
		{name: "IPv6 in the IPv4 field", body: document(`"2001:db8::1"`), err: `privateIp is "2001:db8::1"`},
		{name: "China region", body: strings.ReplaceAll(document("null"), "eu-west-1", "cn-north-1"), want: aws.Identity{
			AccountID: "111122223333", InstanceID: "i-0abc1234567890def", Region: "cn-north-1", Zone: "cn-north-1a", Type: "c7i.2xlarge",
		}},
		{name: "everything wrong is told at once", body: `{"instanceId":"x","accountId":"y","region":"<z>"}`, err: "accountId is \"y\"\nthe identity document's instanceId is \"x\"\nthe identity document's region is \"<z>\""},
		{name: "truncated", body: document("null")[:60], err: "unexpected end of JSON input"},
		{name: "trailing garbage", body: document("null") + "x", err: "invalid character 'x' after top-level value"},
		{name: "long value is cut in the error", body: `{"accountId":"111122223333","region":"eu-west-1","instanceId":"` + strings.Repeat("a", 500) + `"}`, err: "(500 bytes)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := aws.ParseIdentity([]byte(tt.body))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error = %v, want %q in it", err, tt.err)
				}
				return
			}
			must.OK(t, err)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestParseLists(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       []string
		bad        bool
	}{
		{"empty", "", nil, false},
		{"one without line end", "role", []string{"role"}, false},
		{"line ends of both kinds, an empty line, a double", "a\r\nb\n\na\n", []string{"a", "b"}, false},
		{"leaving the folder", "..\n.\n_index\nrole\n", []string{"role"}, false},
		{"blank in a key", "my role", nil, true},
		{"slash in a key", "a/b", nil, true},
		{"page", "<html>", nil, true},
		{"not UTF-8", "a\xff", nil, true},
		{"far too long", strings.Repeat("k", 129), nil, true},
		{"far too many", strings.Repeat("x", 0) + many(300), nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := aws.ParseTagKeys([]byte(tt.body))
			if (err != nil) != tt.bad {
				t.Fatalf("error = %v, want one: %v", err, tt.bad)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("key")
		b.WriteString(strings.Repeat("x", i%50))
		b.WriteByte(byte('a' + i%26))
		b.WriteByte(byte('a' + i/26))
		b.WriteByte('\n')
	}
	return b.String()
}

func TestParseWords(t *testing.T) {
	check := func(name string, got string, err error, want string) {
		t.Helper()
		if want == "" {
			if err == nil {
				t.Errorf("%s: got %q, want an error", name, got)
			}
			return
		}
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	for body, want := range map[string]string{"spot\n": "spot", "on-demand": "on-demand", "": "", "two words": "", "<b>": "", "a\nb": ""} {
		got, err := aws.ParseWord([]byte(body))
		check("word "+body, got, err, want)
	}
	for body, want := range map[string]string{
		"ip-10-0-0-1.ec2.internal": "ip-10-0-0-1.ec2.internal", "a.example.com b.example.com\n": "a.example.com",
		"": "", "<html>": "", "<!DOCTYPE html>\n<html>": "", "-a": "",
	} {
		got, err := aws.ParseHostname([]byte(body))
		check("host name "+body, got, err, want)
	}
	for body, want := range map[string]string{"0E:49:61:0f:c3:11\n": "0e:49:61:0f:c3:11", "0e-49-61-0f-c3-11": "", "0e49.610f.c311": "", "": "", "../x": ""} {
		got, err := cloud.ParseMAC([]byte(body))
		check("MAC "+body, got, err, want)
	}
}

// FuzzParse: no parser may fail in another way than by an error, and what it lets through must be what its users rely on.
func FuzzParse(f *testing.F) {
	for _, m := range machines() {
		for _, body := range m.Bodies {
			f.Add([]byte(body))
		}
	}
	f.Add([]byte("2001:db8::1%eth0"))
	f.Add([]byte("::ffff:10.0.0.1"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if id, err := aws.ParseIdentity(body); err == nil {
			if !strings.HasPrefix(id.InstanceID, "i-") || len(id.AccountID) < 10 || id.Region == "" {
				t.Errorf("let through %+v", id)
			}
			if id.PrivateIP.IsValid() && (!id.PrivateIP.Is4() || id.PrivateIP.IsLinkLocalUnicast() || id.PrivateIP.IsLoopback()) {
				t.Errorf("let through address %s", id.PrivateIP)
			}
		}
		if keys, err := aws.ParseTagKeys(body); err == nil {
			for _, k := range keys {
				if k == "" || k == ".." || strings.ContainsAny(k, "/\n\r <>\"\\?%#") {
					t.Errorf("let through key %q", k)
				}
			}
			if sorted := slices.Compact(slices.Sorted(slices.Values(keys))); len(sorted) != len(keys) {
				t.Errorf("a key twice: %q", keys)
			}
		}
		if v, err := aws.ParseTagValue(body); err == nil && strings.ContainsFunc(v, unicode.IsControl) {
			t.Errorf("let through value %q", v)
		}
		if list, err := aws.ParseAddresses(body); err == nil {
			for _, a := range list {
				if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
					t.Errorf("let through address %s", a)
				}
			}
		}
		if v, err := aws.ParseWord(body); err == nil && (v == "" || strings.ContainsAny(v, " \n/<>")) {
			t.Errorf("let through word %q", v)
		}
		if v, err := aws.ParseHostname(body); err == nil && (v == "" || strings.ContainsAny(v, " \n/<>:")) {
			t.Errorf("let through host name %q", v)
		}
		if v, err := cloud.ParseMAC(body); err == nil && (len(v) != 17 || strings.ContainsAny(v, "/.%")) {
			t.Errorf("let through MAC %q", v)
		}
	})
}
