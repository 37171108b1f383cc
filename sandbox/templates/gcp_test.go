// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import "testing"

const gcpTerraform = "../../packaging/cloud/gcp/terraform"

func TestGCPTerraform(t *testing.T) {
	s := read(t, gcpTerraform+"/*.tf")
	s.meets(t, "gcp")
	s.references(t)
}

// gcpNode is the startup script of a node, the same for each role.
func gcpNode(t *testing.T) string {
	t.Helper()
	return filled(t, read(t, gcpTerraform+"/*.tf").heredoc(t), "${", "}", map[string]string{"var.project": "PROJECT", "google_secret_manager_secret.mongo.secret_id": "SECRET"})
}

// gcpMongo is the startup script of MongoDB's machine.
func gcpMongo(t *testing.T) string {
	t.Helper()
	return filled(t, contents(t, gcpTerraform+"/mongo.sh.tftpl"), "${", "}", map[string]string{
		"project": "PROJECT", "secret": "SECRET", "release": "8.0", "databases": "live", "install": contents(t, install),
	})
}
