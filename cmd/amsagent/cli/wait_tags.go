// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/sleep"
)

// tagPause is the time between two looks at the tags: a metadata service throttles.
const tagPause = 2 * time.Second

// waitForTags waits until MongoDB and the role are known from any source: a scaling group tags a machine up to about a
// minute after its start.
func waitForTags(ctx context.Context, g *globals, limit time.Duration) error {
	bound, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	missing, err := notKnown(g)
	if err != nil || len(missing) == 0 {
		return err
	}
	g.out.Log().Info("waiting for the instance's tags", "missing", strings.Join(missing, ", "), "limit", limit)
	q := g.question()
	noTag, tagIt := errors.New("no instance tag, setting or flag gives it"), "tag the machine with amsagent:mongo and amsagent:role, or give --mongo and --role"
	why, hint := noTag, tagIt
	for {
		m, err := g.ask(bound, q)
		switch {
		case err == nil:
			if err = g.use(m); err != nil {
				return err // waiting does not correct a malformed tag
			}
			if missing, err = notKnown(g); err != nil || len(missing) == 0 {
				return err
			}
			why, hint, q.provider = noTag, cmp.Or(m.Instance.TagsHint, tagIt), m.Instance.Provider
		case bound.Err() == nil:
			why = err
		}
		if sleep.For(bound, tagPause) {
			continue
		}
		if ctx.Err() != nil {
			return &userError{Msg: "waiting for the instance's tags", Cause: context.Cause(ctx), State: stateUntouched}
		}
		return &userError{
			Msg: fmt.Sprintf("%s: not known after %s", strings.Join(missing, " and "), settings.ShortDuration(limit)), Cause: why,
			ID: idTimeout, Exit: exitUnknown, State: stateUntouched, Hints: []string{hint},
		}
	}
}

// notKnown names the settings that a node in a balancer's list needs and that no source has yet.
func notKnown(g *globals) (missing []string, err error) {
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
