// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Errors that a caller can branch on. Each [Error] wraps one.
var (
	// ErrNotThisCloud: the answer is another cloud's.
	ErrNotThisCloud = errors.New("not this cloud")
	// ErrNotReady: no usable answer in time; a retry may succeed.
	ErrNotReady = errors.New("the metadata service is not ready")
	// ErrNotFound: the item is not set.
	ErrNotFound = errors.New("not set in the metadata")
	// ErrForbidden: the service refuses; a retry does not help.
	ErrForbidden       = errors.New("the metadata service refuses")
	ErrBadAnswer       = errors.New("unusable answer from the metadata service")
	ErrUnknownProvider = errors.New("unknown metadata provider")
)

// Error describes a failed metadata request.
type Error struct {
	Provider string
	Item     string
	// Kind is one of the errors above.
	Kind error
	// Status is the last HTTP status; 0 without an answer.
	Status int
	// Token marks a request for a session token.
	Connected, Token bool
	Attempts         int
	// Hint is the remedy, or "".
	Hint  string
	Cause error
	// Context is the context's error if it ended the wait.
	Context error
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "reading the %s from the %s metadata: ", e.Item, e.Provider)
	switch {
	case e.Status >= 300 && e.Status < 400:
		fmt.Fprintf(&b, "the answer is a redirect (HTTP %d), which is not followed", e.Status)
	case e.Status >= 400:
		fmt.Fprintf(&b, "%v (HTTP %d)", e.Kind, e.Status)
	case e.Cause != nil:
		fmt.Fprintf(&b, "%v: %v", e.Kind, e.Cause)
	default:
		fmt.Fprintf(&b, "%v", e.Kind)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, " (tried %d times)", e.Attempts)
	}
	return b.String()
}

// Unwrap returns Kind, Cause and Context.
func (e *Error) Unwrap() []error {
	return slices.DeleteFunc([]error{e.Kind, e.Cause, e.Context}, func(err error) bool { return err == nil })
}

// HintOf returns the hint in err's chain, or "".
func HintOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}

// HintToken is the hint for HTTP 401 to a new session token.
const HintToken = "the service refuses session tokens that it has just given out: something between this process and the " +
	"service changes the requests"
