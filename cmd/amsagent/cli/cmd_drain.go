// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/cloud"
)

type drainOptions struct {
	followOptions

	deadline      time.Duration
	now, repair   bool
	reason        string
	deadlineGiven bool // --deadline 0 is wrong
}

// followOptions are those of drain and event.
type followOptions struct {
	detach  bool
	timeout time.Duration
}

func (o *followOptions) addTo(fs *pflag.FlagSet) {
	fs.BoolVar(&o.detach, "detach", false, "do not wait: end as soon as the daemon has begun")
	fs.DurationVar(&o.timeout, "timeout", 0, "follow no longer than this `DURATION`; the drain continues (default: to its end)")
}

func (o *followOptions) check() error {
	switch {
	case o.timeout < 0:
		return usageError(nil, "--timeout: %s is before now", settings.ShortDuration(o.timeout))
	case o.detach && o.timeout != 0:
		return usageError(nil, "--detach and --timeout contradict each other")
	}
	return nil
}

func newDrainCommand(g *globals) *cobra.Command {
	var opts drainOptions
	cmd := &cobra.Command{
		Use:   "drain [NODE] [flags]",
		Short: "take a node out of the cluster without cutting a stream",
		Long: "The node is announced as draining, so that it gets no new sessions. It serves\n" +
			"until its last publisher and viewer have left, or until the deadline. Then Ant\n" +
			"Media Server is stopped, the node is removed from the cluster's lists, and a\n" +
			"pending hook of the cloud is completed. The files stay as they are.\n\n" +
			"The daemon does all that; this command follows it, and reports at least every\n" +
			"30 s how many sessions are left. If this command ends, the drain continues. If\n" +
			"a drain is in progress, the command follows that one. `amsagent undrain`\n" +
			"cancels a drain until the server stops.\n\n" +
			"NODE is an id, an address or a host name of another node. The command then\n" +
			"runs on any machine that reaches MongoDB, without root. The request stands in\n" +
			"that node's record, and its daemon accepts it within 15 s. If no daemon does,\n" +
			"the request is withdrawn after 45 s, or after --timeout.",
		Example: "  amsagent drain\n" +
			"  amsagent drain --deadline 20m --reason \"kernel update\"\n" +
			"  amsagent drain --now --repair-streams\n" +
			"  amsagent drain 10.0.1.5 --mongo 10.0.2.4 --reason \"kernel update\"\n" +
			"  amsagent drain --detach",
		Args: oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.deadlineGiven = cmd.Flags().Changed("deadline")
			if len(args) > 0 {
				return runDrainNode(cmd.Context(), opts, args[0], g)
			}
			return runDrain(cmd.Context(), opts, g)
		},
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitNotMember, exitInterrupted)
	fs := cmd.Flags()
	fs.DurationVar(&opts.deadline, "deadline", 0, "cut the sessions that are left after this `DURATION` (default: the daemon's setting, 1h)")
	fs.BoolVar(&opts.now, "now", false, "wait for no session: all are cut")
	fs.StringVar(&opts.reason, "reason", "", "a `TEXT` for the node's record and the events")
	fs.BoolVar(&opts.repair, "repair-streams", false, "end the streams that this node leaves \"broadcasting\" in the cluster")
	opts.addTo(fs)
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

// Bounds of --deadline. A stream may last for days; what is shorter than a second means --now.
const (
	leastDeadline = time.Second
	mostDeadline  = 7 * 24 * time.Hour
	maxReason     = 200
)

func (o *drainOptions) check() error {
	switch {
	case o.now && o.deadlineGiven:
		return usageError(nil, "--now and --deadline contradict each other")
	case o.deadlineGiven && (o.deadline < leastDeadline || o.deadline > mostDeadline):
		return usageError([]string{"to wait for no session: --now"}, "--deadline: %s is outside %s to %s",
			settings.ShortDuration(o.deadline), settings.ShortDuration(leastDeadline), settings.ShortDuration(mostDeadline))
	case len(o.reason) > maxReason || output.OneLine(o.reason) != strings.TrimSpace(o.reason):
		return usageError(nil, "--reason: one line of at most %d bytes", maxReason)
	}
	return o.followOptions.check()
}

// drainData is the result of drain, undrain and event.
type drainData struct {
	// Result is left, parked, draining, launching, active, not-draining, not-this-instance, test, stale.
	Result string `json:"result"`
	// Event is what was read, of `event`.
	Event *cloud.Event `json:"event,omitempty"`
	// Instance is this machine's id, if it was read.
	Instance string          `json:"instance_id,omitempty"`
	Drain    *lifecycle.View `json:"drain,omitempty"`
	// Node is the node record, of `drain NODE`.
	Node *cluster.Node `json:"node,omitempty"`
}

