// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
)

// openAlibaba makes the source of notices and the completer of hooks of a machine on Alibaba Cloud; nil is that there is none.
func openAlibaba(_ *daemonAdapter, _ metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	return nil, nil, nil
}
