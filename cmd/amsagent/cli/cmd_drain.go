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
	deadline, timeout time.Duration
	now, repair       bool
	detach            bool
	reason            string
	// deadlineGiven tells --deadline 0, which is wrong, from none.
	deadlineGiven bool
}

func addFollowFlags(fs *pflag.FlagSet, detach *bool, timeout *time.Duration) {
	fs.BoolVar(detach, "detach", false, "do not wait: end as soon as the daemon has begun")
	fs.DurationVar(timeout, "timeout", 0, "follow no longer than this `DURATION`; the drain goes on (default: to its end)")
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
	fs.StringVar(&opts.reason, "reason", "", "a `TEXT` for whoever asks why")
	fs.BoolVar(&opts.repair, "repair-streams", false, "end the streams that this node leaves \"broadcasting\" in the cluster")
	addFollowFlags(fs, &opts.detach, &opts.timeout)
	g.addSettings(cmd, settings.KeyMongo)
	return cmd
}

// Bounds of --deadline. A stream may last for days; what is shorter than a second means --now.
const (
	leastDeadline = time.Second
	mostDeadline  = 7 * 24 * time.Hour
	maxReason     = 200
)

func (o *drainOptions) check(changed bool) error {
	switch {
	case o.now && changed:
		return usageError(nil, "--now and --deadline contradict each other")
	case changed && (o.deadline < leastDeadline || o.deadline > mostDeadline):
		return usageError([]string{"to wait for no session: --now"}, "--deadline: %s is outside %s to %s",
			settings.ShortDuration(o.deadline), settings.ShortDuration(leastDeadline), settings.ShortDuration(mostDeadline))
	case len(o.reason) > maxReason || output.OneLine(o.reason) != strings.TrimSpace(o.reason):
		return usageError(nil, "--reason: one line of at most %d bytes", maxReason)
	}
	return checkFollow(o.detach, o.timeout)
}

func checkFollow(detach bool, timeout time.Duration) error {
	switch {
	case timeout < 0:
		return usageError(nil, "--timeout: %s is before now", settings.ShortDuration(timeout))
	case detach && timeout != 0:
		return usageError(nil, "--detach waits for nothing, so that --timeout bounds nothing")
	}
	return nil
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
	// Node is the row of the node that was named, of `drain NODE`.
	Node *cluster.Node `json:"node,omitempty"`
}

func runDrain(ctx context.Context, opts drainOptions, g *globals) error {
	if err := opts.check(opts.deadlineGiven); err != nil {
		return err
	}
	c := g.daemon()
	began := time.Now()
	v, err := c.Life(ctx, daemon.PathDrain, lifecycle.DrainRequest{
		Deadline: seconds.Duration(opts.deadline), Now: opts.now, Reason: strings.TrimSpace(opts.reason), Who: askedBy(g.env, "drain"), RepairStreams: opts.repair,
	})
	var refusal *daemon.Refusal
	switch {
	case errors.As(err, &refusal) && refusal.Code == daemon.RefusedLeft && refusal.View != nil:
		v = *refusal.View // already so
	case err != nil:
		return notBegun("drain", orNotMember(g, err))
	}
	if opts.detach {
		return detached(g, "drain", drainData{Drain: &v})
	}
	f := &follower{reporter: newReporter(g), c: c, began: began}
	return followed(ctx, g, "drain", f, v, opts.timeout, drainData{})
}

// notBegun is the error of a request that the daemon did not accept.
func notBegun(verb string, err error) error {
	u := &userError{Msg: "cannot " + verb, Cause: err, State: stateUntouched}
	if is(daemon.ErrLost, context.Canceled)(err) || as[*interruptedError](err) {
		u.State = "the daemon may have begun it: see `amsagent status`"
	}
	if r, ok := errors.AsType[*daemon.Refusal](err); ok && r.Code == daemon.RefusedInvalid {
		u.Exit = exitUsage
	}
	return u
}

// orNotMember is the reason why there is no daemon to ask: one is needed after a join.
func orNotMember(g *globals, err error) error {
	if !errors.Is(err, daemon.ErrDown) {
		return err
	}
	m := bootstrap.Machine{Root: g.settings.Root}
	switch state, unread := m.StateFile(); {
	case errors.Is(unread, fs.ErrPermission):
		return unread // only root may ask a daemon, too
	case unread != nil || state != nil:
		return err
	}
	return bootstrap.ErrNotMember
}

