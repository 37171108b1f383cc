// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	statisticsPath = "/rest/v2/system-resources"
	tokenHeader    = "ProxyAuthorization" // sic: the server's own name
	// statisticsLimit bounds the call. The server collects the figures while we
	// wait; what takes longer is stuck, and the next beat asks again.
	statisticsLimit = 3 * time.Second
	// statisticsBody is many times what a server with eight GPUs says.
	statisticsBody = 256 << 10
)

// Outcomes of [ReadStatistics]. A server that does not answer in time is
// context.DeadlineExceeded, one that nobody listens for syscall.ECONNREFUSED.
var (
	// ErrForbidden: the server did not take the token. It answers the same for
	// some seconds while it starts, and while its database is away.
	ErrForbidden = errors.New("the server refused the call: a wrong token, or it is still starting")
	// ErrNoStatistics: the server does not know the call, as an older release.
	ErrNoStatistics = errors.New("the server has no statistics to ask for")
	// ErrNotStatistics: an answer that is not Ant Media Server's statistics.
	ErrNotStatistics = errors.New("the answer is not the server's statistics")
)

// Statistics is what a server says about itself alone, not about its cluster. A
// field is nil where the server does not tell: releases differ.
type Statistics struct {
	// LocalStreams are the streams that it takes in.
	LocalStreams *int `json:"local_streams,omitempty"`

	WebRTCViewers *int `json:"webrtc_viewers,omitempty"`
	HLSViewers    *int `json:"hls_viewers,omitempty"`
	DASHViewers   *int `json:"dash_viewers,omitempty"`

	CPU *int `json:"cpu,omitempty"` // percent of the machine
}

// Viewers adds up the viewers that are known; nil where none is. complete says
// that every kind was told. Viewers of RTMP are in no kind: the server does not
// count them.
func (s Statistics) Viewers() (n *int, complete bool) {
	complete = true
	for _, kind := range []*int{s.WebRTCViewers, s.HLSViewers, s.DASHViewers} {
		if kind == nil {
			complete = false
			continue
		}
		if n == nil {
			n = new(int)
		}
		*n += *kind
	}
	return n, complete
}

// ReadStatistics asks the server at base, as [Installation.BaseURL] gives it, for
// its figures, with a token of [ServerKey.Token]. A nil client is
// [NewHTTPClient]'s. No error contains the token.
func ReadStatistics(ctx context.Context, client *http.Client, base, token string) (Statistics, error) {
	if client == nil {
		client = NewHTTPClient()
	}
	// Go takes the credentials that it knows out of a redirected request. This
	// header it does not know, and it opens the server's management.
	stay := *client
	stay.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	ctx, cancel := context.WithTimeout(ctx, statisticsLimit)
	defer cancel()
	url := strings.TrimSuffix(base, "/") + statisticsPath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Statistics{}, fmt.Errorf("asking for statistics: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	r, err := call(&stay, req, statisticsBody+1)
	if err != nil {
		return Statistics{}, fmt.Errorf("asking for statistics: %s: %w", url, inTime(ctx, err))
	}
	switch r.code {
	case http.StatusOK:
		if len(r.body) > statisticsBody {
			return Statistics{}, fmt.Errorf("asking for statistics: %s: %w: it is longer than %d bytes", url, ErrNotStatistics, statisticsBody)
		}
		s, err := parseStatistics(r.body)
		if err != nil {
			return Statistics{}, fmt.Errorf("asking for statistics: %s: %w", url, err)
		}
		return s, nil
	case http.StatusForbidden, http.StatusUnauthorized:
		err = ErrForbidden
	case http.StatusNotFound:
		err = ErrNoStatistics
	default:
		err = ErrNotStatistics
	}
	return Statistics{}, fmt.Errorf("asking for statistics: %s answers %s: %w", url, r.status, err)
}

// inTime makes every way in which a call can take too long the same error.
func inTime(ctx context.Context, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", cmp.Or(ctx.Err(), context.DeadlineExceeded), err)
	}
	return err
}

// parseStatistics takes what it knows out of an answer. A figure of another form
// than expected is not known; that is no reason to lose the others.
func parseStatistics(body []byte) (Statistics, error) {
	var told map[string]json.RawMessage
	if err := json.Unmarshal(body, &told); err != nil {
		return Statistics{}, fmt.Errorf("%w: no JSON object", ErrNotStatistics)
	}
	s := Statistics{
		LocalStreams:  figure(told["localLiveStreams"]),
		WebRTCViewers: figure(told["localWebRTCViewers"]),
		HLSViewers:    figure(told["localHLSViewers"]),
		DASHViewers:   figure(told["localDASHViewers"]),
		CPU:           figure(told["cpuUsage"]),
	}
	var cpu map[string]json.RawMessage
	if json.Unmarshal(told["cpuUsage"], &cpu) == nil {
		s.CPU = figure(cpu["systemCPULoad"])
	}
	if s == (Statistics{}) {
		return s, fmt.Errorf("%w: no figure in it is known", ErrNotStatistics)
	}
	return s, nil
}

// figure reads a count or a percentage: a number, or one in quotes. The server
// says -1 for what it could not measure.
func figure(raw json.RawMessage) *int {
	f, err := strconv.ParseFloat(strings.Trim(string(raw), `" `), 64)
	if err != nil || !(f >= 0 && f <= math.MaxInt32) { // nor what is no number at all
		return nil
	}
	n := int(f)
	return &n
}
