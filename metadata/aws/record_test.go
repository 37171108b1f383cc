// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
	"github.com/amsagent/amsagent/metadata/record"
)

var update = flag.Bool("update", false, "write the recordings below testdata/metadata anew")

// recordings is the folder of recordings that all packages share.
const recordings = "../../testdata/metadata/aws"

// recorded names the machines of which there is a recording.
func recorded() []string {
	return []string{"ipv4", "dual_stack", "ipv6_only", "tags_off", "odd_but_legal_tags"}
}

// secrets are what those machines hold and a recording must not.
func secrets() []string {
	return []string{
		"0abc1234567890def", "111122223333", "0123456789abcdef0", "10.0.1.23", "10-0-1-23", "203.0.113.77", "0e:49:61:0f:c3:11",
		"2001:db8:1f18", "edge-asg", "edge one", "Größe", "a+b-c", "token-1", "ec2e1916",
	}
}

// writeDMI makes the firmware strings of a Nitro instance below a root.
func writeDMI(t *testing.T, root string) {
	t.Helper()
	dir := filepath.Join(root, "sys/class/dmi/id")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]string{
		"sys_vendor": "Amazon EC2", "product_name": "c7i.2xlarge", "bios_vendor": "Amazon EC2", "board_asset_tag": "i-0abc1234567890def",
		"chassis_asset_tag": "Amazon EC2", "product_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef", "product_serial": "ec2e1916-9099-7caf-fd21-012345abcdef",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(v+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// makeRecording does what `amsagent metadata --record DIR` does.
func makeRecording(t *testing.T, dir string, bodies map[string]string) {
	t.Helper()
	root := t.TempDir()
	writeDMI(t, root)
	f := metadatatest.NewFake(t, service(), bodies)
	opts := metadata.Options{Root: root, Endpoints: map[string]string{"aws": f.URL()}, Record: dir}
	d, err := metadata.Detect(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	p, err := metadata.Open(d.Provider, opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// replay reads the instance out of a recording.
func replay(t *testing.T, fsys fs.FS) (cloud.Instance, *record.Replay) {
	t.Helper()
	exchanges, err := record.Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	rt := record.NewReplay(exchanges)
	p, err := aws.New(cloud.Options{Transport: rt, RetryWait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	inst, err := p.Instance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return inst, rt
}

// instanceFile of a recording holds what is read out of it.
const instanceFile = "instance.json"

// The recordings in testdata are what a recorder writes today, and are read as they were read when they were made.
func TestRecordings(t *testing.T) {
	for _, m := range machines() {
		if !slices.Contains(recorded(), m.Name) {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			golden := filepath.Join(recordings, strings.ReplaceAll(m.Name, "_", "-"))
			fresh := t.TempDir()
			makeRecording(t, fresh, m.Bodies)
			inst, _ := replay(t, os.DirFS(fresh))
			if err := record.WriteFile(fresh, instanceFile, inst); err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.RemoveAll(golden); err != nil {
					t.Fatal(err)
				}
				if err := os.CopyFS(golden, os.DirFS(fresh)); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(files(t, golden), files(t, fresh)); d != "" {
				t.Errorf("a recording made now differs from the one in testdata (-testdata +now; -update writes it anew):\n%s", d)
			}

			inst, rt := replay(t, os.DirFS(golden))
			var want cloud.Instance
			b, err := os.ReadFile(filepath.Join(golden, instanceFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(inst)
			if err != nil {
				t.Fatal(err)
			}
			wantJSON, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(wantJSON), string(got)); d != "" {
				t.Errorf("replayed:\n%s", d)
			}
			for what, n := range rt.Asked() {
				if n > 1 {
					t.Errorf("replaying asked %d times for %s", n, what)
				}
			}
		})
	}
}

// Every name and number that could lead to somebody is gone, also out of the file names.
func TestRecordingHoldsNoSecrets(t *testing.T) {
	all := bodies(map[string]string{
		meta + "network/interfaces/macs/" + mac + "/ipv6s": "2001:db8:1f18::a1",
		meta + "public-ipv4":                  "203.0.113.77",
		meta + "tags/instance":                "Name\ncustomer\namsagent:mongo\namsagent:role\na+b-c",
		meta + "tags/instance/customer":       "Größe AG",
		meta + "tags/instance/a+b-c":          "x",
		meta + "tags/instance/amsagent:mongo": "mongodb://ams:hunter2@10.0.2.4",
		meta + "local-hostname":               "db1.acme.example.com ip-10-0-1-23.eu-west-1.compute.internal",
	})
	dir := t.TempDir()
	makeRecording(t, dir, all)
	for name, body := range files(t, dir) {
		for _, s := range append(secrets(), "hunter2", "10.0.2.4", "acme", "customer") {
			if strings.Contains(strings.ToLower(name), strings.ToLower(s)) || strings.Contains(strings.ToLower(body), strings.ToLower(s)) {
				t.Errorf("%s holds %q:\n%s", name, s, body)
			}
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode().Perm())
		}
	}
	// And it is still of use.
	inst, _ := replay(t, os.DirFS(dir))
	if v, ok := metadata.Lookup(inst.Tags, "amsagent:role", "amsagent-role"); !ok || v != "edge" {
		t.Errorf("role = %q, %v; the recording lost it", v, ok)
	}
	if inst.Group != "group-1" || !inst.Address.IsValid() || !inst.IPv6.IsValid() || inst.Hostname != "host-1.example.internal" {
		t.Errorf("replayed: %+v", inst)
	}
}

// Paths that the policy does not name leave no body behind, whatever asks for them later.
func TestPolicyKeepsUnknownPathsOut(t *testing.T) {
	secret := "very secret"
	f := metadatatest.NewFake(t, service(), map[string]string{
		"/latest/user-data": secret, meta + "iam/security-credentials/": secret, meta + "iam/security-credentials/role-name": secret,
		"/latest/dynamic/instance-identity/pkcs7": secret, meta + "public-keys/0/openssh-key": secret, meta + "security-groups": secret,
		meta + "brand/new": secret,
	})
	dir := t.TempDir()
	// Not http.DefaultTransport: it would read the proxy variables once and for all tests of this binary.
	client := &http.Client{Transport: record.NewTransport(dir, &http.Transport{}, aws.Policy())}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, f.URL()+"/latest/api/token", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", cloud.UserAgent)
	req.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var token bytes.Buffer
	if _, err := token.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for _, path := range []string{
		"/latest/user-data", meta + "iam/security-credentials/", meta + "iam/security-credentials/role-name", "/latest/dynamic/instance-identity/pkcs7",
		meta + "public-keys/0/openssh-key", meta + "security-groups", meta + "brand/new",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL()+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", cloud.UserAgent)
		req.Header.Set("X-aws-ec2-metadata-token", token.String())
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		if _, err := body.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if body.String() != secret {
			t.Fatalf("%s: the reader got %q through the recorder", path, body.String())
		}
	}
	for name, body := range files(t, dir) {
		for _, s := range []string{secret, "role-name", token.String()} {
			if strings.Contains(body, s) || strings.Contains(name, s) {
				t.Errorf("%s holds %q:\n%s", name, s, body)
			}
		}
	}
}

func TestRecordingOfFailures(t *testing.T) {
	const doc = "/latest/dynamic/instance-identity/document"
	f := metadatatest.NewFake(t, service(), bodies())
	f.Break(doc, 1, metadatatest.Status(http.StatusServiceUnavailable))
	f.Break(doc, 1, metadatatest.Slow())
	f.Break(doc, 1, metadatatest.Body(`{"accountId":"111122223333", oops`))
	dir := t.TempDir()
	p, err := aws.New(cloud.Options{
		Endpoints: map[string]string{"aws": f.URL()}, Record: dir, RetryWait: time.Millisecond, AttemptTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := files(t, dir)
	for name, want := range map[string]string{
		"GET_latest_dynamic_instance-identity_document.json":   `"status": 503`,
		"GET_latest_dynamic_instance-identity_document.2.json": `"error": "timeout"`,
		"GET_latest_dynamic_instance-identity_document.3.json": `"body": "REDACTED: not a JSON object"`,
		"GET_latest_dynamic_instance-identity_document.4.json": `"status": 200`,
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s lacks %s:\n%s", name, want, got[name])
		}
	}
	// What went wrong goes wrong again when it is replayed, and is got over again.
	replay(t, os.DirFS(dir))
}

func TestRecordIntoUsedFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := aws.New(cloud.Options{Record: dir}); err == nil || !strings.Contains(err.Error(), "letter.txt") {
		t.Errorf("error = %v, want one that names the file in the way", err)
	}
}

func TestRecordFailsLoudly(t *testing.T) {
	f := metadatatest.NewFake(t, service(), bodies())
	dir := filepath.Join(t.TempDir(), "rec")
	p, err := aws.New(cloud.Options{Endpoints: map[string]string{"aws": f.URL()}, Record: dir})
	if err != nil {
		t.Fatal(err)
	}
	// As if the disk were gone.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, err = p.Instance(t.Context())
	if err == nil || !strings.Contains(err.Error(), "writing the recording") {
		t.Errorf("error = %v, want one about the recording", err)
	}
	if n := f.Count("/latest/api/token"); n != 1 {
		t.Errorf("%d token requests; a full disk is no reason to ask again", n)
	}
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}
