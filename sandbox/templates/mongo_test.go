// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"compress/gzip"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
)

const install = "../../packaging/image/mongodb/install.sh"

// updating reports whether -update is set: it rewrites the goldens and the copy of install.sh in cloudformation.yaml.
func updating() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

var servers mongotest.Servers

func TestMain(m *testing.M) {
	flag.Bool("update", false, "update the goldens")
	flag.Parse()
	os.Exit(servers.Main(m))
}

// distribution is a file like /etc/os-release.
func distribution(t *testing.T, id, codename string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "os-release")
	must.OK(t, os.WriteFile(path, []byte("ID="+id+"\nVERSION_CODENAME="+codename+"\n"), 0o644))
	return path
}

// TestMongoInstallPlan: what install.sh would do, on one machine and on the first
// and another member of a set.
func TestMongoInstallPlan(t *testing.T) {
	for _, tt := range []struct {
		name, id, codename string
		args               []string
	}{
		{"single", "debian", "bookworm", []string{"--single", "--bind", "10.0.2.4", "--data-device", "/dev/disk/by-id/x"}},
		{"first", "ubuntu", "jammy", []string{"--replica-set", "--members", "10.0.2.4,10.0.2.5,10.0.2.6", "--bind", "10.0.2.4", "--keyfile", "/root/key", "--databases", "live,my-app", "--release", "7.0"}},
		{"member", "debian", "bookworm", []string{"--replica-set", "--members", "10.0.2.4,10.0.2.5,10.0.2.6", "--bind", "10.0.2.6", "--keyfile", "/root/key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), install, append(tt.args, "--dry-run")...)
			cmd.Env = append(os.Environ(), "OS_RELEASE="+distribution(t, tt.id, tt.codename), withMongod(t, "exit 1"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			must.Golden(t, updating(), "mongo-"+tt.name+".txt", string(out))
		})
	}
}

// withMongod is the PATH of a machine with a mongod that does this.
func withMongod(t *testing.T, does string) string {
	t.Helper()
	dir := t.TempDir()
	writeStandIns(t, dir, map[string]string{"mongod": does})
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// TestMongoInstallKeepsRelease: a second run, for another database, keeps the release unless --release changes it.
func TestMongoInstallKeepsRelease(t *testing.T) {
	for _, tt := range []struct{ args, want string }{{"", "7.0"}, {"--release 8.0", "8.0"}} {
		args := append([]string{"--single", "--bind", "10.0.2.4", "--dry-run"}, strings.Fields(tt.args)...)
		cmd := exec.CommandContext(t.Context(), install, args...)
		cmd.Env = append(os.Environ(), "OS_RELEASE="+distribution(t, "debian", "bookworm"),
			withMongod(t, `printf 'db version v7.0.14\nBuild Info: {\n    "version": "7.0.14"\n}\n'`))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "mongodb-org/"+tt.want+" ") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// TestMongoInstallRefuses: invalid arguments exit with 2 before any change.
func TestMongoInstallRefuses(t *testing.T) {
	members := []string{"--replica-set", "--members", "10.0.2.4,10.0.2.5,10.0.2.6"}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "--single or --replica-set?"},
		{"everywhere", []string{"--single", "--bind", "0.0.0.0"}, "no private address"},
		{"public", []string{"--single", "--bind", "203.0.113.7"}, "no private address"},
		{"nearly private", []string{"--single", "--bind", "172.32.0.1"}, "no private address"},
		{"two addresses", []string{"--single", "--bind", "10.0.2.4,0.0.0.0"}, "no address"},
		{"two members", []string{"--replica-set", "--members", "10.0.2.4,10.0.2.5", "--keyfile", "/dev/zero"}, "three"},
		{"four members", []string{"--replica-set", "--members", "a,b,c,d", "--keyfile", "/dev/zero"}, "three"},
		{"no key", members, "--keyfile"},
		{"code in a name", []string{"--single", "--databases", "live','x"}, "letters"},
		{"code in a member", append(members[:2:2], "a,b,c'"), "--members"},
		{"release", []string{"--single", "--release", "8.0/../x"}, "number"},
		{"no value", []string{"--single", "--bind"}, "needs a value"},
		{"no such flag", []string{"--singel"}, "not known"},
		{"folder", []string{"--single", "--data-dir", "/srv/a b"}, "plain letters"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), install, tt.args...).CombinedOutput()
			must.Equal(t, "exit", exitCode(err), 2)
			must.Contain(t, "output", string(out), tt.want)
		})
	}
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

