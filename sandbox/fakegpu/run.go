// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegpu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The exit statuses of the tool.
const (
	statusUsage     = 2 // an argument or a field that it does not know
	statusNoDevices = 6
)

// Run is the tool: it prints what args ask for, until ctx ends or nobody reads any
// more, and returns its exit status.
func Run(ctx context.Context, state string, args []string, stdout, stderr io.Writer) int {
	q, err := parse(args)
	if err != nil {
		_, _ = fmt.Fprintf(stdout, "%v\n\nRun 'nvidia-smi -h' for help.\n\n", err)
		return statusUsage
	}
	for round := 0; ; round++ {
		s, err := Read(state)
		if err != nil {
			_, _ = fmt.Fprintln(stderr, err)
			return 1
		}
		status, err := s.round(q, round, stdout, stderr)
		if err != nil || status != 0 || q.loop == 0 {
			return status
		}
		t := time.NewTimer(q.loop)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return 0
		}
	}
}

// query is what the command line asks for.
type query struct {
	fields []string
	loop   time.Duration
}

func parse(args []string) (query, error) {
	var q query
	var csv, bare bool
	for i := 0; i < len(args); i++ {
		name, value, given := strings.Cut(args[i], "=")
		if !given && (name == "-lms" || name == "-l") && i+1 < len(args) {
			i++
			value = args[i]
		}
		switch name {
		case "--query-gpu":
			q.fields = strings.Split(value, ",")
		case "--format":
			formats := strings.Split(value, ",")
			csv = slices.Contains(formats, "csv")
			bare = slices.Contains(formats, "noheader") && slices.Contains(formats, "nounits")
		case "--loop-ms", "-lms", "--loop", "-l":
			n, err := strconv.Atoi(value)
			if err != nil || n <= 0 {
				return q, fmt.Errorf("Invalid combination of input arguments. Bad loop %q", value) //nolint:staticcheck // as the tool says it
			}
			q.loop = time.Duration(n) * time.Millisecond
			if name == "--loop" || name == "-l" {
				q.loop = time.Duration(n) * time.Second
			}
		default:
			return q, fmt.Errorf("Invalid combination of input arguments. Option %q is not recognized", args[i]) //nolint:staticcheck // as the tool says it
		}
	}
	if len(q.fields) == 0 || !csv || !bare {
		return q, errors.New("the stand-in knows --query-gpu with --format=csv,noheader,nounits only")
	}
	return q, nil
}

// round prints all devices once. An error is a reader that went away.
func (s State) round(q query, round int, stdout, stderr io.Writer) (status int, err error) {
	for _, f := range q.fields {
		_, known := (Device{}).cell(0, "", f)
		if !known || slices.Contains(s.Lacks, f) {
			_, err := fmt.Fprintf(stdout, "Field %q is not a valid field to query.\n\n", f)
			return statusUsage, err
		}
	}
	var rows []string
	switch {
	case s.Replay != "":
		b, err := os.ReadFile(s.Replay)
		if err != nil {
			_, _ = fmt.Fprintln(stderr, err)
			return 1, nil
		}
		for line := range strings.Lines(string(b)) {
			if !strings.HasPrefix(line, "#") {
				rows = append(rows, strings.TrimRight(line, "\n"))
			}
		}
	case len(s.Devices) == 0:
		_, err := fmt.Fprintln(stdout, "No devices were found")
		return statusNoDevices, err
	default:
		rows = s.rows(q.fields)
	}
	fault := s.Fault
	if round < s.After {
		fault = ""
	}
	return s.print(rows, fault, stdout, stderr)
}

func (s State) rows(fields []string) []string {
	var rows []string
	for i, d := range s.Devices {
		if d.Lost {
			rows = append(rows, fmt.Sprintf("Unable to determine the device handle for GPU%d: 0000:00:%02X.0: Unknown Error", i, 0x1e+i))
			continue
		}
		var cells []string
		for _, f := range fields {
			cell, _ := d.cell(i, s.Driver, f)
			cells = append(cells, cell)
		}
		rows = append(rows, strings.Join(cells, ", "))
	}
	return rows
}

func (s State) print(rows []string, fault Fault, stdout, stderr io.Writer) (status int, err error) {
	switch fault {
	case FaultStall:
		return 0, nil
	case FaultDie:
		if s.Text != "" {
			_, err = fmt.Fprintln(stdout, s.Text)
		}
		return max(1, s.Status), err
	case FaultEndless:
		for err == nil {
			_, err = stdout.Write(bytes.Repeat([]byte("0, "), 1<<10))
		}
		return 1, err
	}
	// All rows of a round in one piece, as the tool flushes them.
	var all bytes.Buffer
	for i, row := range rows {
		end := "\n"
		switch fault {
		case FaultKill:
			_, _ = io.WriteString(stdout, all.String()+row[:len(row)/2])
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		case FaultCut:
			if _, err := io.WriteString(stdout, row[:len(row)/2]); err != nil {
				return 1, err
			}
			if _, err := io.WriteString(stdout, row[len(row)/2:]+end); err != nil {
				return 1, err
			}
			continue
		case FaultTorn:
			if i%2 == 1 {
				row = row[:len(row)/2]
			}
		case FaultGlue:
			if i%2 == 0 && i+1 < len(rows) {
				end = ""
			}
		case FaultNoise:
			_, _ = fmt.Fprintln(stderr, s.Text)
			all.WriteString(s.Text + "\n")
		case FaultCRLF:
			end = "\r\n"
		}
		all.WriteString(row + end)
	}
	if _, err := stdout.Write(all.Bytes()); err != nil {
		return 1, err
	}
	return 0, nil
}
