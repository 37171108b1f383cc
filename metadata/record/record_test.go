// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package record_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/amsagent/amsagent/metadata/record"
)

func TestMapper(t *testing.T) {
	m := record.NewMapper()
	for _, tt := range []struct{ in, want string }{
		{"i-0abc1234567890def", "i-00000000000000001"},
		{"i-0abc1234567890def again", "i-00000000000000001 again"},
		{"i-0abc1234", "i-00000002"},
		{"eni-0abc1234567890def vpc-11112222", "eni-00000000000000001 vpc-00000001"},
		{"10.0.1.23", "192.0.2.1"},
		{"10.0.1.24 and 10.0.1.23", "192.0.2.2 and 192.0.2.1"},
		{"172.16.0.1/20", "192.0.2.3/20"},
		{"52.1.2.3", "203.0.113.1"},
		{"ip-10-0-1-23.eu-west-1.compute.internal", "ip-192-0-2-1.eu-west-1.compute.internal"},
		{"ec2-52-1-2-3.compute-1.amazonaws.com", "ec2-203-0-113-1.compute-1.amazonaws.com"},
		{"2600:1f18::a1", "2001:db8::1"},
		{"2600:1f18::a1\n2600:1f18::a2\n", "2001:db8::1\n2001:db8::2\n"},
		{"2600:1f18:0:0:0:0:0:a1", "2001:db8::1"},
		{"::ffff:10.0.1.23", "192.0.2.1"},
		{"0E:49:61:0f:c3:11", "02:00:00:00:00:01"},
		{"macs/0e:49:61:0f:c3:11/ipv6s", "macs/02:00:00:00:00:01/ipv6s"},
		{"arn:aws:iam::111122223333:role/x", "arn:aws:iam::123456789012:role/x"},
		{"addr:2600:1f18::a1: x", "addr:REDACTED:REDACTED::a1: x"},
		{"999.1.1.1", "REDACTED"},
		{"ec2e1916-9099-7caf-fd21-012345abcdef", "00000000-0000-4000-8000-000000000001"},
		// What names nobody stays.
		{"127.0.0.1 169.254.169.254 0.0.0.0 ::1", "127.0.0.1 169.254.169.254 0.0.0.0 ::1"},
		{"2026-11-20T08:22:00Z 09:00:43", "2026-11-20T08:22:00Z 09:00:43"},
		{"eu-west-1a c7i.2xlarge on-demand", "eu-west-1a c7i.2xlarge on-demand"},
		{"", ""},
	} {
		if got := m.Text(tt.in); got != tt.want {
			t.Errorf("Text(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
	if a, b := m.Name("tag", "x"), m.Name("tag", "y"); a != "tag-1" || b != "tag-2" || m.Name("tag", "x") != a || m.Name("tag", "") != "" {
		t.Errorf("Name() = %q, %q", a, b)
	}
}

// Whatever the text, no address, id or account of it is left, and it still has as many lines.
func FuzzMapper(f *testing.F) {
	for _, s := range []string{"10.0.1.23", "i-0abc1234567890def", "2600:1f18::a1", "0e:49:61:0f:c3:11", "111122223333", "a1.2.3.4b", ":::", "::", "1:2:3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := record.NewMapper().Text(s + "\n10.77.66.55 i-0feedfacefeedface 0e:49:61:0f:c3:11 999988887777 2600:1f18::77\n")
		for _, secret := range []string{"10.77.66.55", "feedface", "0e:49:61", "999988887777", "2600:1f18::77"} {
			if strings.Contains(got, secret) && !strings.Contains(s, secret) {
				t.Errorf("%q is left in %q", secret, got)
			}
		}
		if strings.Count(got, "\n") != strings.Count(s, "\n")+2 {
			t.Errorf("lines changed: %q", got)
		}
	})
}

func TestFileName(t *testing.T) {
	seen := map[string]string{}
	for _, path := range []string{
		"/latest/a:b", "/latest/a-b", "/latest/a_b", "/latest/a/b", "/latest/a%3Ab", "/latest/a b", "/latest/a", "/latest/a/", "/", "",
		"/" + strings.Repeat("x", 300), "/" + strings.Repeat("x", 301), "/../../etc/passwd", "/latest/größe",
	} {
		name := record.FileName(http.MethodGet, path)
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q share the name %s", path, other, name)
		}
		seen[name] = path
		if len(name) > 240 || filepath.Base(name) != name || strings.HasPrefix(name, ".") {
			t.Errorf("FileName(%q) = %q", path, name)
		}
	}
}

// keepAll is a policy that hides nothing, to see what the transport itself does.
type keepAll struct{}

func (keepAll) Path(_ *record.Mapper, path string) string { return path }

func (keepAll) Body(_ *record.Mapper, _ string, body []byte) string { return string(body) }

// fetch returns the status, 0 where there was no answer, and the body as far as it came.
func fetch(t *testing.T, rt http.RoundTripper, url string) (status int, body string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Aws-Ec2-Metadata-Token", "secret-token")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestRecordAndReplay(t *testing.T) {
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("X-Secret-Header", "secret-header")
		w.Header().Set("Retry-After", "1")
		switch {
		case r.URL.Path == "/cut":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
		case n == 1:
			http.Error(w, "secret-page", http.StatusServiceUnavailable)
		default:
			io.WriteString(w, "well")
		}
	}))
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "rec")
	if err := record.Prepare(dir); err != nil {
		t.Fatal(err)
	}
	rec := record.NewTransport(dir, &http.Transport{DisableKeepAlives: true}, keepAll{})
	type seen struct {
		status int
		body   string
		cut    bool
	}
	round := func(rt http.RoundTripper) []seen {
		var out []seen
		for _, path := range []string{"/x", "/x", "/x", "/cut"} {
			status, body, err := fetch(t, rt, server.URL+path)
			if status == 0 {
				t.Fatalf("%s: %v", path, err)
			}
			out = append(out, seen{status, body, errors.Is(err, io.ErrUnexpectedEOF)})
		}
		return out
	}
	live := round(rec)
	want := []seen{{503, "secret-page\n", false}, {200, "well", false}, {200, "well", false}, {200, "half", true}}
	for i := range want {
		if live[i] != want[i] {
			t.Errorf("through the recorder, answer %d: %+v, want %+v", i, live[i], want[i])
		}
	}
	exchanges, err := record.Load(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	replay := record.NewReplay(exchanges)
	again := round(replay)
	// The page of an error is left out; what was cut is cut again.
	want[0].body, want[3].body = "", ""
	for i := range want {
		if again[i] != want[i] {
			t.Errorf("replayed, answer %d: %+v, want %+v", i, again[i], want[i])
		}
	}
	if status, _, err := fetch(t, replay, server.URL+"/other"); err != nil || status != http.StatusNotFound {
		t.Errorf("what was not recorded: %d, %v", status, err)
	}
	if got := replay.Asked()["GET /x"]; got != 3 {
		t.Errorf("Asked() = %v", replay.Asked())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "secret-") {
			t.Errorf("%s holds a secret:\n%s", e.Name(), b)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v", info.Mode().Perm())
	}
}

