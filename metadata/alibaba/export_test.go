// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import "github.com/amsagent/amsagent/metadata/record"

// Policy is the recording policy, for tests.
func Policy() record.Policy { return policy{} }
