// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// Home is where the server is installed, and Service the service command.
const (
	Home    = "/usr/local/antmedia"
	Service = "/usr/local/sbin/antmedia-service"
)

//go:embed node.sh
var setup string

//go:embed service.sh
var service string

//go:embed install.sh
var install string

// Node is a test machine with an Ant Media Server. Paths are those inside; Path leads
// there from here.
type Node struct {
	Address string
	Release string

	box   *box
	local *http.Client
}

// Node makes a machine with a release as the vendor's installer leaves it: the server
// is stopped and standalone. It skips the test where the release is not there.
func (w *World) Node(t testing.TB, release string) *Node {
	t.Helper()
	Require(t, release)
	tree, jar := parts(t, release)
	java, err := javaOf(release)
	must.OK(t, err)
	w.mu.Lock()
	w.nodes++
	i := w.nodes
	w.mu.Unlock()
	n := &Node{Address: "10.77.0." + strconv.Itoa(i), Release: release}
	n.box = newBox(t, "node"+strconv.Itoa(i), setup, strconv.Itoa(i), tree, jar, java, service, install)
	// No connection is kept: the agent would count it as a viewer.
	n.local = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: n.box.dial, DisableKeepAlives: true}}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(n.Path("/var/log/antmedia/ant-media-server.log"))
			t.Logf("%s: the server's log ends with:\n%s", n.Address, log[max(0, len(log)-4000):])
			t.Logf("%s: the service was asked for: %s", n.Address, strings.Join(n.Asked(), " "))
		}
	})
	plug := fmt.Sprintf(`ip link add port%[1]d type veth peer name eth0 netns %[2]d
ip link set port%[1]d master br0 up`, i, n.box.pid)
	if out, err := w.hub.plug(plug); err != nil {
		t.Fatalf("plugging %s in: %v: %s", n.Address, err, out)
	}
	n.MustRun(t, "sh", "-c", "ip addr add "+n.Address+"/24 dev eth0 && ip link set eth0 up")
	return n
}

// parts are the unpacked release and the jar with the beans for it.
func parts(t testing.TB, release string) (tree, jar string) {
	t.Helper()
	Require(t, release)
	tree, err := installed(release)
	must.OK(t, err)
	if jar, err = beansJar(release); err != nil {
		t.Fatal(err)
	}
	return tree, jar
}

// Backup is where Replace moves the former installation; with a number, if one is there already.
const Backup = Home + "-backup"

// replace puts a release in the place of an installation: BACKUP HOME TREE BEANS-JAR INSTALL. A mount point cannot be renamed.
const replace = `set -e
i=
while [ -e "/mnt/new$i" ]; do i=$((i + 1)); done
mkdir "$1$i" "/mnt/new$i" "/mnt/new$i.work"
mount --move "$2" "$1$i"
mount -t overlay -o "lowerdir=$3,upperdir=/mnt/new$i,workdir=/mnt/new$i.work,metacopy=on" overlay "$2"
bash -c "$5" bash "" "$4"`

// Replace puts another release in the place of the installation, as the vendor's
// installer does: the former one is moved to Backup, whether a server runs or not, and
// the new one has its own default files. The service is asked for nothing.
func (n *Node) Replace(t testing.TB, release string) {
	t.Helper()
	tree, jar := parts(t, release)
	n.MustRun(t, "sh", "-c", replace, "sh", Backup, Home, tree, jar, install)
	n.Release = release
}

// Installer writes a program onto the node that installs a release each time it runs, as the vendor's installer does: it stops the
// server, replaces the installation, runs the script restore with Home and the backup, and starts the server. It returns its path.
func (n *Node) Installer(t testing.TB, release, restore string) string {
	t.Helper()
	tree, jar := parts(t, release)
	const folder = "/usr/local/lib/ams-installer"
	for name, text := range map[string]string{"replace": replace + "\n" + `bash -ec "$6" bash "$2" "$1$i"`, "install": install, "restore": restore} {
		n.MustRun(t, "sh", "-c", `mkdir -p "$1"; printf '%s' "$3" >"$1/$2"`, "sh", folder, name, text)
	}
	const program = folder + "/run"
	n.MustRun(t, "sh", "-c", `printf '%s' "$2" >"$1"; chmod 755 "$1"`, "sh", program, "#!/bin/sh\nset -e\ncd "+folder+"\n"+Service+" stop\nsh replace "+
		strings.Join([]string{Backup, Home, tree, jar}, " ")+" \"$(cat install)\" \"$(cat restore)\"\nexec "+Service+" start\n")
	return program
}

// plug runs a script in the network of the box alone, so that process ids are ours.
func (b *box) plug(script string) ([]byte, error) {
	args := append(b.netPrefix(), "sh", "-ec", script)
	return exec.Command(args[0], args[1:]...).CombinedOutput()
}

// Path is a file of the node, as seen from here.
func (n *Node) Path(name string) string { return n.box.path(name) }

// Read returns a file of the node.
func (n *Node) Read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(n.Path(name))
	must.OK(t, err)
	return string(b)
}

// Run runs a program on the node and returns what it wrote and its exit status. It
// fails the test where the program cannot be run or does not end within 10 minutes.
func (n *Node) Run(t testing.TB, args ...string) (string, int) {
	t.Helper()
	p := n.Start(t, args...)
	code, err := p.Wait(10 * time.Minute)
	if err != nil {
		t.Fatalf("%v; so far: %s", err, p.Output())
	}
	return p.Output(), code
}

