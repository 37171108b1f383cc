// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/azure"
)

// openAzure makes the source of notices and the completer of hooks of a machine on Azure. The instance need not be known:
// scheduled events are asked for from the first moment on, and who this machine is is found out beside that.
func openAzure(a *daemonAdapter, _ metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	opts, s := a.cloudOptions()
	p, err := azure.New(opts)
	if err != nil {
		return nil, nil, err
	}
	files := drainFiles{&conf.Store{Root: s.Root, Dir: bootstrap.StateDir}}
	source := lifecycle.NewAzureSource(p, lifecycle.AzureSourceOptions{
		Announced: func() (map[string]string, error) { return lifecycle.AzureAnnounced(files) }, Log: a.g.log(),
	})
	return source, lifecycle.NewAzureCompleter(p), nil
}
