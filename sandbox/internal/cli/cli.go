// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of the sandbox binary. It is the only place of
// the module that prints, reads the environment or chooses an exit status.
package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// Env is what the command line needs of its process.
type Env struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Environ        func() []string
	Executable     func() (string, error)
}

// OS is the real process.
func OS() Env {
	return Env{Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Environ: os.Environ, Executable: os.Executable}
}

// exitError carries an exit status to Main. With an empty text nothing is printed.
type exitError struct {
	status int
	text   string
}

func (e exitError) Error() string { return e.text }

type command struct {
	name, does string
	run        func(context.Context, Env, []string) error
}

func commands() []command {
	return []command{
		{"mongo", "a MongoDB-wire server that can be made to misbehave", runMongo},
		{"aws", "the metadata service of an EC2 instance", runAWS},
		{"azure", "the metadata service of a virtual machine on Azure, with scheduled events", runAzure},
		{"alibaba", "the metadata service of an ECS instance of Alibaba Cloud, and its APIs", runAlibaba},
		{"gcp", "the metadata server of a machine on Google Cloud", runGCP},
		{"ams", "a stand-in for Ant Media Server", runAMS},
		{"amsctl", "start, stop, restart, status of a stand-in, without systemd", runAMSCtl},
		{"demo", "show what the agent does, from a join to a leave", runDemo},
		{"tree", "write an Ant Media Server installation, or list one", runTree},
	}
}

// Main runs one subcommand and returns the exit status.
func Main(args []string, env Env) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		say(env.Stderr, "usage: sandbox COMMAND [flags]\n\n")
		for _, c := range commands() {
			say(env.Stderr, "  %-8s %s\n", c.name, c.does)
		}
		say(env.Stderr, `
sandbox COMMAND --help shows the flags. An argument @FILE stands for the lines of
FILE, one argument each; a file that is not there stands for none.

A server prints one line "ready {...}" (JSON: addresses) on standard output when
it can be used, and runs until SIGINT or SIGTERM.

EXIT STATUS: 0 done, 1 failed, 2 usage; amsctl status: 0 active, 3 not;
ams: 143 after SIGTERM, as a Java server.
`)
		if len(args) == 0 {
			return 2
		}
		return 0
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		rest, err := expand(args[1:])
		if err == nil {
			err = c.run(context.Background(), env, rest)
		}
		var exit exitError
		switch {
		case err == nil || errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, &exit):
			if exit.text != "" {
				say(env.Stderr, "sandbox: %s\n", exit.text)
			}
			return exit.status
		default:
			say(env.Stderr, "sandbox: error: %v\n", err)
			return 1
		}
	}
	say(env.Stderr, "sandbox: no command %q (sandbox help lists them)\n", args[0])
	return 2
}

// expand replaces each @FILE by the file's lines.
func expand(args []string) ([]string, error) {
	var out []string
	for _, a := range args {
		file, ok := strings.CutPrefix(a, "@")
		if !ok {
			out = append(out, a)
			continue
		}
		f, err := os.Open(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading arguments: %w", err)
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if l := lines.Text(); l != "" {
				out = append(out, l)
			}
		}
		_ = f.Close()
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("reading arguments: %w", err)
		}
	}
	return out, nil
}

// newFlags makes a flag set that prints to our stderr.
func newFlags(env Env, name, synopsis string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(env.Stderr)
	fs.Usage = func() {
		say(env.Stderr, "usage: sandbox %s %s\n", name, synopsis)
		fs.PrintDefaults()
	}
	return fs
}

// parse turns a mistake in the flags into exit status 2.
func parse(fs *flag.FlagSet, args []string, positional int) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return exitError{status: 2} // flag has printed it
	}
	if fs.NArg() != positional {
		fs.Usage()
		return exitError{2, fmt.Sprintf("%s: %d arguments besides flags, want %d", fs.Name(), fs.NArg(), positional)}
	}
	return nil
}

// life holds the flags that end a server together with another process, so that a killed test leaves no server behind.
type life struct {
	withParent bool
	with       int
	verbose    bool
}

func (l *life) addFlags(fs *flag.FlagSet) {
	fs.BoolVar(&l.withParent, "die-with-parent", false, "end when the process ends that started this one")
	fs.IntVar(&l.with, "die-with", 0, "end when the process with this `pid` ends")
	fs.BoolVar(&l.verbose, "verbose", false, "log every step to standard error")
}

func (l *life) log(env Env) *slog.Logger {
	level := slog.LevelWarn
	if l.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: level}))
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return "got signal " + e.String() }

var errOrphaned = errors.New("the process to die with has ended")

// context ends with a signal or with the process to die with.
func (l *life) context(ctx context.Context) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			cancel(signalError{s})
		case <-ctx.Done():
		}
		signal.Stop(signals) // a second signal ends the process at once
	}()
	stop := func() { cancel(nil) }
	with := l.with
	if l.withParent {
		with = os.Getppid()
	}
	if with != 0 {
		p, err := proc.Open(with)
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("finding the process to die with: %w", err)
		}
		go func() {
			defer func() { _ = p.Close() }()
			if p.Wait(ctx) {
				cancel(errOrphaned)
			}
		}()
	}
	return ctx, stop, nil
}

// say prints. A reader that went away is no reason to fail.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// announce prints the one line that machines wait for.
func announce(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	if _, err := fmt.Fprintf(w, "ready %s\n", b); err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	return nil
}
