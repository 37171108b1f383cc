// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import "net/http"

// HTTPTransport is the transport below HTTPClient, for tests.
func HTTPTransport(o Options) http.RoundTripper { return o.newTransport() }
