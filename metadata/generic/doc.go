// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package generic reads the identity of a machine without cloud metadata: from the instance data of cloud-init, or else from
// the machine id, the host name and the address of the default route.
//
// It makes no requests. The machine id itself never leaves this package, because systemd asks to keep it confidential. An id
// derived by systemd's own method (sd_id128_get_machine_app_specific) replaces it.
//
// The API is not stable yet.
package generic
