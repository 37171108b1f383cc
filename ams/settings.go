// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import "github.com/amsagent/amsagent/conf"

// ServerSettings reads red5.properties as it is now. It holds secrets: take the
// keys that are needed and drop the rest. A running server knows what the file
// said at its start.
func (in *Installation) ServerSettings() (*conf.Properties, error) { return in.serverProperties() }
