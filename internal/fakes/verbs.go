// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// Params are the parameters of a call, as pointers to their defaults; see [control.Decode].
type Params map[string]any

// Verb is one thing that a test, a story or a user at the control port can do to a service.
type Verb struct {
	Name string // method and path: POST /preempt
	// Bind returns the parameters of one call, and what is done when they are set.
	Bind func() (Params, func() error)
}

// Do is a verb without parameters.
func Do(name string, do func()) Verb {
	return Verb{name, func() (Params, func() error) {
		return nil, func() error {
			do()
			return nil
		}
	}}
}

// With is a verb with one parameter.
func With[T any](name, param string, usual T, do func(T) error) Verb {
	return Verb{name, func() (Params, func() error) {
		value := usual
		return Params{param: &value}, func() error { return do(value) }
	}}
}

// Verbs are the table of one service: what can be done to it, and what it shows (GET), by path. Every other request is
// answered with the view of Shown.
type Verbs struct {
	Shown string
	Views map[string]func() any
	Verbs []Verb
}

// Run runs a verb. It refuses parameters that the verb does not have: a story with a misspelt one would test nothing.
func (v Verbs) Run(name string, q url.Values) error {
	for _, verb := range v.Verbs {
		if verb.Name == name {
			return verb.run(q)
		}
	}
	return fmt.Errorf("no verb %q", name)
}

func (v Verb) run(q url.Values) error {
	params, do := v.Bind()
	if err := control.Decode(q, params); err != nil {
		return err
	}
	return do()
}

// Handler is the control port.
func (v Verbs) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, view := range v.Views {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, view()) })
	}
	for _, verb := range v.Verbs {
		mux.HandleFunc(verb.Name, func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			body, err := io.ReadAll(r.Body)
			if r.Method == http.MethodPatch {
				q.Set("body", string(body))
			}
			if err == nil {
				err = verb.run(q)
			}
			if err != nil {
				control.Fail(w, http.StatusBadRequest, err)
				return
			}
			view := v.Views[v.Shown]
			if own, ok := v.Views[r.URL.Path]; ok {
				view = own
			}
			control.JSON(w, view())
		})
	}
	return mux
}

// Sub are the verbs of another service below a path.
func (v Verbs) Sub(path string, other Verbs) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", v.Handler())
	mux.Handle(path+"/", http.StripPrefix(path, other.Handler()))
	return mux
}

// WithFaults adds the faults and the record of requests.
func (s *Service) WithFaults(v Verbs) Verbs {
	v.Views["/requests"] = func() any { return s.Requests() }
	return s.FaultList.with(v)
}

func (l *FaultList) with(v Verbs) Verbs {
	v.Views["/fault"] = func() any { return l.Faults() }
	v.Verbs = append(v.Verbs,
		Do("DELETE /fault", l.ClearFaults),
		Verb{"POST /fault", func() (Params, func() error) {
			var f Fault
			return Params{
				"path": &f.Path, "action": &f.Path, "held": &f.Held, "ms": &f.Delay, "status": &f.Status, "body": &f.Body, "code": &f.Code,
				"message": &f.Message, "empty": &f.Empty, "truncate": &f.Truncate, "hang": &f.Hang, "reset": &f.Reset, "deaf": &f.Deaf,
				"instant": &f.Instant, "no-flavor": &f.NoFlavor, "times": &f.Times,
			}, func() error { return l.AddFault(f) }
		}})
	return v
}

// Verbs are GET and PATCH of the state below a path: the fields in the body are replaced.
func (t *Served[T]) Verbs(path string, more ...Verb) Verbs {
	patch := With("PATCH "+path, "body", "", func(body string) error {
		value := t.Get()
		if err := decode(body, &value); err != nil {
			return err
		}
		t.Update(func(to *T) { *to = value })
		return nil
	})
	return Verbs{Shown: path, Views: map[string]func() any{path: func() any { return t.Get() }}, Verbs: append(more, patch)}
}

// decode reads JSON and refuses unknown fields. An empty text changes nothing.
func decode(text string, v any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the body: %w", err)
	}
	return nil
}

// Set changes one value of a map that may be nil.
func Set(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}