// MustRun is Run for a program that must succeed.
func (n *Node) MustRun(t testing.TB, args ...string) string {
	t.Helper()
	out, code := n.Run(t, args...)
	if code != 0 {
		t.Fatalf("%s: exit %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// Command is a program on the node that has not been started.
func (n *Node) Command(args ...string) *exec.Cmd { return n.box.command(args...) }

// Dial connects from the node.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.box.dial(ctx, network, address)
}

// Start begins to run a program on the node; it is killed at the end of the test.
func (n *Node) Start(t testing.TB, args ...string) *Process {
	t.Helper()
	return startProcess(t, n.box.command(args...))
}

// Process is a program on a node, or beside the nodes.
type Process = proc.Program

func startProcess(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := proc.Start(cmd)
	must.OK(t, err)
	t.Cleanup(func() { p.Signal(syscall.SIGKILL) })
	return p
}

// pidFile is written when the server is started.
const pidFile = "/run/antmedia.pid"

// Asked lists what the service was asked for so far besides its status: start, stop,
// restart.
func (n *Node) Asked() []string {
	b, err := os.ReadFile(n.Path("/run/antmedia.asked"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// Server returns the server's process id in this namespace; 0: it does not run.
func (n *Node) Server() int {
	b, err := os.ReadFile(n.Path(pidFile))
	if err != nil {
		return 0
	}
	inside := strings.TrimSpace(string(b))
	// The pid that it has in its own namespace is the last on the line NSpid.
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0
	}
	own, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(n.box.pid), "ns/pid"))
	if err != nil {
		return 0
	}
	for _, file := range all {
		if ns, err := os.Readlink(filepath.Join(filepath.Dir(file), "ns/pid")); err != nil || ns != own {
			continue
		}
		status, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "NSpid:" && fields[len(fields)-1] == inside {
				pid, err := strconv.Atoi(fields[1])
				if err != nil {
					return 0
				}
				return pid
			}
		}
	}
	return 0
}

// Signal sends a signal to the server: SIGKILL, SIGSTOP, SIGCONT.
func (n *Node) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	pid := n.Server()
	if pid == 0 {
		t.Fatal("the server does not run")
	}
	must.OK(t, syscall.Kill(pid, sig))
}

// Served returns the HTTP status of an application's REST interface, which the node itself may call without a token. 0: no
// answer, or the context is not complete, when a request would do harm.
func (n *Node) Served(app string) int {
	begun, err := os.Stat(n.Path(pidFile))
	if in := (&ams.Installation{Root: n.Path("/"), Dir: Home}); err != nil || !in.Initialized(app, begun.ModTime()) {
		return 0
	}
	return n.Local("/" + app + "/rest/v2/version")
}

// Local asks the server from the node itself.
func (n *Node) Local(path string) int {
	return Status(n.local, "http://127.0.0.1:5080"+path)
}

// WaitServed waits until applications serve: 12 s on a quiet machine, minutes on a
// loaded one.
func (n *Node) WaitServed(t testing.TB, apps ...string) {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	for _, app := range apps {
		for {
			answer := n.Served(app)
			if answer == http.StatusOK {
				break
			}
			select {
			case <-deadline:
				t.Fatalf("%s: %s does not serve: %d", n.Address, app, answer)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// Set sets a key of red5.properties while the server does not run.
func (n *Node) Set(t testing.TB, key, value string) {
	t.Helper()
	n.MustRun(t, "sed", "-i", "s|^"+key+"=.*|"+key+"="+value+"|", Home+"/conf/red5.properties")
	if !strings.Contains(n.Read(t, Home+"/conf/red5.properties"), key+"="+value+"\n") {
		t.Fatalf("red5.properties of %s has no key %s", n.Release, key)
	}
}

const secretKey = "secret-of-the-tests-with-32-bytes"

// AllowAgent sets what an operator sets so that the agent may ask for the server's own
// statistics, and AsAgent for what the panel does.
func (n *Node) AllowAgent(t testing.TB) {
	t.Helper()
	n.Set(t, "server.jwtServerControlEnabled", "true")
	n.Set(t, "server.jwtServerSecretKey", secretKey)
}

// AsAgent asks the console's REST interface from the node itself, with the right that
// AllowAgent gave.
func (n *Node) AsAgent(ctx context.Context, method, path string, body io.Reader) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:5080"+path, body)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("ProxyAuthorization", Token())
	req.Header.Set("Content-Type", "application/json")
	// The answer to a new application comes when its files are there.
	resp, err := (&http.Client{Timeout: time.Minute, Transport: n.local.Transport}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// Token is what the agent asks with once [Node.AllowAgent] was called.
func Token() string {
	part := base64.RawURLEncoding.EncodeToString
	token := part([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + part([]byte(`{}`))
	mac := hmac.New(sha256.New, []byte(secretKey))
	mac.Write([]byte(token))
	return token + "." + part(mac.Sum(nil))
}

// Status is the answer to a viewer who asks for url: the HTTP status, or 0.
func Status(c *http.Client, url string) int {
	resp, err := c.Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// Files returns the SHA-256 of each file that the agent or the server may write below
// the folders given, by path inside the node.
func (n *Node) Files(t testing.TB, folders ...string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for _, folder := range folders {
		top := n.Path(folder)
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sums[folder+strings.TrimPrefix(path, top)] = fmt.Sprintf("%x", sha256.Sum256(b))
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return sums
}
