// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package realmongo_test

import (
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// A set elects another primary when its primary steps down, dies or hangs, and a
// member that was killed comes back.
func TestRealReplicaSet(t *testing.T) {
	t.Parallel()
	s := start(t, realmongo.Options{Members: 3, Users: map[string]string{"cluster": "secret"}})
	first, err := s.Primary(t.Context())
	must.OK(t, err)
	if first != s.Member(0) {
		t.Errorf("the primary is %s, not the first member", first.Addr())
	}
	must.OK(t, insert(t, s.URI(), bson.M{"_id": "before"}))
	must.OK(t, s.StepDown(t.Context()))
	if err := insert(t, s.URI(), bson.M{"_id": "after a step down"}); err != nil {
		t.Error(err)
	}
	second, err := s.Primary(t.Context())
	must.OK(t, err)
	if second == first {
		t.Errorf("%s is still the primary", first.Addr())
	}
	must.OK(t, second.Kill())
	if err := insert(t, s.URI(), bson.M{"_id": "after a kill"}); err != nil {
		t.Error(err)
	}
	must.OK(t, second.Start(t.Context()))
}
