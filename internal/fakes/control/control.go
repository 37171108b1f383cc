// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package control is the small HTTP server through which another process controls a fake server. It has no authentication and
// must never be reachable from another machine: its default address is loopback.
package control

import (
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

// Decode sets fields from parameters of the same names: *string, *bool, *int,
// *int32, *[]string, which is given with commas or repeated, or *time.Duration, which is
// given in milliseconds or with a unit. It refuses unknown parameters: a test with a misspelt
// one would otherwise pass against a healthy service.
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
			*to = strings.Split(strings.Join(q[key], ","), ",")
		case *time.Duration:
			if _, e := strconv.Atoi(v); e == nil {
				v += "ms"
			}
			*to, err = time.ParseDuration(v)
		default:
			err = errors.New("unknown")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("parameter %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}
