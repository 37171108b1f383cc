// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// globals is for every command: the environment, the effective settings, and the output.
type globals struct {
	env      Env
	out      *output.Printer
	settings *settings.Settings
	// ctx ends with the first signal. The settings are read in places that have no other.
	ctx context.Context
	// given are the settings' flags as they stood on the command line.
	given map[string]settings.Flag
	// notOwn is why the server's unit does not call this program.
	notOwn error
	// helpErr is the error of printing a help text, which cobra has no way to return.
	helpErr error

	// readsOnly: the command never changes this machine. The goroutine that watches signals reads it, too.
	readsOnly atomic.Bool

	signals signals

	// piped reads standard input once, for the address of MongoDB.
	piped func() ([]byte, error)

	mu   sync.Mutex
	seen machine // as the cloud last described it
}

func newGlobals(env Env) *globals {
	g := &globals{env: env, ctx: context.Background(), given: map[string]settings.Flag{}, settings: &settings.Settings{Values: map[string]settings.Value{}}}
	g.signals.level.Set(slog.LevelWarn)
	g.piped = sync.OnceValues(func() ([]byte, error) {
		return g.readStdin(settings.MaxSmallFile, within(g.settings.Timeout, pipeTime))
	})
	g.out = output.New(output.Streams{
		Stdout: env.Stdout, Stderr: env.Stderr, IsTerminal: env.IsTerminal, IsJournal: env.IsJournal, Now: env.Now,
		Getenv: func(name string) string { return g.env.getenv(name) }, // the environment may change
	})
	return g
}

func (g *globals) load(cmd *cobra.Command) error {
	g.readsOnly.Store(onlyReads(cmd))
	src := settings.Sources{Flags: g.given, Dropped: dropEmpty(cmd, g.given), LookupEnv: g.env.LookupEnv, Environ: g.env.Environ}
	// Completion must work with a wrong config.yaml.
	completes := cmd.Name() == cobra.ShellCompRequestCmd || cmd.Name() == cobra.ShellCompNoDescRequestCmd
	if _, ok := cmd.Annotations[annotationNoLoad]; ok || completes {
		src.Only = func(row settings.Setting) bool { return row.Global }
		s, err := settings.Resolve(src)
		g.apply(s)
		if settings.Any(err, func(e *settings.Error) bool { return e.Layer == settings.FromFlag }) {
			return err
		}
		return nil
	}
	s, err := settings.Read(src, cmd.Annotations[annotationGoodConfig] != "")
	if err != nil {
		return err
	}
	g.apply(s)
	if s.Sources.Wrong != nil {
		for _, e := range settings.Flatten(s.Sources.Wrong) {
			g.out.Log().Warn("config.yaml is wrong", "error", e, "instead", s.Sources.Instead)
		}
	}
	if s.Sources.Damaged != "" {
		g.out.Log().Warn(s.Sources.Damaged) //nolint:sloglint // made of the file's name
	}
	for _, w := range s.Warnings {
		g.out.Log().Warn(w) //nolint:sloglint // made of the settings' names
	}
	return nil
}

// result prints the result of a command. After a signal, a command that only reads prints nothing: its result is incomplete.
func (g *globals) result(kind string, data any, text func(*output.Text)) error {
	if g.readsOnly.Load() && g.ctx.Err() != nil {
		return context.Cause(g.ctx)
	}
	return g.out.Result(kind, data, text)
}

func (g *globals) apply(s *settings.Settings) {
	g.settings = s
	g.out.SetForm(s.Output, s.Color, s.LogLevel)
}
