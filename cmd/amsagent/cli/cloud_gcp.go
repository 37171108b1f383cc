// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// openGCP makes the source of notices of a machine on Google Cloud, which need not be known for that. There is nothing to
// complete: no word of ours makes that cloud wait, or go on.
func openGCP(a *daemonAdapter, _ metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) { //nolint:unparam // as for every cloud
	opts, _ := a.cloudOptions()
	p, err := gcp.New(opts)
	if err != nil {
		return nil, nil, err
	}
	return lifecycle.NewGCPSource(p, a.g.log()), nil, nil
}
