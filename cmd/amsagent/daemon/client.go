// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

const (
	// controlDial and controlTime bound connecting and one answer: the daemon answers without MongoDB or a cloud.
	controlDial = 2 * time.Second
	controlTime = 10 * time.Second
	// controlPatience is the wait for a daemon that is being restarted: more than RestartSec of amsagent.service.
	controlPatience = 8 * time.Second
	controlRetry    = 250 * time.Millisecond
	// maxControl is more than any answer has.
	maxControl = 1 << 20
)

// Client talks to the daemon over its socket.
type Client struct {
	// Patience is how long a request waits for a daemon that is being restarted, Timeout for an answer.
	Patience, Timeout time.Duration

	socket   string
	http     *http.Client
	progress func(string)
}

// NewClient returns a client for a socket. progress reports that it waits.
func NewClient(socket string, progress func(string)) *Client {
	return &Client{
		Patience: controlPatience, Timeout: controlTime, socket: socket, progress: progress,
		http: &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				d := net.Dialer{Timeout: controlDial}
				return d.DialContext(ctx, "unix", socket)
			},
		}},
	}
}

// noRedirect: a daemon redirects no client.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// How a request fails other than by a [Refusal].
var (
	ErrDown = errors.New("no daemon answers")
	// ErrVersion reports another program at the socket, or a daemon of another version.
	ErrVersion = errors.New("what answers is no daemon of this version")
	// ErrLost reports a daemon that hangs, or ended in the middle of an answer. It may have done what it was asked.
	ErrLost = errors.New("the daemon gave no answer")
)

// send asks once and returns the answer with its status judged; the body is the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		reader = bytes.NewReader(b)
	}
	// A host name is needed and means nothing.
	req, err := http.NewRequestWithContext(ctx, method, "http://amsagent"+path, reader)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.classify(ctx, err)
	}
	if resp.StatusCode == http.StatusOK && isJSONType(resp) {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, c.refused(resp)
}

func isJSONType(resp *http.Response) bool {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && (kind == "application/json" || kind == "application/x-ndjson")
}

// refused makes an error of an answer that is no success.
func (c *Client) refused(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxControl))
	var r Refusal
	if err == nil && isJSONType(resp) && json.Unmarshal(b, &r) == nil && r.Code != "" {
		return &r
	}
	return fmt.Errorf("%w: %s answers %s", ErrVersion, c.socket, resp.Status)
}

// classify makes of what net/http says something that a person can act on.
func (c *Client) classify(ctx context.Context, err error) error {
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: %w", ErrDown, c.socket, innermost(err))
	case dialing:
		return fmt.Errorf("connecting to the daemon at %s: %w", c.socket, innermost(err))
	case endedEarly(err):
		return fmt.Errorf("%w: %w", ErrLost, innermost(err))
	}
	return fmt.Errorf("%w: %s: %w", ErrVersion, c.socket, innermost(err))
}

// innermost removes the address that net/http puts before an error: the operator did not write it.
func innermost(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		wrapped, ok := err.(interface{ Unwrap() error })
		if !ok || wrapped.Unwrap() == nil {
			return err
		}
		err = wrapped.Unwrap()
	}
}

// call waits a moment for a daemon that is being restarted or was stopped. Its requests may be repeated. Without a daemon
// that ever ran, it fails at once.
func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	limit := time.Now().Add(c.Patience)
	for waits := false; ; waits = true {
		err := c.once(ctx, method, path, body, answer)
		// Its socket is still there: it may be being restarted.
		if err == nil || !endedEarly(err) && !errors.Is(err, syscall.ECONNREFUSED) || !time.Now().Before(limit) {
			return err
		}
		if !waits {
			c.progress(fmt.Sprintf("waiting up to %g s for the daemon: %s", c.Patience.Seconds(), err))
		}
		if !sleep.For(ctx, controlRetry) {
			return err
		}
	}
}

// endedEarly reports whether the other side closed the connection before its answer was complete.
func endedEarly(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE}, func(e error) bool { return errors.Is(err, e) })
}

func (c *Client) noAnswer() error {
	return fmt.Errorf("%w in %g s", ErrLost, c.Timeout.Seconds())
}

func (c *Client) once(ctx context.Context, method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, c.noAnswer())
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxControl+1))
	switch {
	case err != nil:
		return c.classify(ctx, err)
	case len(b) > maxControl:
		return fmt.Errorf("%w: the answer of %s has no end", ErrVersion, c.socket)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("%w: the answer of %s: %w", ErrVersion, c.socket, err)
	}
	return nil
}

// Status returns the view of the daemon.
func (c *Client) Status(ctx context.Context) (v View, err error) {
	err = c.call(ctx, http.MethodGet, PathStatus, nil, &v)
	return v, err
}

// Life sends a request about the drain of this node to a path, or with nil asks for its view there.
func (c *Client) Life(ctx context.Context, path string, request any) (v lifecycle.View, err error) {
	method := http.MethodPost
	if request == nil {
		method = http.MethodGet
	}
	err = c.call(ctx, method, path, request, &v)
	return v, err
}

// Follow asks once for the view of the drain.
func (c *Client) Follow(ctx context.Context) (v lifecycle.View, err error) {
	err = c.once(ctx, http.MethodGet, PathDrain, nil, &v)
	return v, err
}

// Sessions has the daemon count, once.
func (c *Client) Sessions(ctx context.Context) (cluster.Sessions, error) {
	var v SessionsView
	err := c.once(ctx, http.MethodGet, PathSessions, nil, &v)
	if err == nil && v.Missing != "" {
		err = errors.New(v.Missing)
	}
	return v.Sessions, err
}

// Hold makes this node not ready until release is called or this process ends. It survives the end of ctx: an interrupted
// command still undoes its changes.
func (c *Client) Hold(ctx context.Context, r HoldRequest) (release func(), err error) {
	held, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	late := time.AfterFunc(c.Timeout, func() { cancel(c.noAnswer()) })
	resp, err := c.send(held, http.MethodPost, PathHold, r) //nolint:bodyclose // release closes it
	late.Stop()
	stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return func() {
		_ = resp.Body.Close()
		cancel(nil)
	}, nil
}
