// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package lint reads what people copy from guides before a machine runs it: user
// data, a configuration of HAProxy, one of MongoDB. It finds what does not work, or
// works for everybody on the network, and gives the corrected text.
//
// It goes by lines and keeps all that it does not mean to change. It does not
// understand shell: what a variable holds is not known to it.
//
// Its API is not stable yet.
package lint
