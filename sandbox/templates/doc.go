// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package templates reads what packaging/cloud and packaging/image give to operators: it checks each template against one table of
// requirements (requirements_test.go), and runs the scripts that they give to machines. It has no API; there is nothing to import.
package templates
