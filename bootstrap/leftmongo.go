// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"slices"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
)

// LeftMongoPath holds the connection string while MongoPath may not: from before a
// join registers this machine until its files are proved, and from when a leave
// gives MongoPath back until MongoDB was told. The leave that goes on after a
// crash, or when MongoDB is there again, is the same command, and nobody has to
// say it again.
const LeftMongoPath = StateDir + "/mongo"

// keepMongo writes it, where this plan is about to change the other one.
func keepMongo(store *conf.Store, plan *conf.Plan, mongo cluster.Target) error {
	changed := slices.ContainsFunc(plan.Changed(), func(f conf.PlannedFile) bool { return f.Before.Path == MongoPath })
	if !changed || mongo.IsZero() {
		return nil
	}
	return store.WriteFile(LeftMongoPath, []byte(mongo.Raw().Reveal()+"\n"), 0o600, 0o700)
}

// dropMongo removes it where no leave is under way that needs it.
func dropMongo(store *conf.Store, s *State) error {
	if s != nil && s.Phase == PhaseLeaving {
		return nil
	}
	return store.RemoveFile(LeftMongoPath)
}
