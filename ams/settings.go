// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import "github.com/amsagent/amsagent/conf"

// ServerSettings reads the current red5.properties. It holds secrets: keep only the needed keys. A running server uses
// the file's content of its start.
func (in *Installation) ServerSettings() (*conf.Properties, error) { return in.serverProperties() }
