// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package rig makes a machine for the agent: a folder with the files of an Ant Media
// Server, the stand-in that reads them, and a service command that starts and stops it.
// The API is not stable.
package rig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/sandbox/amsctl"
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
}

// Machine is a machine whose server has not been started.
type Machine struct {
	Tree    tree.Tree
	Service amsctl.Config
	// Command is the service command. Service.Asked is the file of its calls.
	Command  string
	HTTPPort int
}

// New writes the files of a machine.
func New(o Options) (*Machine, error) {
	if o.Tree.HTTPPort == 0 {
		var err error
		if o.Tree.HTTPPort, err = port.Free(); err != nil {
			return nil, err
		}
	}
	m := &Machine{Command: filepath.Join(o.Dir, cmp.Or(o.Command, "svc")), HTTPPort: o.Tree.HTTPPort}
	var err error
	if m.Tree, err = tree.Write(cmp.Or(o.Root, filepath.Join(o.Dir, "root")), o.Tree); err != nil {
		return nil, err
	}
	if err = m.boot("boot-1"); err != nil {
		return nil, err
	}
	m.Service = amsctl.Config{
		State: filepath.Join(o.Dir, "service"), Sandbox: o.Sandbox, User: o.User,
		StartWait: cmp.Or(o.StartWait, time.Minute), StopWait: cmp.Or(o.StopWait, time.Minute),
		Asked: m.Command + ".log",
		Args: slices.Concat([]string{
			"--root", m.Tree.Dir, "--period", "200ms", "--mongo-timeout", "60s", "--request-timeout", "3s", "--save-at-start",
			"--die-with", strconv.Itoa(os.Getpid()),
		}, o.Args),
	}
	return m, m.Service.WriteWrapper(m.Command)
}

// Stop stops the server, if it runs.
func (m *Machine) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return m.Service.Stop(ctx)
}

// ReportSessions lets the agent ask the server for its sessions, from its next start on.
func (m *Machine) ReportSessions() error {
	f, err := os.OpenFile(m.Tree.Conf("red5.properties"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("changing the settings of the server: %w", err)
	}
	_, err = f.WriteString("\nserver.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=0123456789abcdef0123456789abcdef\n")
	return errors.Join(err, f.Close())
}

// LinkProc gives the machine the load of this one, and a boot id.
func (m *Machine) LinkProc(bootID string) error {
	proc := filepath.Join(m.Tree.Root, "proc")
	if err := os.MkdirAll(filepath.Join(proc, "net"), 0o755); err != nil {
		return err
	}
	for _, name := range []string{"stat", "meminfo", "loadavg", "cpuinfo", "uptime", "self", "net/dev"} {
		if err := os.Symlink("/proc/"+name, filepath.Join(proc, name)); err != nil {
			return err
		}
	}
	return m.boot(bootID)
}

func (m *Machine) boot(id string) error {
	file := filepath.Join(m.Tree.Root, "proc/sys/kernel/random/boot_id")
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(id+"\n"), 0o644))
}
