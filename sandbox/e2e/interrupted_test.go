// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// TestTimeoutOfAJoin: `timeout N amsagent join` leaves either a node or the files as before. timeout signals its child and its
// process group, and the second signal used to stop the rollback (as-a-new-user B2).
func TestTimeoutOfAJoin(t *testing.T) {
	t.Parallel()
	var moments []time.Duration
	for n := 100 * time.Millisecond; n < 3*time.Second; n += 700 * time.Millisecond {
		moments = append(moments, n)
	}
	interruptJoins(t, moments)
}

// interruptJoins runs a join for each moment, which ends it.
func interruptJoins(t *testing.T, moments []time.Duration) {
	t.Helper()
	path, err := exec.LookPath("timeout")
	if err != nil {
		t.Skip("no timeout of coreutils here")
	}
	h := newOnAWS(t, newDatabase(t), "10.0.7.61")
	h.Config("")
	h.Env = append(h.Env, "AMSAGENT_MONGO=file:/etc/amsagent/where")
	h.Write("etc/amsagent/where", h.Mongo.LoginURI()+"\n")
	interrupted := 0
	for _, n := range moments {
		cmd := exec.Command(path, fmt.Sprintf("%.3f", n.Seconds()), bins.agent, "join")
		cmd.Env = h.Cmd().Env
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		switch {
		case err == nil:
			h.Must("leave", "--now")
			continue
		case !errors.As(err, &ended) || ended.ExitCode() != 124:
			t.Fatalf("after %s: %v\n%s", n, err, out)
		}
		interrupted++
		// One that was proved goes on to its end, which may be success. One that had not begun to listen for signals says
		// nothing.
		if text := string(out); text != "" && !strings.Contains(text, "joined: ") && !strings.Contains(text, "interrupted by signal: terminated") || strings.Contains(text, "canceled") {
			t.Errorf("after %s it says\n%s", n, text)
		}
		status, code := h.Run("status")
		if code == 0 && strings.Contains(status, "is active, since") {
			h.Must("leave", "--now") // it was proved: what was left to do is done
			continue
		}
		if code != 5 {
			t.Fatalf("after %s: exit %d\n%s\nthe join said\n%s", n, code, status, out)
		}
	}
	if interrupted == 0 {
		t.Error("no join was interrupted")
	}
}

// TestCalledOff: a signal comes while a join or a leave writes the record. MongoDB may apply the write after the command has
// stopped waiting for it. No record may stay joining or draining if the machine does neither (TestDrainNeverJoined met one).
func TestCalledOff(t *testing.T) {
	t.Parallel()
	h := newOnAWS(t, newDatabase(t), "10.0.7.62")
	h.Config("")
	h.Env = append(h.Env, "AMSAGENT_MONGO=file:/etc/amsagent/where")
	h.Write("etc/amsagent/where", h.Mongo.LoginURI()+"\n")
	callOff := func(command string, writesBefore int, want cluster.State) {
		t.Helper()
		f := mongod.Fault{Mode: mongod.Delay, Delay: time.Second, Commands: []string{"update", "findAndModify"}, Database: "amsagent", After: writesBefore, Times: 1}
		h.Fault(f)
		cmd := h.Cmd(command)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		must.OK(t, cmd.Start())
		until(t, "the row is being written", func() string {
			return strings.TrimPrefix(string(h.Mongo.Faults().Current().Mode), string(mongod.None))
		})
		must.OK(t, cmd.Process.Signal(syscall.SIGTERM))
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("%s: exit %d: %s", command, code, &out)
		}
		row, err := h.Client.Node(t.Context(), h.ID)
		if row.State != want || err != nil && !errors.Is(err, cluster.ErrNoNode) {
			t.Errorf("after a %s that was called off the row is %+v, %v\n%s", command, row, err, &out)
		}
	}
	callOff("join", 1, "") // the first is the check of the right to write
	h.Must("join")
	h.RecordIs(cluster.StateActive)
	callOff("leave", 0, cluster.StateActive)
	h.Must("leave")
	h.RecordIs(cluster.StateLeft)
}
