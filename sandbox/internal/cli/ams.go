// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
)

// amsInfo is what a stand-in says of itself.
type amsInfo struct {
	Addr    string `json:"addr"`
	Control string `json:"control,omitempty"`
	PID     int    `json:"pid"`
	Mode    string `json:"mode"`
	Address string `json:"address"`
	NodeID  string `json:"node_id"`
}

func runAMS(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "ams", "--root FOLDER [flags]")
	var l life
	l.addFlags(fs)
	var o fakeams.Options
	o.AddFlags(fs)
	var readyFD int
	var info string
	fs.IntVar(&readyFD, "ready-fd", 0, "write one byte to this file `descriptor` when up")
	fs.StringVar(&info, "info", "", "write addresses and pid to this `file` when listening")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if o.Root == "" {
		return exitError{2, "ams: --root is needed"}
	}
	if o.HostAddress == "" {
		o.HostAddress = env.Getenv("AMS_HOST_ADDRESS")
	}
	ctx, stop, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	// A server has a log; this one is short.
	o.Log = slog.New(slog.NewTextHandler(env.Stderr, nil))

	// A signal ends it in the middle of its start too: it may be waiting for MongoDB.
	type started struct {
		s   *fakeams.Server
		err error
	}
	start := make(chan started, 1)
	go func() {
		s, err := fakeams.Start(context.WithoutCancel(ctx), o)
		start <- started{s, err}
	}()
	var s *fakeams.Server
	select {
	case r := <-start:
		if r.err != nil {
			return r.err
		}
		s = r.s
	case <-ctx.Done():
		return ending(ctx)
	}
	defer func() { _ = s.Close() }()
	said := amsInfo{
		Addr: s.HTTPAddr(), Control: s.ControlAddr(), PID: os.Getpid(),
		Mode: s.Mode(), Address: s.Address(), NodeID: s.NodeID(),
	}
	if info != "" {
		b, err := json.Marshal(said)
		if err != nil {
			return fmt.Errorf("writing addresses: %w", err)
		}
		// Whole or not at all: others read it.
		if err := os.WriteFile(info+".new", append(b, '\n'), 0o644); err != nil {
			return fmt.Errorf("writing addresses: %w", err)
		}
		if err := os.Rename(info+".new", info); err != nil {
			return fmt.Errorf("writing addresses: %w", err)
		}
	}
	select {
	case <-s.Ready():
		if err := announce(env.Stdout, said); err != nil {
			return err
		}
		if readyFD > 0 {
			f := os.NewFile(uintptr(readyFD), "ready")
			_, _ = f.Write([]byte{1}) // an error means that the reader has ended
			_ = f.Close()
		}
	case <-s.Done():
	case <-ctx.Done():
	}
	select {
	case <-s.Done():
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), errOrphaned) {
			return nil // no orderly end is needed
		}
		if err := s.Stop(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		return ending(ctx)
	}
	return s.Err()
}

// ending is the exit status for what ended ctx: after SIGTERM that of a JVM.
func ending(ctx context.Context) error {
	var sig signalError
	if errors.As(context.Cause(ctx), &sig) && sig.Signal == syscall.SIGTERM {
		return exitError{status: 128 + int(syscall.SIGTERM)}
	}
	return nil
}

