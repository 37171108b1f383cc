// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
)

// openAlibaba makes the source of notices and the completer of hooks of an ECS instance.
func openAlibaba(a *daemonAdapter, inst metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	opts, s := a.cloudOptions()
	p, err := alibaba.New(opts)
	if err != nil {
		return nil, nil, err
	}
	scaling, err := p.ESS(alibaba.APIOptions{Endpoint: s.Endpoints[endpointESS], Proxy: a.g.proxy()})
	if err != nil {
		return nil, nil, err
	}
	return lifecycle.NewAlibabaSource(p, inst.ID, alibaba.WatchOptions{Scaling: scaling}, a.g.log()),
		lifecycle.NewAlibabaCompleter(scaling, lifecycle.AlibabaCompleterOptions{Hooks: a.hookNames, Log: a.g.log()}), nil
}