// stand-ins for what install.sh calls that is not to be had here. mongosh runs the script with Node.js and a MongoDB of a few
// lines, whose state is a file.
var standIns = map[string]string{
	"apt-get":   `echo "apt-get $*" >>"$LOG"`,
	"systemctl": `echo "systemctl $*" >>"$LOG"`,
	"curl":      `while [ "$1" != -o ]; do shift; done; echo '-----BEGIN PGP PUBLIC KEY BLOCK-----' >"$2"`,
	"chown":     `echo "chown $*" >>"$LOG"`,
	"mongosh":   `for last; do :; done; { cat "$HERE/mongo.js"; cat "$last"; } >"$HERE/run.js"; exec node "$HERE/run.js"`,
}

const mongoStandIn = `
const file = process.env.HERE + '/mongo.json', disk = require('fs');
const state = disk.existsSync(file) ? JSON.parse(disk.readFileSync(file)) : {users: {}, set: null};
const save = () => disk.writeFileSync(file, JSON.stringify(state));
const sleep = () => {};
class Mongo {
  constructor(uri) { this.uri = uri; this.who = null; }
  getDB(name) { if (name !== 'admin') throw new Error(name); return this; }
  may() { if (Object.keys(state.users).length && !this.who) throw new Error('Unauthorized'); }
  auth(user, pwd) { if (!state.users[user] || state.users[user].pwd !== pwd) throw new Error('Authentication failed.'); this.who = user; return {ok: 1}; }
  runCommand(c) {
    if (c.ping) return {ok: 1};
    if (c.hello) return {ok: 1, setName: state.set ? state.set._id : undefined, isWritablePrimary: !process.env.SET || !!state.set};
    if (c.replSetInitiate) { if (Object.keys(state.users).length) throw new Error('Unauthorized'); state.set = c.replSetInitiate; save(); return {ok: 1}; }
    throw new Error(JSON.stringify(c));
  }
  getUser(user) { this.may(); return state.users[user] || null; }
  createUser(u) {
    this.may();
    if (state.users[u.user]) throw new Error('exists');
    state.users[u.user] = u; save();
  }
  updateUser(user, u) { this.may(); Object.assign(state.users[user], u); save(); }
}
`

// standIn is a folder with stand-ins for programs, and a key.
func standIn(t *testing.T) string {
	t.Helper()
	here := t.TempDir()
	writeStandIns(t, here, standIns)
	must.OK(t, os.WriteFile(filepath.Join(here, "mongo.js"), []byte(mongoStandIn), 0o644))
	must.OK(t, os.WriteFile(filepath.Join(here, "key"), []byte("k3y"), 0o600))
	return here
}

