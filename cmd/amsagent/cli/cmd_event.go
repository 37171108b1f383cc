// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

type eventOptions struct {
	followOptions

	file, instance string
}

func newEventCommand(g *globals) *cobra.Command {
	var opts eventOptions
	cmd := &cobra.Command{
		Use:   "event [flags] < EVENT",
		Short: "handle a lifecycle event of the cloud, as the target of a hook",
		Long: "The event is JSON of Amazon's Auto Scaling: EventBridge's event, its detail\n" +
			"alone, or a flat message, without an envelope of SNS or SQS; or, of Alibaba\n" +
			"Cloud, an object of the placeholders of an OOS template: regionId,\n" +
			"instanceIds, lifecycleHookId, lifecycleActionToken.\n\n" +
			"An event about this machine is handed to the daemon and followed to its end: a\n" +
			"termination until this node has left, a launch until it serves.\n\n" +
			"An event about another machine is ignored with exit 0, so that one command can\n" +
			"be sent to a whole group. The same is true of test notifications, and of\n" +
			"events that come too late. It runs as a command or a step of Systems Manager.",
		Example: "  amsagent event --file /tmp/event.json\n" +
			"  printf '%s' \"$EVENT\" | amsagent event --detach",
		RunE: func(cmd *cobra.Command, _ []string) error { return runEvent(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitPreflight, exitUnknown, exitNotMember, exitInterrupted)
	fs := cmd.Flags()
	fs.StringVar(&opts.file, "file", "", "read the event from `FILE`, not from standard input")
	fs.StringVar(&opts.instance, "instance-id", "", "this machine's instance `ID` (default: the daemon's, else the cloud's metadata)")
	opts.addTo(fs)
	g.addSettings(cmd, settings.KeyProvider)
	return cmd
}

const (
	// stdinTime bounds the wait for standard input, which a caller may leave open.
	stdinTime = 30 * time.Second
	// whoTime bounds the question who this machine is.
	whoTime = 30 * time.Second
)

func runEvent(ctx context.Context, opts eventOptions, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	patience := stdinTime
	if opts.timeout > 0 {
		patience = min(patience, opts.timeout)
	}
	data, err := readEvent(ctx, g, opts.file, patience)
	if err != nil {
		return err
	}
	e, err := metadata.ParseEvent(data)
	if err != nil {
		return cannot("read the event", &eventError{err})
	}
	id := ""
	nothing := func(result, format string, args ...any) error {
		return g.result("event", drainData{Result: result, Event: &e, Instance: id}, func(w *output.Text) { w.Line("%s", output.Printable(fmt.Sprintf(format, args...))) })
	}
	if e.Test {
		return nothing("test", "nothing to do: %s", e.Shape)
	}
	if id, err = instanceID(ctx, g, opts.instance); err != nil {
		return &userError{
			Msg: "cannot find out whether the event is about this machine", Cause: err, State: stateUntouched,
			Hints: []string{"start the daemon: systemctl start amsagent; or give the id: --instance-id ID"},
		}
	}
	now := g.env.Now()
	stale := func(at time.Time, why string) error {
		return nothing("stale", "nothing to do: the event is from %s, and %s", output.Ago(now, at), why)
	}
	mine, about := e.For(id)
	switch {
	case !about:
		return nothing("not-this-instance", "not this instance: the event is about %s, this is %s", e.InstanceID, id)
	case e.Stale(now):
		return stale(e.Time, "no hook waits that long")
	}
	e = mine
	n := lifecycle.EventNotice(e, now)
	g.out.Progress(fmt.Sprintf("%s (%s)", n.Reason, e.Shape))
	f := newFollower(g)
	f.launch = e.Hook.Launching
	v, err := f.c.Life(ctx, daemon.PathNotice, n)
	if err != nil {
		return notBegun(g, "act on the event", err)
	}
	if slices.Contains(v.Dismissed, n.ID) && v.State == lifecycle.StateActive {
		return &userError{
			Msg: "this event was overruled by hand", Cause: &undrainedError{by: v.CancelledBy}, State: nodeState(v),
			Hints: []string{"`amsagent drain` drains this node all the same"},
		}
	}
	if (e.Kind == lifecycle.Park || e.Kind == lifecycle.Reimage) && v.Step == lifecycle.StepNone { // an accepted one begins at once
		return stale(n.Received, "this node has come back since")
	}
	return f.finish(ctx, "event", v, opts.followOptions, drainData{Event: &e, Instance: id})
}

// readEvent reads a file, or standard input.
func readEvent(ctx context.Context, g *globals, file string, patience time.Duration) ([]byte, error) {
	how := []string{"amsagent event < event.json, or --file event.json"}
	fail := func(source string, err error) error {
		return cannot("read the event", &settings.Error{Source: source, Layer: settings.FromFlag, Err: err, Hints: how})
	}
	if file != "" && file != "-" {
		path, err := settings.UnderRoot(g.settings.Root, file)
		if err != nil {
			return nil, fail("--file", err)
		}
		b, _, err := settings.ReadSmallFile(path)
		if err != nil {
			return nil, fail("--file", err)
		}
		return b, nil
	}
	b, err := g.readStdin(cloud.MaxEvent, patience)
	switch {
	case errors.Is(err, errTerminal):
		return nil, usageError(how, "the event is missing: standard input is a terminal")
	case errors.Is(err, errOpenInput):
		return nil, usageError(how, "the event is missing: standard input is open and said nothing for %s", output.Rounded(patience))
	case err != nil && ctx.Err() != nil:
		return nil, &userError{Msg: "waiting for the event", Cause: err, State: stateUntouched}
	case err != nil:
		return nil, fail("standard input", err)
	case len(strings.TrimSpace(string(b))) == 0:
		return nil, usageError(how, "the event is missing: standard input is empty")
	}
	return b, nil
}

// instanceID is who this machine is: what was given, else what the daemon found out, else what the cloud says.
func instanceID(ctx context.Context, g *globals, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	v, err := g.daemon().Status(ctx)
	if err == nil && v.ID != "" {
		return v.ID, nil
	}
	if err != nil {
		g.out.Log().Debug("the daemon does not say who this machine is", "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, whoTime)
	defer cancel()
	m, merr := g.ask(ctx, g.question())
	if merr != nil {
		return "", errors.Join(err, merr)
	}
	if m.Instance.ID == "" {
		return "", errors.Join(err, errors.New("the metadata does not name this instance"))
	}
	return m.Instance.ID, nil
}
