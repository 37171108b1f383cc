// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/metadata"
)

// The times of what several checks wait for, of 15 s: 6, 10 and 3. All of them begin at once, and none
// may take all of the time: the others need some after it.
func (p *patient) identifyTime() time.Duration { return p.Limit * 2 / 5 }

// reachTime is for MongoDB: preflight waits half of it for a server that boots.
func (p *patient) reachTime() time.Duration { return p.Limit * 2 / 3 }

func (p *patient) askTime() time.Duration { return p.Limit / 5 }

// errNoMongo means that MongoDB cannot be checked.
var errNoMongo = errors.New("no MongoDB address is known")

// patient is the machine, with the answers that several checks share.
type patient struct {
	Options
	root  string
	store *conf.Store
	// running: the subject is the running machine, not a tree.
	running bool
	// dial tries a connection and ends it.
	dial func(ctx context.Context, at string) error

	identity   *future[metadata.Instance]
	inspection *future[*bootstrap.Inspection]
	mongo      *future[reached]
	look       *future[cluster.Look]
	status     *future[*bootstrap.Status]
	hook       *future[hooks]
}

// reached are the findings of a join's checks of MongoDB.
type reached struct {
	client   *cluster.Client
	failed   []bootstrap.Finding // those that hinder the other checks, so not the clock
	findings []bootstrap.Finding
}

// future is an answer that may not be there yet.
type future[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func begin[T any](f func() (T, error)) *future[T] {
	a := &future[T]{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.value, a.err = f()
	}()
	return a
}

// get waits for the answer.
func (a *future[T]) get(ctx context.Context) (T, error) {
	select {
	case <-a.done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

func newPatient(o Options) *patient {
	if o.Limit <= 0 {
		o.Limit = defaultLimit
	}
	return &patient{
		Options: o, root: o.Machine.Root, running: o.Machine.Root == "", dial: dial,
		store: &conf.Store{Root: o.Machine.Root, Dir: bootstrap.StateDir},
	}
}

// start begins the questions that several checks share, unless they are answered.
func (p *patient) start(ctx context.Context) {
	o := p.Options
	if p.identity == nil {
		p.identity = begin(func() (metadata.Instance, error) {
			if o.Join.Identify == nil {
				return metadata.Instance{}, errors.New("no metadata service was asked")
			}
			ctx, cancel := context.WithTimeout(ctx, p.identifyTime())
			defer cancel()
			return o.Join.Identify(ctx)
		})
	}
	if p.inspection == nil {
		join := o.Join
		join.Identify = p.identity.get
		p.inspection = begin(func() (*bootstrap.Inspection, error) { return o.Machine.Inspect(ctx, join) })
	}
	if p.mongo == nil {
		p.mongo = begin(func() (reached, error) {
			if o.Join.Mongo.IsZero() {
				return reached{}, p.noMongo()
			}
			ctx, cancel := context.WithTimeout(ctx, p.reachTime())
			defer cancel()
			c, found := o.Machine.Reach(ctx, o.Join.Mongo)
			failed, _ := bootstrap.Failed(found)
			isClock := func(f bootstrap.Finding) bool { return f.ID == bootstrap.IDClock }
			return reached{client: c, failed: slices.DeleteFunc(failed, isClock), findings: found}, nil
		})
	}
	if p.look == nil {
		p.look = begin(func() (cluster.Look, error) {
			c, err := p.client(ctx)
			if err != nil {
				return cluster.Look{}, err
			}
			return c.Look(ctx)
		})
	}
	if p.status == nil {
		p.status = begin(func() (*bootstrap.Status, error) {
			return o.Machine.Status(ctx, bootstrap.StatusRequest{Mongo: o.Join.Mongo, Valve: o.Join.Valve, Address: o.Join.Address, Identify: p.identity.get})
		})
	}
	if p.hook == nil {
		p.hook = begin(func() (hooks, error) { return askHooks(ctx, p) })
	}
}

func (p *patient) noMongo() error {
	if p.MongoErr != nil {
		return p.MongoErr
	}
	return errNoMongo
}

// client is a connection over which MongoDB has answered.
func (p *patient) client(ctx context.Context) (*cluster.Client, error) {
	r, err := p.mongo.get(ctx)
	switch {
	case err != nil:
		return nil, err
	case r.client == nil || len(r.failed) > 0:
		return nil, errors.New("MongoDB could not be asked")
	}
	return r.client, nil
}

// close ends the connection after its last user.
func (p *patient) close(ctx context.Context) {
	select {
	case <-p.mongo.done:
	default:
		return // the process ends soon
	}
	if c := p.mongo.value.client; c != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	}
}

// joined reports whether this machine is a node, or joins or leaves. known is false if only root may look.
func (p *patient) joined(ctx context.Context) (joined, known bool) {
	in, err := p.inspection.get(ctx)
	if err != nil || in.Unread != nil {
		return false, false
	}
	return in.State != nil, true
}

// inTree is the result for a tree of a check of running machines.
func inTree() []Result { return one(unknown("a tree below another root does not run")) }

// inspected runs a check on the inspection.
func inspected(f func(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result) func(context.Context, *patient) []Result {
	return func(ctx context.Context, p *patient) []Result {
		in, err := p.inspection.get(ctx)
		if err != nil {
			return one(notKnown(err))
		}
		return f(ctx, p, in)
	}
}

// looked runs a check on the cluster's lists, and on the inspection.
func looked(f func(ctx context.Context, p *patient, look cluster.Look, in *bootstrap.Inspection) []Result) func(context.Context, *patient) []Result {
	return func(ctx context.Context, p *patient) []Result {
		look, err := p.look.get(ctx)
		if err != nil {
			return one(unknown("%v", err))
		}
		return inspected(func(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result { return f(ctx, p, look, in) })(ctx, p)
	}
}

// findings returns those of a join by ids.
func findings(all []bootstrap.Finding, ids ...string) []Result {
	var out []Result
	for _, f := range all {
		if !slices.Contains(ids, f.ID) {
			continue
		}
		if f.ID == bootstrap.IDUnverified || f.ID == ams.WarnAddressUnchecked || errors.Is(f.Err, ams.ErrInterfacesUnknown) {
			f.Severity = bootstrap.Unknown
		}
		out = append(out, Result{Finding: f})
	}
	return out
}

// preflight is a check of a join: its findings by ids, otherwise the result of otherwise.
func preflight(otherwise func(p *patient, in *bootstrap.Inspection) Result, ids ...string) func(context.Context, *patient) []Result {
	return inspected(func(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
		if found := findings(in.Findings, ids...); len(found) > 0 {
			return found
		}
		return one(otherwise(p, in))
	})
}
