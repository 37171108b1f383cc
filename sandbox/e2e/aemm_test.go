// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/aws"
)

// TestMetadataMock holds the source of notices to amazon-ec2-metadata-mock, which
// others wrote from the same documentation: what we misread, our own fake would
// misread with us.
func TestMetadataMock(t *testing.T) {
	mock := buildMetadataMock(t)
	for _, tt := range []struct {
		name string
		args []string
		want []lifecycle.Kind // in any order
	}{
		{"asglifecycle", []string{"asglifecycle", "--asg-termination-delay-sec", "3"}, []lifecycle.Kind{lifecycle.Resume, lifecycle.Terminate}},
		{"spot", []string{"spot", "--mock-delay-sec", "2"}, []lifecycle.Kind{lifecycle.Interrupt}},
		{"events", []string{"events", "--code", "instance-reboot", "--state", "active"}, []lifecycle.Kind{lifecycle.Reboot}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			endpoint := startMetadataMock(t, mock, tt.args...)
			var log locked.Buffer
			p, err := aws.New(metadata.Options{
				Endpoints: map[string]string{"aws": endpoint}, Log: slog.New(slog.NewTextHandler(&log, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			id, err := p.Identity(ctx)
			if err != nil {
				t.Fatal(err)
			}
			missing := map[lifecycle.Kind]bool{}
			for _, k := range tt.want {
				missing[k] = true
			}
			source := lifecycle.NewAWSSource(p, id.InstanceID, aws.WatchOptions{
				StateInterval: 200 * time.Millisecond, Interval: 200 * time.Millisecond, ScheduledInterval: 200 * time.Millisecond,
			}, nil)
			err = source.Watch(ctx, func(n lifecycle.Notice) {
				t.Logf("%s %s: %s, deadline %v", n.Kind, n.ID, n.Reason, n.Deadline)
				if !missing[n.Kind] {
					t.Errorf("a notice of kind %s: %+v", n.Kind, n)
				}
				if !strings.HasPrefix(n.ID, "aws/"+id.InstanceID+"/") {
					t.Errorf("the id %s", n.ID)
				}
				if left := time.Until(n.Deadline); n.Kind == lifecycle.Interrupt && (left < time.Minute || left > 3*time.Minute) {
					t.Errorf("a spot interruption in %v", left)
				}
				delete(missing, n.Kind)
				if len(missing) == 0 {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v; missing: %v; log:\n%s", err, missing, log.String())
			}
		})
	}
}

func buildMetadataMock(t *testing.T) string {
	t.Helper()
	mock := filepath.Join(t.TempDir(), "ec2-metadata-mock")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", mock, "github.com/aws/amazon-ec2-metadata-mock/cmd")
	cmd.Dir, cmd.Env = "../../tools", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("amazon-ec2-metadata-mock cannot be built here, so nothing is shown against it: %v\n%s", err, out)
	}
	return mock
}

// startMetadataMock starts the mock, which wants session tokens, and waits until it listens.
func startMetadataMock(t *testing.T, mock string, args ...string) string {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", port)
	cmd := exec.Command(mock, append(args, "--hostname", "127.0.0.1", "--port", port, "-I")...)
	// It looks for a configuration file at home.
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out locked.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	for deadline := time.Now().Add(patience); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return "http://" + addr
		}
		select {
		case <-exited:
			t.Fatalf("the mock ended:\n%s", out.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the mock does not listen: %v\n%s", err, out.String())
		}
	}
}
