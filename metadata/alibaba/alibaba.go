// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package alibaba reads the instance metadata of Alibaba Cloud.
package alibaba

import "github.com/amsagent/amsagent/metadata/cloud"

// Name of this provider.
const Name = "alibaba"

// New opens the provider. It makes no request.
func New(cloud.Options) (cloud.Provider, error) {
	return nil, &cloud.UnsupportedError{Provider: Name}
}
