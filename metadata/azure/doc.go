// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads the instance metadata service of Azure, and its Scheduled Events.
//
// The service answers five requests in a second, of all programs on the machine together. To read the instance takes one
// request, Watch makes one in a second. An answer 429 is waited out.
//
// Watch polls Scheduled Events and reports those about this machine. Hooks acknowledges them, which is the one thing that Azure
// takes from a machine. Both speak to the metadata address and need no credentials.
//
// Reading and parsing are apart: the parse functions make no request and are fuzzed. It never asks for user data.
//
// The API is not stable yet.
package azure
