// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package standin makes a machine for the agent that is a folder: the files of an Ant Media
// Server, the stand-in that reads them, and a service command that starts and stops it.
// A test uses it through package rig. The API is not stable.
package standin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// Options describe a machine.
type Options struct {
	// Dir holds the service's state, the service command, and Root, the files of the machine
	// (default Dir/root). If a daemon runs on the machine Root must be short: the path of a
	// socket has 107 bytes.
	Dir, Root string
	// Command is the file name of the service command; default svc.
	Command string
	// Sandbox is the sandbox program.
	Sandbox string
	// Tree describes the installation. HTTPPort 0 is a free port.
	Tree tree.Options
	// Args are flags of the stand-in; they win over the usual ones: a short period, settings
	// saved at each start, the end of this process.
	Args []string
	// StartWait and StopWait bound a start and a stop; default a minute.
	StartWait, StopWait time.Duration
	// User runs the server in place of this process's user.
	User int
	// Reports lets the agent ask the server for its sessions: it counts no connections of a folder.
	Reports bool
	// BootID, if set, gives the machine the load of this one, and this boot id.
	BootID string
	// Mounted lets the agent look at this machine itself, as on a real one: only the folders that it writes to,
	// and its server, are of the tree. It needs root, for a mount namespace.
	Mounted bool
}

// Machine is a machine whose server has not been started.
type Machine struct {
	Tree    tree.Tree
	Service amsctl.Config
	// Wrapper is the service command. Service.Asked is the file of its calls.
	Wrapper  string
	HTTPPort int

	mounted bool
}

// New writes the files of a machine.
func New(o Options) (*Machine, error) {
	if o.Tree.HTTPPort == 0 {
		var err error
		if o.Tree.HTTPPort, err = port.Free(); err != nil {
			return nil, err
		}
	}
	m := &Machine{Wrapper: filepath.Join(o.Dir, cmp.Or(o.Command, "svc")), HTTPPort: o.Tree.HTTPPort, mounted: o.Mounted}
	var err error
	if m.Tree, err = tree.Write(cmp.Or(o.Root, filepath.Join(o.Dir, "root")), o.Tree); err != nil {
		return nil, err
	}
	err = m.boot(cmp.Or(o.BootID, "boot-1"))
	if o.BootID != "" {
		err = errors.Join(err, m.linkProc())
	}
	if o.Reports {
		err = errors.Join(err, m.reports())
	}
	if o.Mounted {
		err = errors.Join(err, os.MkdirAll(m.Path("run"), 0o755), os.MkdirAll(m.Path("var/lib"), 0o755))
	}
	if err != nil {
		return nil, err
	}
	m.Service = amsctl.Config{
		State: filepath.Join(o.Dir, "service"), Sandbox: o.Sandbox, User: o.User,
		StartWait: cmp.Or(o.StartWait, time.Minute), StopWait: cmp.Or(o.StopWait, time.Minute),
		Asked: m.Wrapper + ".log",
		Args: slices.Concat([]string{
			"--root", m.Tree.Dir, "--period", "200ms", "--mongo-timeout", "60s", "--request-timeout", "3s", "--save-at-start",
			"--die-with", strconv.Itoa(os.Getpid()),
		}, o.Args),
	}
	return m, m.Service.WriteWrapper(m.Wrapper)
}

// Path is where a file of the machine lies.
func (m *Machine) Path(name string) string { return filepath.Join(m.Tree.Root, name) }

// ownFolders are what the agent sees of the tree in place of this machine's.
const ownFolders = `set -e
for dir in etc run var; do mount -n --bind "$1/$dir" "/$dir"; done
shift
exec "$@"`

// Command is a program that has not been started, with the settings that show the machine to the agent.
func (m *Machine) Command(args ...string) *exec.Cmd {
	env := []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "AMSAGENT_SERVICE_COMMAND=" + m.Wrapper}
	if !m.mounted {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(env, "AMSAGENT_ROOT="+m.Tree.Root)
		return cmd
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", ownFolders, "sh", m.Tree.Root}, args...)...)
	cmd.Env = append(env, "AMSAGENT_AMS_DIR="+m.Tree.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// Asked lists what the service was asked for so far besides its status.
func (m *Machine) Asked() []string {
	b, err := os.ReadFile(m.Service.Asked)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(strings.Fields(string(b)), func(what string) bool { return what == "status" })
}

// Live are the sessions of the server that runs.
func (m *Machine) Live(ctx context.Context) (st fakeams.Stats, err error) {
	b, err := m.Service.Control(ctx, http.MethodGet, "/stats", nil)
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

// Stop stops the server, if it runs.
func (m *Machine) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return m.Service.Stop(ctx)
}

// reports lets the agent ask the server for its sessions.
func (m *Machine) reports() error {
	f, err := os.OpenFile(m.Tree.Conf("red5.properties"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("changing the settings of the server: %w", err)
	}
	_, err = f.WriteString("\nserver.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=0123456789abcdef0123456789abcdef\n")
	return errors.Join(err, f.Close())
}

// linkProc gives the machine the load of this one.
func (m *Machine) linkProc() error {
	err := os.MkdirAll(m.Path("proc/net"), 0o755)
	for _, name := range []string{"stat", "meminfo", "loadavg", "cpuinfo", "uptime", "self", "net/dev"} {
		err = errors.Join(err, os.Symlink("/proc/"+name, m.Path(filepath.Join("proc", name))))
	}
	return err
}

func (m *Machine) boot(id string) error {
	file := m.Path("proc/sys/kernel/random/boot_id")
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(id+"\n"), 0o644))
}
