// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// panel answers the calls that need a login. The stand-in has no users, so a
// token that the server's own secret has signed is the only way in.
func (s *Server) panel(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.State() != Up:
		http.Error(w, "Not allowed IP", http.StatusForbidden)
	case !s.tokenGiven(r):
		http.Error(w, "Not authenticated user", http.StatusForbidden)
	case !s.tokenAccepted(w, r):
	case r.URL.Path != "/rest/v2/system-resources":
		http.Error(w, "the stand-in does not know this call", http.StatusNotImplemented)
	case s.behaviour().Statistics != 0:
		status := s.behaviour().Statistics
		http.Error(w, http.StatusText(status), status)
	default:
		control.JSON(w, s.systemResources())
	}
}

// tokenGiven says whether a request tries the token at all; without the setting
// the server does not look at it.
func (s *Server) tokenGiven(r *http.Request) bool {
	return s.in.jwt.enabled && s.in.release.atLeast(release{2, 4, 0}) && strings.TrimSpace(r.Header.Get("ProxyAuthorization")) != ""
}

// tokenAccepted answers a request whose token is wrong.
func (s *Server) tokenAccepted(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case s.in.jwt.jwksURL != "":
		// The URL takes precedence over the secret, and no server answers there.
		http.Error(w, "Invalid Server JWT Token", http.StatusForbidden)
	case s.in.jwt.secret == "":
		http.Error(w, "java.lang.IllegalArgumentException: Empty key", http.StatusInternalServerError)
	case !tokenValid(r.Header.Get("ProxyAuthorization"), s.in.jwt.secret, s.now()):
		http.Error(w, "Invalid Server JWT Token", http.StatusForbidden)
	default:
		return true
	}
	return false
}

// tokenValid is what the server's library checks: algorithm and signature, and of
// the claims those about time, to the second and without mercy.
func tokenValid(token, secret string, now time.Time) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	var head struct{ Alg string }
	var claims struct{ Exp, Nbf, Iat *float64 }
	var signature []byte
	for i, to := range []any{&head, &claims, nil} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return false
		}
		if to == nil {
			signature = b
		} else if json.Unmarshal(b, to) != nil {
			return false
		}
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(parts[0] + "." + parts[1]))
	at := float64(now.Unix())
	return head.Alg == "HS256" && hmac.Equal(signature, mac.Sum(nil)) &&
		(claims.Exp == nil || at <= *claims.Exp) && (claims.Nbf == nil || at >= *claims.Nbf) && (claims.Iat == nil || at >= *claims.Iat)
}

// systemResources has the names of the server's own answer. Of the figures only
// the sessions mean something.
func (s *Server) systemResources() map[string]any {
	var si unix.Sysinfo_t
	_ = unix.Sysinfo(&si) // zeros are as good
	unit := uint64(si.Unit)
	live := len(s.Streams())
	webrtc := 0
	if s.o.Community {
		// Without WebRTC each application counts minus one.
		for _, a := range s.in.apps {
			if a.name != console {
				webrtc--
			}
		}
	}
	return map[string]any{
		"instanceId":       strings.TrimSuffix(s.nodeID, s.address),
		"cpuUsage":         map[string]any{"processCPUTime": 1000000, "systemCPULoad": 4, "processCPULoad": 2},
		"jvmMemoryUsage":   map[string]any{"maxMemory": 1 << 30, "totalMemory": 1 << 28, "freeMemory": 1 << 27, "inUseMemory": 1 << 27},
		"systemInfo":       map[string]any{"osName": "Linux", "osArch": "amd64", "javaVersion": "17", "processorCount": 1},
		"systemMemoryInfo": map[string]any{"totalMemory": si.Totalram * unit, "freeMemory": si.Freeram * unit},
		"softwareVersion":  map[string]any{"versionName": s.in.version, "versionType": s.edition(), "buildNumber": s.in.build},
		"gpuUsageInfo":     []any{},

		"totalLiveStreamSize":    live,
		"localLiveStreams":       live,
		"localWebRTCLiveStreams": webrtc,
		"localWebRTCViewers":     s.viewersOf(WebRTC),
		"localHLSViewers":        s.viewersOf(HLS),
		"localDASHViewers":       s.viewersOf(DASH),
		"encoders-blocked":       0,
		"encoders-not-opened":    0,
		"publish-timeout-errors": 0,
		"server-timing":          map[string]any{"up-time": time.Since(s.started).Milliseconds(), "start-time": s.started.UnixMilli()},
	}
}
