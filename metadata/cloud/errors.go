// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// What a caller may branch on. An error of this package is an *Error that matches one of them.
var (
	// ErrNotThisCloud: something answers, and it is not this cloud's metadata service; or an event is another cloud's.
	ErrNotThisCloud = errors.New("not this cloud")
	// ErrNotReady: no usable answer within the bound; later there may be one.
	ErrNotReady = errors.New("the metadata service is not ready")
	// ErrNotFound: the item is not set.
	ErrNotFound = errors.New("not set in the metadata")
	// ErrForbidden: the service refuses us; asking again will not help.
	ErrForbidden = errors.New("the metadata service refuses")
	// ErrBadAnswer: the service answers something that cannot be what was asked for.
	ErrBadAnswer = errors.New("unusable answer from the metadata service")
	// ErrUnknownProvider: not the name of any cloud.
	ErrUnknownProvider = errors.New("unknown metadata provider")
)

// Error says what was asked of which service, what came back and what an operator can do about it.
type Error struct {
	Provider string
	// Item is what was being read, in words.
	Item string
	// Kind is one of the sentinels of this package.
	Kind error
	// Status is the last HTTP status, 0 if there was no answer.
	Status int
	// Connected reports that the connection was made, Token that the request was the one for a session token.
	Connected, Token bool
	// Attempts counts the tries made.
	Attempts int
	// Hint is what to do; it may be empty.
	Hint string
	// Cause is the last error seen below, or nil.
	Cause error
	// Context is the error of the context, if that is what ended the waiting.
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

// Unwrap gives errors.Is and errors.As the kind, the cause and what ended the waiting.
func (e *Error) Unwrap() []error {
	var out []error
	for _, err := range []error{e.Kind, e.Cause, e.Context} {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// HintOf returns the hint carried by err or by an error it wraps, or "".
func HintOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}

// TokenHints are the remedies of a service with session tokens: it is not there, it does not answer the token request, it is
// switched off, it has no tokens.
type TokenHints struct{ Unreachable, Silent, Off, NoTokens string }

// Judge is a Judge of [Client].
func (h *TokenHints) Judge(e *Error) {
	switch {
	case e.Status == 0 && !e.Connected:
		e.Hint = h.Unreachable
	case e.Token && e.Status == 0 && errors.Is(e.Cause, context.DeadlineExceeded):
		e.Hint = h.Silent
	case e.Status == http.StatusForbidden:
		e.Hint = h.Off
	case e.Status == http.StatusUnauthorized:
		e.Hint = "the service refuses session tokens that it has just given out: something between this process and the service changes the requests"
	case e.Token && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented):
		e.Kind, e.Hint = ErrNotThisCloud, h.NoTokens
	}
}
