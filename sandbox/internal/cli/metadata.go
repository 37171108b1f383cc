// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
)

// What the commands for the metadata of the clouds have in common.

// pairs reads key=value of a flag that may be repeated.
func pairs(to map[string]string) func(string) error {
	return func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return fmt.Errorf("want key=value")
		}
		to[key] = value
		return nil
	}
}

// change sets what there is a value for, and takes away what has an empty one.
func change(to, by map[string]string) {
	for key, value := range by {
		if value == "" {
			delete(to, key)
		} else {
			to[key] = value
		}
	}
}

// readOver reads a JSON file over the sample of what people call it; no file: nothing.
func readOver(sample any, what, file string) error {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	if err := json.Unmarshal(b, sample); err != nil {
		return fmt.Errorf("reading %s from %s: %w", what, file, err)
	}
	return nil
}

// readUserData reads the user data from a file; no file: nothing.
func readUserData(to *string, file string) error {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the user data: %w", err)
	}
	*to = string(b)
	return nil
}

// metadataService is that of one machine in any cloud.
type metadataService interface {
	Addr() string
	ControlAddr() string
	Endpoint() string
	Close() error
}

// stay announces the service, with what else there is to find, and closes it in the end.
func stay(ctx context.Context, env Env, s metadataService, more map[string]string) error {
	ready := map[string]string{"addr": s.Addr(), "control": s.ControlAddr(), "endpoint": s.Endpoint()}
	maps.Copy(ready, more)
	if err := announce(env.Stdout, ready); err != nil {
		return err
	}
	<-ctx.Done()
	return s.Close()
}
