// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// AutoScalingOptions configure an account without a group.
type AutoScalingOptions struct {
	fakes.ScalingOptions
	// Region is the one that requests have to be signed for; default eu-west-1.
	Region string
}

// AutoScaling is a fake of the Auto Scaling API with the groups behind it. It sets the target states in the metadata services
// of its instances.
type AutoScaling struct {
	fakes.Scaling
	region string
	owners map[string]*Server // whose role's keys are good, in a group or not; guarded by Mu
}

// NewAutoScaling makes an account that does not listen.
func NewAutoScaling(o AutoScalingOptions) *AutoScaling {
	a := &AutoScaling{region: cmp.Or(o.Region, "eu-west-1"), owners: map[string]*Server{}}
	a.Init("Auto Scaling", o.ScalingOptions, func(h fakes.Hook) fakes.Hook {
		h.Timeout = cmp.Or(h.Timeout, time.Hour)
		h.Limit = cmp.Or(h.Limit, min(48*time.Hour, 100*h.Timeout))
		h.Default = cmp.Or(h.Default, "ABANDON")
		return h
	})
	return a
}

// StartAutoScaling serves until Close or until ctx is done.
func StartAutoScaling(ctx context.Context, o AutoScalingOptions) (*AutoScaling, error) {
	a := NewAutoScaling(o)
	return a, a.Start(ctx, a)
}

// Attach makes the instance of a metadata service a member of a group, InService and without running any hook.
func (a *AutoScaling) Attach(group string, meta *Server) error {
	id := meta.Get().ID
	if err := a.Join(&fakes.Instance{ID: id, Group: group, Aimed: meta.SetTarget}); err != nil {
		return err
	}
	a.Mu.Lock()
	defer a.Mu.Unlock()
	a.owners[id] = meta
	meta.Update(func(i *Instance) { fakes.Set(&i.Tags, "aws:autoscaling:groupName", group) })
	return nil
}

func (a *AutoScaling) one(id string, f func(*fakes.Instance)) error {
	return a.With([]string{id}, func(all []*fakes.Instance) { f(all[0]) })
}

// through plays STATE, STATE:Wait for the hooks, STATE:Proceed, and then what follows. The lock is held.
func (a *AutoScaling) through(i *fakes.Instance, target, state string, launching bool, then func(result, by string)) {
	a.Aim(i, target)
	a.Through([]*fakes.Instance{i}, state, launching, func(result, by string) {
		a.Enter(i, state+":Proceed")
		then(result, by)
	})
}

// Terminate plays a scale-in of the instance: the target state becomes Terminated, after WaitDelay the hooks wait, and when
// all are completed or have timed out the instance is gone. It returns at once.
func (a *AutoScaling) Terminate(id string) error { return a.one(id, a.terminate) }

func (a *AutoScaling) terminate(i *fakes.Instance) {
	prefix := ""
	if strings.HasPrefix(i.State, "Warmed:") {
		prefix = "Warmed:"
	}
	a.through(i, prefix+"Terminated", prefix+"Terminating", false, func(_, by string) {
		a.Enter(i, prefix+"Terminated")
		a.Release(i, by)
	})
}

// Launch plays the way of an instance into service, from its start or out of the warm pool: the launch hooks wait. With one of
// them abandoned it is terminated.
func (a *AutoScaling) Launch(id string) error {
	return a.one(id, func(i *fakes.Instance) {
		a.through(i, "InService", "Pending", true, func(result, _ string) {
			if result != "CONTINUE" {
				a.terminate(i)
				return
			}
			a.Enter(i, "InService")
		})
	})
}

// ReplaceRoot plays an instance refresh that replaces the root volume: the termination hooks wait. When all are completed or have
// timed out, the volume is new, and the caller starts the machine and calls Launch. AWS does not document the target state.
func (a *AutoScaling) ReplaceRoot(id string) error {
	return a.one(id, func(i *fakes.Instance) {
		a.through(i, "RootVolumeReplaced", "ReplacingRootVolume", false, func(_, _ string) { a.Enter(i, "RootVolumeReplaced") })
	})
}

// Pool plays the way into the warm pool, to be kept there as Stopped, Running or Hibernated. From service the termination
// hooks wait, as with an instance reuse policy; for an instance that has just started the launch hooks.
func (a *AutoScaling) Pool(id, kept string, started bool) error {
	if kept != "Stopped" && kept != "Running" && kept != "Hibernated" {
		return fmt.Errorf("state %q is not Stopped, Running or Hibernated", kept)
	}
	return a.one(id, func(i *fakes.Instance) {
		a.through(i, "Warmed:"+kept, "Warmed:Pending", started, func(_, _ string) { a.Enter(i, "Warmed:"+kept) })
	})
}

// Standby puts the instance aside. No hook is run.
func (a *AutoScaling) Standby(id string) error {
	return a.Move(id, "Standby", "EnteringStandby", "Standby")
}

// Restore puts the instance into service whatever it was about to do, without running a hook: out of standby, or because a
// termination was cancelled.
func (a *AutoScaling) Restore(id string) error {
	return a.Move(id, "InService", "Pending", "InService")
}

// Detach takes the instance out of its group, and leaves it running. No hook is run.
func (a *AutoScaling) Detach(id string) error {
	if err := a.Move(id, "Detached", "Detaching", "Detached"); err != nil {
		return err
	}
	return a.one(id, func(i *fakes.Instance) {
		delete(a.Instances, id)
		a.owners[id].Update(func(i *Instance) { delete(i.Tags, "aws:autoscaling:groupName") })
	})
}

// Verbs of the groups. The instance is not needed if there is only one.
func (a *AutoScaling) Verbs() fakes.Verbs {
	only := func(id string) string {
		if all := a.Members(); id == "" && len(all) == 1 {
			return all[0].Instance
		}
		return id
	}
	verbs := []fakes.Verb{{Name: "POST /pool", Bind: func() (fakes.Params, func() error) {
		id, state, started := "", "", false
		return fakes.Params{"instance": &id, "state": &state, "started": &started}, func() error { return a.Pool(only(id), state, started) }
	}}}
	for path, do := range map[string]func(string) error{
		"/terminate": a.Terminate, "/launch": a.Launch, "/standby": a.Standby, "/detach": a.Detach, "/restore": a.Restore,
		"/replace-root": a.ReplaceRoot,
	} {
		verbs = append(verbs, fakes.With("POST "+path, "instance", "", func(id string) error { return do(only(id)) }))
	}
	return a.Scaling.Verbs(verbs...)
}
