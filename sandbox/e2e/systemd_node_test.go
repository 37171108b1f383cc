// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/netns"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// What stands in the machine, and where.
const (
	nodeUnit     = "antmedia.service"
	nodeHome     = "/usr/local/antmedia"
	nodeAddress  = "10.9.0.7"
	nodeMongo    = "10.9.0.4"
	nodeControl  = "127.0.0.1:27018" // of the database
	nodeID       = "i-0abc1234567890def"
	nodeHostname = "ams-node" // boot.sh's; nothing resolves it
	nodeDropIn   = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"
	nodeFlags    = "/opt/fakeams/flags"
	nodeStarts   = "/var/log/antmedia/starts"
	nodeLog      = "/var/log/antmedia/antmedia-error.log"
)

// nodeReports lets the agent ask the server for its sessions: a shell's command, whose target is the path of red5.properties.
const nodeReports = `printf '\nserver.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=0123456789abcdef0123456789abcdef\n' >>`

// bootedNode is a container with a booted systemd: an instance in EC2, as far as
// the agent can see, on which Ant Media Server was installed by its installer.
// It has a network of its own, with nothing behind it.
type bootedNode struct {
	leader int    // its process 1, as this machine numbers it
	root   string // its files, seen from here
	mongo  *mongo.Client
	http   *http.Client
	pure   []string // the tree before anything happened
}

// bootNode boots one, and skips the test where none can be had.
func bootNode(t *testing.T) *machine {
	t.Helper()
	share := t.TempDir()
	for name, from := range map[string]string{"amsagent": bins.agent, "sandbox": bins.sandbox, "mongod": realmongo.Require(t)} {
		nodeCopy(t, from, filepath.Join(share, name))
	}
	m := newDisk(t, diskOptions{tree: `root_make ""`, boot: "--private-network --bind-ro=" + share + ":/share"})
	m.boot(t)
	m.install(t)
	return m
}

func nodeCopy(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must.OK(t, err)
	must.OK(t, os.WriteFile(to, b, 0o755))
}

// nodeTraces lists what a container could leave behind on this host: its mounts, mounts in its folder, and network interfaces with
// its names. Mounts of the cached trees are ignored: another process may use them.
func nodeTraces(t *testing.T, dir string) (mounts, links []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must.OK(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, dir+"/") || strings.Contains(line, "nspawn") && !strings.Contains(line, "/amsagent/nspawn-") {
			mounts = append(mounts, strings.TrimSpace(line))
		}
	}
	ifaces, err := net.Interfaces()
	must.OK(t, err)
	for _, i := range ifaces {
		if i.Name == "amsagent-wire" {
			links = append(links, i.Name)
		}
	}
	return mounts, links
}

// install makes an EC2 instance of the container: firmware, metadata service,
// network, a database in the same subnet, Ant Media Server.
func (n *bootedNode) install(t *testing.T) {
	t.Helper()
	n.sh(t, `
cp /share/amsagent /share/sandbox /share/mongod /usr/local/bin/

# No file can be added to sysfs, but another folder can lie over it.
mkdir -p /opt/fakeams
cp -a /sys/class /opt/fakeams/class 2>/dev/null || true
rm -rf /opt/fakeams/class/dmi
sandbox tree --dmi aws /opt/fakeams/aws >/dev/null
cp -a /opt/fakeams/aws/sys/class/dmi /opt/fakeams/class/
mount --bind /opt/fakeams/class /sys/class

ip link add eth0 type veth peer name amsagent-wire
ip link set amsagent-wire up
ip addr add `+nodeAddress+`/24 dev eth0
ip addr add `+nodeMongo+`/24 dev eth0
ip addr add 169.254.169.254/32 dev lo
ip link set eth0 up

systemd-run -q --unit=mongo -p Type=exec sandbox mongo --listen `+nodeMongo+`:27017 --control `+nodeControl+`
systemd-run -q --unit=imds -p Type=exec sandbox aws --listen 169.254.169.254:80 --ip `+nodeAddress+` --tag amsagent:role=origin

useradd --system --home-dir `+nodeHome+` --shell /bin/false antmedia
`)
	var err error
	n.mongo, err = mongo.Connect(options.Client().ApplyURI("mongodb://" + nodeMongo + "/?directConnection=true").SetDialer(n))
	must.OK(t, err)
	t.Cleanup(func() { _ = n.mongo.Disconnect(context.Background()) })
	must.Until(t, "the database", func() bool { return n.mongo.Ping(t.Context(), nil) == nil })
	n.reset(t)
	n.pure = n.bytes(t)
}