func runAMSCtl(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "amsctl", "[--config FILE | --state FOLDER --root FOLDER [flags of ams]] start|stop|restart|status|info|stats\n"+
		"       sandbox amsctl … publish|unpublish APP STREAM\n"+
		"       sandbox amsctl … view|unview APP STREAM [-n N] [--kind webrtc|hls|dash|rtmp] [--connect [--from ADDRESS]]\n"+
		"       sandbox amsctl --state FOLDER --root FOLDER [flags of ams] --write-wrapper FILE")
	// The flags of ams are declared here too: a mistake is found now, not in a log.
	var o fakeams.Options
	var l life
	o.AddFlags(fs)
	l.addFlags(fs)
	ours := map[string]bool{}
	mine := func(name string) string { ours[name] = true; return name }
	var c amsctl.Config
	var config, wrapper string
	fs.StringVar(&config, mine("config"), env.Getenv("SANDBOX_AMSCTL"), "read everything from this `file` (default $SANDBOX_AMSCTL)")
	fs.StringVar(&c.State, mine("state"), "", "`folder` for pid, log and the like")
	fs.StringVar(&wrapper, mine("write-wrapper"), "", "write a script to this `file` that takes an action only")
	fs.DurationVar(&c.StartWait, mine("start-wait"), 10*time.Second, "how long start waits for the server to be up")
	fs.DurationVar(&c.StopWait, mine("stop-wait"), 10*time.Second, "how long stop waits before it kills")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return exitError{status: 2}
	}
	want := 1
	if wrapper != "" {
		want = 0
	}
	var request *controlRequest
	if wrapper == "" && isSessions(fs.Arg(0)) {
		var err error
		if request, err = sessionsRequest(env, fs.Args()); err != nil {
			return err
		}
	} else if fs.NArg() != want {
		fs.Usage()
		return exitError{2, "amsctl: want exactly one action"}
	}

	if c.State == "" && config != "" {
		var err error
		if c, err = amsctl.Load(config); err != nil {
			return err
		}
	} else {
		if c.State == "" || o.Root == "" {
			return exitError{2, "amsctl: --state and --root are needed, or --config"}
		}
		if l.withParent {
			return exitError{2, "amsctl: the server's parent is short-lived; use --die-with PID"}
		}
		var err error
		if c.Sandbox, err = env.Executable(); err != nil {
			return fmt.Errorf("finding this program: %w", err)
		}
		fs.Visit(func(f *flag.Flag) {
			if !ours[f.Name] {
				c.Args = append(c.Args, "--"+f.Name+"="+f.Value.String())
			}
		})
	}
	if wrapper != "" {
		return c.WriteWrapper(wrapper)
	}

	if request != nil {
		_, err := c.Control(ctx, request.method, request.path, request.query)
		return err
	}

	switch action := fs.Arg(0); action {
	case "start":
		return c.Start(ctx, env.Environ())
	case "stop":
		return c.Stop(ctx)
	case "restart":
		return c.Restart(ctx, env.Environ())
	case "status":
		st, err := c.Status()
		if err != nil {
			return err
		}
		if st != amsctl.Active {
			say(env.Stdout, "%s\n", st)
			return exitError{status: 3}
		}
		say(env.Stdout, "%s %s\n", st, c.PID())
		return nil
	case "info":
		b, err := c.Info()
		if err != nil {
			return err
		}
		say(env.Stdout, "%s\n", strings.TrimSpace(string(b)))
		return nil
	case "stats":
		b, err := c.Control(ctx, http.MethodGet, "/stats", nil)
		if errors.Is(err, amsctl.ErrNotRunning) {
			var st fakeams.Stats
			if st, err = fakeams.ReadStats(c.StatsFile()); err == nil {
				b, err = json.MarshalIndent(st, "", "  ")
			}
		}
		if err != nil {
			return err
		}
		say(env.Stdout, "%s\n", strings.TrimSpace(string(b)))
		return nil
	default:
		return exitError{2, fmt.Sprintf("amsctl: no action %q (start, stop, restart, status, info, stats, publish, unpublish, view, unview)", action)}
	}
}

// controlRequest is what an action asks of the server's control port.
type controlRequest struct {
	method, path string
	query        url.Values
}

func isSessions(action string) bool {
	return slices.Contains([]string{"publish", "unpublish", "view", "unview"}, action)
}

// sessionsRequest reads an action about sessions: its name, application and stream,
// and flags wherever they stand.
func sessionsRequest(env Env, args []string) (*controlRequest, error) {
	action := args[0]
	viewing := strings.HasSuffix(action, "view")
	fs := newFlags(env, "amsctl "+action, "APP STREAM [flags]")
	var n int
	var kind, from string
	var connect bool
	if viewing {
		fs.IntVar(&n, "n", 0, "how `many` viewers (view: default 1; unview: default all of the kind)")
		fs.StringVar(&kind, "kind", string(fakeams.WebRTC), "how they watch: webrtc, hls, dash or rtmp")
	}
	if action == "view" {
		fs.BoolVar(&connect, "connect", false, "each opens a real connection to the HTTP port")
		fs.StringVar(&from, "from", "", "with --connect: the local `address` to come from")
	}
	var words []string
	for rest := args[1:]; ; {
		if err := fs.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, exitError{status: 2}
		}
		if fs.NArg() == 0 {
			break
		}
		words, rest = append(words, fs.Arg(0)), fs.Args()[1:]
	}
	if len(words) != 2 || n < 0 {
		fs.Usage()
		return nil, exitError{2, "amsctl " + action + ": want an application and a stream"}
	}
	q := url.Values{"app": {words[0]}}
	if !viewing {
		q.Set("id", words[1])
		if action == "unpublish" {
			return &controlRequest{http.MethodDelete, "/stream", q}, nil
		}
		q.Set("announced", "true")
		return &controlRequest{http.MethodPost, "/stream", q}, nil
	}
	q.Set("stream", words[1])
	q.Set("kind", kind)
	if n > 0 {
		q.Set("n", strconv.Itoa(n))
	}
	if action == "unview" {
		return &controlRequest{http.MethodDelete, "/viewers", q}, nil
	}
	if connect {
		q.Set("connect", "true")
	}
	if from != "" {
		q.Set("from", from)
	}
	return &controlRequest{http.MethodPost, "/viewers", q}, nil
}
