// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package templates reads what packaging/cloud and packaging/image give to operators: it holds the text of each template
// against one list of facts, and runs the scripts that they give to machines. It has no API; there is nothing to import.
package templates
