// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import "testing"

const gcpTerraform = "../../packaging/cloud/gcp/terraform"

// gcpFacts: rules go by accounts, a machine is replaced by /healthz and served by /readyz, and each account has one right to one secret.
var gcpFacts = facts{
	says: map[string]string{
		"locals": `
			balancers = ["130.211.0.0/22", "35.191.0.0/16"]
			checks = ["130.211.0.0/22", "35.191.0.0/16", "209.85.152.0/22", "209.85.204.0/22"]
			http_ports = { http = { port = 80, role = "origin" }, edge-http = { port = 5080, role = "edge" } }
			https_ports = var.certificate == "" ? {} : {
			https = { port = 443, role = "origin" }, edge-https = { port = 5443, role = "edge" }`,
		"variable.roles": `
			origin = { type = "n2-standard-4", min = 1, max = 10 }
			edge = { type = "n2-standard-4", min = 1, max = 10 }`,
		"variable.drain_seconds": `default = 3600`,
		"google_compute_health_check.ready google_compute_region_health_check.ready": `
			check_interval_sec = 10
			healthy_threshold = 2
			unhealthy_threshold = 2
			port = 9771
			request_path = "/readyz"`,
		"google_compute_health_check.alive": `
			port = 9771
			request_path = "/healthz"`,
		"google_compute_backend_service.node": `
			load_balancing_scheme = "EXTERNAL_MANAGED"
			protocol = "HTTP"
			port_name = "ams"
			health_checks = [google_compute_health_check.ready.id]
			timeout_sec = 86400
			connection_draining_timeout_sec = var.drain_seconds
			session_affinity = "GENERATED_COOKIE"
			group = google_compute_region_instance_group_manager.node[each.key].instance_group`,
		"google_compute_url_map.node":           `default_service = google_compute_backend_service.node[each.key].id`,
		"google_compute_target_http_proxy.node": `url_map = google_compute_url_map.node[each.key].id`,
		"google_compute_target_https_proxy.node": `
			for_each = var.certificate == "" ? {} : var.roles
			url_map = google_compute_url_map.node[each.key].id
			ssl_certificates = [var.certificate]`,
		"google_compute_global_forwarding_rule.http": `
			for_each = local.http_ports
			load_balancing_scheme = "EXTERNAL_MANAGED"
			port_range = each.value.port
			target = google_compute_target_http_proxy.node[each.value.role].id`,
		"google_compute_global_forwarding_rule.https": `
			for_each = local.https_ports
			load_balancing_scheme = "EXTERNAL_MANAGED"
			port_range = each.value.port
			target = google_compute_target_https_proxy.node[each.value.role].id`,
		"google_compute_region_backend_service.rtmp": `
			protocol = "TCP"
			health_checks = [google_compute_region_health_check.ready.id]
			connection_draining_timeout_sec = var.drain_seconds
			session_affinity = "NONE"
			group = google_compute_region_instance_group_manager.node["origin"].instance_group`,
		"google_compute_forwarding_rule.rtmp": `
			ports = ["1935"]
			backend_service = google_compute_region_backend_service.rtmp.id`,
		"google_compute_address.mongo": `address_type = "INTERNAL"`,
		"google_compute_disk.mongo": `
			type = "pd-ssd"
			size = var.mongo_disk_size
			snapshot = var.mongo_snapshot == "" ? null : var.mongo_snapshot
			create_snapshot_before_destroy = true`,
		"google_compute_instance.mongo": `
			image = "debian-cloud/debian-12"
			source = google_compute_disk.mongo.id
			device_name = "mongo"
			network_ip = google_compute_address.mongo.address
			email = google_service_account.mongo.email
			startup-script = templatefile("${path.module}/mongo.sh.tftpl", {
			project = var.project
			secret = google_secret_manager_secret.mongo.secret_id
			release = var.mongo_release
			databases = join(",", var.mongo_databases)
			install = file("${path.module}/../../../image/mongodb/install.sh")
			})`,
		"google_compute_instance_template.node": `
			for_each = var.roles
			machine_type = each.value.type
			source_image = var.node_image
			access_config {}
			email = google_service_account.node[each.key].email
			provisioning_model = "STANDARD"
			preemptible = false
			enable_secure_boot = true
			amsagent-role = each.key`,
		"google_compute_region_instance_group_manager.node": `
			for_each = var.roles
			instance_template = google_compute_instance_template.node[each.key].id
			name = "ams"
			port = 5080
			health_check = google_compute_health_check.alive.id
			initial_delay_sec = 600
			type = "OPPORTUNISTIC"
			depends_on = [google_compute_instance.mongo, google_secret_manager_secret_iam_member.node]`,
		"google_compute_region_autoscaler.node": `
			target = google_compute_region_instance_group_manager.node[each.key].id
			min_replicas = each.value.min
			max_replicas = each.value.max
			mode = "ON"
			target = 0.6`,
	},
	lists: map[string]string{
		`^resource "google_compute_(firewall\w*)"|^source_(?:ranges|tags|service_accounts) = (.+)|^(target_(?:tags|service_accounts) = .+)|^protocol = "([a-z]+)"(?:\nports = (.+))?`: `
			firewall
			local.balancers
			target_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
			tcp ["5080", "9771"]
			firewall
			local.checks
			target_service_accounts = [google_service_account.node["origin"].email]
			tcp ["9771"]
			firewall
			[var.publisher_cidr]
			target_service_accounts = [google_service_account.node["origin"].email]
			tcp ["1935"]
			firewall
			[var.viewer_cidr]
			target_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
			udp ["50000-60000"]
			firewall
			[google_service_account.node["origin"].email, google_service_account.node["edge"].email]
			target_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
			tcp ["5000", "5080"]
			firewall
			[google_service_account.node["origin"].email, google_service_account.node["edge"].email]
			target_service_accounts = [google_service_account.mongo.email]
			tcp ["27017"]`,
		// The agent itself needs no right. No version of the secret is made here.
		`^resource "(google_\w*(?:_iam_|secret)\w*)" "(\w+)"|^(?:secret_id = (google.+)\n)?(role = "\w+/.+)\n(member = .+)`: `
			google_secret_manager_secret mongo
			google_secret_manager_secret_iam_member mongo
			google_secret_manager_secret.mongo.id role = "roles/secretmanager.secretVersionAdder" member = "serviceAccount:${google_service_account.mongo.email}"
			google_secret_manager_secret_iam_member node
			google_secret_manager_secret.mongo.id role = "roles/secretmanager.secretAccessor" member = "serviceAccount:${google_service_account.node[each.key].email}"`,
	},
}

func TestGCPTerraform(t *testing.T) {
	s := read(t, gcpTerraform+"/*.tf")
	s.check(t, gcpFacts)
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
