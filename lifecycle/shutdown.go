// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// LoadDeparture returns the recorded departure of this boot's drain, or nil, for the process that deregisters after the
// server has stopped.
func LoadDeparture(files Files, boot string) (*Departure, error) {
	d, _, err := load(files)
	if err != nil || d == nil || !d.leaving() || d.Boot != "" && boot != "" && d.Boot != boot {
		return nil, err
	}
	if d.Departure == nil { // killed before it counted the sessions
		return heaviest(d.Notices).departure(d.Repair), nil
	}
	return d.Departure, nil
}

// CompletePending completes, in one attempt, the hooks of a drain that the shutdown interrupted. A hook shared with other
// machines is left to the last of them.
func CompletePending(ctx context.Context, files Files, c cloud.Hooks, f cloud.Filter, p Peers, log *slog.Logger) error {
	d, _, err := load(files)
	if err != nil || d == nil || c == nil {
		return err
	}
	restored := d.clone()
	s := situation{state: &restored, c: &config{Hooks: true, Wall: d.wall()}}
	s.now = s.c.Wall.instant(time.Now())
	if goals[heaviest(s.Notices).Kind] < goalPark || !s.leaving() {
		return nil
	}
	s.Hooks.confirm(f)
	errs := []error{s.findPending(ctx, c, f)}
	for i := range s.Hooks {
		a := &s.Hooks[i]
		if a.Hook.Launching || a.End != "" || !a.isOurs() {
			continue
		}
		h := a.Hook
		h.Limit = s.c.Wall.time(a.Limit)
		errs = append(errs, completeOne(ctx, c, h, p, log))
	}
	return errors.Join(errs...)
}

func (s situation) findPending(ctx context.Context, c cloud.Hooks, f cloud.Filter) error {
	if !s.wantsHooks(false) {
		return nil
	}
	found, err := f.Find(ctx, c, false, s.Used.has)
	hooksFound{filter: f, hooks: found, err: err}.apply(s)
	if err != nil && (s.wantsHooks(false) || !s.Hooks.anyWaits(false)) {
		return fmt.Errorf("asking for the hook that waits: %w", err)
	}
	return nil
}

func completeOne(ctx context.Context, c cloud.Hooks, h Hook, p Peers, log *slog.Logger) error {
	err := complete(ctx, c, p, h)
	switch {
	case err == nil:
		log.Info("hook completed", "hook", h.Name)
	case errors.Is(err, errOthers):
		log.Info("hook is left to the last of its machines", "hook", h.Name, "error", err)
	case errors.Is(err, cloud.ErrGone), errors.Is(err, cloud.ErrNotWaiting):
		log.Info("hook does not wait", "hook", h.Name, "error", err)
	default:
		return fmt.Errorf("completing hook %s: %w", h.Name, err)
	}
	return nil
}
