// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package books_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/internal/books"
)

func TestBooks(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	b := books.New[string](&mu)
	write := func(entries ...string) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range entries {
			b.Write(e)
		}
	}
	if all := b.All(); all == nil || len(all) > 0 {
		t.Errorf("at first they hold %#v, want a list without entries", all)
	}
	empty, changed := b.Follow()
	select {
	case <-changed:
		t.Error("changed by nobody")
	default:
	}
	write("a", "b")
	<-changed
	got, changed := b.Follow()
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" || len(empty) > 0 {
		t.Errorf("followed (-want +got):\n%s; before: %q", diff, empty)
	}
	got[0] = "spoilt by a reader"
	if diff := cmp.Diff([]string{"a", "b"}, b.All()); diff != "" {
		t.Errorf("all of them (-want +got):\n%s", diff)
	}

	is := func(want string) func(string) bool { return func(e string) bool { return e == want } }
	if e, err := b.WaitFor(t.Context(), "nobody", is("b")); e != "b" || err != nil {
		t.Errorf("what was there: %q, %v", e, err)
	}
	found := make(chan string)
	go func() {
		e, err := b.WaitFor(t.Context(), "nobody", is("d"))
		if err != nil {
			e = err.Error()
		}
		found <- e
	}()
	write("c")
	<-changed
	write("d")
	if e := <-found; e != "d" {
		t.Errorf("what was waited for: %q", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e, err := b.WaitFor(ctx, "the demo", is("e"))
	if e != "" || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "in the books of the demo") {
		t.Errorf("in vain: %q, %v", e, err)
	}
}

// TestBooksTogether reads only what a service has finished.
func TestBooksTogether(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	b := books.New[int](&mu)
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := range 200 {
			mu.Lock()
			b.Write(2 * i)
			b.Write(2*i + 1)
			mu.Unlock()
		}
	})
	for n := 0; n < 400; {
		got, changed := b.Follow()
		if n = len(got); n%2 != 0 {
			t.Errorf("%d entries: half of what was written under one lock", n)
		}
		if n < 400 {
			<-changed
		}
	}
	writer.Wait()
}

func TestBounds(t *testing.T) {
	t.Parallel()
	const most, more = 8192, 10
	var mu sync.Mutex
	all, last := books.New[int](&mu), books.NewBounded[int](&mu)
	var record books.Record[int]
	for i := range most + more {
		mu.Lock()
		all.Write(i)
		last.Write(i)
		mu.Unlock()
		if seq := record.Add(func(seq int) int { return seq }); seq != i+1 {
			t.Fatalf("request %d has number %d", i+1, seq)
		}
	}
	if got := all.All(); len(got) != most+more || got[0] != 0 {
		t.Errorf("books without a bound hold %d from %d on", len(got), got[0])
	}
	if got := last.All(); len(got) != most/2+more || got[0] != most/2 || got[len(got)-1] != most+more-1 {
		t.Errorf("books with one hold %d, %d to %d", len(got), got[0], got[len(got)-1])
	}
	record.Change(most/2, func(*int) { t.Error("a request was changed that is let go of") })
	record.Change(most+more+1, func(*int) { t.Error("a request was changed that has not come") })
	record.Change(most/2+1, func(r *int) { *r = -1 })
	record.Change(most+more, func(r *int) { *r = -2 })
	if got := record.All(); len(got) != most/2+more || got[0] != -1 || got[1] != most/2+2 || got[len(got)-1] != -2 {
		t.Errorf("the record holds %d: %d, %d, ... %d", len(got), got[0], got[1], got[len(got)-1])
	}
}

func TestEmptyRecord(t *testing.T) {
	t.Parallel()
	var r books.Record[string]
	r.Change(1, func(*string) { t.Error("there is none to change") })
	if all := r.All(); all == nil || len(all) > 0 {
		t.Errorf("it holds %#v, want a list without requests", all)
	}
}
