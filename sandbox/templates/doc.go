// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package templates reads what packaging/cloud and packaging/image give to
// operators: it evaluates each template with sample values, as far as that goes
// without a cloud, and holds what comes out against one list of what a cluster
// needs. It has no API; there is nothing to import.
package templates
