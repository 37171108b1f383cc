// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/lifecycle"
)

// stopper is a leaver that only stops.
type stopper struct {
	Leaver
	stop func()
}

func (s stopper) StopServer(context.Context) (time.Time, error) {
	s.stop()
	return time.Now(), nil
}

// TestRestartAndStop: a drain that comes in the middle of a restart stops the server after that, and a restart that comes
// in the middle of a drain's stop does not start it again.
func TestRestartAndStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var got []string
		goOn := make(chan struct{})
		step := func(what string) func() {
			return func() {
				mu.Lock()
				got = append(got, what)
				mu.Unlock()
				<-goOn
				mu.Lock()
				got = append(got, what+" ends")
				mu.Unlock()
			}
		}
		is := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		}
		var work sync.WaitGroup
		defer work.Wait()
		d := newPretended(&pretended{restart: step("restart")}, &told{}, func(*Options) {})
		var err error
		if d.life, err = newLife(d, Lifecycle{
			New:     lifecycle.NewManager,
			Options: lifecycle.Options{Files: &conf.Store{Root: t.TempDir(), Dir: bootstrap.StateDir}},
			Leaver:  stopper{stop: step("stop")},
		}); err != nil {
			t.Fatal(err)
		}
		m := &member{d: d}
		restart := func() {
			work.Go(func() {
				if err := m.restart(t.Context(), bootstrap.ConvergeRequest{}, ""); err != nil {
					t.Error(err)
				}
			})
		}
		stop := func(ctx context.Context, fails bool) {
			work.Go(func() {
				if err := d.life.StopServer(ctx); (err != nil) != fails {
					t.Errorf("the stop: %v", err)
				}
			})
		}
		restart()
		is("restart")
		// One that cannot wait for the restart says so: it is tried again.
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		stop(short, true)
		pause(t.Context(), 2*time.Second)
		stop(t.Context(), false)
		is("restart")
		goOn <- struct{}{}
		is("restart", "restart ends", "stop")
		d.life.manager.Notice(lifecycle.Notice{ID: "1", Source: "event", Kind: lifecycle.Terminate})
		restart()
		is("restart", "restart ends", "stop")
		goOn <- struct{}{}
		is("restart", "restart ends", "stop", "stop ends")
	})
}
