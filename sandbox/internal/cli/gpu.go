// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/amsagent/amsagent/sandbox/fakegpu"
)

func runNvidiaSMI(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "nvidia-smi", "--install ROOT [flags]\n       sandbox nvidia-smi --state FILE -- --query-gpu=FIELDS --format=csv,noheader,nounits [--loop-ms=N]")
	var l life
	l.addFlags(fs)
	var root, state, driver string
	var devices int
	fs.StringVar(&root, "install", "", "make the folder `root` a machine with this tool and a driver, and print where its state stands")
	fs.StringVar(&state, "state", "", "tell and do what this `file` says, read again for each round")
	fs.StringVar(&driver, "driver", "", "with --install: the driver's `version`")
	fs.IntVar(&devices, "devices", 1, "with --install: how many devices")
	if err := fs.Parse(args); err != nil {
		return exitError{status: 2} // flag has printed it
	}
	switch {
	case root != "" && state == "" && fs.NArg() == 0:
		self, err := env.Executable()
		if err != nil {
			return fmt.Errorf("finding this program: %w", err)
		}
		s := fakegpu.Sample(devices)
		if driver != "" {
			s.Driver = driver
		}
		file, err := fakegpu.Install(root, s, self, "nvidia-smi")
		if err == nil {
			say(env.Stdout, "%s\n", file)
		}
		return err
	case root == "" && state != "":
		ctx, stop, err := l.context(ctx)
		if err != nil {
			return err
		}
		defer stop()
		if status := fakegpu.Run(ctx, state, fs.Args(), env.Stdout, env.Stderr); status != 0 {
			return exitError{status: status}
		}
		return nil
	}
	fs.Usage()
	return exitError{2, "nvidia-smi: either --install or --state is needed"}
}
