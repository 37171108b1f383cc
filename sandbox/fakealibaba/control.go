// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Verbs are those of the metadata service:
//
//	GET, PATCH /instance       what is served; JSON: the fields in it are replaced
//	PUT    /item?path=P        the body becomes the item below the version, 404 when it is empty
//	POST   /expire-tokens
//	POST   /spot               ?in=5m
//	PUT    /events             the body becomes the list of active system events
//	DELETE /signals            both
//	POST   /fault              see [cloud.Fault]; GET, DELETE /fault
//	GET    /requests
//
// With a cloud also those of [Cloud.Verbs], below /cloud/.
func (s *Server) Verbs() cloud.Verbs {
	return s.WithFaults(s.Served.Verbs("/instance",
		cloud.Item(func(path, text string) { s.Update(func(i *Instance) { cloud.Set(&i.Extra, path, text) }) }),
		cloud.Do("POST /expire-tokens", nil, func(cloud.Args) { s.ExpireTokens() }),
		cloud.Do("POST /spot", cloud.Params{"in": 5 * time.Minute}, func(a cloud.Args) { s.Interrupt(time.Now().Add(a.Duration("in"))) }),
		cloud.Do("PUT /events", cloud.Params{cloud.Text: ""}, func(a cloud.Args) { s.Announce(a.String(cloud.Text)) }),
		cloud.Do("DELETE /signals", nil, func(cloud.Args) {
			s.Interrupt(time.Time{})
			s.Announce("")
		}),
	))
}