type broken struct{ err error }

// RoundTrip implements http.RoundTripper.
func (b broken) RoundTrip(*http.Request) (*http.Response, error) { return nil, b.err }

func TestRecordOfNoAnswer(t *testing.T) {
	for err, want := range map[error]string{context.DeadlineExceeded: "timeout", context.Canceled: "cancelled", io.EOF: "cut", errors.New("x"): "refused"} {
		dir := t.TempDir()
		if _, _, got := fetch(t, record.NewTransport(dir, broken{err}, keepAll{}), "http://h/x"); !errors.Is(got, err) {
			t.Errorf("error = %v, want %v", got, err)
		}
		exchanges, loadErr := record.Load(os.DirFS(dir))
		if loadErr != nil {
			t.Fatal(loadErr)
		}
		if got := exchanges[0].Response.Error; got != want {
			t.Errorf("%v was recorded as %q, want %q", err, got, want)
		}
		if _, _, err := fetch(t, record.NewReplay(exchanges), "http://h/x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("replayed: %v", err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, body := range map[string]string{
		"nothing in it": "", "not JSON": "{", "a later format": `{"schema_version":9,"request":{"method":"GET","path":"/x"}}`,
	} {
		fsys := fstest.MapFS{}
		if body != "" {
			fsys["GET_x.json"] = &fstest.MapFile{Data: []byte(body)}
		}
		if got, err := record.Load(fsys); err == nil {
			t.Errorf("%s: loaded %+v", name, got)
		}
	}
}

func TestPrepareRefusesAnotherRecording(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, record.DetectionFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := record.Prepare(dir); err != nil {
		t.Errorf("a folder with only the detection: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "GET_x.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := record.Prepare(dir); err == nil || !strings.Contains(err.Error(), "GET_x.json") {
		t.Errorf("error = %v", err)
	}
}

// In a folder that another user can write to, a link would have root write over any file.
func TestPrepareRefusesAFolderOfOthers(t *testing.T) {
	dir, victim := filepath.Join(t.TempDir(), "rec"), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, record.DetectionFile)); err != nil {
		t.Fatal(err)
	}
	if err := record.WriteFile(dir, record.DetectionFile, 1); err == nil {
		t.Error("a link out of the folder was followed")
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := record.Prepare(dir); err == nil || !strings.Contains(err.Error(), "somebody else may write to it") {
		t.Errorf("error = %v", err)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "kept" {
		t.Errorf("%q, %v", text, err)
	}
}
