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

// Group is a heading over checks.
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

// Result is one finding of a check, which may have several. Its ID is stable: that of the fault, else that of the check.
type Result struct {
	bootstrap.Finding
	Check string `json:"check"`
	Group Group  `json:"group"`
	Title string `json:"title"`
	// Ignored: a setting or a flag names this id.
	Ignored bool `json:"ignored,omitempty"`
	// Lines draw Text as a picture.
	Lines []string `json:"lines,omitempty"`
	// Page is the command that prints the page about the id.
	Page string `json:"page"`
}

// Wrong reports whether it counts as a fault.
func (r Result) Wrong() bool {
	return !r.Ignored && (r.Severity == bootstrap.Bad || r.Severity == bootstrap.Warning)
}

// Options are the subjects of the checks and the means. Only Machine is required: a missing one is unknown.
type Options struct {
	Machine *bootstrap.Machine
	// Join is the request of a join. MongoErr is why its Mongo is zero.
	Join     bootstrap.JoinRequest
	MongoErr error
	// MongoFrom describes the source of the address.
	MongoFrom string
	// Connect are the settings of the doctor's own clients.
	Connect cluster.Options

	// Config are faults of the settings, ConfigSeen is what was read.
	Config     []bootstrap.Finding
	ConfigSeen string
	// UnreadTags returns the fault of the names of the machine's tags, "" without one; nil is unknown.
	UnreadTags func(context.Context) string
	// Secrets are files that may hold the connection string, below the root.
	Secrets []string

	// Unit asks the service manager about a unit; nil without a manager.
	Unit func(ctx context.Context, name string) (ams.State, error)
	// Daemon asks the agent's daemon. It returns [ErrNoDaemon] if none answers.
	Daemon func(ctx context.Context) (DaemonView, error)
	// GPUs asks the driver for its devices.
	GPUs func(ctx context.Context) (GPUView, error)
	// Hooks asks the cloud for its hooks for the end of this machine.
	Hooks func(ctx context.Context) (cloud.Check, error)
	// Drain returns how long a drain waits for sessions, by the machine's tags, too, once they are read. Reserve is the part of
	// a cloud's time that the last steps need.
	Drain   func() time.Duration
	Reserve time.Duration

	// Explain gives an error of a library its id, "" for none, and advice.
	Explain func(error) (id, hint string)
	// Ignore are ids, of checks or findings, that do not count.
	Ignore []string
	// Limit bounds the whole; 0 is 15 s.
	Limit time.Duration
}

// ErrNoDaemon means that no daemon answers.
var ErrNoDaemon = errors.New("no daemon answers")

// DaemonView is the daemon's report of itself.
type DaemonView struct {
	Version  string
	Activity string
	// Trouble lists what hinders it.
	Trouble []string
	// LaunchHooks lists launch hooks of which none is this agent's; "" if one is.
	LaunchHooks string
}

// GPUView is the driver's report.
type GPUView struct {
	// Devices are their names, Driver its version.
	Devices []string
	Driver  string
	// Trouble is why nothing is known.
	Trouble string
}

const (
	defaultLimit = 15 * time.Second
	// collectTime is kept of the whole time for collecting the results.
	collectTime = 500 * time.Millisecond
)

// check is one row of the table.
type check struct {
	id    string
	group Group
	title string
	run   func(ctx context.Context, p *patient) []Result
}

// good, bad, warning and unknown return a result, which the table completes.
func good(format string, args ...any) Result { return result(bootstrap.Good, "", format, args...) }

func bad(hint, format string, args ...any) Result {
	return result(bootstrap.Bad, hint, format, args...)
}

func warning(hint, format string, args ...any) Result {
	return result(bootstrap.Warning, hint, format, args...)
}

func unknown(format string, args ...any) Result {
	return result(bootstrap.Unknown, "", format, args...)
}

func result(s bootstrap.Severity, hint, format string, args ...any) Result {
	return Result{Finding: bootstrap.Finding{Severity: s, Hint: hint, Text: fmt.Sprintf(format, args...)}}
}

// from adds the error behind the result.
func (r Result) from(err error) Result {
	r.Err = err
	return r
}

// notKnown is the result if an error prevented the check.
func notKnown(err error) Result {
	r := unknown("%v", err).from(err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		r.Hint = bootstrap.RootHint
	case errors.Is(err, context.DeadlineExceeded):
		r.Text = "no answer in time: " + err.Error()
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
	ctx, cancel := context.WithTimeout(ctx, p.Limit-min(collectTime, p.Limit/10))
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

// complete adds the table's columns to a result.
func (c check) complete(r Result, o Options) Result {
	r.Check, r.Group, r.Title = c.id, c.group, c.title
	if r.Severity != bootstrap.Good && errors.Is(r.Err, fs.ErrPermission) && cluster.KindOf(r.Err) == "" && o.Machine.Euid != 0 {
		r.Severity, r.Hint = bootstrap.Unknown, bootstrap.RootHint // root may know, and be allowed
	}
	if r.Err != nil && r.Severity != bootstrap.Good && o.Explain != nil {
		id, hint := o.Explain(r.Err)
		// A check that could not be made keeps its id.
		if id != "" && r.Severity != bootstrap.Unknown {
			r.ID = id
		}
		r.Hint = cmp.Or(r.Hint, hint)
	}
	if r.ID == "" {
		r.ID = c.id
	}
	if r.Hint == "" && (r.Severity == bootstrap.Bad || r.Severity == bootstrap.Warning) {
		r.Hint = advice(r.ID)
	}
	r.Page = "amsagent doctor --explain " + r.ID
	r.Ignored = r.Severity != bootstrap.Good && (slices.Contains(o.Ignore, r.ID) || slices.Contains(o.Ignore, r.Check))
	return r
}

// Counts are the numbers of results by severity. An ignored result counts as ignored only.
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
		case r.Severity == bootstrap.Bad:
			c.Bad++
		case r.Severity == bootstrap.Warning:
			c.Warning++
		case r.Severity == bootstrap.Unknown:
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
