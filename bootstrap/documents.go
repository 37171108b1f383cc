// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
)

func (j *joiner) modeNow() (conf.Mode, error) {
	in, err := j.open()
	if err != nil {
		return "", err
	}
	return in.Mode()
}

// dropDocuments follows a rollback to standalone: nothing updates the documents any more.
func (j *joiner) dropDocuments(ctx context.Context) {
	if mode, err := j.modeNow(); err != nil || mode != conf.ModeStandalone {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	if _, _, err := j.facts.client.DeleteAMSNodes(ctx, j.facts.address.Addr.String(), "", time.Now()); err != nil {
		j.log().Warn("the document of Ant Media Server in the cluster could not be removed", "error", err)
	}
}

// dropFormer removes the document of the former address, which would stay forever. The server's id is the
// machine's followed by the address.
func (j *joiner) dropFormer(ctx context.Context) {
	f := j.facts
	if f.state == nil || f.state.Address == "" || f.state.InstanceID != f.inst.ID || !j.result.Restarted || j.result.Evidence == nil {
		return
	}
	former := f.state.Address
	machine, found := strings.CutSuffix(j.result.Evidence.ID, f.address.Addr.String())
	if !found || machine == "" || cluster.SameAddress(former, f.address.Addr.String()) {
		return
	}
	// Later writes are another machine's, for example a copy's.
	if _, _, err := f.client.DeleteAMSNodes(ctx, former, machine+former, j.result.Evidence.Updated); err != nil {
		j.log().Warn("the document of Ant Media Server's former address could not be removed", "address", former, "error", err)
	}
}
