// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/aws"
)

// openAWS makes the source of notices and the completer of hooks of an EC2 instance.
func openAWS(a *daemonAdapter, inst metadata.Instance) (lifecycle.Source, lifecycle.Completer, error) {
	opts, s := a.cloudOptions()
	p, err := aws.New(opts)
	if err != nil {
		return nil, nil, err
	}
	scaling, err := p.AutoScaling(aws.AutoScalingOptions{Endpoint: s.Endpoints[endpointAutoScaling], Proxy: a.g.proxy()})
	if err != nil {
		return nil, nil, err
	}
	return lifecycle.NewAWSSource(p, inst.ID, aws.WatchOptions{}, a.g.log()),
		lifecycle.NewAWSCompleter(scaling, lifecycle.AWSCompleterOptions{Group: inst.Group, Hooks: a.hookNames, Log: a.g.log()}), nil
}

// hookNames are those that the settings name now; they may change while the daemon runs.
func (a *daemonAdapter) hookNames() lifecycle.HookNames {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.g.settings.Hooks
}

// cloudOptions are those of the metadata, and the settings as they stand now: they may change while the daemon runs.
func (a *daemonAdapter) cloudOptions() (metadata.Options, settings) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.g.metadataOptions(), *a.g.settings
}
