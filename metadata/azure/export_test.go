// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import "github.com/amsagent/amsagent/metadata/cloud"

// NewUnpaced is New without the pace.
func NewUnpaced(opts cloud.Options) (*Provider, error) {
	p, err := New(opts)
	if err == nil {
		p.reads, p.polls = newPace(1000), newPace(1000)
	}
	return p, err
}
