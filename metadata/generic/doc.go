// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package generic identifies a machine without cloud metadata, by its files and default route. It makes no requests.
//
// As systemd asks, the machine id stays confidential: sd_id128_get_machine_app_specific derives the id from it.
package generic
