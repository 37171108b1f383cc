// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"

	"github.com/amsagent/amsagent/internal/plain"
)

const livenessPath = "/rest/v2/liveness"

// LivenessState is the result of a liveness call.
type LivenessState string

// The states of a server.
const (
	Live LivenessState = "live"
	// LiveStarting: not listening, or 403 or 503 while its console starts or its database is away.
	LiveStarting LivenessState = "starting"
	// LiveBroken: 500, because the server's own hostname does not resolve.
	LiveBroken LivenessState = "broken"
	// liveNoEndpoint: a release before 2.5.1, or a later one until its console starts.
	liveNoEndpoint LivenessState = "no-endpoint"
	// LiveUnknown: no response in time, or not Ant Media Server's.
	LiveUnknown LivenessState = "unknown"
)

// Liveness is the response to a liveness call.
type Liveness struct {
	State  LivenessState `json:"state"`
	Code   int           `json:"code,omitempty"` // of HTTP; 0 = no response
	Host   string        `json:"host,omitempty"` // as the server names itself
	Status string        `json:"status,omitempty"`
	Detail string        `json:"detail,omitempty"`
}

func (l Liveness) String() string {
	if l.Detail == "" {
		return string(l.State)
	}
	return string(l.State) + ": " + l.Detail
}

// CheckLiveness makes one call to base, an [Installation.BaseURL]. A nil client means [NewHTTPClient].
func CheckLiveness(ctx context.Context, client *http.Client, base string) Liveness {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := get(ctx, client, strings.TrimSuffix(base, "/")+livenessPath, "")
	switch {
	case err == nil:
		return answer(r)
	case errors.Is(err, syscall.ECONNREFUSED):
		return Liveness{State: LiveStarting, Detail: "no process listens yet"}
	case hungUp(err):
		return Liveness{State: LiveStarting, Detail: "it hung up"}
	case errors.Is(err, context.DeadlineExceeded):
		return Liveness{State: LiveUnknown, Detail: fmt.Sprintf("no answer within %s", callLimit)}
	}
	return Liveness{State: LiveUnknown, Detail: err.Error()}
}

func answer(r reply) Liveness {
	l := Liveness{State: LiveUnknown, Code: r.code, Detail: "it answers " + r.status()}
	switch l.Code {
	case http.StatusOK:
		var fields map[string]any
		if err := json.Unmarshal(r.body, &fields); err != nil {
			l.Detail = "it answers 200, but not as Ant Media Server does"
			return l
		}
		host, _ := fields["host"].(string)
		status, _ := fields["status"].(string)
		l.State, l.Host, l.Status, l.Detail = Live, plain.Truncate(host, maxText), plain.Truncate(status, maxText), ""
	case http.StatusForbidden, http.StatusServiceUnavailable:
		l.State = LiveStarting
	case http.StatusInternalServerError:
		l.State, l.Detail = LiveBroken, l.Detail+": its own hostname does not resolve"
	case http.StatusNotFound:
		l.State, l.Detail = liveNoEndpoint, "it answers, without a liveness call"
	}
	return l
}
