// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Verbs are those of the metadata server:
//
//	GET, PATCH /instance   what is served; JSON: the fields in it are replaced
//	POST   /fault          see [cloud.Fault]; GET, DELETE /fault
//	POST   /vanish?ms=N    the service is away for so long
//	POST   /preempt        ?ms=N: preempted, the power button, and off after so long (default: the machine's own time)
//	POST   /scale-in       ?ms=N: the power button without a notice
//	PUT    /maintenance    the body becomes maintenance-event
//	POST   /stop           ?ms=N&target=DELETED: a graceful shutdown of so long at most; DELETE /stop cancels it
//	POST   /off            the machine has switched itself off
//	GET    /books
//	GET    /requests
func (s *Server) Verbs() cloud.Verbs {
	ms := cloud.Params{"ms": time.Duration(0)}
	v := s.WithFaults(s.Served.Verbs("/instance",
		cloud.Try("POST /vanish", ms, func(a cloud.Args) error { return s.Vanish(a.Duration("ms")) }),
		cloud.Do("POST /preempt", ms, func(a cloud.Args) { s.Preempt(a.Duration("ms")) }),
		cloud.Do("POST /scale-in", ms, func(a cloud.Args) { s.ScaleIn(a.Duration("ms")) }),
		cloud.Do("PUT /maintenance", cloud.Params{cloud.Text: ""}, func(a cloud.Args) { s.Maintain(a.String(cloud.Text)) }),
		cloud.Do("POST /stop", cloud.Params{"ms": 10 * time.Minute, "target": "STOPPED"}, func(a cloud.Args) {
			s.Stop(a.Duration("ms"), a.String("target"))
		}),
		cloud.Do("DELETE /stop", nil, func(cloud.Args) { s.Unstop() }),
		cloud.Do("POST /off", nil, func(cloud.Args) { s.Off() }),
	))
	v.Views["/books"] = func() any { return s.Books() }
	return v
}
