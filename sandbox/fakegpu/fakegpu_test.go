// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegpu_test

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/fakegpu"
)

// asTool makes this test binary the tool.
const asTool = "FAKEGPU_TEST_AS_TOOL"

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" && len(os.Args) > 3 {
		os.Exit(fakegpu.Run(context.Background(), os.Args[2], os.Args[4:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

const query = "--query-gpu=index,name,utilization.gpu,utilization.encoder,memory.used,mig.mode.current"

func install(t *testing.T, s fakegpu.State) (tool, state string) {
	t.Helper()
	root := t.TempDir()
	state, err := fakegpu.Install(root, s, "/usr/bin/env", asTool+"=1", "GORACE=atexit_sleep_ms=0", os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "usr/bin/nvidia-smi"), state
}

func TestOnce(t *testing.T) {
	two := fakegpu.Sample(2)
	two.Devices[1].MIG = true
	sick := fakegpu.Sample(3)
	sick.Devices[0].Error, sick.Devices[1].Lost = "GPU requires reset", true
	old := fakegpu.Sample(1)
	old.Lacks = []string{"utilization.encoder"}
	with := func(s fakegpu.State, f fakegpu.Fault) fakegpu.State {
		s.Fault, s.Text, s.Status = f, "words", 9
		return s
	}
	const row0, row1 = "0, NVIDIA L4, 30, 60, 1800, [N/A]", "1, NVIDIA L4, [N/A], [N/A], 1800, Enabled"
	for name, c := range map[string]struct {
		state  fakegpu.State
		want   string
		status int
	}{
		"plain":      {two, row0 + "\n" + row1 + "\n", 0},
		"no devices": {fakegpu.State{}, "No devices were found\n", 6},
		"old":        {old, "Field \"utilization.encoder\" is not a valid field to query.\n\n", 2},
		"sick": {sick, "0, NVIDIA L4, [GPU requires reset], [GPU requires reset], [GPU requires reset], [N/A]\n" +
			"Unable to determine the device handle for GPU1: 0000:00:1F.0: Unknown Error\n2, NVIDIA L4, 30, 60, 1800, [N/A]\n", 0},
		"die":   {with(two, fakegpu.FaultDie), "words\n", 9},
		"kill":  {with(two, fakegpu.FaultKill), row0[:len(row0)/2], -1},
		"stall": {with(two, fakegpu.FaultStall), "", 0},
		"cut":   {with(two, fakegpu.FaultCut), row0 + "\n" + row1 + "\n", 0},
		"torn":  {with(two, fakegpu.FaultTorn), row0 + "\n" + row1[:len(row1)/2] + "\n", 0},
		"glue":  {with(two, fakegpu.FaultGlue), row0 + row1 + "\n", 0},
		"noise": {with(two, fakegpu.FaultNoise), "words\n" + row0 + "\nwords\n" + row1 + "\n", 0},
		"crlf":  {with(two, fakegpu.FaultCRLF), row0 + "\r\n" + row1 + "\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			tool, _ := install(t, c.state)
			var out bytes.Buffer
			cmd := exec.Command(tool, query, "--format=csv,noheader,nounits")
			cmd.Stdout = &out
			if err := cmd.Run(); cmd.ProcessState == nil {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != c.status {
				t.Errorf("exit status %d, want %d", got, c.status)
			}
			if diff := cmp.Diff(c.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoop(t *testing.T) {
	s := fakegpu.Sample(1)
	tool, state := install(t, s)
	for _, loop := range [][]string{{"--loop-ms=1"}, {"-lms", "1"}} {
		if err := s.Write(state); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(tool, append([]string{query, "--format=csv,noheader,nounits"}, loop...)...)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		// It goes on, and obeys another state while it does.
		changed := fakegpu.Sample(1)
		changed.Devices[0].Encoder = 99
		changed.Fault, changed.After, changed.Text, changed.Status = fakegpu.FaultDie, 1, "that was it", 7
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if err := changed.Write(state); err != nil {
			t.Fatal(err)
		}
		last := ""
		for lines.Scan() {
			last = lines.Text()
		}
		_ = cmd.Wait()
		if last != "that was it" || cmd.ProcessState.ExitCode() != 7 {
			t.Errorf("%v: last line %q, %v", loop, last, cmd.ProcessState)
		}
	}
}

func TestReplay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "recorded")
	if err := os.WriteFile(file, []byte("# a case\n# fields: index\n0, as it was\nand this\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool, _ := install(t, fakegpu.State{Replay: file})
	out, err := exec.Command(tool, query, "--format=csv,noheader,nounits").Output()
	if err != nil || string(out) != "0, as it was\nand this\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// A reader that goes away ends it, also where it would never end by itself.
func TestReaderGone(t *testing.T) {
	s := fakegpu.Sample(1)
	s.Fault = fakegpu.FaultEndless
	tool, _ := install(t, s)
	cmd := exec.Command(tool, query, "--format=csv,noheader,nounits", "--loop-ms=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100_000)
	if n, err := out.Read(b); n == 0 || bytes.IndexByte(b[:n], '\n') >= 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
	_ = out.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
}

func TestMistakesAreRefused(t *testing.T) {
	tool, state := install(t, fakegpu.Sample(1))
	for _, args := range []string{"", "--query-gpu=index", query + " --format=csv", query + " --format=csv,noheader,nounits --loop-ms=x", "-q"} {
		if out, err := exec.Command(tool, strings.Fields(args)...).Output(); err == nil {
			t.Errorf("%q: %s", args, out)
		}
	}
	for _, content := range []string{"{", `{"fualt":"die"}`, `{"fault":"dye"}`} {
		if err := os.WriteFile(state, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := fakegpu.Read(state); err == nil {
			t.Errorf("%s: %+v", content, s)
		}
	}
}
