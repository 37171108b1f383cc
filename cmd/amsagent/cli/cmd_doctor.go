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
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/bootstrap/doctor/lint"
	"github.com/amsagent/amsagent/cluster"
	pages "github.com/amsagent/amsagent/docs/errors"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/metadata"
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
			"  amsagent doctor --ignore AMS-GPU --ignore AMS-HOOK\n" +
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
	return append(slices.DeleteFunc(machineSettings(), func(k string) bool { return k == keyTimeout }), keyRole, keyRemoteIPValve, keyDrainDeadline)
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
	g.warnIgnored(opts.ignore)
	switch {
	case opts.explain != "":
		return runExplain(opts.explain, g)
	case len(opts.userData) > 0:
		return runLint(opts, g)
	}
	begin := g.env.Now()
	config, seen, err := g.loadLeniently()
	if err != nil {
		return err
	}
	o := doctor.Options{Ignore: opts.ignore, Config: config, ConfigSeen: seen}
	if err := g.examine(ctx, &o); err != nil {
		return err
	}
	o.Limit = max(doctorTime-g.env.Now().Sub(begin), doctorTime/2)
	results := doctor.Run(ctx, o)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for i := range results { // before lines are cut and broken: half a secret is not known as one
		r := &results[i]
		r.Seen, r.Hint = g.redact(r.Seen), g.redact(r.Hint)
	}
	data := doctorData{Counts: doctor.Count(results), Checks: results}
	if err := g.result("doctor", data, func(w *textWriter) { doctorText(w, data, g.tableStyle()) }); err != nil {
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
func (g *globals) warnIgnored(ids []string) {
	known := slices.Concat(doctor.IDs(), lint.IDs())
	for _, c := range errorTable() {
		known = append(known, c.id)
	}
	for _, id := range ids {
		if !slices.Contains(known, id) {
			g.log().Warn("--ignore: no check and no finding has this id", "id", id)
		}
	}
}

// loadLeniently reads the settings and lists the wrong ones. Only a wrong command line is an error.
func (g *globals) loadLeniently() (wrong []bootstrap.Finding, seen string, _ error) {
	s, err := readSettings(sources{flags: g.given, lookupEnv: g.env.LookupEnv, environ: g.env.Environ}, false)
	if s == nil || anySetting(err, func(e *settingError) bool { return e.layer == layerFlag }) {
		return nil, "", err
	}
	if err = errors.Join(s.src.wrong, err); err != nil {
		for _, e := range flatten(err) {
			u := g.explain(e)
			wrong = append(wrong, bootstrap.Finding{ID: u.ID, Text: e.Error(), Hint: strings.Join(u.Hints, "; ")})
		}
	}
	if s.src.damaged != "" {
		wrong = append(wrong, bootstrap.Finding{ID: bootstrap.IDRecord, Text: s.src.damaged})
	}
	g.apply(s)
	if s.origin(keyLogLevel).Layer == layerDefault {
		// What fails on the way is a result. Who wants to see each attempt asks for it.
		g.setForm(s.Output, s.Color, slog.LevelError)
	}
	for _, w := range s.warnings {
		wrong = append(wrong, bootstrap.Finding{ID: idConfig, Text: w, Hint: "the variable of a setting is AMSAGENT_ and its key in capitals; `amsagent config` lists them"})
	}
	if s.src.file == nil {
		return wrong, "there is no " + s.Config + ": the defaults, and what the command line says", nil
	}
	return wrong, s.Config + " is read", nil
}

// examine collects what the doctor needs.
func (g *globals) examine(ctx context.Context, o *doctor.Options) error {
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
	o.Join.Identify = m.AskNow(bound, func(ctx context.Context) (metadata.Instance, error) {
		inst, err := g.whoami(ctx)
		drain.Store(int64(g.settings.DrainDeadline))
		return inst, err
	})
	o.UnreadTags = func(ctx context.Context) string {
		inst, _ := o.Join.Identify(ctx) // the error is that of another check
		return unreadTags(inst.Tags)
	}
	src, err := g.joinedMongo()
	switch {
	case err == nil:
		o.Join.Mongo, o.MongoFrom = src.Target, cmp.Or(src.File, src.Origin.String())
	case !errors.Is(err, errNoMongo):
		o.MongoErr = err
	}
	o.Join.Role, o.Join.Group, o.Join.Address = g.settings.Role, g.settings.Group, g.explicitAddress()
	o.Join.ForceAddress, o.Join.AddressKept = g.addressForced(), g.addressKept()
	o.Join.Valve = bootstrap.Valve(g.settings.RemoteIPValve)
	o.Connect = cluster.Options{AppName: "amsagent", Timeout: mongoTimeout, Log: g.log()}
	o.Secrets = []string{storedMongo, bootstrap.LeftMongoPath}
	if path, ok := filePath(g.settings.Mongo); ok && !slices.Contains(o.Secrets, path) {
		o.Secrets = append(o.Secrets, path)
	}
	if onSystemd(m, ams.SystemdRuns()) {
		o.Unit = func(ctx context.Context, name string) (ams.State, error) { return ams.NewSystemd(name).State(ctx) }
	}
	c := g.controlClient()
	c.patience = 0
	o.Daemon = func(ctx context.Context) (doctor.DaemonView, error) { return askDaemonForDoctor(ctx, c) }
	root := g.settings.Root
	o.GPUs = func(ctx context.Context) (doctor.GPUView, error) { return askGPUs(ctx, root) }
	o.Hooks = g.doctorHooks(m, o.Join.Identify)
	o.Reserve = doctorReserve
	o.Explain = g.explainForDoctor
	return nil
}

// doctorReserve is what package lifecycle keeps of a cloud's time for the last steps.
const doctorReserve = 30 * time.Second

// explainForDoctor gives a library's error the id and the advice that every command gives it.
func (g *globals) explainForDoctor(err error) (id, hint string) {
	e := g.explain(err)
	hint = strings.Join(e.Hints, "; ")
	if cluster.KindOf(err) != "" && e.ID != idFailed {
		id = e.ID
	}
	return id, hint
}

func askDaemonForDoctor(ctx context.Context, c *controlClient) (doctor.DaemonView, error) {
	v, err := c.status(ctx)
	var none *noDaemonError
	switch {
	case errors.As(err, &none):
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
		var about []string
		for what, text := range v.Lifecycle.Trouble {
			about = append(about, what+": "+text)
		}
		slices.Sort(about)
		d.Trouble = append(d.Trouble, about...)
		d.LaunchHooks = v.Lifecycle.LaunchHooks
	}
	if v.MetricsError != "" {
		d.Trouble = append(d.Trouble, "/metrics, /healthz and /readyz are not served: "+v.MetricsError)
	}
	if v.RestartPending {
		text := "Ant Media Server runs with other settings than it will start with: " + bootstrap.RestartHint
		if v.Drift != nil {
			shown := min(len(v.Drift.Values), mostValues)
			for _, value := range v.Drift.Values[:shown] {
				text += "; " + value.String()
			}
			if more := len(v.Drift.Values) - shown + v.Drift.Omitted; more > 0 {
				text += fmt.Sprintf("; and %s more", count(more, "value"))
			}
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

// doctorText lists all, and what is wrong once more at the end: that is where a terminal is read at night.
func doctorText(w *textWriter, data doctorData, t tableStyle) {
	w.line("%s", doctorVerdict(w, data.Counts))
	var group doctor.Group
	for i := 0; i < len(data.Checks); i++ {
		r := data.Checks[i]
		if r.Group != group {
			group = r.Group
			w.heading(string(group))
		}
		// What one thing keeps from being known is told once.
		same := i + 1
		for same < len(data.Checks) && sameUnknown(r, data.Checks[same]) {
			same++
		}
		line := r.Title + ": " + oneLine(r.Seen)
		switch {
		case same > i+1:
			line = fmt.Sprintf("%-24s %s", fmt.Sprintf("%d checks", same-i), oneLine(r.Seen))
		case r.Ignored || r.Verdict != doctor.Good: // an id is for looking up what is wrong
			line = fmt.Sprintf("%-24s %s", r.ID, line)
		}
		if t.width > 0 {
			line = fit(line, max(t.width-doctorMark-1, doctorMark))
		}
		w.line("  %s %s", doctorWord(w, r), line)
		for _, picture := range r.Lines {
			picture = "    " + printable(picture)
			if t.width > 0 {
				picture = fit(picture, max(t.width, doctorMark))
			}
			w.line("%s", picture)
		}
		if same > i+1 {
			var ids []string
			for _, r := range data.Checks[i:same] {
				ids = append(ids, r.ID)
			}
			w.b.WriteString(indented(strings.Join(ids, " "), doctorMark, cmp.Or(t.width, doctorWidth)))
			i = same - 1
		}
	}
	doctorAsk(w, data.Checks, t.width)
	doctorEnd(w, data, t.width)
}

// doctorEnd is what is wrong, and how many results there are.
func doctorEnd(w *textWriter, data doctorData, width int) {
	doctorProblems(w, data.Checks, width)
	w.b.WriteByte('\n')
	w.b.WriteString(indented(doctorCounts(data.Counts), 0, width))
}

func sameUnknown(a, b doctor.Result) bool {
	return a.Verdict == doctor.Unknown && b.Verdict == doctor.Unknown && !a.Ignored && !b.Ignored && a.Group == b.Group && a.Seen == b.Seen
}

// doctorWidth is that of a list of ids where no terminal says its own.
const doctorWidth = 100

// indented breaks a text into lines that begin with n blanks; into one where width is 0. Blanks in it stay: they may be what is wrong.
func indented(text string, n, width int) string {
	var b strings.Builder
	at := 0
	for word := range strings.SplitSeq(text, " ") {
		switch {
		case at == 0:
			b.WriteString(strings.Repeat(" ", n) + word)
			at = n
		case width > 0 && at+1+utf8.RuneCountInString(word) > width:
			b.WriteString("\n" + strings.Repeat(" ", n) + word)
			at = n
		default:
			b.WriteString(" " + word)
			at++
		}
		at += utf8.RuneCountInString(word)
	}
	return b.String() + "\n"
}

// outdented is the same, but that the first line begins further left.
func outdented(text string, width int) string {
	return "  " + strings.TrimLeft(indented(text, 4, width), " ")
}

// doctorMark is how wide the first column is, with the blanks around it.
const doctorMark = 12

// doctorWord is the verdict in one word, which reads without color, too.
func doctorWord(w *textWriter, r doctor.Result) string {
	word, paint := "good", w.color.green
	switch {
	case r.Ignored:
		word, paint = "ignored", w.color.dim
	case r.Verdict == doctor.Bad:
		word, paint = "BAD", w.color.red
	case r.Verdict == doctor.Warning:
		word, paint = "warning", w.color.yellow
	case r.Verdict == doctor.Unknown:
		word, paint = "not known", w.color.dim
	}
	return paint(fmt.Sprintf("%-9s", word))
}

func doctorVerdict(w *textWriter, c doctor.Counts) string {
	switch {
	case c.Bad > 0:
		return w.color.red(count(c.Bad+c.Warning, "problem"))
	case c.Warning > 0:
		return w.color.yellow("OK") + " with " + count(c.Warning, "warning")
	case c.Unknown > 0:
		return w.color.green("OK") + ", as far as it is known"
	}
	return w.color.green("OK")
}

// doctorProblems gathers what is wrong, the worst last: it is the first to be mended.
func doctorProblems(w *textWriter, results []doctor.Result, width int) {
	headed := false
	for _, v := range []doctor.Verdict{doctor.Warning, doctor.Bad} {
		for _, r := range results {
			if r.Verdict != v || r.Ignored {
				continue
			}
			if !headed {
				w.heading("What is wrong")
				headed = true
			}
			paint := w.color.yellow
			if v == doctor.Bad {
				paint = w.color.red
			}
			id := r.ID + ":"
			w.b.WriteString(strings.Replace(outdented(id+" "+oneLine(r.Seen), width), id, paint(id), 1))
			if r.Hint != "" {
				w.b.WriteString(indented(oneLine(r.Hint), 6, width))
			}
		}
	}
	if headed {
		const more = "amsagent doctor --explain ID"
		w.b.WriteString(strings.Replace(outdented("more about one: "+more, width), more, w.color.bold(more), 1))
	}
}

// doctorAsk tells how to learn what is not known, each way once.
func doctorAsk(w *textWriter, results []doctor.Result, width int) {
	var hints []string
	ids := map[string][]string{}
	for _, r := range results {
		if r.Verdict != doctor.Unknown || r.Ignored || r.Hint == "" {
			continue
		}
		if ids[r.Hint] == nil {
			hints = append(hints, r.Hint)
		}
		ids[r.Hint] = append(ids[r.Hint], r.ID)
	}
	if len(hints) == 0 {
		return
	}
	w.heading("What is not known, and how to know it")
	for _, hint := range hints {
		w.b.WriteString(indented(strings.Join(slices.Compact(ids[hint]), " ")+":", 2, cmp.Or(width, doctorWidth)))
		w.b.WriteString(indented(oneLine(hint), 6, width))
	}
}

func doctorCounts(c doctor.Counts) string {
	parts := []string{fmt.Sprintf("%d bad", c.Bad), count(c.Warning, "warning"), fmt.Sprintf("%d not known", c.Unknown)}
	if c.Ignored > 0 {
		parts = append(parts, fmt.Sprintf("%d ignored", c.Ignored))
	}
	return strings.Join(append(parts, fmt.Sprintf("%d good", c.Good)), ", ")
}

// doctorIdentity is who this machine is, asked once.
type doctorIdentity func(context.Context) (metadata.Instance, error)
