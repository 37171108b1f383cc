// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// node is one pretended machine.
type node struct {
	name, id, address, role, mac string

	tree    tree.Tree
	meta    fakecloud.Metadata
	svc     amsctl.Config
	wrapper string
	http    string // where its AMS answers
	control *http.Client

	daemon *process // nil where none was started
	log    string   // the file of its log
}

// machine makes a machine with a standalone AMS that runs.
func (d *demo) machine(m fakecloud.Machine) error {
	httpPort, err := port.Free()
	if err != nil {
		return err
	}
	n := &node{
		name: m.Name, id: m.ID, address: m.Address, role: m.Role, mac: m.MAC,
		http: net.JoinHostPort("127.0.0.1", strconv.Itoa(httpPort)), log: filepath.Join(d.dir, m.Name+".log"),
	}
	root := filepath.Join(d.dir, m.Name)
	if n.tree, err = tree.Write(root, tree.Options{Host: m.Name, HostResolves: true, DMI: d.cloud.Name(), HTTPPort: httpPort}); err != nil {
		return err
	}
	if err := errors.Join(n.statistics(), n.proc()); err != nil {
		return err
	}
	socket := filepath.Join(root, "run/amsagent/control.sock")
	n.control = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	n.svc = amsctl.Config{
		State: filepath.Join(d.dir, m.Name+".service"), Sandbox: d.o.Sandbox, StartWait: 10 * time.Second, StopWait: 10 * time.Second,
		Args: []string{"--root", n.tree.Dir, "--period", "1s", "--mongo-timeout", "5s", "--die-with", strconv.Itoa(os.Getpid())},
	}
	n.wrapper = filepath.Join(d.dir, m.Name+"-service")
	if err := n.svc.WriteWrapper(n.wrapper); err != nil {
		return err
	}
	if n.meta, err = d.cloud.Machine(d.ctx, m); err != nil {
		return err
	}
	d.nodes = append(d.nodes, n) // from here on there is something to close
	return n.svc.Start(d.ctx, nil)
}

// statistics lets AMS be asked for its viewers, as its operator may.
func (n *node) statistics() error {
	file := n.tree.Conf("red5.properties")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := string(b)
	for key, value := range map[string]string{"server.jwtServerControlEnabled=false": "true", "server.jwtServerSecretKey=": "a-secret-of-the-demo-and-of-nobody-else"} {
		if !strings.Contains(text, key+"\n") {
			return fmt.Errorf("%s has no line %s", file, key)
		}
		name, _, _ := strings.Cut(key, "=")
		text = strings.Replace(text, key+"\n", name+"="+value+"\n", 1)
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// proc gives the machine what this one says of its load. Its connections are left
// out: they would be everybody's, and AMS is asked for viewers. Where it does not
// answer they are not known then, and whoever drains waits.
func (n *node) proc() error {
	proc := filepath.Join(n.tree.Root, "proc")
	for _, dir := range []string{"net", "sys/kernel/random"} {
		if err := os.MkdirAll(filepath.Join(proc, dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"stat", "meminfo", "loadavg", "cpuinfo", "uptime", "self", "net/dev"} {
		if err := os.Symlink("/proc/"+name, filepath.Join(proc, name)); err != nil {
			return err
		}
	}
	boot := "00000000-0000-4000-8000-" + strings.ReplaceAll(n.mac, ":", "") + "\n"
	return os.WriteFile(filepath.Join(proc, "sys/kernel/random/boot_id"), []byte(boot), 0o644)
}

// digest is one line for every byte, mode and owner of the installation.
func (n *node) digest() (string, int, error) {
	lines, err := tree.Snapshot(n.tree.Root, "var/lib", "var", "run", "proc")
	if err != nil {
		return "", 0, err
	}
	h := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(h[:8]), len(lines), nil
}

// stats are the sessions of the machine's AMS, also after its end.
func (n *node) stats() (st fakeams.Stats, err error) {
	b, err := n.svc.Control(context.Background(), http.MethodGet, "/stats", nil)
	if errors.Is(err, amsctl.ErrNotRunning) {
		return fakeams.ReadStats(n.svc.StatsFile())
	}
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

// environ are the settings that make the agent look at the pretended machine.
func (n *node) environ() []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "TERM=xterm",
		"LANG=" + os.Getenv("LANG"), "LC_ALL=" + os.Getenv("LC_ALL"), "LC_CTYPE=" + os.Getenv("LC_CTYPE"),
		"AMSAGENT_ROOT=" + n.tree.Root,
		"AMSAGENT_SERVICE_COMMAND=" + n.wrapper,
		"AMSAGENT_METRICS_ADDRESS=127.0.0.1:0",
	}, n.meta.Environ()...)
}

// agentRun runs the agent on a machine, shows the command, and returns what it
// said.
func (d *demo) agentRun(n *node, args ...string) (string, error) {
	d.print("   %s$ amsagent %s", n.name, strings.Join(args, " "))
	cmd := exec.Command(d.agent, args...)
	cmd.Env = append(n.environ(), "AMSAGENT_LOG_LEVEL=error")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if args[0] == "nodes" {
		// A table is as wide as its terminal, and wide without one.
		if screen, tty, err := terminal(screenWidth); err == nil {
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(&stdout, screen) // ends with an error when the last writer has gone
			}()
			cmd.Stdout = tty
			defer func() { _ = screen.Close() }()
			p, err := spawn(cmd)
			if err = errors.Join(err, tty.Close()); err == nil {
				err = d.wait(p)
			}
			<-read
			return d.said(args, strings.ReplaceAll(stdout.String(), "\r\n", "\n"), stderr.String(), err)
		}
	}
	p, err := spawn(cmd)
	if err == nil {
		err = d.wait(p)
	}
	return d.said(args, stdout.String(), stderr.String(), err)
}

// process is a program that runs, or has run.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // how, to be read after that
}

