// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

// ReadXML reads an answer of the API, for tests.
func ReadXML(body []byte, name string) (root string, found []map[string]string, err error) {
	return readXML(body, name)
}
