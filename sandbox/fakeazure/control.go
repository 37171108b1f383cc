// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure

import (
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Verbs are those of the metadata service, and of the set:
//
//	GET, PATCH /vm         what is served; JSON: the fields in it are replaced
//	POST   /event          ?type=Terminate&lead=60000 (ms), vms=a,b (default: this machine), id, source, description, duration (ms)
//	DELETE /event          ?id=ID: it is cancelled
//	POST   /begin          ?id=ID: it begins at once
//	GET    /events         those that are listed
//	GET    /books
//	POST   /fault          see [cloud.Fault]; GET, DELETE /fault
//	GET    /requests
func (s *Server) Verbs() cloud.Verbs {
	id := cloud.Params{"id": ""}
	v := s.WithFaults(s.Served.Verbs("/vm",
		cloud.Try("POST /event", cloud.Params{
			"type": Terminate, "lead": time.Minute, "vms": []string{s.VM().Name}, "id": "", "source": "", "description": "", "duration": -time.Millisecond,
		}, func(a cloud.Args) error {
			_, err := s.set.Announce(Event{
				Type: a.String("type"), Lead: a.Duration("lead"), VMs: a.Strings("vms"), ID: a.String("id"), Source: a.String("source"),
				Description: a.String("description"), Duration: a.Duration("duration"),
			})
			return err
		}),
		cloud.Try("DELETE /event", id, func(a cloud.Args) error { return s.set.Cancel(a.String("id")) }),
		cloud.Try("POST /begin", id, func(a cloud.Args) error { return s.set.Begin(a.String("id")) }),
	))
	v.Shown = "/events"
	v.Views["/events"] = func() any { return s.set.Events() }
	v.Views["/books"] = func() any { return s.set.Books() }
	return v
}
