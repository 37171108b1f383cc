// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/must"
)

const alibabaSecretProgram = "../../packaging/image/alibaba-secret.py"

// kms is a machine of Alibaba Cloud with a RAM role, and the API that knows its keys.
func kms(t *testing.T) (*fakealibaba.Cloud, *fakealibaba.Server) {
	t.Helper()
	needs(t, "python3")
	api, err := fakealibaba.StartCloud(t.Context(), fakealibaba.CloudOptions{})
	must.OK(t, err)
	t.Cleanup(func() { _ = api.Close() })
	meta, err := fakealibaba.Start(t.Context(), fakealibaba.Options{Cloud: api})
	must.OK(t, err)
	t.Cleanup(func() { _ = meta.Close() })
	return api, meta
}

// kmsEnviron returns the environment with both addresses. The proxy must not be used, as the test's API is on this machine.
func kmsEnviron(api *fakealibaba.Cloud, meta *fakealibaba.Server) []string {
	return []string{
		"AMSAGENT_ALIBABA_ENDPOINT=" + meta.Endpoint(), "AMSAGENT_ALIBABA_KMS_ENDPOINT=" + api.Endpoint(),
		"http_proxy=http://127.0.0.1:9", "no_proxy=" + strings.TrimPrefix(api.Endpoint(), "http://"),
	}
}

// TestAlibabaSecret runs the program by which machines read and write the secret, with metadata and an API that computes
// the signature again.
func TestAlibabaSecret(t *testing.T) {
	t.Parallel()
	api, meta := kms(t)
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "python3", append([]string{alibabaSecretProgram}, args...)...)
		cmd.Env = append(os.Environ(), kmsEnviron(api, meta)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	fails := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); exitCode(err) != 1 || !strings.Contains(out, want) || strings.Contains(out, "Traceback") {
			t.Errorf("%v: exit %d, want 1 and %q:\n%s", args, exitCode(err), want, out)
		}
	}
	const uri = "mongodb://amsagent:0a1b+/=&%~ü@10.42.2.10:27017/admin"
	file := filepath.Join(t.TempDir(), "uri")
	must.OK(t, os.WriteFile(file, []byte(uri+"\n"), 0o600))
	fails("ResourceNotFound", "get", "ams-mongo")
	api.SetSecret("ams-mongo", "none yet")
	// The template's first value is not a connection string: no join may try it.
	fails("no connection string yet", "get", "ams-mongo")
	for range 2 { // a second run of the machine's script is another version
		if out, err := run("put", "ams-mongo", file); err != nil || out != "" {
			t.Errorf("%v: %s", err, out)
		}
	}
	must.Equal(t, "secret", api.Secret("ams-mongo"), uri)
	if out, err := run("get", "ams-mongo"); err != nil || out != uri+"\n" {
		t.Errorf("%v: %q", err, out)
	}
	for _, e := range api.Books() {
		if strings.Contains(e.Text, "mongodb") || e.By != meta.Get().ID && e.Code == "" {
			t.Errorf("in the books: %+v", e)
		}
	}
	api.Deny("GetSecretValue")
	fails("Forbidden.RAM", "get", "ams-mongo")
	api.Allow()
	meta.Update(func(i *fakealibaba.Instance) { i.Role = "" })
	fails("ams-mongo: ", "get", "ams-mongo")
	meta.Update(func(i *fakealibaba.Instance) { i.Role = "ams-node" })
	must.OK(t, meta.AddFault(fakes.Fault{Status: 403}))
	fails("403", "get", "ams-mongo")
}
