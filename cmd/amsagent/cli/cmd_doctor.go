// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/bootstrap/doctor/lint"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	pages "github.com/amsagent/amsagent/docs/errors"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

type doctorOptions struct {
	ignore   []string
	userData []string
	explain  string
	strict   bool
}

func newDoctorCommand(g *globals) *cobra.Command {
	var opts doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "report what is wrong, or will be, and change nothing",
		Long: "Makes every check of a join and more, all at the same time, and lists the\n" +
			"results: first the good ones, then what is not known, and at the end the\n" +
			"problems, each with its fix. It works before a join, after one and in the\n" +
			"build of an image, needs no daemon, and ends after 15 seconds if nothing\n" +
			"answers. A result that is not known is neither good nor bad.\n\n" +
			"With --user-data it reads user data as cloud-init does, before a machine runs\n" +
			"them. Exit 6 means a problem; with --strict, a problem, a warning or a file of\n" +
			"user data that is not checked.",
		Example: "  amsagent doctor\n" +
			"  amsagent doctor --mongo 10.0.2.4\n" +
			"  amsagent doctor --ignore AMS-GPU --ignore AGENT-HOOK\n" +
			"  amsagent doctor -o json\n" +
			"  amsagent doctor --user-data boot.sh --user-data cloud-config.yaml\n" +
			"  amsagent doctor --explain AMS-MONGO-OPEN",
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitDegraded, exitInterrupted)
	readsOnly(cmd)
	noSettings(cmd) // it reads them itself: wrong settings are a result
	fs := cmd.Flags()
	fs.StringSliceVar(&opts.ignore, "ignore", nil, "an `ID` that does not count as wrong; may be given several times")
	fs.BoolVar(&opts.strict, "strict", false, "exit 6 for warnings, and for user data that are not checked, too")
	fs.StringArrayVar(&opts.userData, "user-data", nil, "check this `FILE` of user data and not the machine; - is standard input; may be given several times")
	fs.StringVar(&opts.explain, "explain", "", "print what an `ID` means and how to fix it, and stop")
	completes(cmd, "explain", pages.IDs)
	completes(cmd, "ignore", func() []string { return slices.Concat(doctor.IDs(), lint.IDs()) })
	g.addSettings(cmd, slices.DeleteFunc(machineSettings(), func(key string) bool { return key == settings.KeyTimeout })...)
	g.addSettings(cmd, settings.KeyRole, settings.KeyRemoteIPValve, settings.KeyDrainDeadline)
	return cmd
}

const (
	doctorTime     = 15 * time.Second // for everything
	doctorIdentify = 5 * time.Second  // for the instance, which is first: its tags may have MongoDB's address
)

func runDoctor(ctx context.Context, opts doctorOptions, g *globals) error {
	for i, id := range opts.ignore {
		opts.ignore[i] = strings.ToUpper(strings.TrimSpace(id))
		if !slices.Contains(pages.IDs(), opts.ignore[i]) { // misspelt, or of a removed check
			g.out.Log().Warn("--ignore: no check and no finding has this id", "id", opts.ignore[i])
		}
	}
	switch {
	case opts.explain != "" && len(opts.userData) > 0:
		return usageError(nil, "--explain and --user-data are two things: give one")
	case opts.explain != "":
		return runExplain(opts.explain, g)
	case len(opts.userData) > 0:
		return runLint(opts, g)
	}
	begin := g.env.Now()
	config, seen, err := loadLeniently(g)
	if err != nil {
		return err
	}
	o := doctor.Options{Ignore: opts.ignore, Config: config, ConfigSeen: seen}
	if err := examine(ctx, g, &o); err != nil {
		return err
	}
	o.Limit = max(doctorTime-g.env.Now().Sub(begin), doctorTime/2)
	results := doctor.Run(ctx, o)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for i := range results { // before control characters in it are escaped
		r := &results[i]
		r.Text, r.Hint = g.out.Redact(r.Text), g.out.Redact(r.Hint)
	}
	data := doctorData{Counts: doctor.Count(results), Checks: results}
	if err := g.result("doctor", data, func(w *output.Text) { doctorText(w, data) }); err != nil {
		return err
	}
	if data.Counts.Bad > 0 || opts.strict && data.Counts.Warning > 0 {
		return &quietError{exitDegraded}
	}
	return nil
}

// doctorData is the result of the command.
type doctorData struct {
	Counts doctor.Counts   `json:"counts"`
	Checks []doctor.Result `json:"checks"`
}

