// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"slices"

	"github.com/amsagent/amsagent/conf"
)

// LeftMongoPath holds the connection string from when a leave gives MongoPath back
// until MongoDB was told. The leave that goes on after a crash, or when MongoDB is
// there again, is the same command, and nobody has to say it again.
const LeftMongoPath = StateDir + "/mongo"

// keepMongo writes it, where this leave is about to take the other one away.
func (l *leaver) keepMongo() error {
	taken := slices.ContainsFunc(l.plan.Changed(), func(f conf.PlannedFile) bool { return f.Before.Path == MongoPath })
	if !taken || l.req.Mongo.IsZero() {
		return nil
	}
	return l.store.WriteFile(LeftMongoPath, []byte(l.req.Mongo.Raw().Reveal()+"\n"), 0o600, 0o700)
}
