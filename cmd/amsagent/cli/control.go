// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

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
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
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

// controlClient talks to the daemon over its socket.
type controlClient struct {
	path     string
	http     *http.Client
	patience time.Duration
	timeout  time.Duration
	progress func(string)
}

func (g *globals) controlClient() *controlClient {
	path := g.settings.Root + controlSocket
	return &controlClient{
		path: path, patience: controlPatience, timeout: controlTime, progress: g.out.Progress,
		http: &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				d := net.Dialer{Timeout: controlDial}
				return d.DialContext(ctx, "unix", path)
			},
		}},
	}
}

// noRedirect: a daemon redirects no client.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// How a request to the daemon fails otherwise than by its refusal.
var (
	errDaemonDown = errors.New("no daemon answers")
	// errDaemonVersion: another program listens there, or a daemon of another version.
	errDaemonVersion = errors.New("what answers is no daemon of this version")
	// errDaemonLost: the daemon hangs, or ended in the middle of an answer. It may have done what it was asked.
	errDaemonLost = errors.New("the daemon gave no answer")
)

// send asks once and returns the answer with its status judged; the body is the caller's to close.
func (c *controlClient) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
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
func (c *controlClient) refused(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxControl))
	var r daemon.Refusal
	if err == nil && isJSONType(resp) && json.Unmarshal(b, &r) == nil && r.Code != "" {
		return &r
	}
	return fmt.Errorf("%w: %s answers %s", errDaemonVersion, c.path, resp.Status)
}

// classify makes of what net/http says something that a person can act on.
func (c *controlClient) classify(ctx context.Context, err error) error {
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: %w", errDaemonDown, c.path, bare(err))
	case dialing:
		return fmt.Errorf("connecting to the daemon at %s: %w", c.path, bare(err))
	case endedEarly(err):
		return fmt.Errorf("%w: %w", errDaemonLost, bare(err))
	}
	return fmt.Errorf("%w: %s: %w", errDaemonVersion, c.path, bare(err))
}

// bare takes off the address that net/http puts before an error, and which is none of the operator's.
func bare(err error) error {
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
func (c *controlClient) call(ctx context.Context, method, path string, body, answer any) error {
	limit := time.Now().Add(c.patience)
	for waits := false; ; waits = true {
		err := c.once(ctx, method, path, body, answer)
		// Its socket is still there: it may be being restarted.
		if err == nil || !endedEarly(err) && !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(limit) {
			return err
		}
		if !waits {
			c.progress(fmt.Sprintf("waiting up to %s for the daemon: %s", output.Rounded(c.patience), err))
		}
		if !sleep.For(ctx, controlRetry) {
			return err
		}
	}
}

// endedEarly reports whether the other side closed the connection before its answer was complete.
func endedEarly(err error) bool {
	return is(io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE)(err)
}

func (c *controlClient) noAnswer() error {
	return fmt.Errorf("%w in %s", errDaemonLost, output.Rounded(c.timeout))
}

func (c *controlClient) once(ctx context.Context, method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, c.noAnswer())
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
		return fmt.Errorf("%w: the answer of %s has no end", errDaemonVersion, c.path)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("%w: the answer of %s: %w", errDaemonVersion, c.path, err)
	}
	return nil
}

func (c *controlClient) status(ctx context.Context) (daemon.View, error) {
	var v daemon.View
	return v, c.call(ctx, http.MethodGet, daemon.PathStatus, nil, &v)
}

// life sends a request about the drain of this node, or asks for its view with none.
func (c *controlClient) life(ctx context.Context, path string, request any) (v lifecycle.View, err error) {
	method := http.MethodPost
	if request == nil {
		method = http.MethodGet
	}
	err = c.call(ctx, method, path, request, &v)
	return v, err
}

// hold makes this node not ready until release is called or this process ends. It survives the end of ctx: an interrupted
// command still undoes its changes.
func (c *controlClient) hold(ctx context.Context, r daemon.HoldRequest) (release func(), err error) {
	held, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	late := time.AfterFunc(c.timeout, func() { cancel(c.noAnswer()) })
	resp, err := c.send(held, http.MethodPost, daemon.PathHold, r) //nolint:bodyclose // release closes it
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