// loadLeniently reads the settings and lists the wrong ones. Only a wrong command line is an error.
func loadLeniently(g *globals) (wrong []bootstrap.Finding, seen string, _ error) {
	s, err := settings.Read(settings.Sources{Flags: g.given, LookupEnv: g.env.LookupEnv, Environ: g.env.Environ}, false)
	if s == nil || settings.Any(err, func(e *settings.Error) bool { return e.Layer == settings.FromFlag }) {
		return nil, "", err
	}
	if err = errors.Join(s.Sources.Wrong, err); err != nil {
		for _, e := range settings.Flatten(err) {
			u := g.explain(e)
			wrong = append(wrong, bootstrap.Finding{ID: u.ID, Severity: bootstrap.Bad, Text: e.Error(), Hint: strings.Join(u.Hints, "; "), Err: e})
		}
	}
	if s.Sources.Damaged != "" {
		wrong = append(wrong, bootstrap.Finding{ID: bootstrap.IDRecord, Severity: bootstrap.Bad, Text: s.Sources.Damaged})
	}
	g.apply(s)
	if s.Origin(settings.KeyLogLevel).Layer == settings.FromDefault {
		g.out.SetForm(s.Output, s.Color, slog.LevelError) // failures are results
	}
	for _, w := range s.Warnings {
		wrong = append(wrong, bootstrap.Finding{ID: idConfig, Severity: bootstrap.Bad, Text: w, Hint: "the variable of a setting is AMSAGENT_ and its key in capitals; `amsagent config` lists them"})
	}
	if s.Sources.File == nil {
		return wrong, "there is no " + s.Config + ": the defaults and the command line count", nil
	}
	return wrong, s.Config + " is read", nil
}

// examine collects what the doctor needs.
func examine(ctx context.Context, g *globals, o *doctor.Options) error {
	m, err := g.bootstrapMachine(false)
	if err != nil {
		return err
	}
	m.Progress = nil
	o.Machine = m
	bound, cancel := context.WithTimeout(ctx, doctorIdentify)
	defer cancel()
	var drain atomic.Int64 // a tag may say another one
	drain.Store(int64(g.settings.DrainDeadline))
	o.Drain = func() time.Duration { return time.Duration(drain.Load()) }
	identify := m.AskNow(bound, func(ctx context.Context) (metadata.Instance, error) {
		inst, err := g.whoami(ctx)
		drain.Store(int64(g.settings.DrainDeadline))
		return inst, err
	})
	o.UnreadTags = func(ctx context.Context) string {
		inst, _ := identify(ctx) // the error is that of another check
		return unreadTags(inst.Tags)
	}
	o.Join = g.settings.JoinRequest() // after the tags
	o.Join.Identify = identify
	src, err := g.joinedMongo()
	switch {
	case err == nil:
		o.Join.Mongo, o.MongoFrom = src.Target, cmp.Or(src.File, src.Origin.String())
	case !errors.Is(err, errNoMongo):
		o.MongoErr = err
	}
	o.Connect = cluster.Options{AppName: "amsagent", Timeout: mongoTimeout, Log: g.out.Log()}
	o.Secrets = []string{bootstrap.MongoPath}
	if path, ok := settings.FilePath(g.settings.Mongo); ok && !slices.Contains(o.Secrets, path) {
		o.Secrets = append(o.Secrets, path)
	}
	if onSystemd(m, ams.SystemdRuns()) {
		o.Unit = func(ctx context.Context, name string) (ams.State, error) { return ams.NewSystemd(name).State(ctx) }
	}
	c := g.daemon()
	c.Patience = 0
	o.Daemon = func(ctx context.Context) (doctor.DaemonView, error) { return askDaemonForDoctor(ctx, c) }
	root := g.settings.Root
	o.GPUs = func(ctx context.Context) (doctor.GPUView, error) { return askGPUs(ctx, root) }
	o.Hooks = func(ctx context.Context) (cloud.Check, error) {
		if g.lastSeen().Unrecognised {
			return cloud.Check{Untold: noCloud}, nil
		}
		a := &daemonAdapter{g: g, machine: m}
		p, err := a.openCloud()
		if err != nil {
			return cloud.Check{}, err
		}
		return p.Check(ctx, a.hookNames())
	}
	o.Reserve = doctorReserve
	o.Explain = func(err error) (id, hint string) {
		e := g.explain(err)
		if cluster.KindOf(err) != "" && e.ID != idFailed {
			id = e.ID
		}
		return id, strings.Join(e.Hints, "; ")
	}
	return nil
}

// doctorReserve is what package lifecycle keeps of a cloud's time for the last steps.
const doctorReserve = 30 * time.Second

func askDaemonForDoctor(ctx context.Context, c *daemon.Client) (doctor.DaemonView, error) {
	v, err := c.Status(ctx)
	switch {
	case errors.Is(err, daemon.ErrDown):
		return doctor.DaemonView{}, fmt.Errorf("%w: %w", doctor.ErrNoDaemon, err)
	case err != nil:
		return doctor.DaemonView{}, err
	}
	d := doctor.DaemonView{Version: v.Version, Activity: v.Activity}
	if v.Trouble != "" {
		d.Trouble = append(d.Trouble, v.Trouble)
	}
	if v.SettingsError != "" {
		d.Trouble = append(d.Trouble, "its settings: "+v.SettingsError)
	}
	if v.Lifecycle != nil {
		d.Trouble = append(d.Trouble, troubles(v.Lifecycle)...)
		d.LaunchHooks = v.Lifecycle.LaunchHooks
	}
	if v.MetricsError != "" {
		d.Trouble = append(d.Trouble, "/metrics, /healthz and /readyz are not served: "+v.MetricsError)
	}
	if v.RestartPending {
		text := "Ant Media Server runs with other settings than it will start with: " + bootstrap.RestartHint
		if v.Drift != nil {
			text = strings.Join(append([]string{text}, driftLines(v.Drift)...), "; ")
		}
		d.Trouble = append(d.Trouble, text)
	}
	for _, w := range v.Warnings {
		d.Trouble = append(d.Trouble, w.String())
	}
	return d, nil
}

