// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/aws"
)

// openAWS makes the source of notices and the completer of hooks of an EC2 instance.
func openAWS(a *daemonAdapter, inst metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	opts, s, err := a.cloudOptions()
	if err != nil {
		return nil, nil, err
	}
	p, err := aws.New(opts)
	if err != nil {
		return nil, nil, err
	}
	scaling, err := p.AutoScaling(aws.AutoScalingOptions{Endpoint: s.AWSAutoscalingEndpoint, Proxy: a.g.proxy()})
	if err != nil {
		return nil, nil, err
	}
	return lifecycle.NewAWSSource(p, inst.ID, aws.WatchOptions{}, a.g.log()),
		lifecycle.NewAWSCompleter(scaling, lifecycle.AWSCompleterOptions{Group: inst.Group, Hooks: a.hookNames, Log: a.g.log()}), nil
}

// hookNames are those that the settings name now; they may change while the daemon runs. Who completes another program's hook
// cannot take it back: where a tag may name them that was not read yet, the tags are read first. It is an error where a tag
// may name them and none was ever read.
func (a *daemonAdapter) hookNames(ctx context.Context) (lifecycle.HookNames, error) {
	ctx, cancel := context.WithTimeout(ctx, hookTagTime)
	defer cancel()
	if a.hookTagMayCome(ctx) {
		_, _ = a.identify(ctx) // where it says nothing, what was known holds
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// Where the tags alone could not be read, or are malformed, those that they named hold; a name that was taken out of a
	// file does not.
	unread := a.hookTagUnread()
	if names := a.g.settings.Hooks; len(names) > 0 || !a.identified.IsZero() && (a.inst.TagsKnown && unread == nil || !a.hooksTagged) {
		a.hooks, a.hooksTagged = slices.Clone(names), a.g.settings.origin(keyHooks).Layer == layerTag
	}
	if len(a.hooks) == 0 && unread != nil {
		return nil, fmt.Errorf("which hooks are this agent's is not known: %w", unread)
	}
	return slices.Clone(a.hooks), nil
}

// hookTagUnread is why it is not known what the tag says that may name hooks: it is malformed, or the tags, which are there,
// were not all read since the settings were.
func (a *daemonAdapter) hookTagUnread() error {
	switch {
	case anySetting(a.tagErr, func(e *settingError) bool { return e.key == keyHooks }):
		return a.tagErr
	case a.tagsRead || !slices.Contains(a.inst.Missing, "tags"):
		return nil
	}
	unread := map[string]string{}
	for _, name := range a.inst.TagsUnread {
		unread[name] = name // a blank one counts as none
	}
	if _, _, there := findTag(unread, a.g.settings.values[keyTagHooks].text); len(unread) > 0 && !there {
		return nil // it is another tag that cannot be read, for whatever reason and how long
	}
	return errors.New(a.inst.TagsHint)
}

const (
	// hookTagTime bounds reading the tags for the names of hooks.
	hookTagTime = 2 * time.Second
	// hookTagAge is how long an answer holds that did not have the tags.
	hookTagAge = 30 * time.Second
)

// hookTagMayCome reports whether nobody names hooks as far as is known, and the tags were not read since the settings were, could
// not be, or were read before they had to be there. What was known of them is then forgotten.
func (a *daemonAdapter) hookTagMayCome(ctx context.Context) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.g.settings.Hooks) > 0 {
		return false
	}
	age := time.Since(a.identified)
	up, known := a.g.uptime(ctx)
	if a.identified.IsZero() || a.hookTagUnread() != nil || known && up-age < lateTags || !a.inst.TagsKnown && age > hookTagAge {
		a.identified = time.Time{}
		return true
	}
	return false
}

// cloudOptions are those of the metadata, and the settings as they stand now: they may change while the daemon runs.
func (a *daemonAdapter) cloudOptions() (metadata.Options, settings, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	opts, err := a.g.metadataOptions("")
	return opts, *a.g.settings, err
}
