// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata"
)

const (
	// tagPause is the time between two looks at the tags: a metadata service throttles.
	tagPause = 2 * time.Second
	// lateTags is how long a group may take to tag a machine. On EC2 a machine without a tag looks as one whose tags are
	// switched off.
	lateTags = time.Minute
)

// waitForTags waits until MongoDB and the role are known from any source: a scaling group tags a machine up to about a
// minute after its start.
func (g *globals) waitForTags(ctx context.Context, limit time.Duration) error {
	began := time.Now()
	bound, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for n := 1; ; n++ {
		missing, err := g.notKnown()
		if err != nil || len(missing) == 0 {
			return err
		}
		m, err := g.instance(bound)
		var malformed *settingError
		switch {
		case errors.As(err, &malformed):
			return err // waiting does not correct it
		case err == nil:
			if missing, err = g.notKnown(); err != nil || len(missing) == 0 {
				return err
			}
			if tagsAreOff(m.Instance) && (m.Instance.Provider != metadata.AWS || time.Since(began)+tagPause >= min(limit, lateTags)) {
				return &userError{
					Msg: "cannot wait for tags", ID: idPreflight, Exit: exitPreflight, State: stateUntouched,
					Cause: fmt.Errorf("this machine sees no instance tags, and nothing else gives %s", strings.Join(missing, " and ")), Hints: []string{m.Instance.TagsHint},
				}
			}
		}
		if n == 1 {
			g.log().Info("waiting for the instance's tags", "missing", strings.Join(missing, ", "), "limit", limit)
		}
		select {
		case <-time.After(tagPause):
			continue
		case <-bound.Done():
		}
		if ctx.Err() != nil {
			return &userError{Msg: "waiting for the instance's tags", Cause: context.Cause(ctx), State: stateUntouched}
		}
		if err == nil {
			err = errors.New("no instance tag, setting or flag gives it")
		}
		return &userError{
			Msg: fmt.Sprintf("%s: not known after %s", strings.Join(missing, " and "), shortDuration(limit)), Cause: err,
			ID: idTimeout, Exit: exitUnknown, State: stateUntouched,
			Hints: []string{"tag the machine with amsagent:mongo and amsagent:role, or give --mongo and --role"},
		}
	}
}

// notKnown names what a node in a balancer's list needs and no source gives yet.
func (g *globals) notKnown() (missing []string, err error) {
	switch _, err := g.mongo(); {
	case errors.Is(err, errNoMongo):
		missing = append(missing, "the address of MongoDB")
	case err != nil:
		return nil, err
	}
	if g.settings.Role == "" {
		missing = append(missing, "the role")
	}
	return missing, nil
}

// tagsAreOff reports whether the tags of a machine stay unknown. On Alibaba Cloud they come by an API, whose network or
// permission may be later than the machine.
func tagsAreOff(inst metadata.Instance) bool {
	return !inst.TagsKnown && !slices.Contains(inst.Missing, "tags") && inst.Provider != metadata.Alibaba
}
