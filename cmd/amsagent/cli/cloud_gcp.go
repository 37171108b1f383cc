// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
)

// openGCP makes the source of notices and the completer of hooks of a machine on Google Cloud; nil is that there is none.
func openGCP(_ *daemonAdapter, _ metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	return nil, nil, nil
}