const (
	gpuTime = 8 * time.Second // without the persistence daemon, nvidia-smi initialises all devices first
	gpuLook = 50 * time.Millisecond
)

// askGPUs returns one reading of the daemon's sampler.
func askGPUs(ctx context.Context, root string) (doctor.GPUView, error) {
	ctx, cancel := context.WithTimeout(ctx, gpuTime)
	w := heartbeat.NewGPUWatcher(root, time.Second, slog.New(slog.DiscardHandler))
	var watching sync.WaitGroup
	watching.Go(func() { w.Run(ctx) })
	defer watching.Wait() // its child has ended then
	defer cancel()
	for sleep.For(ctx, gpuLook) {
		r := w.Latest()
		switch r.State {
		case heartbeat.GPUFailing:
			return doctor.GPUView{Trouble: r.Reason}, nil
		case heartbeat.GPUAbsent:
			return doctor.GPUView{Trouble: "NVIDIA's driver is not loaded"}, nil
		case heartbeat.GPUReady:
			v := doctor.GPUView{Driver: r.Driver}
			for _, d := range r.Devices {
				v.Devices = append(v.Devices, d.Name)
			}
			return v, nil
		case heartbeat.GPUPending:
		}
	}
	return doctor.GPUView{}, fmt.Errorf("asking nvidia-smi: %w", context.Cause(ctx))
}

// doctorText lists good results, then unknown ones, then problems: the worst are at the end of the screen.
func doctorText(w *output.Text, data doctorData) {
	w.Line("%s", doctorHeadline(w, data.Counts))
	var group doctor.Group
	var warnings, bad, unknown []doctor.Result
	for _, r := range data.Checks {
		switch {
		case r.Ignored || r.Severity == bootstrap.Good:
			if r.Group != group {
				group = r.Group
				w.Heading(string(group))
			}
			doctorResult(w, r)
		case r.Severity == bootstrap.Unknown:
			unknown = append(unknown, r)
		case r.Severity == bootstrap.Warning:
			warnings = append(warnings, r)
		default:
			bad = append(bad, r)
		}
	}
	doctorUnknown(w, unknown)
	if wrong := slices.Concat(warnings, bad); len(wrong) > 0 {
		w.Heading("Problems")
		for _, r := range wrong {
			doctorResult(w, r)
			if r.Hint != "" {
				w.Line("      %s", output.OneLine(r.Hint))
			}
		}
		w.Line("  more about one: %s", w.Color.Bold("amsagent doctor --explain ID"))
	}
	c := data.Counts
	w.Line("\n%d bad, %s, %d not known, %d ignored, %d good", c.Bad, output.Count(c.Warning, "warning"), c.Unknown, c.Ignored, c.Good)
}

// doctorResult prints no id for a good result: nothing needs to be looked up.
func doctorResult(w *output.Text, r doctor.Result) {
	word, paint, id := "good", w.Color.Green, r.ID+" "
	switch {
	case r.Ignored:
		word, paint = "ignored", w.Color.Dim
	case r.Severity == bootstrap.Bad:
		word, paint = "BAD", w.Color.Red
	case r.Severity == bootstrap.Warning:
		word, paint = "warning", w.Color.Yellow
	default:
		id = ""
	}
	w.Line("  %s %s%s: %s", paint(fmt.Sprintf("%-9s", word)), id, r.Title, output.OneLine(r.Text))
	for _, picture := range r.Lines {
		w.Line("    %s", output.Printable(picture))
	}
}

// doctorUnknown prints each reason once, with all checks that it affects.
func doctorUnknown(w *output.Text, results []doctor.Result) {
	var reasons []string
	ids := map[string][]string{}
	for _, r := range results {
		reason := output.OneLine(r.Text + "\n" + r.Hint)
		if ids[reason] == nil {
			reasons = append(reasons, reason)
		}
		ids[reason] = append(ids[reason], r.ID)
	}
	if len(reasons) > 0 {
		w.Heading("Not known")
	}
	for _, reason := range reasons {
		w.Line("  %s %s", w.Color.Dim("not known"), strings.Join(slices.Compact(ids[reason]), " "))
		w.Line("      %s", reason)
	}
}

func doctorHeadline(w *output.Text, c doctor.Counts) string {
	switch {
	case c.Bad > 0:
		return w.Color.Red(output.Count(c.Bad+c.Warning, "problem"))
	case c.Warning > 0:
		return w.Color.Yellow("OK") + " with " + output.Count(c.Warning, "warning")
	case c.Unknown > 0:
		return w.Color.Green("OK") + ", as far as it is known"
	}
	return w.Color.Green("OK")
}
