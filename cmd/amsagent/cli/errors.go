// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// userError is an error for a person. ID, Exit and Hints that are empty come from errors_table.go by the Cause.
type userError struct {
	// Msg is such as "cannot switch to cluster mode: MongoDB at 10.0.1.7:27017 refused the connection".
	Msg   string
	Cause error
	Hints []string
	// State is what the command left on this machine. Every command that writes sets it.
	State string
	Exit  int
	ID    string
}

func (e *userError) Error() string {
	if e.Cause == nil {
		return e.Msg
	}
	return e.Msg + ": " + e.Cause.Error()
}

func (e *userError) Unwrap() error { return e.Cause }

// stateUntouched is the state after exit code 2 or 3.
const stateUntouched = "nothing was changed on this machine"

// cannot is the error of a command. The cause may be one of bootstrap's, which lists what failed.
func cannot(verb string, err error) error {
	if err == nil {
		return nil
	}
	return &userError{Msg: "cannot " + verb, Cause: err}
}

// unfold makes one error for a person of a command's error and bootstrap's error below it.
func unfold(g *globals, err error) error {
	ue, ok := errors.AsType[*userError](err)
	if !ok {
		return err
	}
	if failed, ok := errors.AsType[*bootstrap.FailedError](ue.Cause); ok {
		u := &userError{Msg: cmp.Or(failed.Title, ue.Msg+": "+failed.Step), Cause: failed.Err, State: cmp.Or(ue.State, failed.State), Exit: exitFailed}
		switch {
		case failed.Unknown:
			u.Exit = exitUnknown
		case failed.State == stateUntouched && needsRoot(g.env.Geteuid())(failed.Err):
			u.Exit = exitPreflight
		}
		if !cutShort(failed.Err) { // the hint concerns a failure
			u.Hints = someHint(failed.Hint)
		}
		return u
	}
	if pre, ok := errors.AsType[*bootstrap.PreflightError](ue.Cause); ok {
		return preflight(g, ue, pre)
	}
	return err
}

// preflight lists all failed checks. The table has the advice about a library's error.
func preflight(g *globals, ue *userError, pre *bootstrap.PreflightError) error {
	u := &userError{Msg: ue.Msg, Exit: exitPreflight, State: cmp.Or(ue.State, pre.State, stateUntouched)}
	var causes []error
	for _, f := range pre.Findings {
		var hints []string
		u.ID = f.ID
		if f.Err != nil {
			e := g.explain(f.Err)
			hints = e.Hints
			if e.ID != idFailed && cluster.KindOf(f.Err) != "" {
				u.ID = e.ID
			}
		}
		if f.Hint != "" {
			hints = []string{f.Hint}
		}
		causes = append(causes, &problem{u.ID + ": " + f.Text, hints})
	}
	u.Hints = settingHints(errors.Join(causes...), g)
	if len(pre.Findings) != 1 {
		u.ID, u.Cause = idPreflight, errors.Join(causes...)
		u.Msg += fmt.Sprintf(": %d checks failed", len(pre.Findings))
		return u
	}
	f := pre.Findings[0]
	if mongo, ok := errors.AsType[*cluster.Error](f.Err); ok {
		u.Cause = mongo
		return u
	}
	u.Msg, u.Cause = ue.Msg+": "+f.Title(), errors.New(f.Text)
	return u
}

// explain turns any error into one for a person.
func (g *globals) explain(err error) *userError {
	err = unfold(g, err)
	var out userError
	var ue *userError
	if errors.As(err, &ue) {
		out = *ue
		base := &userError{}
		if ue.Cause != nil {
			base = g.explain(ue.Cause)
		}
		out.ID, out.Exit, out.State = cmp.Or(out.ID, base.ID), cmp.Or(out.Exit, base.Exit), cmp.Or(out.State, base.State)
		if len(out.Hints) == 0 {
			out.Hints = base.Hints
		}
	} else {
		out = userError{Msg: err.Error()}
		if all := settings.Flatten(err); len(all) > 1 {
			out.Msg, out.Cause = fmt.Sprintf("%d things are wrong", len(all)), err
		}
		for _, class := range errorTable(g.env.Geteuid()) {
			if class.match(err) {
				out.ID, out.Exit = class.id, class.exit
				if class.hint != nil {
					out.Hints = class.hint(err, g)
				}
				break
			}
		}
	}
	// MongoDB's errors have two parts: the fault is for the first line, the driver's text for the second.
	if ce, ok := cmp.Or(out.Cause, err).(*cluster.Error); ok { //nolint:errorlint // a wrapping text must not get lost
		if out.Cause == nil {
			out.Msg = ce.Op
		}
		out.Msg, out.Cause = out.Msg+": "+ce.Summary(), ce.Err
	}
	out.ID, out.Exit = cmp.Or(out.ID, idFailed), cmp.Or(out.Exit, exitFailed)
	if out.State == "" && slices.Contains([]int{exitUsage, exitPreflight, exitNotMember}, out.Exit) {
		out.State = stateUntouched
	}
	return &out
}

