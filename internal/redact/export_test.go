// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package redact

// IsOwnWord is for the fuzz test.
var IsOwnWord = isOwnWord
