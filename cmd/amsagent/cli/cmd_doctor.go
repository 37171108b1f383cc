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
	// It reads the settings itself: that they are wrong is something to be listed.
	noSettings(cmd)
	fs := cmd.Flags()
	fs.StringSliceVar(&opts.ignore, "ignore", nil, "an `ID` that does not count as wrong; may be given several times")
	fs.BoolVar(&opts.strict, "strict", false, "exit 6 for warnings, and for user data that are not checked, too")
	fs.StringArrayVar(&opts.userData, "user-data", nil, "look at this `FILE` of user data and not at the machine; - is standard input; may be given several times")
	fs.StringVar(&opts.explain, "explain", "", "print what an `ID` means and how to fix it, and stop")
	completes(cmd, "explain", pages.IDs)
	completes(cmd, "ignore", func() []string { return slices.Concat(doctor.IDs(), lint.IDs()) })
	g.addSettings(cmd, doctorSettings()...)
	return cmd
}

// doctorSettings are those of a join, and how long a drain waits.
func doctorSettings() []string {
	return append(slices.DeleteFunc(machineSettings(), func(k string) bool { return k == settings.KeyTimeout }), settings.KeyRole, settings.KeyRemoteIPValve, settings.KeyDrainDeadline)
}

// doctorTime bounds all of it, and doctorIdentify the look at the instance, which comes before the rest: its tags may say
// where MongoDB is.
const (
	doctorTime     = 15 * time.Second
	doctorIdentify = 5 * time.Second
)

func runDoctor(ctx context.Context, opts doctorOptions, g *globals) error {
	if err := opts.check(); err != nil {
		return err
	}
	warnIgnored(g, opts.ignore)
	switch {
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
		r.Seen, r.Hint = g.out.Redact(r.Seen), g.out.Redact(r.Hint)
	}
	data := doctorData{Counts: doctor.Count(results), Checks: results}
	if err := g.result("doctor", data, func(w *output.Text) { doctorText(w, data) }); err != nil {
		return err
	}
	if slices.ContainsFunc(results, func(r doctor.Result) bool { return r.Wrong() && (opts.strict || r.Verdict == doctor.Bad) }) {
		return &quietError{exitDegraded}
	}
	return nil
}

// doctorData is the result of the command.
type doctorData struct {
	Counts doctor.Counts   `json:"counts"`
	Checks []doctor.Result `json:"checks"`
}

func (o *doctorOptions) check() error {
	if o.explain != "" && len(o.userData) > 0 {
		return usageError(nil, "--explain and --user-data are two things: give one")
	}
	for i, id := range o.ignore {
		o.ignore[i] = strings.ToUpper(strings.TrimSpace(id))
	}
	return nil
}

// warnIgnored names ids that no check has: a misspelt one, or one of a check that was removed.
func warnIgnored(g *globals, ids []string) {
	known := slices.Concat(doctor.IDs(), lint.IDs())
	for _, c := range errorTable(0) {
		known = append(known, c.id)
	}
	for _, id := range ids {
		if !slices.Contains(known, id) {
			g.out.Log().Warn("--ignore: no check and no finding has this id", "id", id)
		}
	}
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
			wrong = append(wrong, bootstrap.Finding{ID: u.ID, Text: e.Error(), Hint: strings.Join(u.Hints, "; "), Err: e})
		}
	}
	if s.Sources.Damaged != "" {
		wrong = append(wrong, bootstrap.Finding{ID: bootstrap.IDRecord, Text: s.Sources.Damaged})
	}
	g.apply(s)
	if s.Origin(settings.KeyLogLevel).Layer == settings.FromDefault {
		// What fails on the way is a result. Who wants to see each attempt asks for it.
		g.out.SetForm(s.Output, s.Color, slog.LevelError)
	}
	for _, w := range s.Warnings {
		wrong = append(wrong, bootstrap.Finding{ID: idConfig, Text: w, Hint: "the variable of a setting is AMSAGENT_ and its key in capitals; `amsagent config` lists them"})
	}
	if s.Sources.File == nil {
		return wrong, "there is no " + s.Config + ": the defaults, and what the command line says", nil
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
	o.Secrets = []string{bootstrap.MongoPath, bootstrap.LeftMongoPath}
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
	o.Hooks = &hookAsker{a: &daemonAdapter{g: g, machine: m}, identify: identify}
	o.Reserve = doctorReserve
	o.Explain = func(err error) (id, hint string) { return explainForDoctor(g, err) }
	return nil
}

// doctorReserve is what package lifecycle keeps of a cloud's time for the last steps.
const doctorReserve = 30 * time.Second

// explainForDoctor gives a library's error the id and the advice that every command gives it.
func explainForDoctor(g *globals, err error) (id, hint string) {
	e := g.explain(err)
	hint = strings.Join(e.Hints, "; ")
	if cluster.KindOf(err) != "" && e.ID != idFailed {
		id = e.ID
	}
	return id, hint
}

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
		d.Trouble = append(d.Trouble, "as it read its settings: "+v.SettingsError)
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

