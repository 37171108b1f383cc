// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads the instance metadata of Azure.
package azure

import "github.com/amsagent/amsagent/metadata/cloud"

// Name of this provider.
const Name = "azure"

// New opens the provider. It makes no request.
func New(cloud.Options) (cloud.Provider, error) {
	return nil, &cloud.UnsupportedError{Provider: Name}
}