// reset gives the machine back as it was installed, whatever a test left of it,
// with a server that behaves as flags say, running standalone.
func (n *bootedNode) reset(t *testing.T, flags ...string) {
	t.Helper()
	for _, db := range []string{"amsagent", "clusterdb"} {
		must.OK(t, n.mongo.Database(db).Drop(t.Context()))
	}
	n.behave(t, flags...)
	n.sh(t, `
rm -f /run/fakeams-hold
systemctl kill -s KILL `+nodeUnit+` 2>/dev/null || true
systemctl stop `+nodeUnit+` 2>/dev/null || true
rm -rf `+nodeHome+` /etc/amsagent /var/lib/amsagent /run/amsagent /var/log/antmedia
rm -rf /etc/systemd/system/`+nodeUnit+` /etc/systemd/system/`+nodeUnit+`.d /run/systemd/system/`+nodeUnit+`*
printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n' >/etc/hosts
sandbox tree --owner "$(id -u antmedia):$(id -g antmedia)" \
	--exec 'echo $$ >>`+nodeStarts+`; exec /usr/local/bin/sandbox ams --root "$ANTMEDIA_HOME" --hosts-file /etc/hosts @`+nodeFlags+`' / >/dev/null
systemctl daemon-reload
systemctl reset-failed `+nodeUnit+` 2>/dev/null || true
systemctl enable -q --now `+nodeUnit+`
`)
	// LiveApp is the last that the server marks: from then on it writes nothing by itself.
	must.Until(t, "a server that is up", func() bool {
		_, err := os.Lstat(n.Path(nodeHome + "/webapps/LiveApp/" + ams.InitializedName))
		return err == nil && n.mode(t) == "standalone"
	})
	if n.pure != nil {
		n.same(t, "after an installation", n.pure)
	}
}

// behave changes how the stand-in behaves from its next start on.
func (n *bootedNode) behave(t *testing.T, flags ...string) {
	t.Helper()
	must.OK(t, os.WriteFile(n.Path(nodeFlags), []byte(strings.Join(flags, "\n")), 0o644))
}

// Path is a file of the machine, seen from here.
func (n *bootedNode) Path(p string) string { return filepath.Join(n.root, p) }

func (n *bootedNode) read(t *testing.T, p string) string {
	t.Helper()
	b, err := os.ReadFile(n.Path(p))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// Command is a command in the machine, with the environment of a login there and
// standard input at /dev/null.
func (n *bootedNode) Command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{
		"-t", strconv.Itoa(n.leader), "-a", "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
	}, args...)...)
}

// nodeRun is a command that has ended.
type nodeRun struct {
	code           int
	stdout, stderr string
	took           time.Duration
}

func (r nodeRun) String() string {
	return fmt.Sprintf("exit %d after %s\n%s%s", r.code, r.took.Round(time.Millisecond), r.stdout, r.stderr)
}

// nodeProcess is a command that was started.
type nodeProcess struct {
	*proc.Program
	out, err bytes.Buffer
	begin    time.Time
}

func (n *bootedNode) start(t *testing.T, args ...string) *nodeProcess {
	t.Helper()
	r := &nodeProcess{begin: time.Now()}
	cmd := n.Command(args...)
	cmd.Stdout, cmd.Stderr = &r.out, &r.err
	var err error
	r.Program, err = proc.Start(cmd)
	must.OK(t, err)
	return r
}

// nodeLimit is longer than any command here may take.
const nodeLimit = 90 * time.Second

func (r *nodeProcess) wait(t *testing.T) nodeRun {
	t.Helper()
	code, err := r.Wait(nodeLimit)
	if err != nil {
		r.Signal(syscall.SIGKILL)
		t.Error(err)
	}
	return nodeRun{code: code, stdout: r.out.String(), stderr: r.err.String(), took: time.Since(r.begin)}
}

// run runs a command to its end.
func (n *bootedNode) run(t *testing.T, args ...string) nodeRun {
	t.Helper()
	return n.start(t, args...).wait(t)
}

// sh runs a script that must succeed.
func (n *bootedNode) sh(t *testing.T, script string) string {
	t.Helper()
	r := n.run(t, "sh", "-euc", script)
	if r.code != 0 {
		t.Fatalf("%s\n%s", script, r)
	}
	return r.stdout
}

// agent runs the agent and expects an exit code.
func (n *bootedNode) agent(t *testing.T, want int, args ...string) nodeRun {
	t.Helper()
	r := n.run(t, append([]string{"amsagent"}, args...)...)
	r.expect(t, want)
	return r
}

