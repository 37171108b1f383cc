// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Verbs are those of the metadata service:
//
//	GET, PATCH /instance       what is served; JSON: the fields in it are replaced
//	PUT    /item?path=P        the body becomes meta-data/P, 404 when it is empty
//	PUT    /tag?key=K          the body becomes the tag's value
//	POST   /expire-tokens, /rotate-credentials
//	PUT    /target             the body becomes the target lifecycle state, absent when it is empty
//	POST   /spot               ?action=terminate&in=120s
//	POST   /rebalance
//	POST   /scheduled          JSON: one maintenance event
//	DELETE /signals            all of them but the target
//	POST   /fault              see [cloud.Fault]; GET, DELETE /fault
//	GET    /requests
//
// With an Auto Scaling API also those of [AutoScaling.Verbs], below /asg/.
func (s *Server) Verbs() cloud.Verbs {
	return s.WithFaults(s.Served.Verbs("/instance",
		cloud.Item(func(path, text string) { s.Update(func(i *Instance) { cloud.Set(&i.Extra, path, text) }) }),
		cloud.Do("PUT /tag", cloud.Params{"key": "", cloud.Text: ""}, func(a cloud.Args) {
			s.Update(func(i *Instance) { cloud.Set(&i.Tags, a.String("key"), a.String(cloud.Text)) })
		}),
		cloud.Do("POST /expire-tokens", nil, func(cloud.Args) { s.ExpireTokens() }),
		cloud.Do("POST /rotate-credentials", nil, func(cloud.Args) { s.RotateCredentials() }),
		cloud.Do("PUT /target", cloud.Params{cloud.Text: ""}, func(a cloud.Args) { s.SetTarget(a.String(cloud.Text)) }),
		cloud.Do("POST /spot", cloud.Params{"action": "terminate", "in": 2 * time.Minute}, func(a cloud.Args) {
			s.Interrupt(a.String("action"), time.Now().Add(a.Duration("in")))
		}),
		cloud.Do("POST /rebalance", nil, func(cloud.Args) { s.Recommend(time.Now()) }),
		cloud.Try("POST /scheduled", cloud.Params{cloud.Text: ""}, func(a cloud.Args) error {
			e := Scheduled{ID: "instance-event-0d59937288b749b32", Code: "instance-reboot", State: "active", NotBefore: time.Now().Add(time.Hour)}
			err := cloud.Decode(a.String(cloud.Text), &e)
			if err == nil {
				s.Schedule(e)
			}
			return err
		}),
		cloud.Do("DELETE /signals", nil, func(cloud.Args) { s.ClearSignals() }),
	))
}