// spawn starts a program that ends with us at the latest, however we end.
func spawn(cmd *exec.Cmd) (*process, error) {
	// A Ctrl-C is for us: we tell it when.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig means the end of the thread: this one waits.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.ended)
		err := cmd.Start()
		if started <- err; err == nil {
			p.err = cmd.Wait()
		}
	}()
	return p, <-started
}

// wait waits for a command's end, and kills it where nobody waits for us.
func (d *demo) wait(p *process) error {
	select {
	case <-p.ended:
		return p.err
	case <-d.ctx.Done():
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.ended
		return context.Cause(d.ctx)
	}
}

func (d *demo) said(args []string, stdout, stderr string, err error) (string, error) {
	if err != nil {
		return "", fmt.Errorf("amsagent %s: %w\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return strings.ReplaceAll(stdout, d.dir+"/", ""), nil
}

// screenWidth is what is shown of a line, besides the margin: one that wraps is
// hard to read.
const screenWidth = 95

// terminal makes one of that many columns: what is written to tty is read from
// screen.
func terminal(columns uint16) (screen, tty *os.File, err error) {
	if screen, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(screen.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: columns})
	}
	if err == nil {
		tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, screen.Close())
	}
	return screen, tty, nil
}

// daemon starts the daemon, which ends with us at the latest.
func (d *demo) daemon(n *node, args ...string) error {
	d.print("   %s$ amsagent %s &", n.name, strings.Join(args, " "))
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(d.agent, args...)
	cmd.Env, cmd.Stderr = n.environ(), log
	p, err := spawn(cmd)
	if err = errors.Join(err, log.Close()); err != nil {
		return err
	}
	n.daemon = p
	return nil
}

// stop ends the daemon.
func (n *node) stop(ctx context.Context) error {
	if n.daemon == nil {
		return nil
	}
	_ = n.daemon.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	var err error
	select {
	case <-n.daemon.ended:
	case <-ctx.Done():
		err = fmt.Errorf("the daemon of %s had to be killed: %w", n.name, ctx.Err())
		_ = n.daemon.cmd.Process.Kill()
		<-n.daemon.ended
	}
	n.daemon = nil
	return err
}

// diary is the end of the daemon's log, for who has to find out why.
func (n *node) diary() string {
	b, err := os.ReadFile(n.log)
	if err != nil || len(b) == 0 {
		return ""
	}
	return fmt.Sprintf("\nthe daemon of %s said last:\n%s", n.name, strings.TrimSpace(string(b[max(0, len(b)-2000):])))
}

// view is what the demo needs of what a daemon says of itself.
type view struct {
	Ready     bool   `json:"ready"`
	State     string `json:"state"`
	Metrics   string `json:"metrics"`
	Lifecycle *struct {
		State    string    `json:"state"`
		Step     string    `json:"step"`
		Reason   string    `json:"reason"`
		Progress string    `json:"progress"`
		Counted  time.Time `json:"counted"`
		Sessions *struct {
			Publishers *int `json:"publishers"`
			Viewers    *int `json:"viewers"`
		} `json:"sessions"`
	} `json:"lifecycle"`
}

// ask asks the daemon on its control socket, as `amsagent status` does.
func (n *node) ask(ctx context.Context) (view, error) {
	var v view
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://amsagent/v1/status", nil)
	if err != nil {
		return v, err
	}
	resp, err := n.control.Do(req)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, json.NewDecoder(resp.Body).Decode(&v)
}

// ready asks as a load balancer does, and returns the status it is answered with.
func (n *node) ready(ctx context.Context, address string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// until waits until something holds. why says what is missing; "" nothing.
func (d *demo) until(what string, why func() string) error {
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := why()
		if missing == "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w: %s", what, ctx.Err(), missing)
		}
	}
}

// patience is far more than anything here takes, on a busy machine, too.
const patience = 30 * time.Second
