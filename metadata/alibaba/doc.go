// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package alibaba reads the instance metadata of Alibaba Cloud, watches it for signals, and speaks to the two APIs that
// know what the metadata do not tell: Auto Scaling (ESS), which takes a machine away without any word in the metadata, and
// ECS, where the tags are.
//
// Both are spoken to by hand, with signature V3 (see sign): the maintained generic client costs 1.8 MB of a binary of 14,
// for six calls with a handful of fields. Credentials are those of the instance's RAM role and of nobody else; they are
// asked of the metadata service, kept in memory until shortly before they end, and never logged.
//
// The API is not stable yet.
package alibaba
