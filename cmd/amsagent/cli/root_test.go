// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// Every command has one error for a user who is not root, and one on a machine that is no node.
func TestOneAnswer(t *testing.T) {
	for _, args := range []string{"join --mongo 127.0.0.1", "leave", "seal --yes", "converge", "deregister", "run"} {
		if os.Geteuid() != 0 {
			break // a machine of its own needs root
		}
		// Without another root: nothing below is reached, nor is the address read, which is wrong.
		e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "generic", "AMSAGENT_ROOT": ""}}
		code := onEmptyMachine(t, func() int { return Main(strings.Fields(args), e.env()) })
		if said := e.stderr.String(); code != codePreflight || !strings.Contains(said, "AGENT-ROOT") || !strings.Contains(said, "sudo") || !strings.Contains(said, "nothing was changed on this machine") {
			t.Errorf("%s without root: exit %d\n%s", args, code, said)
		}
	}
	// A node whose daemon is stopped: its state is root's alone.
	node := tree(t, map[string]string{bootstrap.StateDir + "/state.json": "{}", "event.json": bridge})
	for path, mode := range map[string]os.FileMode{filepath.Dir(node): 0o755, filepath.Join(node, bootstrap.StateDir, "state.json"): 0} {
		must.OK(t, os.Chmod(path, mode))
	}
	for _, args := range []string{
		"drain", "undrain", "event --file /event.json --instance-id i-0abc",
		"join --mongo 127.0.0.1 --offline", "leave", "converge", // which would take the lock
	} {
		e := &testEnv{vars: map[string]string{"AMSAGENT_ROOT": node}}
		code := asNobody(t, func() int { return Main(strings.Fields(args), e.env()) })
		if said := e.stderr.String(); code != codePreflight || !strings.Contains(said, "AGENT-ROOT") || !strings.Contains(said, "sudo") {
			t.Errorf("%s without root: exit %d\n%s", args, code, said)
		}
	}
	for args, want := range map[string]int{
		"status": codeNotMember, "drain": codeNotMember, "undrain": codeNotMember,
		// There is nothing to do for these.
		"converge": codeOK, "deregister": codeOK,
	} {
		code, stdout, stderr := run(t, map[string]string{"AMSAGENT_PROVIDER": "generic"}, strings.Fields(args)...)
		must.Equal(t, fmt.Sprintf("exit of %s on a machine that is no node, with\n%s%s", args, stdout, stderr), code, want)
		if args != "status" && !strings.Contains(stdout+stderr, "this machine is not a cluster node\n") {
			t.Errorf("%s:\n%s%s", args, stdout, stderr)
		}
		if strings.HasSuffix(args, "drain") && !(strings.Contains(stderr, "[AGENT-NOT-NODE]") && strings.Contains(stderr, "hint: ")) {
			t.Errorf("%s names no way out:\n%s", args, stderr)
		}
	}
}

// asNobody runs a command with the rights of another user on files.
func asNobody(t *testing.T, command func() int) int {
	t.Helper()
	return onThread(t, func() error { return syscall.Setfsuid(65534) }, command)
}

// onEmptyMachine runs a command with a root folder that has only a wrong address of MongoDB.
func onEmptyMachine(t *testing.T, command func() int) int {
	t.Helper()
	dir := tree(t, map[string]string{"etc/amsagent/mongo": "no address"})
	return onThread(t, func() error { return errors.Join(syscall.Unshare(syscall.CLONE_FS), syscall.Chroot(dir)) }, command)
}

// onThread runs a command on a thread of its own, which ends with it.
func onThread(t *testing.T, change func() error, command func() int) int {
	t.Helper()
	code := make(chan int)
	go func() {
		runtime.LockOSThread()
		if err := change(); err != nil && os.Geteuid() == 0 {
			t.Error(err)
		}
		code <- command()
	}()
	return <-code
}
