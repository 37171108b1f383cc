// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/amsagent/amsagent/sandbox/demo"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

func runDemo(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "demo", "[--cloud NAME] [--agent FILE] [--real] [--embedded FILE]")
	agent := fs.String("agent", "build/amsagent", "the agent's binary, a `file`")
	cloud := fs.String("cloud", "aws", "the cloud to emulate, a `name`: "+strings.Join(fakecloud.Names(), ", "))
	onReal := fs.Bool("real", false, "on real Ant Media Servers and a real mongod, which `make real-fetch` fetches; as root")
	embedded := fs.String("embedded", "", "the program of sandbox/embedded, a `file`, in place of a mongod")
	var l life
	l.addFlags(fs)
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if err := fakecloud.Check(*cloud); err != nil {
		return exitError{2, "demo: --cloud: " + err.Error()}
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
	err = demo.Run(ctx, demo.Options{Agent: *agent, Sandbox: self, Cloud: *cloud, Real: *onReal, Mongo: env.Getenv(realmongo.Variable), Embedded: *embedded, Out: env.Stdout, Log: env.Stderr})
	if errors.Is(err, demo.ErrNotRoot) {
		return exitError{2, "demo: " + err.Error()}
	}
	return err
}
