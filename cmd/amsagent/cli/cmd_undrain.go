// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

func newUndrainCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undrain [flags]",
		Short: "cancel a drain: this node serves again",
		Long: "Until Ant Media Server stops or the machine shuts down, a drain can be\n" +
			"cancelled: the node becomes active again, no matter which command or event\n" +
			"started the drain. A cloud that terminates the machine does not stop for that:\n" +
			"it continues when its hook's time is over.",
		Example: "  amsagent undrain",
		RunE:    func(cmd *cobra.Command, _ []string) error { return runUndrain(cmd.Context(), g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitNotMember, exitInterrupted)
	return cmd
}

// undrainTime bounds the wait for the node record. The node serves already, and the daemon continues to write it.
const (
	undrainTime  = 10 * time.Second
	undrainPause = 250 * time.Millisecond
)

func runUndrain(ctx context.Context, g *globals) error {
	c := g.daemon()
	v, err := c.Life(ctx, daemon.PathUndrain, daemon.UndrainRequest{Who: askedBy(g.env, "undrain")})
	var refusal *daemon.Refusal
	switch {
	case errors.As(err, &refusal) && refusal.Code == daemon.RefusedNotDraining:
		data := drainData{Result: "not-draining", Drain: refusal.View}
		return g.result("undrain", data, func(w *output.Text) {
			w.Line("%s: this node is not draining", w.Color.Green("nothing to do"))
		})
	case errors.As(err, &refusal) && (refusal.Code == daemon.RefusedTooLate || refusal.Code == daemon.RefusedLeft):
		hint := []string{"if the machine stays: `amsagent join` makes it a node again"}
		if refusal.View != nil && refusal.View.State == lifecycle.StateLeft {
			return &userError{Msg: "the drain has ended: this node has left the cluster", ID: idRefused, Exit: exitFailed, Hints: hint, State: stateUntouched}
		}
		return &userError{Msg: "the drain can no longer be cancelled", Cause: err, Exit: exitFailed, Hints: hint, State: "the drain continues"}
	case err != nil:
		return notBegun(g, "undrain", err)
	}
	for limit := time.Now().Add(undrainTime); !v.RegistryTold && time.Now().Before(limit) && sleep.For(ctx, undrainPause); {
		now, err := c.Life(ctx, daemon.PathDrain, nil)
		if err != nil {
			g.out.Log().Debug("the daemon could not be asked again", "error", err)
			break
		}
		v = now
	}
	if err := context.Cause(ctx); err != nil && !v.RegistryTold {
		return &userError{Msg: "the drain is cancelled, maybe not yet in the node record; the daemon tries again", Cause: err, State: nodeState(v)}
	}
	if v.State != lifecycle.StateActive {
		return &userError{Msg: "the drain was cancelled, and another one has begun", State: nodeState(v), Exit: exitFailed}
	}
	if !v.RegistryTold {
		g.out.Log().Warn("the node record is not written yet, the daemon tries again")
	}
	return g.result("undrain", drainData{Result: "active", Drain: &v}, func(w *output.Text) {
		w.Line("%s: this node serves again", w.Color.Green("active"))
		for _, id := range v.Dismissed {
			w.Line("  overruled: %s; the cloud may take this machine all the same", output.Printable(id))
		}
	})
}
