// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package control is the small HTTP server through which another process drives
// a sandbox server. It listens where it is told, which is loopback by default,
// and has no authentication: it must never be reachable from elsewhere.
package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Server is one running control port.
type Server struct {
	ln   net.Listener
	http *http.Server
	done chan struct{}
}

// Serve answers h on addr until Close.
func Serve(ctx context.Context, addr string, h http.Handler) (*Server, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	s := &Server{
		ln: ln,
		// A request to a control port is a few bytes; the bound only keeps a
		// stuck client from holding a goroutine for ever.
		http: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ln) // always non-nil: Close ended it
	}()
	return s, nil
}

// Ports are those of a service, and of what controls it.
type Ports struct{ service, control *Server }

// ServeBoth answers service on listen, a free port of loopback where that is empty, and
// beside it control on addr, where that is not empty.
func ServeBoth(ctx context.Context, listen string, service http.Handler, addr string, control http.Handler) (Ports, error) {
	s, err := Serve(ctx, cmp.Or(listen, "127.0.0.1:0"), service)
	if err != nil || addr == "" {
		return Ports{service: s}, err
	}
	c, err := Serve(ctx, addr, control)
	if err != nil {
		_ = s.Close()
	}
	return Ports{s, c}, err
}

// Addr is host:port of the service.
func (p Ports) Addr() string { return p.service.Addr() }

// Endpoint is the origin of the service, without a path.
func (p Ports) Endpoint() string { return "http://" + p.Addr() }

// ControlAddr is host:port of the control port, or empty.
func (p Ports) ControlAddr() string { return p.control.Addr() }

// Close ends both.
func (p Ports) Close() error {
	if err := errors.Join(p.service.Close(), p.control.Close()); err != nil {
		return fmt.Errorf("closing the service: %w", err)
	}
	return nil
}

// Addr is host:port of the listener. A nil server has none.
func (s *Server) Addr() string {
	if s == nil {
		return ""
	}
	return s.ln.Addr().String()
}

// Close ends the server and waits for it. A nil server is closed already.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	err := s.http.Close()
	<-s.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// JSON answers with v.
func JSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the reader went away: nothing to be done about it
}

// Fail answers with a status and the reason.
func Fail(w http.ResponseWriter, status int, err error) {
	http.Error(w, err.Error(), status)
}

// Patch answers with a thing after the fields of it that the body has, as JSON, have
// been replaced. what is what people call it.
func Patch[T any](what string, get func() T, update func(func(*T))) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := get()
		if err := Read(r, &v); err != nil {
			Fail(w, http.StatusBadRequest, fmt.Errorf("reading %s: %w", what, err))
			return
		}
		update(func(to *T) { *to = v })
		JSON(w, get())
	}
}

// Read takes the body as JSON. It refuses fields that it does not know.
func Read(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// Decode sets fields from parameters of the same names: *string, *bool, *int,
// *int32, *[]string, which is given with commas, or *time.Duration, which is given
// in milliseconds. It refuses what it does not know: a test with a misspelt parameter would otherwise pass against a healthy
// service.
func Decode(q url.Values, fields map[string]any) error {
	var errs []error
	for key := range q {
		var err error
		v := q.Get(key)
		switch to := fields[key].(type) {
		case *string:
			*to = v
		case *bool:
			*to, err = strconv.ParseBool(v)
		case *int:
			*to, err = strconv.Atoi(v)
		case *int32:
			var n int64
			n, err = strconv.ParseInt(v, 10, 32)
			*to = int32(n)
		case *[]string:
			*to = strings.Split(v, ",")
		case *time.Duration:
			var n int
			n, err = strconv.Atoi(v)
			*to = time.Duration(n) * time.Millisecond
		default:
			err = errors.New("unknown")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("parameter %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}