// detached says what was begun.
func detached(g *globals, command string, data drainData) error {
	v := *data.Drain
	switch data.Result = string(v.State); {
	case v.Start == "starting":
		data.Result = "launching"
	case v.State == "":
		return unfollowed(nil, v, errForgotten, false, 0)
	}
	return g.result(command, data, func(w *output.Text) {
		switch {
		case data.Result == "launching":
			w.Line("%s", w.Color.Yellow(data.Result))
			return
		case v.State != lifecycle.StateDraining:
			drainText(w, v)
			return
		}
		w.Line("%s: %s", w.Color.Yellow("draining"), output.Printable(progressOf(v, w.Now)))
		w.Line("`amsagent drain` follows it, `amsagent undrain` takes it back")
	})
}

// followed follows a drain or a start to its end, and says how it ended.
func followed(ctx context.Context, g *globals, command string, f *follower, first lifecycle.View, timeout time.Duration, data drainData) error {
	// A signal ends the following alone; that is said below.
	g.signals.expect()
	inner := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		inner, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	v, err := f.follow(inner, first)
	if err != nil {
		u := unfollowed(ctx.Err(), v, err, f.launch, timeout)
		if u.ID == idTimeout {
			u.Cause = errors.New(progressOf(v, g.env.Now()))
		}
		return u
	}
	data.Drain = &v
	data.Result = string(v.State)
	return g.result(command, data, func(w *output.Text) { drainText(w, v) })
}

// unfollowed is the error after the command stopped following a drain that continues. ended is why its context ended, or
// nil.
func unfollowed(ended error, v lifecycle.View, err error, launch bool, timeout time.Duration) *userError {
	u := &userError{Cause: err, State: "the drain goes on", Hints: []string{"`amsagent drain` follows it again, `amsagent undrain` takes it back"}}
	switch {
	case launch:
		u.State, u.Hints = "the daemon goes on", []string{"`amsagent status` shows how far it is"}
	case !undrainable(v):
		u.Hints = []string{"`amsagent drain` follows it again; it is too late to take it back"}
	}
	look := []string{"`amsagent status` and journalctl -u amsagent tell more"}
	switch {
	case ended != nil:
		u.Msg = "stopped following; nothing else was stopped"
	case timeout > 0 && errors.Is(err, context.DeadlineExceeded):
		u.Msg, u.ID, u.Exit = fmt.Sprintf("it is not over after %s", output.Rounded(timeout)), idTimeout, exitUnknown
	case as[*undrainedError](err):
		u.Msg, u.State, u.Hints = "the drain was cancelled", nodeState(v), nil
	case errors.Is(err, errNotStopped):
		u.Msg, u.Exit = "this node cannot leave", exitFailed
		u.State = "Ant Media Server still runs; the daemon stops it again until it ends, and completes the cloud's hook meanwhile"
		u.Hints = look
	case errors.Is(err, errNotServing):
		u.Msg, u.State, u.Hints, u.Exit = "this node does not serve", nodeState(v), look, exitFailed
	case errors.Is(err, errNotTaken), errors.Is(err, errForgotten):
		u.Msg, u.State, u.Hints, u.Exit = "it was followed in vain", nodeState(v), look, exitFailed
	case errors.Is(err, daemon.ErrDown):
		u.Msg, u.Exit, u.Hints = "lost sight of it", exitUnknown, nil
		u.State = "the drain goes on when the daemon is back"
		if launch {
			u.State = "the daemon goes on when it is back"
		}
	default:
		u.Msg, u.Exit = "lost sight of it", exitUnknown
	}
	return u
}

// undrainable reports whether a drain can still be taken back.
func undrainable(v lifecycle.View) bool {
	return v.State == lifecycle.StateDraining && (v.Step == lifecycle.StepAnnouncing || v.Step == lifecycle.StepDraining)
}

// nodeState is the last line of an error: what this node is now.
func nodeState(v lifecycle.View) string {
	switch v.State {
	case lifecycle.StateActive:
		return "this node is active"
	case lifecycle.StateDraining:
		return "this node is draining still"
	case lifecycle.StateLeft:
		return "this node has left the cluster"
	case lifecycle.StateParked, lifecycle.StateResuming:
		return "this node is " + string(v.State)
	}
	return "the daemon knows of no node"
}

func drainText(w *output.Text, v lifecycle.View) {
	what := map[lifecycle.State]string{
		lifecycle.StateActive:   "this node serves",
		lifecycle.StateDraining: "nobody is on this node any more; the machine is about to be restarted",
		lifecycle.StateLeft:     "this node is out of the cluster",
		lifecycle.StateParked:   "this node is out of the cluster, and comes back when the cloud wants it",
	}[v.State]
	if v.NeverJoined {
		what = "this machine never joined, so nobody waited for it"
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
		pairs = append(pairs, "registry", "not told yet; the daemon goes on trying")
	}
	if v.OnlyCloud() {
		pairs = append(pairs, "cloud", "not told yet; the daemon goes on trying")
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
