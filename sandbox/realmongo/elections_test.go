// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package realmongo_test

import (
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// A set elects another primary when its primary steps down, dies or hangs, and a
// member that was killed comes back.
func TestRealReplicaSet(t *testing.T) {
	t.Parallel()
	s := start(t, realmongo.Options{Members: 3, Users: map[string]string{"cluster": "secret"}})
	first, err := s.Primary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first != s.Member(0) {
		t.Errorf("the primary is %s, not the first member", first.Addr())
	}
	if err := insert(t, s.URI(), bson.M{"_id": "before"}); err != nil {
		t.Fatal(err)
	}
	if err := s.StepDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := insert(t, s.URI(), bson.M{"_id": "after a step down"}); err != nil {
		t.Error(err)
	}
	second, err := s.Primary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if second == first {
		t.Errorf("%s is still the primary", first.Addr())
	}
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := insert(t, s.URI(), bson.M{"_id": "after a kill"}); err != nil {
		t.Error(err)
	}
	if err := second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}