// gpuTime is for nvidia-smi: without the persistence daemon it initialises all devices first.
const (
	gpuTime = 8 * time.Second
	gpuLook = 50 * time.Millisecond
)

// askGPUs lets the sampler of the daemon take one reading.
func askGPUs(ctx context.Context, root string) (doctor.GPUView, error) {
	ctx, cancel := context.WithTimeout(ctx, gpuTime)
	w := heartbeat.NewGPUWatcher(root, time.Second, slog.New(slog.DiscardHandler))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Run(ctx)
	}()
	defer func() {
		cancel()
		<-ended // its child with it
	}()
	tick := time.NewTicker(gpuLook)
	defer tick.Stop()
	for {
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
		select {
		case <-ctx.Done():
			return doctor.GPUView{}, fmt.Errorf("asking nvidia-smi: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// doctorText lists what is good, then what is not known, and last what is wrong, the worst at the end of the screen.
func doctorText(w *output.Text, data doctorData) {
	w.Line("%s", doctorVerdict(w, data.Counts))
	var group doctor.Group
	var warnings, bad, unknown []doctor.Result
	for _, r := range data.Checks {
		switch {
		case r.Ignored || r.Verdict == doctor.Good:
			if r.Group != group {
				group = r.Group
				w.Heading(string(group))
			}
			doctorResult(w, r)
		case r.Verdict == doctor.Unknown:
			unknown = append(unknown, r)
		case r.Verdict == doctor.Warning:
			warnings = append(warnings, r)
		default:
			bad = append(bad, r)
		}
	}
	doctorUnknown(w, unknown)
	if wrong := slices.Concat(warnings, bad); len(wrong) > 0 {
		w.Heading("What is wrong")
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

// doctorResult begins with a word, which reads without color, too. An id is for looking up a problem.
func doctorResult(w *output.Text, r doctor.Result) {
	word, paint, id := "good", w.Color.Green, r.ID+" "
	switch {
	case r.Ignored:
		word, paint = "ignored", w.Color.Dim
	case r.Verdict == doctor.Bad:
		word, paint = "BAD", w.Color.Red
	case r.Verdict == doctor.Warning:
		word, paint = "warning", w.Color.Yellow
	default:
		id = ""
	}
	w.Line("  %s %s%s: %s", paint(fmt.Sprintf("%-9s", word)), id, r.Title, output.OneLine(r.Seen))
	for _, picture := range r.Lines {
		w.Line("    %s", output.Printable(picture))
	}
}

// doctorUnknown prints each reason once, with all checks that it affects.
func doctorUnknown(w *output.Text, results []doctor.Result) {
	var reasons []string
	ids := map[string][]string{}
	for _, r := range results {
		reason := output.OneLine(r.Seen + "\n" + r.Hint)
		if ids[reason] == nil {
			reasons = append(reasons, reason)
		}
		ids[reason] = append(ids[reason], r.ID)
	}
	if len(reasons) > 0 {
		w.Heading("What is not known")
	}
	for _, reason := range reasons {
		w.Line("  %s %s", w.Color.Dim("not known"), strings.Join(slices.Compact(ids[reason]), " "))
		w.Line("      %s", reason)
	}
}

func doctorVerdict(w *output.Text, c doctor.Counts) string {
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

// hookAsker asks this machine's cloud for its hooks, as the daemon does in a drain.
type hookAsker struct {
	a        *daemonAdapter
	identify bootstrap.Identifier
}

// TerminationHook implements doctor.Hooks.
func (h *hookAsker) TerminationHook(ctx context.Context) (doctor.HookView, error) {
	inst, err := h.identify(ctx)
	if err != nil {
		return doctor.HookView{}, err
	}
	if h.a.g.lastSeen().Unrecognised {
		return doctor.HookView{Untold: noCloud}, nil
	}
	p, err := h.a.openCloud()
	if err != nil {
		return doctor.HookView{}, err
	}
	c, err := p.Check(ctx, h.a.hookNames())
	v := doctor.HookView{
		Group: c.Group, Others: c.Others, Unproved: c.Unproved, Without: c.Without, Untold: c.Untold, Ask: c.Ask, Window: time.Duration(inst.StopWindow),
	}
	if v.Without != "" && v.Window > 0 {
		v.Without += fmt.Sprintf(", and gives this one %.0f s", v.Window.Seconds())
	}
	var names []string
	least := func(to *time.Duration, d time.Duration) {
		if d > 0 && (*to == 0 || d < *to) {
			*to = d
		}
	}
	for _, hook := range c.Ours {
		names = append(names, hook.Name)
		least(&v.Timeout, time.Duration(hook.Timeout))
		if hook.Abandons {
			v.Abandons = hook.Name
		}
		if !hook.Limit.IsZero() {
			least(&v.Limit, time.Until(hook.Limit).Round(time.Second))
		}
	}
	v.Name = strings.Join(names, ", ")
	if denied, ok := errors.AsType[*cloud.DeniedError](err); ok {
		v.Denied, v.Policy, v.Answer = denied.Permission, denied.Policy, denied.Reason
		err = nil
	}
	return v, err
}