// TestMongoDisk: the disk of MongoDB is real (a loop device with a file behind it), and so are the programs that format and
// mount it. A second machine finds on it what the first one left, and nothing is formatted that has anything on it.
func TestMongoDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("not root: there is no disk to format")
	}
	needs(t, "node", "unshare", "mkfs.xfs", "mkfs.ext4", "losetup", "blkid")
	script, err := filepath.Abs(install)
	must.OK(t, err)
	here := standIn(t)
	image := filepath.Join(here, "disk.img")
	must.OK(t, os.WriteFile(image, nil, 0o600))
	must.OK(t, os.Truncate(image, 400<<20))
	out, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	// machine is one with folders of its own, which go with it; the disk stays.
	machine := func(story string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", `set -e
W=$(mktemp -d); trap 'cd /; umount /srv/mongodb 2>/dev/null || :; umount /etc /srv /usr/share/keyrings 2>/dev/null || :; umount "$W"; rmdir "$W"' EXIT
mount -t tmpfs none "$W"
for d in /etc /srv /usr/share/keyrings; do mkdir -p "$d" "$W/u$d" "$W/w$d"; mount -t overlay -o lowerdir=$d,upperdir="$W/u$d",workdir="$W/w$d" none $d; done
run() { "`+script+`" --single --bind 10.0.2.4 --data-device "$DEVICE"; }
`+story)
		cmd.Env = append(os.Environ(), "HERE="+here, "LOG="+filepath.Join(here, "log"), "PATH="+here+":"+os.Getenv("PATH"),
			"OS_RELEASE="+distribution(t, "debian", "bookworm"), "DEVICE="+device)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	first, err := machine(`run >&2; mountpoint /srv/mongodb; echo precious >/srv/mongodb/db/file; run >&2
grep -c ' /srv/mongodb xfs ' /etc/fstab; cat /srv/mongodb/secrets/amsagent.uri`)
	if err != nil {
		t.Fatalf("%v\n%s", err, first)
	}
	second, err := machine(`run >&2; cat /srv/mongodb/db/file; grep -c ' /srv/mongodb xfs ' /etc/fstab; cat /srv/mongodb/secrets/amsagent.uri`)
	if err != nil {
		t.Fatalf("%v\n%s", err, second)
	}
	tail := func(s string) string { return s[strings.Index(s, "\n1\nmongodb://")+1:] }
	if !strings.Contains(second, "precious\n1\n") || tail(first) != tail(second) || len(tail(first)) < 60 {
		t.Errorf("the second machine did not find what the first one left:\n%s\n%s", first, second)
	}

	// A disk with another file system is not touched.
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Where each file system begins.
	before, err := exec.CommandContext(t.Context(), "head", "-c", "4M", image).Output()
	must.OK(t, err)
	other, err := machine("run")
	if exitCode(err) != 1 || !strings.Contains(other, "it was not touched") {
		t.Errorf("a disk with another file system: %v\n%s", err, other)
	}
	after, err := exec.CommandContext(t.Context(), "head", "-c", "4M", image).Output()
	if err != nil || string(before) != string(after) {
		t.Errorf("it was touched (%v)", err)
	}
}

// TestMongoInstallRun runs install.sh in a mount namespace of its own: twice, and with another application. What MongoDB itself
// says to it is not tested: its packages are not to be had here.
func TestMongoInstallRun(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("not root: install.sh is not run")
	}
	needs(t, "node", "unshare")
	here := standIn(t)
	script, err := filepath.Abs(install)
	must.OK(t, err)
	for _, mode := range []string{"--single", "--replica-set --members 10.0.2.4,10.0.2.5,10.0.2.6 --keyfile $HERE/key"} {
		t.Run(strings.Fields(mode)[0][2:], func(t *testing.T) {
			_ = os.Remove(filepath.Join(here, "mongo.json"))
			// mkdir first, so that what is below stays as it is outside.
			story := `set -e
for d in /etc /srv /usr/share/keyrings; do mkdir -p "$HERE/up$d" "$HERE/work$d"; mount -t tmpfs none "$HERE/up$d"; mkdir "$HERE/up$d/u" "$HERE/up$d/w"; mount -t overlay -o lowerdir=$d,upperdir="$HERE/up$d/u",workdir="$HERE/up$d/w" none $d; done
run() { "` + script + `" ` + mode + ` --bind 10.0.2.4 "$@"; }
run
state() { cat /srv/mongodb/secrets/*.password /srv/mongodb/secrets/amsagent.uri; }
one=$(state)
run
[ "$one" = "$(state)" ] || { echo 'the second run changed the secrets'; exit 1; }
run --databases extra
echo ---
cat /srv/mongodb/secrets/amsagent.uri
cat /srv/mongodb/secrets/amsagent.password; echo
stat -c '%a %n' /srv/mongodb /srv/mongodb/db /srv/mongodb/secrets /srv/mongodb/secrets/* /etc/mongod.conf /usr/share/keyrings/mongodb-server-8.0.asc /etc/apt/sources.list.d/mongodb-org-8.0.list
`
			cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", story)
			cmd.Env = append(os.Environ(), "HERE="+here, "LOG="+filepath.Join(here, "log"), "PATH="+here+":"+os.Getenv("PATH"),
				"OS_RELEASE="+distribution(t, "debian", "bookworm"), "SET="+strings.TrimPrefix(mode, "--single"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			_, after, _ := strings.Cut(string(out), "---\n")
			lines := strings.Split(strings.TrimSpace(after), "\n")
			uri, password := lines[0], lines[1]
			if !regexp.MustCompile(`^[0-9a-f]{48}$`).MatchString(password) {
				t.Errorf("the password %q is no 192 bits", password)
			}
			want := "mongodb://amsagent:" + password + "@10.0.2.4:27017/admin"
			if strings.Contains(mode, "replica") {
				want = "mongodb://amsagent:" + password + "@10.0.2.4:27017,10.0.2.5:27017,10.0.2.6:27017/admin?replicaSet=rs0"
			}
			must.Equal(t, "connection string", uri, want)
			for _, line := range lines[2:] {
				mode, path, _ := strings.Cut(line, " ")
				want := "600"
				switch {
				case path == "/srv/mongodb" || strings.HasPrefix(path, "/etc/apt") || strings.HasPrefix(path, "/usr"):
					want = map[bool]string{true: "755", false: "644"}[path == "/srv/mongodb"]
				case path == "/etc/mongod.conf":
					want = "644"
				case path == "/srv/mongodb/db" || path == "/srv/mongodb/secrets":
					want = "700"
				}
				must.Equal(t, "mode of "+path, mode, want)
			}
			state := contents(t, filepath.Join(here, "mongo.json"))
			must.Contain(t, "what MongoDB has", state, `"user":"amsagent","pwd":"`+password+`"`, `{"role":"readWrite","db":"clusterdb"}`,
				`{"role":"readWrite","db":"extraVoD"}`, `"user":"admin"`, `"roles":["root"]`)
			// The last run named one application: the rights to others are taken away.
			if strings.Contains(state, "liveapp") || strings.Count(state, "readWrite") != 10 {
				t.Errorf("the user may do more than it was given last: %s", state)
			}
			if strings.Contains(string(out)[:strings.Index(string(out), "---")], password) {
				t.Errorf("the password was printed: %s", out)
			}
		})
	}
}

// embed replaces the text between two marks of a file by another file, indented.
func embed(t *testing.T, into, begin, end, indent, from string) {
	t.Helper()
	head, rest, _ := strings.Cut(contents(t, into), begin)
	_, tail, ok := strings.Cut(rest, end)
	if !ok {
		t.Fatalf("%s: the marks are gone", into)
	}
	var block strings.Builder
	for line := range strings.Lines(contents(t, from)) {
		if line != "\n" {
			block.WriteString(indent)
		}
		block.WriteString(line)
	}
	must.OK(t, os.WriteFile(into, []byte(head+begin+block.String()+end+tail), 0o644))
}

// TestEachTemplateHoldsInstall: the templates bring the install.sh that is here, prepare.sh and Alibaba Cloud's template the program
// that reads the secret there.
func TestEachTemplateHoldsInstall(t *testing.T) {
	script := contents(t, install)
	program := contents(t, alibabaSecretProgram)
	prepare := filepath.Join(imageFolder, "prepare.sh")
	if updating() {
		const mark, secret = "<<'AMSAGENT-MONGODB'\n", "<<'AMSAGENT-SECRET'\n"
		for file, indent := range map[string]string{awsCloudFormation: strings.Repeat(" ", 16), alibabaROS: strings.Repeat(" ", 14)} {
			part := indent[2:] + "- |\n"
			embed(t, file, "amsagent-mongodb "+mark+part, part+indent+"AMSAGENT-MONGODB\n", indent, install)
		}
		indent := strings.Repeat(" ", 14)
		part := indent[2:] + "- |\n"
		embed(t, alibabaROS, "amsagent-secret "+secret+part, part+indent+"AMSAGENT-SECRET\n", indent, alibabaSecretProgram)
		embed(t, prepare, "amsagent-secret "+secret, "AMSAGENT-SECRET\n", "", alibabaSecretProgram)
		must.OK(t, os.Chmod(prepare, 0o755))
	}
	holds := func(name, data, mark, want string) {
		t.Helper()
		_, rest, _ := strings.Cut(data, "<<'"+mark+"'\n")
		got, _, ok := strings.Cut(rest, "\n"+mark+"\n")
		if !ok || strings.TrimSuffix(got, "\n")+"\n" != want {
			t.Errorf("%s does not hold it as it is (go test ./templates -run %s -update): %s", name, t.Name(), gocmp.Diff(want, got))
		}
	}
	for name, data := range map[string]string{
		"cloudformation.yaml": awsUserData(t, "mongo"),
		"aws/terraform":       awsTerraformMongo(t),
		"gcp/terraform":       gcpMongo(t),
		"azure":               azureMongo(t),
		"ros.yaml":            rosUserData(t, "mongo"),
	} {
		holds(name, data, "AMSAGENT-MONGODB", script)
		more := 0
		switch name {
		case "aws/terraform":
			var b strings.Builder
			z := gzip.NewWriter(&b)
			_, err := z.Write([]byte(data))
			must.OK(t, err)
			must.OK(t, z.Close())
			data = b.String()
		case "cloudformation.yaml":
			// The URL of the wait condition is that much longer than its name.
			more = 400
		case "ros.yaml":
			// And so is the command of ROS.
			more = 600
			holds(name, data, "AMSAGENT-SECRET", program)
		default:
			continue
		}
		// The limit of EC2, before its encoding, and of ECS.
		if most := 16 << 10; len(data) > most-more {
			t.Errorf("%s: the user data of MongoDB's machine has %d bytes, and %d are taken", name, len(data)+more, most)
		}
	}
	holds("prepare.sh", contents(t, prepare), "AMSAGENT-SECRET", program)
	if size := len(contents(t, awsCloudFormation)); size > 51200 {
		t.Errorf("the template has %d bytes: more than 51200 cannot be given without a bucket", size)
	}
}