// expect is the exit code that it must have had.
func (r nodeRun) expect(t *testing.T, want int) {
	t.Helper()
	if r.code != want {
		t.Fatalf("want exit %d: %s", want, r)
	}
}

// says: stdout begins with this.
func (r nodeRun) says(t *testing.T, first string) {
	t.Helper()
	if !strings.HasPrefix(r.stdout, first) {
		t.Errorf("want %q first:\n%s", first, r)
	}
}

// nodeUnitState is what systemd itself says of a unit.
type nodeUnitState map[string]string

func (n *bootedNode) unit(t *testing.T, name string) nodeUnitState {
	t.Helper()
	s := nodeUnitState{}
	for line := range strings.Lines(n.sh(t, "systemctl show "+name+" -p ActiveState,SubState,Result,UnitFileState,MainPID,InvocationID,NRestarts,"+
		"StatusText,Environment,TimeoutStopUSec,DropInPaths,NeedDaemonReload,ExecMainStatus,ExecMainCode,"+
		"ActiveEnterTimestampMonotonic,InactiveExitTimestampMonotonic,ExecMainStartTimestampMonotonic")) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		s[k] = v
	}
	return s
}

// Asked has a start for each start of the server since the last reset: systemd keeps no list of its orders.
func (n *bootedNode) Asked() []string {
	b, _ := os.ReadFile(n.Path(nodeStarts)) // it is made at the first start
	return slices.Repeat([]string{"start"}, bytes.Count(b, []byte("\n")))
}

var _ rig.Machine = (*bootedNode)(nil)

// liveness returns the status code of the server's answer, or 0.
func (n *bootedNode) liveness() int {
	resp, err := n.http.Get("http://127.0.0.1:5080/rest/v2/liveness")
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// mode returns the running server's mode, empty if it is not up. A server that cannot resolve its own host name answers 500.
func (n *bootedNode) mode(t *testing.T) string {
	t.Helper()
	if code := n.liveness(); code != http.StatusOK && code != http.StatusInternalServerError {
		return ""
	}
	log := n.read(t, nodeLog)
	_, last, _ := strings.Cut(log[max(0, strings.LastIndex(log, `msg="files read"`)):], " mode=")
	mode, _, _ := strings.Cut(last, " ")
	return mode
}

// bytes lists the contents, modes and owners of all that a join may change.
func (n *bootedNode) bytes(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{nodeHome, "/etc"} {
		s, err := tree.Snapshot(n.Path(dir))
		must.OK(t, err)
		for _, line := range s {
			all = append(all, dir+": "+line)
		}
	}
	return all
}

// same compares with an earlier list, and looks that nothing is remembered of a
// join.
func (n *bootedNode) same(t *testing.T, when string, was []string) {
	t.Helper()
	if now := n.bytes(t); !slices.Equal(was, now) {
		t.Errorf("%s the tree is not as before\n%s", when, nodeDifference(was, now))
	}
	entries, err := os.ReadDir(n.Path("/var/lib/amsagent"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s /var/lib/amsagent still has %s", when, e.Name())
	}
}

// nodeDifference lists what is in one list only.
func nodeDifference(was, now []string) string {
	var b strings.Builder
	for _, l := range was {
		if !slices.Contains(now, l) {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range now {
		if !slices.Contains(was, l) {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}

// touched lists inode, size and times of every file. They also change if a process writes the same bytes.
func (n *bootedNode) touched(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{nodeHome, "/etc", "/var/lib/amsagent"} {
		if _, err := os.Lstat(n.Path(dir)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := filepath.WalkDir(n.Path(dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return fmt.Errorf("%s: no inode", p)
			}
			all = append(all, fmt.Sprintf("%s inode %d size %d mtime %d ctime %d", strings.TrimPrefix(p, n.root), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()))
			return nil
		})
		must.OK(t, err)
	}
	return all
}

// nodeDocument is AMS's own document.
type nodeDocument struct {
	ID      string `bson:"_id"`
	IP      string `bson:"ip"`
	Updated int64  `bson:"lastUpdateTime"`
}

// clusternode lists AMS's own documents.
func (n *bootedNode) clusternode(t *testing.T) []nodeDocument {
	t.Helper()
	c, err := n.mongo.Database("clusterdb").Collection("clusternode").Find(t.Context(), bson.D{})
	must.OK(t, err)
	var nodes []nodeDocument
	must.OK(t, c.All(t.Context(), &nodes))
	slices.SortFunc(nodes, func(a, b nodeDocument) int { return cmp.Compare(a.IP, b.IP) })
	return nodes
}

// DialContext connects inside the machine's network.
func (n *bootedNode) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return netns.Dial(ctx, n.leader, network, address)
}
