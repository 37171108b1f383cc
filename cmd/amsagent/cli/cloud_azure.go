// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
)

// openAzure makes the source of notices and the completer of hooks of a machine on Azure; nil is that there is none.
func openAzure(_ *daemonAdapter, _ metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	return nil, nil, nil
}
