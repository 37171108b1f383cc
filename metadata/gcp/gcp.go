// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package gcp reads the instance metadata of Google Cloud.
package gcp

import "github.com/amsagent/amsagent/metadata/cloud"

// Name of this provider.
const Name = "gcp"

// New opens the provider. It makes no request.
func New(cloud.Options) (cloud.Provider, error) {
	return nil, &cloud.UnsupportedError{Provider: Name}
}
