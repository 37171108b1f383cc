// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCloud holds every cloud to what the stories rely on.
func TestCloud(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			const lead = 2 * time.Second
			c, err := Open(ctx, name, Options{Lead: lead, Limit: 20 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if c.Name() != name || c.Title() == "" || c.Lead() != lead {
				t.Errorf("it is %q, called %q, and waits %s", c.Name(), c.Title(), c.Lead())
			}
			goes := Machine{Name: "edge-1", ID: ID(name, 1), Address: "10.0.2.12", Role: "edge", MAC: "0e:49:61:0f:c3:12"}
			stays := Machine{Name: "origin-1", ID: ID(name, 2), Address: "10.0.1.11", Role: "origin", MAC: "0e:49:61:0f:c3:11"}
			var meta Metadata
			for _, m := range []Machine{stays, goes} {
				if meta, err = c.Machine(ctx, m); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = meta.Close() }()
			}
			if err := errors.Join(c.Off(stays.ID), c.Off(goes.ID)); err != nil {
				t.Error(err)
			}
			for _, call := range []func(string) error{c.ScaleIn, c.Off} {
				if call(ID(name, 3)) == nil {
					t.Error("it takes a machine away that it never had")
				}
			}
			if b := c.Books(); len(b) > 0 && (b[0].What == Notice || b[0].What == Gone) {
				t.Errorf("before anything has happened: %+v", b)
			}
			faults(ctx, t, meta)

			begin := time.Now()
			if err := c.ScaleIn(goes.ID); err != nil {
				t.Fatal(err)
			}
			for _, what := range []string{Notice, Gone} {
				e, err := c.WaitFor(ctx, func(e Entry) bool { return e.What == what })
				if err != nil {
					t.Fatalf("%v: %+v", err, c.Books())
				}
				if e.ID != goes.ID || !strings.Contains(e.Text, goes.Name) || e.Late != (what == Gone) {
					t.Errorf("the machine said nothing, and the books: %+v", e)
				}
				if took := e.Time.Sub(begin); what == Gone && took < lead-100*time.Millisecond {
					t.Errorf("it is gone after %s", took)
				}
			}
			for _, e := range Of(c.Books(), goes.ID) {
				if e.What == Answer || e.What == Heartbeat {
					t.Errorf("nobody said anything, and the books: %+v", e)
				}
			}
			done, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := c.WaitFor(done, func(e Entry) bool { return e.ID == stays.ID && e.What == Gone }); !errors.Is(err, context.Canceled) {
				t.Errorf("the other machine: %v", err)
			}
		})
	}
}

// faults breaks the metadata service and heals it.
func faults(ctx context.Context, t *testing.T, meta Metadata) {
	t.Helper()
	_, origin, _ := strings.Cut(meta.Environ()[0], "=")
	get := func(limit time.Duration) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, origin+"/latest/meta-data/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	for _, f := range []Fault{{Status: 503}, {Reset: true}, {Hang: true}} {
		if err := meta.Fail(f); err != nil {
			t.Fatal(err)
		}
		limit := time.Minute
		if f.Hang {
			limit = 300 * time.Millisecond
		}
		if code, err := get(limit); code != f.Status || (err == nil) != (f.Status > 0) {
			t.Errorf("with %+v it answers %d, %v", f, code, err)
		}
	}
	meta.Heal()
	if code, err := get(time.Minute); code == 503 || err != nil {
		t.Errorf("healed, it answers %d, %v", code, err)
	}
}

// TestOff: who takes a machine's end for a word is told by it, and nobody else.
func TestOff(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := Open(ctx, name, Options{Lead: 20 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			m := Machine{Name: "edge-1", ID: ID(name, 1), Address: "10.0.2.12", Role: "edge", MAC: "0e:49:61:0f:c3:12"}
			meta, err := c.Machine(ctx, m)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = meta.Close() }()
			if err := errors.Join(c.ScaleIn(m.ID), c.Off(m.ID)); err != nil {
				t.Fatal(err)
			}
			if name != "gcp" {
				return
			}
			if e, err := c.WaitFor(ctx, func(e Entry) bool { return e.What == Gone }); err != nil || e.Late {
				t.Errorf("a machine that is off: %+v, %v", e, err)
			}
		})
	}
}

func TestUnknown(t *testing.T) {
	_, err := Open(t.Context(), "aws2", Options{})
	if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "aws") {
		t.Errorf("%v", err)
	}
}

// TestMakefile: make refuses an unknown cloud before it builds what knows them.
func TestMakefile(t *testing.T) {
	b, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if line := "\nCLOUDS := " + strings.Join(Names(), " ") + "\n"; !strings.Contains(string(b), line) {
		t.Errorf("the Makefile has no line %q", strings.TrimSpace(line))
	}
}

func TestIDs(t *testing.T) {
	for _, name := range Names() {
		if a, b := ID(name, 1), ID(name, 2); a == b || a == "" {
			t.Errorf("%s calls two machines %s and %s", name, a, b)
		}
	}
}

// TestGCPInOrder: each machine of GCP has books of its own, which are copied when their
// turn comes. Read together they are in order.
func TestGCPInOrder(t *testing.T) {
	t.Parallel()
	opened, err := NewGCP(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	c, ok := opened.(*gcpCloud)
	if !ok {
		t.Fatalf("it is a %T", opened)
	}
	now := time.Now()
	c.mu.Lock()
	for _, e := range []Entry{{Time: now.Add(2), Text: "c"}, {Time: now, Text: "a"}, {Time: now.Add(1), Text: "b"}, {Time: now, Text: "a too"}} {
		c.books.Write(e)
	}
	c.mu.Unlock()
	got := ""
	for _, e := range c.Books() {
		got += e.Text + ","
	}
	if got != "a,a too,b,c," {
		t.Errorf("the books: %s", got)
	}
	if e, err := c.WaitFor(t.Context(), func(Entry) bool { return true }); e.Text != "a" || err != nil {
		t.Errorf("the first of them: %+v, %v", e, err)
	}
}
