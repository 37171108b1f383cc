// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import "github.com/amsagent/amsagent/metadata/record"

// Policy is the redaction policy of a recording.
func Policy() record.Policy { return policy{} }