func runDrain(ctx context.Context, opts drainOptions, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	f := newFollower(g)
	v, err := f.c.Life(ctx, daemon.PathDrain, lifecycle.DrainRequest{
		Deadline: seconds.Duration(opts.deadline), Now: opts.now, Reason: strings.TrimSpace(opts.reason), Who: askedBy(g.env, "drain"), RepairStreams: opts.repair,
	})
	if refusal, ok := errors.AsType[*daemon.Refusal](err); ok && refusal.Code == daemon.RefusedLeft && refusal.View != nil {
		v, err = *refusal.View, nil
	}
	if err != nil {
		return notBegun(g, "drain", err)
	}
	return f.finish(ctx, "drain", v, opts.followOptions, drainData{})
}

// notBegun is the error of a request that the daemon did not accept.
func notBegun(g *globals, verb string, err error) error {
	u := &userError{Msg: "cannot " + verb, Cause: err, State: stateUntouched}
	switch refusal, _ := errors.AsType[*daemon.Refusal](err); {
	case is(daemon.ErrLost, context.Canceled)(err), as[*interruptedError](err):
		u.State = "the daemon may have begun it: see `amsagent status`"
	case refusal != nil && refusal.Code == daemon.RefusedInvalid:
		u.Exit = exitUsage
	case errors.Is(err, daemon.ErrDown): // no machine needs one before a join
		m := bootstrap.Machine{Root: g.settings.Root}
		switch state, unread := m.StateFile(); {
		case errors.Is(unread, fs.ErrPermission):
			u.Cause = unread // only root may ask a daemon, too
		case unread == nil && state == nil:
			u.Cause = bootstrap.ErrNotMember
		}
	}
	return u
}

// finish prints the result: of what the daemon began with --detach, else of its end.
func (f *follower) finish(ctx context.Context, command string, v lifecycle.View, opts followOptions, data drainData) error {
	if !opts.detach {
		f.g.signals.expect() // a signal ends the following alone
		ctx, cancel := upTo(ctx, opts.timeout)
		defer cancel()
		if err := f.follow(ctx, v); err != nil {
			return err
		}
		v = f.last
	}
	data.Drain, data.Result = &v, string(v.State)
	text := func(w *output.Text) { drainText(w, v) }
	switch {
	case !opts.detach:
	case v.Start == "starting":
		data.Result = "launching"
		text = func(w *output.Text) { w.Line("%s", w.Color.Yellow(data.Result)) }
	case v.State == "":
		return nothingToFollow(v)
	case v.State == lifecycle.StateDraining:
		text = func(w *output.Text) {
			w.Line("%s: %s", w.Color.Yellow("draining"), output.Printable(progressOf(v, w.Now)))
			w.Line("`amsagent drain` follows it, `amsagent undrain` cancels it")
		}
	}
	return f.g.result(command, data, text)
}

// nodeState is the last line of an error: what this node is now.
func nodeState(v lifecycle.View) string {
	switch v.State {
	case "":
		return "the daemon has no record of this node"
	case lifecycle.StateLeft:
		return "this node has left the cluster"
	}
	return "this node is " + string(v.State)
}

func drainText(w *output.Text, v lifecycle.View) {
	what := map[lifecycle.State]string{
		lifecycle.StateActive:   "this node serves",
		lifecycle.StateDraining: "no sessions are left on this node; the machine is about to restart",
		lifecycle.StateLeft:     "this node is out of the cluster",
		lifecycle.StateParked:   "this node is out of the cluster, and comes back when the cloud wants it",
	}[v.State]
	if v.NeverJoined {
		what = "this machine never joined: there were no sessions to wait for"
	}
	word := w.Color.Green(output.Printable(string(v.State)))
	if v.Cut != nil && *v.Cut > 0 {
		what += "; " + output.Count(*v.Cut, "session") + " cut"
		word = w.Color.Yellow(output.Printable(string(v.State)))
	}
	w.Line("%s: %s", word, what)
	pairs := []string{"reason", v.Reason, "asked by", v.Who}
	for _, h := range v.Hooks {
		text := string(h.End)
		switch {
		case text == "" && h.Denied != "":
			text = "waits for its timeout: permission " + h.Denied + " is missing"
		case text == "":
			text = "waits"
		}
		pairs = append(pairs, "hook "+h.Name, text)
	}
	if !v.RegistryTold && v.Registry != "" {
		pairs = append(pairs, "registry", "not written yet; the daemon tries again")
	}
	if v.OnlyCloud() {
		pairs = append(pairs, "cloud", "not notified yet; the daemon tries again")
	}
	if v.State == lifecycle.StateLeft && v.Kind == lifecycle.Ask {
		pairs = append(pairs, "next", "Ant Media Server is stopped: amsagent join, or a reboot, brings this node back; amsagent leave makes it standalone")
	}
	w.Fields(pairs...)
}

// askedBy says who asks, for those who read it elsewhere.
func askedBy(env Env, command string) string {
	name := ""
	for _, v := range []string{"SUDO_USER", "USER", "LOGNAME"} {
		if name = env.getenv(v); name != "" {
			break
		}
	}
	if name == "" {
		name = fmt.Sprintf("uid %d", env.Geteuid())
	}
	if r := []rune(name); len(r) > 64 {
		name = string(r[:64])
	}
	return output.Printable(name) + ", amsagent " + command
}
