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

// errNotStatistics may be a refused token: the server refuses tokens for some seconds while it starts, and while its
// database is away.
var errNotStatistics = errors.New("the answer is not the server's statistics")

// Statistics are those of one server, not of its cluster; nil if the release lacks them.
type Statistics struct {
	Streams *int
	// Viewers are those of the known kinds, without RTMP, which the server does not count. Complete reports whether all
	// kinds are known.
	Viewers  *int
	Complete bool
}

// ReadStatistics makes one call with an [Installation.ServerToken].
func ReadStatistics(ctx context.Context, client *http.Client, base, token string) (s Statistics, _ error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := get(ctx, client, base, statisticsPath, token)
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
		return Statistics{}, fmt.Errorf("asking for statistics: %s: %w", base+statisticsPath, err)
	}
	return s, nil
}

func parseStatistics(body []byte) (Statistics, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return Statistics{}, fmt.Errorf("%w: no JSON object", errNotStatistics)
	}
	s := Statistics{Streams: figure(fields["localLiveStreams"]), Complete: true}
	for _, kind := range []string{"localWebRTCViewers", "localHLSViewers", "localDASHViewers"} {
		switch n := figure(fields[kind]); {
		case n == nil:
			s.Complete = false
		case s.Viewers == nil:
			s.Viewers = n
		default:
			*s.Viewers += *n
		}
	}
	if s == (Statistics{}) {
		return s, fmt.Errorf("%w: no figure in it is known", errNotStatistics)
	}
	return s, nil
}

// figure parses a count, with or without quotes; -1 is unknown.
func figure(raw json.RawMessage) *int {
	f, err := strconv.ParseFloat(strings.Trim(string(raw), `" `), 64)
	if err != nil || !(f >= 0 && f <= math.MaxInt32) { // not NaN
		return nil
	}
	n := int(f)
	return &n
}
