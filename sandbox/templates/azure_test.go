// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

const azureBicep = "../../packaging/cloud/azure/main.bicep"

const azureVaultHost = "ams-unique0000000.vault.azure.net"

func azureIdentityURL(name string) string {
	return "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net&client_id=" + name
}

func TestAzure(t *testing.T) {
	s := read(t, azureBicep)
	s.meets(t, "azure")
	name := regexp.MustCompile(`\{\{\w+\}\}`)
	for _, script := range s.finds(`loadTextContent\('(\w+\.sh\.tmpl.*)`) {
		file, values, _ := strings.Cut(script, "'")
		used(t, name.FindAllString(values, -1), name.FindAllString(contents(t, "../../packaging/cloud/azure/"+file), -1))
	}
	// Names, but for keys, properties, functions and what is in quotes.
	code := regexp.MustCompile(`'[^']*'`).ReplaceAllStringFunc(strings.ReplaceAll(s.text, `\'`, ""), func(quoted string) string {
		return strings.Join(regexp.MustCompile(`\$\{[^}]*\}`).FindAllString(quoted, -1), " ")
	})
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^(?:@.*|(?:param|var|resource|output) \w+( \w+)?)|\.\w+|\w+[:(]|([A-Za-z]\w*)`).FindAllStringSubmatch(code, -1) {
		if m[2] != "" && m[2] != "true" && m[2] != "false" {
			names = append(names, m[2])
		}
	}
	declared := slices.DeleteFunc(s.finds(`^(?:param|var|resource) (\w+)`), func(name string) bool {
		return strings.HasSuffix(name, "Scaling") // which nothing has to name
	})
	used(t, declared, names)
}

// azureNode is the custom data of a node.
func azureNode(t *testing.T, role string) string {
	t.Helper()
	return filled(t, contents(t, "../../packaging/cloud/azure/node.sh.tmpl"), "{{", "}}", map[string]string{
		"vaults": "vault.azure.net", "vault": azureVaultHost, "identity": "ams-" + role,
	})
}

// azureMongo is the custom data of MongoDB's machine.
func azureMongo(t *testing.T) string {
	t.Helper()
	return filled(t, contents(t, "../../packaging/cloud/azure/mongo.sh.tmpl"), "{{", "}}", map[string]string{
		"vaults": "vault.azure.net", "vault": azureVaultHost, "identity": "ams-mongo", "release": "7.0", "databases": "live,mine", "install": contents(t, install),
	})
}

// TestAzureMongoScript runs the script of MongoDB's machine from where install.sh is there: the connection string gets into the vault
// although the first answers are refusals, and no secret is on a command line or left.
func TestAzureMongoScript(t *testing.T) {
	needs(t, "jq")
	_, end, ok := strings.Cut(azureMongo(t), "\nAMSAGENT-MONGODB\n")
	if !ok {
		t.Fatal("there is no end of install.sh")
	}
	const uri = "mongodb://amsagent:0123456789abcdef@10.42.1.10:27017/admin"
	here := t.TempDir()
	install := filepath.Join(here, "install.sh")
	end = strings.ReplaceAll(end, "/usr/local/sbin/amsagent-mongodb", install)
	put := "-fsS -X PUT -H @- -H Content-Type: application/json --data-binary"
	writeStandIns(t, here, map[string]string{
		"install.sh": `echo "install.sh $*" >>"$HERE/calls"; echo preparing; echo "$HERE/uri"`,
		"apt-get":    `echo "apt-get" >>"$HERE/calls"`,
		"sleep":      `echo "sleep $*" >>"$HERE/calls"; [ "$(grep -c sleep "$HERE/calls")" -lt 4 ] || kill "$PPID"`,
		// First no token, then no right to write, then both.
		"curl": `echo "curl $*" >>"$HERE/calls"
case "$*" in
"-fsS --noproxy * -H Metadata: true ` + azureIdentityURL("ams-mongo") + `")
	[ -e "$HERE/asked" ] || { : >"$HERE/asked"; exit 22; }
	echo '{"access_token":"T0K3N"}' ;;
"` + put + ` @"*" -o /dev/null https://` + azureVaultHost + `/secrets/mongo?api-version=7.4")
	[ "$(cat)" = "Authorization: Bearer T0K3N" ] || exit 22
	[ -e "$HERE/refused" ] || { : >"$HERE/refused"; exit 22; }
	for file; do case $file in @/*) stat -c %a "${file#@}" >"$HERE/mode"; cat "${file#@}" >"$HERE/secret" ;; esac; done ;;
*) echo "unknown: $*" >&2; exit 2 ;;
esac`,
	})
	must.OK(t, os.WriteFile(filepath.Join(here, "uri"), []byte(uri+"\n"), 0o600))
	tmp := filepath.Join(here, "tmp")
	must.OK(t, os.Mkdir(tmp, 0o700))
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "set -e\n"+end)
	cmd.Env = append(os.Environ(), "HERE="+here, "PATH="+here+":"+os.Getenv("PATH"), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	read := func(name string) string {
		return contents(t, filepath.Join(here, name))
	}
	var secret struct{ Value string }
	if err := json.Unmarshal([]byte(read("secret")), &secret); err != nil || secret.Value != uri {
		t.Errorf("the vault has %q (%v), want %q", read("secret"), err, uri)
	}
	must.Equal(t, "mode of the secret", read("mode"), "600\n")
	calls := read("calls")
	if strings.Contains(calls+string(out), "0123456789abcdef") || strings.Contains(calls+string(out), "T0K3N") {
		t.Errorf("a secret is on a command line, or was printed:\n%s%s", calls, out)
	}
	if !strings.Contains(calls, "install.sh --single --release 7.0 --databases live,mine --data-device /dev/disk/azure/scsi1/lun0\n") || strings.Count(calls, "sleep 15\n") != 2 {
		t.Errorf("called were\n%s", calls)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
