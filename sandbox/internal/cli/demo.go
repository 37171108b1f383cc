// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/amsagent/amsagent/sandbox/demo"
)

func runDemo(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "demo", "[--agent FILE]")
	agent := fs.String("agent", "build/amsagent", "the agent's binary, a `file`")
	var l life
	l.addFlags(fs)
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	ctx, cancel, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	return demo.Run(ctx, demo.Options{Agent: *agent, Sandbox: self, Out: env.Stdout})
}
