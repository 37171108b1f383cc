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

// errNoMongo is why nothing is known about MongoDB.
var errNoMongo = errors.New("no MongoDB address is known")

// patient is the machine, as far as several checks look at the same.
type patient struct {
	Options
	root  string
	store *conf.Store
	// running tells that it is the running machine that is looked at, and no tree.
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

// reached is what the checks of a join found of MongoDB.
type reached struct {
	client           *cluster.Client
	failed, warnings []bootstrap.Finding
	clock            []bootstrap.Finding // failed, too, but hinders no other check
}

// future is an answer that is under way.
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

// start begins all that several checks wait for. What is there already stays.
func (p *patient) start(ctx context.Context) {
	o := p.Options
	if p.identity == nil {
		p.identity = begin(func() (metadata.Instance, error) {
			if o.Join.Identify == nil {
				return metadata.Instance{}, errors.New("nobody was asked who this machine is")
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
			c, failed, warnings := o.Machine.Reach(ctx, o.Join.Mongo)
			isClock := func(f bootstrap.Finding) bool { return f.ID == bootstrap.IDClock }
			r := reached{client: c, failed: slices.DeleteFunc(slices.Clone(failed), isClock), warnings: warnings}
			r.clock = slices.DeleteFunc(failed, func(f bootstrap.Finding) bool { return !isClock(f) })
			return r, nil
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

// close ends the connection once nobody uses it any more.
func (p *patient) close(ctx context.Context) {
	select {
	case <-p.mongo.done:
	default:
		return // the process ends soon, and with it what does not answer
	}
	if c := p.mongo.value.client; c != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	}
}

// joined is whether this machine is a node, or about to be or not to be one; known
// is false where only root may look.
func (p *patient) joined(ctx context.Context) (joined, known bool) {
	in, err := p.inspection.get(ctx)
	if err != nil || in.Unread != nil {
		return false, false
	}
	return in.State != nil, true
}

// inTree is what a check of the running machine says about a tree.
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

// findings are the results of what a join would say, by its ids.
func findings(failed, warnings []bootstrap.Finding, ids ...string) []Result {
	var out []Result
	add := func(v Verdict, list []bootstrap.Finding) {
		for _, f := range list {
			for _, id := range ids {
				if f.ID != id {
					continue
				}
				verdict := v
				if id == bootstrap.IDUnverified || id == ams.WarnAddressUnchecked || errors.Is(f.Err, ams.ErrInterfacesUnknown) {
					verdict = Unknown
				}
				out = append(out, Result{ID: f.ID, Verdict: verdict, Seen: f.Text, Hint: f.Hint, Err: f.Err})
			}
		}
	}
	add(Bad, failed)
	add(Warning, warnings)
	return out
}

// preflight is a check of a join: what it found by these ids, else what otherwise says.
func preflight(otherwise func(p *patient, in *bootstrap.Inspection) Result, ids ...string) func(context.Context, *patient) []Result {
	return inspected(func(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
		if found := findings(in.Failed, in.Warnings, ids...); len(found) > 0 {
			return found
		}
		return one(otherwise(p, in))
	})
}
