// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"slices"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
)

// LeftMongoPath holds the connection string while MongoPath cannot: until a join is verified, and after a leave
// restored MongoPath until it deregisters. A repeated command then needs no address.
const LeftMongoPath = StateDir + "/mongo"

func keepMongo(store *conf.Store, plan *conf.Plan, mongo cluster.Target) error {
	changed := slices.ContainsFunc(plan.Changed(), func(f conf.PlannedFile) bool { return f.Before.Path == MongoPath })
	if !changed || mongo.IsZero() {
		return nil
	}
	return store.WriteFile(LeftMongoPath, []byte(mongo.Raw().Reveal()+"\n"), 0o600, 0o700)
}

func dropMongo(store *conf.Store, s *State) error {
	if s != nil && s.Phase == PhaseLeaving {
		return nil
	}
	return store.RemoveFile(LeftMongoPath)
}
