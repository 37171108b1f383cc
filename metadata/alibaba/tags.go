// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	// ecsTimeout bounds the question for the tags: a machine without a way to the API must not join late for it.
	ecsTimeout = 4 * time.Second
	// deafTime is how long a refusal is believed. Role and policy are changed by people.
	deafTime = 10 * time.Minute
	// farTime is the same for an API that cannot be reached.
	farTime = 30 * time.Second
)

const hintTags = "the metadata of Alibaba Cloud show no tags: give the instance a RAM role that may ecs:ListTagResources, write a line " +
	"such as amsagent-role=edge into the user data, or give role and group by flag, environment or configuration file"

// readTags reads the two places that the agent's tags can be in: the user data, and the tags of the instance by the API,
// which win.
//
// A tags folder in the metadata is not asked for: the switch for it is documented as a preview that nobody can turn on,
// and what it would look like is not.
func (p *Provider) readTags(ctx context.Context, self Identity) (cloud.TagSet, error) {
	user, err := cloud.ReadItem(ctx, p.items, optional("user data", "user-data"), func(body []byte) (cloud.Tags, error) { return ParseUserData(body), nil })
	if err != nil && !errors.Is(err, cloud.ErrNotFound) {
		return cloud.TagSet{Hint: cloud.Unread("tags", err)}, err
	}
	set := cloud.TagSet{Tags: user}
	p.mu.Lock()
	deaf, why := time.Now().Before(p.deaf), p.why
	p.mu.Unlock()
	if deaf {
		set.Hint = why
		return set, nil
	}
	p.ecs.know(self)
	tags, err := p.instanceTags(ctx, self)
	if err == nil {
		if set.Tags == nil {
			set.Tags = cloud.Tags{}
		}
		maps.Copy(set.Tags, tags)
		set.Known, set.Group = true, set.Tags[tagGroup]
		return set, nil
	}
	denied, isDenied := errors.AsType[*DeniedError](err)
	_, far := errors.AsType[*UnreachableError](err)
	switch {
	case isDenied && denied.NoRole:
		// One request, so it is made again: a role can be given at any time. With what stands in the user data nobody
		// needs one.
		if set.Known = len(user) > 0; !set.Known {
			set.Hint = hintTags
		}
		return set, nil
	case isDenied, far:
		set.Hint = fmt.Sprintf("%s (asking the ECS API: %v)", hintTags, err)
		quiet := deafTime
		if far {
			// At boot the way out may come later than we do. Whoever waits for the tags comes again.
			quiet = farTime
		}
		p.mu.Lock()
		p.deaf, p.why = time.Now().Add(quiet), set.Hint
		p.mu.Unlock()
		return set, nil
	}
	// A tag that is there and unread could be the role: the caller must not think that it is not there.
	set.Hint = cloud.Unread("tags", err)
	return set, &cloud.Error{Provider: Name, Item: "tags of the instance", Kind: cloud.ErrNotReady, Cause: err}
}

// instanceTags asks the ECS API.
func (p *Provider) instanceTags(ctx context.Context, self Identity) (cloud.Tags, error) {
	tags := cloud.Tags{}
	next := ""
	for range maxPages {
		params := url.Values{"ResourceType": {"instance"}, "ResourceId.1": {self.InstanceID}}
		if next != "" {
			params.Set("NextToken", next)
		}
		var out struct {
			Tags list[struct {
				ID    string `json:"ResourceId"`
				Key   string `json:"TagKey"`
				Value string `json:"TagValue"`
			}] `json:"TagResources"`
			Next string `json:"NextToken"`
		}
		if err := p.ecs.call(ctx, "ListTagResources", params, &out); err != nil {
			return nil, err
		}
		for _, t := range out.Tags {
			if t.Key != "" && (t.ID == "" || t.ID == self.InstanceID) {
				tags[t.Key] = t.Value
			}
		}
		if out.Next == "" || out.Next == next {
			break
		}
		next = out.Next
	}
	return tags, nil
}
