// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

const statisticsPath = "/rest/v2/system-resources"

// errNotStatistics: the response is not Ant Media Server's statistics, the release has none, or it refused the token, as it
// does for some seconds while it starts, and while its database is away.
var errNotStatistics = errors.New("the answer is not the server's statistics")

// Statistics are the figures of one server, not of its cluster. A field is nil if the server does not report it:
// releases differ.
type Statistics struct {
	// LocalStreams counts the incoming streams.
	LocalStreams *int

	WebRTCViewers, HLSViewers, DASHViewers *int
}

// Viewers returns the sum of the known viewers; nil if there are no figures. complete reports whether every kind is
// known. The server does not count RTMP viewers.
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

// ReadStatistics requests the figures of the server at base, an [Installation.BaseURL], with a token of
// [Installation.ServerToken]. A nil client means [NewHTTPClient]. No error contains the token.
func ReadStatistics(ctx context.Context, client *http.Client, base, token string) (s Statistics, _ error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	url := strings.TrimSuffix(base, "/") + statisticsPath
	r, err := get(ctx, client, url, token)
	switch {
	case err != nil:
	case r.code != http.StatusOK:
		err = fmt.Errorf("%w: %s", errNotStatistics, r.status())
	case len(r.body) == maxBody:
		err = fmt.Errorf("%w: it is longer than %d bytes", errNotStatistics, maxBody)
	default:
		s, err = parseStatistics(r.body)
	}
	if err != nil {
		return Statistics{}, fmt.Errorf("asking for statistics: %s: %w", url, err)
	}
	return s, nil
}

// parseStatistics parses a response. A figure of unexpected form is unknown, but does not affect the others.
func parseStatistics(body []byte) (Statistics, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return Statistics{}, fmt.Errorf("%w: no JSON object", errNotStatistics)
	}
	s := Statistics{
		LocalStreams:  figure(fields["localLiveStreams"]),
		WebRTCViewers: figure(fields["localWebRTCViewers"]),
		HLSViewers:    figure(fields["localHLSViewers"]),
		DASHViewers:   figure(fields["localDASHViewers"]),
	}
	if s == (Statistics{}) {
		return s, fmt.Errorf("%w: no figure in it is known", errNotStatistics)
	}
	return s, nil
}

// figure parses a count, with or without quotes. The server sends -1 for unknown values.
func figure(raw json.RawMessage) *int {
	f, err := strconv.ParseFloat(strings.Trim(string(raw), `" `), 64)
	if err != nil || !(f >= 0 && f <= math.MaxInt32) { // not NaN
		return nil
	}
	n := int(f)
	return &n
}
