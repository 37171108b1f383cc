// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
)

// Params are the parameters of a verb with their defaults: string, bool, int, []string or time.Duration.
type Params map[string]any

// Args are the arguments of one call, as pointers to the types of the parameters.
type Args map[string]any

// Text is the parameter that holds the body of a request.
const Text = "text"

// String returns a parameter whose default is a string.
func (a Args) String(name string) string { return arg[string](a, name) }

// Bool returns a parameter whose default is a bool.
func (a Args) Bool(name string) bool { return arg[bool](a, name) }

// Duration returns a parameter whose default is a time.Duration.
func (a Args) Duration(name string) time.Duration { return arg[time.Duration](a, name) }

// Strings returns a parameter whose default is a []string.
func (a Args) Strings(name string) []string { return arg[[]string](a, name) }

func arg[T any](a Args, name string) T {
	v, ok := a[name].(*T)
	if !ok {
		panic("a verb has no parameter " + name + " of this type")
	}
	return *v
}

// Verb is one thing that a test, a story or a user at the control port can do to a service.
type Verb struct {
	name   string // method and path: POST /preempt
	params Params
	do     func(Args) error
}

// Try is a verb that can fail.
func Try(name string, params Params, do func(Args) error) Verb { return Verb{name, params, do} }

// Do is a verb that cannot.
func Do(name string, params Params, do func(Args)) Verb {
	return Verb{name, params, func(a Args) error {
		do(a)
		return nil
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
		if verb.name == name {
			return verb.run(q)
		}
	}
	return fmt.Errorf("no verb %q", name)
}

func (v Verb) run(q url.Values) error {
	args := Args{}
	for name, usual := range v.params {
		switch usual := usual.(type) {
		case string:
			args[name] = &usual
		case bool:
			args[name] = &usual
		case int:
			args[name] = &usual
		case time.Duration:
			args[name] = &usual
		case []string:
			args[name] = &usual
		}
	}
	if err := control.Decode(q, args); err != nil {
		return err
	}
	return v.do(args)
}

// Handler is the control port.
func (v Verbs) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, view := range v.Views {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, view()) })
	}
	for _, verb := range v.Verbs {
		mux.HandleFunc(verb.name, func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			body, err := io.ReadAll(r.Body)
			if _, has := verb.params[Text]; err == nil && has {
				q.Set(Text, strings.TrimSpace(string(body)))
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
		Do("DELETE /fault", nil, func(Args) { l.ClearFaults() }),
		Verb{"POST /fault", faultParams, func(a Args) error {
			return l.AddFault(Fault{
				Path: a.String("path") + a.String("action"), Held: a.Bool("held"), Delay: a.Duration("ms"),
				Status: arg[int](a, "status"), Body: a.String("body"), Code: a.String("code"), Message: a.String("message"), Empty: a.Bool("empty"),
				Truncate: a.Bool("truncate"), Huge: a.Bool("huge"), Hang: a.Bool("hang"), Reset: a.Bool("reset"), Deaf: a.Bool("deaf"),
				Instant: a.Bool("instant"), NoFlavor: a.Bool("no-flavor"), Times: arg[int](a, "times"),
			})
		}})
	return v
}

var faultParams = Params{
	"path": "", "action": "", "held": false, "ms": time.Duration(0), "status": 0, "body": "", "code": "", "message": "",
	"empty": false, "truncate": false, "huge": false, "hang": false, "reset": false, "deaf": false, "instant": false,
	"no-flavor": false, "times": 0,
}

// Verbs are GET and PATCH of the state below a path: the fields in the body are replaced.
func (t *Served[T]) Verbs(path string, more ...Verb) Verbs {
	patch := Try("PATCH "+path, Params{Text: ""}, func(a Args) error {
		value := t.Get()
		if err := Decode(a.String(Text), &value); err != nil {
			return err
		}
		t.Update(func(to *T) { *to = value })
		return nil
	})
	return Verbs{Shown: path, Views: map[string]func() any{path: func() any { return t.Get() }}, Verbs: append(more, patch)}
}

// Decode reads JSON and refuses unknown fields. An empty text changes nothing.
func Decode(text string, v any) error {
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

// Item is PUT /item: the body becomes the item at a path, which wins over what the service makes up; empty: a 404.
func Item(update func(path, text string)) Verb {
	return Try("PUT /item", Params{"path": "", Text: ""}, func(a Args) error {
		if a.String("path") == "" {
			return errors.New("parameter path is needed")
		}
		update(a.String("path"), a.String(Text))
		return nil
	})
}