// report prints err on stderr in the form asked for and returns the exit code.
func report(ctx context.Context, g *globals, err error) int {
	err = unfold(g, err)
	var sig *interruptedError
	if errors.As(err, &sig) || errors.As(context.Cause(ctx), &sig) && cutShort(err) {
		err = interrupted(err, sig)
	}
	e := g.explain(err)
	if g.readsOnly.Load() && e.State == stateUntouched {
		e.State = ""
	}
	if g.out.IsJSON() {
		errorJSON(g, e)
	} else {
		errorText(g, e)
	}
	return e.Exit
}

// cutShort reports whether an error comes from the end of a context. A check that was cut short proves nothing.
func cutShort(err error) bool {
	var ue *userError
	return errors.Is(err, context.Canceled) || errors.As(err, &ue) && ue.Exit == exitPreflight
}

// interrupted makes an error one of the signal. It keeps the state that a command left, and other failures.
func interrupted(err error, sig *interruptedError) *userError {
	out := userError{Msg: "interrupted", Cause: sig, ID: idInterrupted, Exit: exitInterrupted}
	var ue *userError
	switch {
	case !errors.As(err, &ue):
	case ue.Exit == exitPreflight:
		out.State = cmp.Or(ue.State, stateUntouched)
	default:
		out.Msg, out.State, out.Hints = ue.Msg, ue.State, ue.Hints
		causes := []error{sig}
		for _, cause := range settings.Flatten(ue.Cause) {
			if cause != nil && !cutShort(cause) && !as[*interruptedError](cause) {
				causes = append(causes, cause)
			}
		}
		out.Cause = errors.Join(causes...)
	}
	return &out
}

// problem is one of several findings, with its own hints.
type problem struct {
	text  string
	hints []string
}

func (e *problem) Error() string      { return e.text }
func (e *problem) AllHints() []string { return e.hints }

// ownHints are those of one cause among several.
func ownHints(cause error) []string {
	var e interface{ AllHints() []string }
	if errors.As(cause, &e) {
		return e.AllHints()
	}
	return nil
}

func errorText(g *globals, e *userError) {
	var b bytes.Buffer
	c := g.out.Palette(g.env.Stderr)
	line := func(label, text string) { fmt.Fprintf(&b, "amsagent: %s%s\n", label, text) }
	line(c.Red("error:")+" ", output.OneLine(g.out.Redact(e.Msg))+" ["+e.ID+"]")
	hints := func(all []string) {
		for _, hint := range all {
			line(c.Yellow("hint:")+" ", output.OneLine(g.out.Redact(hint)))
		}
	}
	var causes []error
	if e.Cause != nil {
		causes = settings.Flatten(e.Cause)
	}
	rest := slices.Clone(e.Hints)
	for i, cause := range causes {
		for j, text := range output.Lines(g.out.Redact(cause.Error())) {
			if j > 0 {
				text = "  " + text
			}
			line("cause: ", text)
		}
		own := ownHints(cause)
		if i+1 < len(causes) && slices.Equal(own, ownHints(causes[i+1])) {
			continue // once for all of them
		}
		hints(own)
		rest = slices.DeleteFunc(rest, func(h string) bool { return slices.Contains(own, h) })
	}
	hints(rest)
	if e.State != "" {
		line("", output.OneLine(g.out.Redact(e.State)))
	}
	g.out.PrintError(b.Bytes())
}

// errorObject is the JSON form; its field names are an interface.
type errorObject struct {
	SchemaVersion int    `json:"schema_version"`
	Kind          string `json:"kind"` // "error"
	Error         struct {
		ID       string   `json:"id"`
		Message  string   `json:"message"`
		Cause    string   `json:"cause,omitempty"`
		Hints    []string `json:"hints"`
		State    string   `json:"state,omitempty"`
		ExitCode int      `json:"exit_code"`
	} `json:"error"`
}

func errorJSON(g *globals, e *userError) {
	var o errorObject
	o.SchemaVersion, o.Kind = output.SchemaVersion, "error"
	o.Error.ID, o.Error.Message, o.Error.State, o.Error.ExitCode = e.ID, e.Msg, e.State, e.Exit
	o.Error.Hints = append([]string{}, e.Hints...)
	if e.Cause != nil {
		o.Error.Cause = e.Cause.Error()
	}
	b, _ := output.JSONLine(o) // texts and numbers
	g.out.PrintError(g.out.RedactJSON(b))
}

// usageError is an error in the command line.
func usageError(hints []string, format string, args ...any) *userError {
	return &userError{Msg: fmt.Sprintf(format, args...), Hints: hints, Exit: exitUsage, ID: idUsage}
}
