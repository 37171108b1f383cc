// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// aws/aws-node-termination-handler#229, #668: the session token expired, every later poll was refused, and the notice was
// missed. Here the token expires every minute for an hour, in which there is less than one request a second; then the notice
// comes at the moment of an expiry.
func TestFieldReport03_TokenExpiresUnderThePolling(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		e.watch(t)
		e.Look(state, time.Minute, metadatatest.Any)
		for range 60 {
			e.ExpireTokens()
			e.Look(state, time.Minute, metadatatest.Any)
		}
		if n := len(e.Requests()); n > 61*60 || n < 43*60 {
			t.Errorf("%d requests in 61 minutes", n)
		}
		e.ExpireTokens()
		must.OK(t, e.asg.Terminate(self))
		e.Look(state, 4*time.Second, metadatatest.Any, scaleIn())
		must.Equal(t, "tokens for one at first and 61 expiries", e.Asked("/latest/api/token", time.Time{}), 62)
		must.Equal(t, "log", e.log.String(), "")
	})
}

// buildkite/agent#491: at boot the tags of the group were not on the instance yet, and the program continued without its role.
// The agent reads them again for about a minute.
func TestFieldReport07_TagsComeAfterTheBoot(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		tags := e.Get().Tags
		e.Update(func(i *fakeaws.Instance) { i.Tags = map[string]string{"Name": "edge"} })
		inst, err := e.p.Instance(t.Context())
		must.OK(t, err)
		if inst.Tags["amsagent:role"] != "" || !inst.TagsKnown {
			t.Fatalf("tags %v, known %v: there is nothing to wait for", inst.Tags, inst.TagsKnown)
		}
		time.AfterFunc(41*time.Second, func() { e.Update(func(i *fakeaws.Instance) { i.Tags = tags }) })
		begin := time.Now()
		role := ""
		for role == "" && time.Since(begin) < time.Minute {
			<-time.After(2 * time.Second)
			inst, err = e.p.Instance(t.Context())
			must.OK(t, err)
			role = inst.Tags["amsagent:role"]
		}
		if role != "edge" || inst.Group != group {
			t.Errorf("role %q, group %q", role, inst.Group)
		}
		if took := time.Since(begin); took < 41*time.Second || took > 45*time.Second {
			t.Errorf("took %v for tags that come after 41 s", took)
		}
	})
}

// github-aws-runners/terraform-aws-github-runner#2592, seek-oss/aec#411: a tag key with a space forbids tags in the metadata
// (or, if they are on, the launch). Such machines have no tags there, and the role must come in another way: the instance must
// be readable without tags, and name the other ways. If a service lists such a key all the same, the agent must neither request
// a broken path for it nor treat the role as absent.
func TestFieldReport08_TagKeysWithSpaces(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		more    map[string]string
		missing bool
	}{
		"tags are off": {map[string]string{meta + "tags/instance": gone}, false},
		"a key with a space is listed": {map[string]string{
			meta + "tags/instance": "Name\ncost center\namsagent:role", meta + "tags/instance/cost center": "42",
		}, true},
		"a key with a slash is listed": {map[string]string{meta + "tags/instance": "Name\nteam/stage\namsagent:role"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := replay.New(t, service().Protocol, bodies(tt.more, map[string]string{meta + "tags/instance/aws:autoscaling:groupName": gone}))
				p, err := aws.New(cloud.Options{Transport: fakes.Transport{Handler: f}})
				must.OK(t, err)
				inst, err := p.Instance(t.Context())
				if err != nil {
					t.Fatalf("the instance cannot be read: %v", err)
				}
				if inst.ID == "" || !inst.Address.IsValid() {
					t.Errorf("instance %+v", inst)
				}
				if inst.TagsKnown {
					t.Errorf("tags %v: a role that cannot be seen is not one that is not set", inst.Tags)
				}
				if inst.TagsHint == "" || (!tt.missing && !strings.Contains(inst.TagsHint, "by flag, environment or configuration file")) {
					t.Errorf("hint %q", inst.TagsHint)
				}
				for _, r := range f.Seen() {
					if strings.ContainsAny(r.URL.Path, " ") || strings.Contains(r.URL.Path, "team") {
						t.Errorf("asked for %q", r.URL.Path)
					}
				}
			})
		})
	}
}
