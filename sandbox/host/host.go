// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// Options say what machine it is.
type Options struct {
	// Dir holds all that belongs to it. Its path must be short: a socket is below.
	Dir               string
	Name, ID, Address string
	Role              string
	// NoCloud is a machine without metadata: it is called by its own id, not ID,
	// and may have an address of the loopback.
	NoCloud bool
	// Agent and Sandbox are the two binaries.
	Agent, Sandbox string
	// Mongo is where MongoDB is, as the agent is told.
	Mongo    string
	Interval time.Duration // from beat to beat
	Period   time.Duration // of AMS's own heartbeat; 0 is AMS's five seconds
	// Real lets the agent look at this machine itself, in the way it does on a real
	// one: only the folders that it writes to are of the tree, and its AMS. It needs
	// root, for a mount namespace.
	Real bool
	// Env is added to the agent's environment.
	Env []string
}

// Host is a machine that runs.
type Host struct {
	o       Options
	tree    tree.Tree
	aws     *fakeaws.Server
	svc     amsctl.Config
	wrapper string
	metrics string

	mu     sync.Mutex
	agent  *exec.Cmd     // nil where none was started
	ended  chan struct{} // closed when it has ended
	killed bool          // it was to end
	starts int
}

// New writes the machine's files and starts its AMS, standalone. Close it in any
// case where there is no error.
func New(ctx context.Context, o Options) (_ *Host, err error) {
	h := &Host{o: o}
	if o.Real && !canBeReal() {
		return nil, errors.New("a machine whose agent sees the real one needs root")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	m, err := rig.New(rig.Options{
		Dir: o.Dir, Sandbox: o.Sandbox, StartWait: 10 * time.Second, StopWait: 10 * time.Second,
		Tree: tree.Options{Host: o.Name, HostResolves: true, DMI: "aws", NoUnit: true},
		Args: []string{"--period", cmp.Or(o.Period, 5*time.Second).String(), "--mongo-timeout", "5s", "--stream-wait", "0s", "--save-at-start=false"},
	})
	if err != nil {
		return nil, err
	}
	h.tree, h.svc, h.wrapper = m.Tree, m.Service, m.Command
	for _, dir := range []string{"run", "var/lib"} {
		if err = os.MkdirAll(filepath.Join(h.tree.Root, dir), 0o755); err != nil {
			return nil, err
		}
	}
	i := fakeaws.Sample()
	i.ID, i.Hostname = o.ID, o.Name+".internal"
	i.NICs[0].IPv4s, i.NICs[0].Public = []string{o.Address}, ""
	i.Tags = map[string]string{"amsagent:role": o.Role, "aws:autoscaling:groupName": o.Role + "s"}
	if !o.NoCloud {
		if h.aws, err = fakeaws.Start(ctx, fakeaws.Options{Instance: &i}); err != nil {
			return nil, err
		}
	}
	metricsPort, err := port.Free()
	if err != nil {
		return nil, err
	}
	h.metrics = net.JoinHostPort("127.0.0.1", strconv.Itoa(metricsPort))
	return h, h.svc.Start(ctx, nil)
}

// canBeReal reports whether an agent may be shown this machine.
func canBeReal() bool { return os.Geteuid() == 0 }

// ownFolders are what the agent sees of the tree in place of this machine's.
const ownFolders = `set -e
for dir in etc run var; do mount -n --bind "$1/$dir" "/$dir"; done
shift
exec "$@"`

// command prepares a command of the agent.
func (h *Host) command(ctx context.Context, args ...string) *exec.Cmd {
	if !h.o.Real {
		cmd := exec.CommandContext(ctx, h.o.Agent, args...)
		cmd.Env = append(h.environ(), "AMSAGENT_ROOT="+h.tree.Root)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", ownFolders, "sh", h.tree.Root, h.o.Agent}, args...)...)
	cmd.Env = append(h.environ(), "AMSAGENT_AMS_DIR="+h.tree.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// ID is the row's.
func (h *Host) ID() string { return h.o.ID }

// Address is the node's.
func (h *Host) Address() string { return h.o.Address }

// Metrics is host:port of the daemon's metrics.
func (h *Host) Metrics() string { return h.metrics }

// LogFile holds all that the daemons of this machine wrote.
func (h *Host) LogFile() string { return filepath.Join(h.o.Dir, "agent.log") }

func (h *Host) environ() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "NO_COLOR=1",
		"AMSAGENT_SERVICE_COMMAND=" + h.wrapper,
		"AMSAGENT_METRICS_ADDRESS=" + h.metrics,
		"AMSAGENT_BEAT_INTERVAL=" + h.o.Interval.String(),
	}
	if h.o.NoCloud {
		env = append(env, "AMSAGENT_PROVIDER=generic", "AMSAGENT_ADDRESS="+h.o.Address, "AMSAGENT_ROLE="+h.o.Role)
	} else {
		env = append(env, "AMSAGENT_PROVIDER=aws", "AMSAGENT_AWS_ENDPOINT="+h.aws.Endpoint())
	}
	return append(env, h.o.Env...)
}

// Run runs a command of the agent on this machine and returns what it printed.
func (h *Host) Run(ctx context.Context, args ...string) (string, error) {
	cmd := h.command(ctx, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("amsagent %v: %w\n%s", args, err, out)
	}
	return string(out), nil
}

// Join makes the machine a node.
func (h *Host) Join(ctx context.Context) error {
	args := []string{"join", "--mongo", h.o.Mongo, "--timeout", "60s"}
	if h.o.NoCloud {
		args = append(args, "--force-address") // a real machine may have none but loopback
	}
	_, err := h.Run(ctx, args...)
	return err
}

// StartAgent starts the daemon, and does not wait for it. It ends with us.
func (h *Host) StartAgent() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent != nil {
		return errors.New("the daemon runs already")
	}
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := h.command(context.Background(), "run")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	h.agent, h.ended, h.killed = cmd, ended, false
	h.starts++
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return nil
}

// AgentPID is the daemon's process; 0 where none runs.
func (h *Host) AgentPID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil {
		return 0
	}
	return h.agent.Process.Pid
}

