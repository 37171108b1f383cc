// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Verdict is the outcome of one check.
type Verdict string

// The verdicts, the worst first.
const (
	// Bad: a join fails with it, or a node does not serve, or not for long.
	Bad Verdict = "bad"
	// Warning: it works, and is not as it should be.
	Warning Verdict = "warning"
	// Unknown: the check could not be made.
	Unknown Verdict = "unknown"
	Good    Verdict = "good"
)

// Group is what checks belong together.
type Group string

// The groups, in the order in which they are shown.
const (
	GroupServer   Group = "Ant Media Server"
	GroupMongo    Group = "MongoDB"
	groupNetwork  Group = "Network"
	GroupShutdown Group = "Shutdown"
	GroupAgent    Group = "Agent"
	GroupMachine  Group = "Machine"
)

// Result is what one check found. A check that found several things has several.
type Result struct {
	// ID is stable. Where something particular was found it is the finding's own;
	// otherwise it is the check's.
	ID      string  `json:"id"`
	Check   string  `json:"check"`
	Group   Group   `json:"group"`
	Title   string  `json:"title"`
	Verdict Verdict `json:"verdict"`
	// Ignored: a setting or a flag names this id.
	Ignored bool   `json:"ignored,omitempty"`
	Seen    string `json:"observed"`
	Hint    string `json:"hint,omitempty"`
	// Lines draw Seen as a picture.
	Lines []string `json:"lines,omitempty"`
	// Page is the command that prints the page about the id.
	Page string `json:"page"`
	// Err is the error behind it, where there is one.
	Err error `json:"-"`
}

// Wrong reports whether it counts as something wrong.
func (r Result) Wrong() bool { return !r.Ignored && (r.Verdict == Bad || r.Verdict == Warning) }

// Options say what is looked at and how. Only Machine is needed: what else is not
// told is not known.
type Options struct {
	Machine *bootstrap.Machine
	// Join is what a join would be asked for. A zero Mongo is not known; MongoErr
	// says why.
	Join     bootstrap.JoinRequest
	MongoErr error
	// MongoFrom says in words where the address was found.
	MongoFrom string
	// Connect are the settings of the clients that the doctor makes itself.
	Connect cluster.Options

	// Config is what is wrong with the settings, ConfigSeen what was read.
	Config     []bootstrap.Finding
	ConfigSeen string
	// UnreadTags returns what is wrong with the names of the machine's tags, "" for
	// nothing; nil is not known.
	UnreadTags func(context.Context) string
	// Secrets are files that may hold the connection string, below the root.
	Secrets []string

	// Unit asks the service manager about a unit; nil where there is none to ask.
	Unit func(ctx context.Context, name string) (ams.State, error)
	// Daemon asks the agent's own daemon; an error that is [ErrNoDaemon] says that
	// none answers.
	Daemon func(ctx context.Context) (DaemonView, error)
	// GPUs asks the driver for its devices.
	GPUs func(ctx context.Context) (GPUView, error)
	// Hooks asks the cloud for its hooks for the end of this machine.
	Hooks func(ctx context.Context) (cloud.Check, error)
	// Drain returns how long a drain waits for the sessions, as far as the machine's
	// tags are read. Reserve is what the last steps need of a cloud's time.
	Drain   func() time.Duration
	Reserve time.Duration

	// Explain gives an error of a library its id, "" for none, and advice.
	Explain func(error) (id, hint string)
	// Ignore are ids, of checks or findings, that do not count.
	Ignore []string
	// Limit bounds the whole; 0 is 15 s.
	Limit time.Duration
}

// ErrNoDaemon says that no daemon answers.
var ErrNoDaemon = errors.New("no daemon answers")

// DaemonView is what the daemon says of itself.
type DaemonView struct {
	Version  string
	Activity string
	// Trouble is what keeps it from that; "" where nothing does.
	Trouble []string
	// LaunchHooks says that none of several launch hooks is this agent's; "" where one is.
	LaunchHooks string
}

// GPUView is what the driver says.
type GPUView struct {
	// Devices are their names, Driver its version.
	Devices []string
	Driver  string
	// Trouble is why there is nothing to say.
	Trouble string
}

