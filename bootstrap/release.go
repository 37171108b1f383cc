// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/amsagent/amsagent/ams"
)

// ReleaseMatch compares the running server with its files.
type ReleaseMatch string

// The values of ReleaseMatch. After a downgrade the process is older than its files, too.
const (
	ReleaseSame    ReleaseMatch = "same"
	ReleaseOlder   ReleaseMatch = "older-process"
	ReleaseUnknown ReleaseMatch = "unknown"
)

// RunningRelease is the release of the running server beside that of its files.
type RunningRelease struct {
	Match   ReleaseMatch `json:"match"`
	Running string       `json:"running,omitempty"`
	Files   string       `json:"files,omitempty"`
	Why     string       `json:"reason,omitempty"` // why it is not known
}

// String returns the end of a sentence about the server.
func (r RunningRelease) String() string {
	if r.Match == ReleaseUnknown {
		return "its release is not known: " + r.Why
	}
	return "it runs release " + r.Running
}

// maxReleaseCalls bounds the calls: each application may have a filter of its own.
const maxReleaseCalls = 4

// Release asks the running server by applications that served a moment ago: see [ams.Installation.Initialized].
func (s *Server) Release(ctx context.Context) RunningRelease {
	in, _, err := s.installation("")
	if err != nil {
		return RunningRelease{Match: ReleaseUnknown, Why: err.Error()}
	}
	running, err := s.askRelease(ctx, in)
	r := RunningRelease{Match: ReleaseUnknown, Running: running.Version, Files: in.Release.Version}
	switch {
	case err != nil:
		r.Why = err.Error()
	case !in.Release.Known():
		r.Why = cmp.Or(in.Release.Note, "the release of the files is not known")
	case r.Running == r.Files:
		r.Match = ReleaseSame
	default:
		r.Match = ReleaseOlder
	}
	return r
}

func (s *Server) askRelease(ctx context.Context, in *ams.Installation) (r ams.Release, err error) {
	s.mu.Lock()
	apps := slices.Sorted(maps.Keys(s.served))
	apps = slices.DeleteFunc(apps, func(app string) bool {
		return ams.App{Name: app}.Console() || time.Since(s.served[app].at) >= servedFor
	})
	s.mu.Unlock()
	err = errors.New("no application serves")
	for _, app := range apps[:min(len(apps), maxReleaseCalls)] {
		if r, err = ams.AskRelease(ctx, s.client, in.BaseURL(), app, ""); err == nil {
			return r, nil
		}
	}
	if token, terr := in.ServerToken(time.Now()); terr == nil {
		return ams.AskRelease(ctx, s.client, in.BaseURL(), "", token)
	}
	return r, err
}