// AgentDied reports whether the daemon ended although nobody told it to.
func (h *Host) AgentDied() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil || h.killed {
		return false
	}
	select {
	case <-h.ended:
		return true
	default:
		return false
	}
}

// StopAgent sends the signal and waits for the daemon's end.
func (h *Host) StopAgent(signal syscall.Signal) error {
	h.mu.Lock()
	cmd, ended := h.agent, h.ended
	if cmd == nil {
		h.mu.Unlock()
		return nil
	}
	h.killed = true
	err := cmd.Process.Signal(signal)
	h.mu.Unlock()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	const patience = 20 * time.Second
	timer := time.NewTimer(patience)
	defer timer.Stop()
	err = nil
	select {
	case <-ended:
	case <-timer.C:
		err = fmt.Errorf("the daemon did not end within %s of %s", patience, signal)
		_ = cmd.Process.Kill()
		<-ended
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.agent = nil
	return err
}

// Starts counts how often a daemon was started.
func (h *Host) Starts() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.starts
}

// AMSPID is the process of AMS.
func (h *Host) AMSPID() (int, error) {
	b, err := h.svc.Info()
	if err != nil {
		return 0, err
	}
	var said struct{ PID int }
	if err := json.Unmarshal(b, &said); err != nil {
		return 0, err
	}
	return said.PID, nil
}

// KillAMS ends AMS as a lack of memory does.
func (h *Host) KillAMS() error {
	pid, err := h.AMSPID()
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// StartAMS starts AMS where it does not run, RestartAMS in any case.
func (h *Host) StartAMS(ctx context.Context) error { return h.svc.Start(ctx, h.amsEnv()) }

// RestartAMS stops AMS and starts it again.
func (h *Host) RestartAMS(ctx context.Context) error { return h.svc.Restart(ctx, h.amsEnv()) }

// amsEnv is what systemd's drop-in gives it on a real machine.
func (h *Host) amsEnv() []string { return []string{"AMS_HOST_ADDRESS=" + h.o.Address} }

// View is the part that matters here of what a daemon tells of itself.
type View struct {
	PID      int    `json:"pid"`
	Phase    string `json:"phase"`
	Activity string `json:"activity"`
	Trouble  string `json:"trouble"`
	State    string `json:"state"`
	Beat     struct {
		Seq     int64     `json:"seq"`
		Last    time.Time `json:"last"`
		Dropped int       `json:"dropped"`
		Error   string    `json:"error"`
	} `json:"heartbeat"`
}

// View asks the daemon what it knows of itself.
func (h *Host) View(ctx context.Context) (View, error) {
	var v View
	socket := filepath.Join(h.tree.Root, "run/amsagent/control.sock")
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://amsagent/v1/status", nil)
	if err != nil {
		return v, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return v, fmt.Errorf("asking the daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return v, fmt.Errorf("asking the daemon: %s", resp.Status)
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	return v, err
}

// Close ends what runs on the machine. Its folder stays.
func (h *Host) Close() error {
	err := h.StopAgent(syscall.SIGKILL)
	if h.wrapper != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		err = errors.Join(err, h.svc.Stop(ctx))
	}
	if h.aws != nil {
		err = errors.Join(err, h.aws.Close())
	}
	return err
}