const (
	defaultLimit = 15 * time.Second
	// lastWord is kept of the whole time for putting the results together.
	lastWord = 500 * time.Millisecond
)

// check is one row of the table.
type check struct {
	id    string
	group Group
	title string
	run   func(ctx context.Context, p *patient) []Result
}

// good, bad, warning and unknown make the results of a check; the engine adds what
// the table knows.
func good(format string, args ...any) Result {
	return Result{Verdict: Good, Seen: fmt.Sprintf(format, args...)}
}

func bad(hint, format string, args ...any) Result {
	return Result{Verdict: Bad, Hint: hint, Seen: fmt.Sprintf(format, args...)}
}

func warning(hint, format string, args ...any) Result {
	return Result{Verdict: Warning, Hint: hint, Seen: fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) Result {
	return Result{Verdict: Unknown, Seen: fmt.Sprintf(format, args...)}
}

// notKnown is a check that an error kept from being made.
func notKnown(err error) Result {
	r := Result{Verdict: Unknown, Seen: err.Error(), Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		r.Hint = bootstrap.RootHint
	case errors.Is(err, context.DeadlineExceeded):
		r.Seen = "no answer in time: " + err.Error()
	}
	return r
}

func (r Result) as(id string) Result {
	r.ID = id
	return r
}

func one(r Result) []Result { return []Result{r} }

// Run makes all checks in parallel, within Limit, and returns their results in the table's order.
func Run(ctx context.Context, o Options) []Result {
	p := newPatient(o)
	ctx, cancel := context.WithTimeout(ctx, p.Limit-min(lastWord, p.Limit/10))
	defer cancel()
	p.start(ctx)
	defer p.close(ctx)
	table := checks()
	answers := make([]chan []Result, len(table))
	for i, c := range table {
		answers[i] = make(chan []Result, 1)
		go func() { answers[i] <- c.run(ctx, p) }()
	}
	var all []Result
	for i, c := range table {
		var results []Result
		select {
		case results = <-answers[i]:
		case <-ctx.Done():
			select {
			case results = <-answers[i]: // it may have come at the same moment
			default:
				results = one(unknown("no answer within %s", p.Limit.Round(time.Second)))
			}
		}
		for _, r := range results {
			all = append(all, c.complete(r, o))
		}
	}
	return all
}

// complete adds to a result what the table knows.
func (c check) complete(r Result, o Options) Result {
	r.Check, r.Group, r.Title = c.id, c.group, c.title
	if r.Verdict != Good && errors.Is(r.Err, fs.ErrPermission) && cluster.KindOf(r.Err) == "" && o.Machine.Euid != 0 {
		r.Verdict, r.Hint = Unknown, bootstrap.RootHint // root may know, and be allowed
	}
	if r.Err != nil && r.Verdict != Good && o.Explain != nil {
		id, hint := o.Explain(r.Err)
		// Only where it tells more: what could not be asked is still this check.
		if id != "" && r.Verdict != Unknown {
			r.ID = id
		}
		r.Hint = cmp.Or(r.Hint, hint)
	}
	if r.ID == "" {
		r.ID = c.id
	}
	if r.Hint == "" && (r.Verdict == Bad || r.Verdict == Warning) {
		r.Hint = advice(r.ID)
	}
	r.Page = "amsagent doctor --explain " + r.ID
	r.Ignored = r.Verdict != Good && (slices.Contains(o.Ignore, r.ID) || slices.Contains(o.Ignore, r.Check))
	return r
}

// Counts are how many results have which verdict; what is ignored counts as that
// alone.
type Counts struct {
	Bad     int `json:"bad"`
	Warning int `json:"warning"`
	Unknown int `json:"unknown"`
	Ignored int `json:"ignored"`
	Good    int `json:"good"`
}

// Count counts.
func Count(results []Result) Counts {
	var c Counts
	for _, r := range results {
		switch {
		case r.Ignored:
			c.Ignored++
		case r.Verdict == Bad:
			c.Bad++
		case r.Verdict == Warning:
			c.Warning++
		case r.Verdict == Unknown:
			c.Unknown++
		default:
			c.Good++
		}
	}
	return c
}

// few names some of many.
func few(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most-1], ", "), len(names)-most+1)
}
