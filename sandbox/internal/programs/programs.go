// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package programs gives tests the agent and the sandbox as programs. `make` has built
// both and names them in the environment; a bare `go test` builds them here. It is for
// packages one folder below the sandbox's module. The API is not stable.
package programs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The environment variables that name programs which are there.
const (
	AgentVariable   = "AMSAGENT_E2E_BINARY"
	SandboxVariable = "AMSAGENT_SANDBOX_BINARY"
)

// Agent puts the agent into a folder, as amsagent.
func Agent(ctx context.Context, dir string) (string, error) {
	return put(ctx, dir, "amsagent", "../..", os.Getenv(AgentVariable))
}

// Sandbox puts the sandbox into a folder, as sandbox.
func Sandbox(ctx context.Context, dir string) (string, error) {
	return put(ctx, dir, "sandbox", "..", os.Getenv(SandboxVariable))
}

func put(ctx context.Context, dir, name, module, built string) (string, error) {
	out := filepath.Join(dir, name)
	if built != "" {
		b, err := os.ReadFile(built)
		if err != nil {
			return "", fmt.Errorf("copying %s: %w", name, err)
		}
		return out, os.WriteFile(out, b, 0o755)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", out, "./cmd/"+name)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, text)
	}
	return out, nil
}
