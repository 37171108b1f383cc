# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# A cluster of Ant Media Server on Google Cloud, for OpenTofu and Terraform. docs/guides/gcp.md says how to use it.
#
#   80, 443    -> origins, port 5080      5080, 5443 -> edges, port 5080      1935 (RTMP) -> origins
#   WebRTC     -> UDP 50000-60000 at the nodes' own public addresses
#
# The state has no secret in it: the machine of MongoDB makes the passwords and puts the connection string into Secret
# Manager, from where the nodes take it.
#
# Google Cloud has no hook: a machine that its group takes away has 120 s from the power button on, of which the agent
# drains for 90. So the machines are no Spot VMs, which have 30.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.14, < 8.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

locals {
  # From where Google's load balancers and their health checks come: the first two for HTTP, all for RTMP.
  balancers  = ["130.211.0.0/22", "35.191.0.0/16"]
  checks     = ["130.211.0.0/22", "35.191.0.0/16", "209.85.152.0/22", "209.85.204.0/22"]
  http_ports = { http = { port = 80, role = "origin" }, edge-http = { port = 5080, role = "edge" } }
  https_ports = var.certificate == "" ? {} : {
    https = { port = 443, role = "origin" }, edge-https = { port = 5443, role = "edge" }
  }
}

# --------------------------------------------------------------------------------------------------- network, identities

resource "google_compute_network" "cluster" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "cluster" {
  name          = var.name
  network       = google_compute_network.cluster.id
  ip_cidr_range = var.subnet_cidr
  # The machines reach Secret Manager by it.
  private_ip_google_access = true
}

resource "google_service_account" "node" {
  for_each     = var.roles
  account_id   = "${var.name}-${each.key}"
  display_name = "Ant Media Server, ${each.key}"
}

resource "google_service_account" "mongo" {
  account_id   = "${var.name}-mongo"
  display_name = "MongoDB of Ant Media Server"
}

# ------------------------------------------------------------------------------------------------- who may talk to whom

# What no rule lets in stays out. Rules go by the account of a machine, which nobody on it can change. SSH is not let in.
resource "google_compute_firewall" "http" {
  name          = "${var.name}-http"
  description   = "HTTP of Ant Media Server, and readiness of amsagent"
  network       = google_compute_network.cluster.id
  direction     = "INGRESS"
  source_ranges = local.balancers
  # Accounts of both roles.
  target_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
  allow {
    protocol = "tcp"
    ports    = ["5080", "9771"]
  }
}

resource "google_compute_firewall" "rtmp_ready" {
  name                    = "${var.name}-rtmp-ready"
  description             = "readiness of amsagent, for RTMP"
  network                 = google_compute_network.cluster.id
  direction               = "INGRESS"
  source_ranges           = local.checks
  target_service_accounts = [google_service_account.node["origin"].email]
  allow {
    protocol = "tcp"
    ports    = ["9771"]
  }
}

resource "google_compute_firewall" "rtmp" {
  name                    = "${var.name}-rtmp"
  description             = "RTMP; the load balancer hands packets on as they come"
  network                 = google_compute_network.cluster.id
  direction               = "INGRESS"
  source_ranges           = [var.publisher_cidr]
  target_service_accounts = [google_service_account.node["origin"].email]
  allow {
    protocol = "tcp"
    ports    = ["1935"]
  }
}

resource "google_compute_firewall" "webrtc" {
  name                    = "${var.name}-webrtc"
  description             = "WebRTC"
  network                 = google_compute_network.cluster.id
  direction               = "INGRESS"
  source_ranges           = [var.viewer_cidr]
  target_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
  allow {
    protocol = "udp"
    ports    = ["50000-60000"]
  }
}

resource "google_compute_firewall" "nodes" {
  name                    = "${var.name}-nodes"
  description             = "node to node"
  network                 = google_compute_network.cluster.id
  direction               = "INGRESS"
  source_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
  target_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
  allow {
    protocol = "tcp"
    ports    = ["5000", "5080"]
  }
}

resource "google_compute_firewall" "mongo" {
  name                    = "${var.name}-mongo"
  description             = "MongoDB, from the nodes"
  network                 = google_compute_network.cluster.id
  direction               = "INGRESS"
  source_service_accounts = [google_service_account.node["origin"].email, google_service_account.node["edge"].email]
  target_service_accounts = [google_service_account.mongo.email]
  allow {
    protocol = "tcp"
    ports    = ["27017"]
  }
}

# ------------------------------------------------------------------------------------------------------------- balancers

# The agent, not the server: it says no as soon as the node is to go, while the server still serves who is there.
resource "google_compute_health_check" "ready" {
  name                = "${var.name}-ready"
  check_interval_sec  = 10
  timeout_sec         = 5
  healthy_threshold   = 2
  unhealthy_threshold = 2
  http_health_check {
    port         = 9771
    request_path = "/readyz"
  }
}

resource "google_compute_region_health_check" "ready" {
  name                = "${var.name}-ready"
  region              = var.region
  check_interval_sec  = 10
  timeout_sec         = 5
  healthy_threshold   = 2
  unhealthy_threshold = 2
  http_health_check {
    port         = 9771
    request_path = "/readyz"
  }
}

# By which the groups replace a machine: not by readiness, since a node that drains is not ready on purpose, and while MongoDB is
# away no node is. The agent calls a machine unhealthy after five minutes without service by a fault of its own.
resource "google_compute_health_check" "alive" {
  name                = "${var.name}-alive"
  check_interval_sec  = 10
  timeout_sec         = 5
  healthy_threshold   = 1
  unhealthy_threshold = 6
  http_health_check {
    port         = 9771
    request_path = "/healthz"
  }
}

resource "google_compute_backend_service" "node" {
  for_each              = var.roles
  name                  = "${var.name}-${each.key}"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  protocol              = "HTTP"
  port_name             = "ams"
  health_checks         = [google_compute_health_check.ready.id]
  # The longest that a WebSocket lives, used or not: those of viewers live as long as their stream.
  timeout_sec = 86400
  # Who is on a node that leaves stays on it as long as the agent drains.
  connection_draining_timeout_sec = var.drain_seconds
  # The requests of one viewer go to one node.
  session_affinity = "GENERATED_COOKIE"
  backend {
    group           = google_compute_region_instance_group_manager.node[each.key].instance_group
    balancing_mode  = "UTILIZATION"
    capacity_scaler = 1
  }
}

resource "google_compute_url_map" "node" {
  for_each        = var.roles
  name            = "${var.name}-${each.key}"
  default_service = google_compute_backend_service.node[each.key].id
}

resource "google_compute_target_http_proxy" "node" {
  for_each = var.roles
  name     = "${var.name}-${each.key}"
  url_map  = google_compute_url_map.node[each.key].id
}

resource "google_compute_target_https_proxy" "node" {
  for_each         = var.certificate == "" ? {} : var.roles
  name             = "${var.name}-${each.key}"
  url_map          = google_compute_url_map.node[each.key].id
  ssl_certificates = [var.certificate]
}

resource "google_compute_global_address" "cluster" {
  name = var.name
}

resource "google_compute_global_forwarding_rule" "http" {
  for_each              = local.http_ports
  name                  = "${var.name}-${each.key}"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  ip_address            = google_compute_global_address.cluster.id
  ip_protocol           = "TCP"
  port_range            = each.value.port
  target                = google_compute_target_http_proxy.node[each.value.role].id
}

resource "google_compute_global_forwarding_rule" "https" {
  for_each              = local.https_ports
  name                  = "${var.name}-${each.key}"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  ip_address            = google_compute_global_address.cluster.id
  ip_protocol           = "TCP"
  port_range            = each.value.port
  target                = google_compute_target_https_proxy.node[each.value.role].id
}

# The balancer above knows HTTP alone. Encoders need one address that stays.
resource "google_compute_address" "rtmp" {
  name   = "${var.name}-rtmp"
  region = var.region
}

resource "google_compute_region_backend_service" "rtmp" {
  name                            = "${var.name}-rtmp"
  region                          = var.region
  load_balancing_scheme           = "EXTERNAL"
  protocol                        = "TCP"
  health_checks                   = [google_compute_region_health_check.ready.id]
  connection_draining_timeout_sec = var.drain_seconds
  # By addresses and ports of both ends. Then Google keeps a connection of TCP where its node is "unhealthy", by default: a
  # stream goes on while its node drains.
  session_affinity = "NONE"
  backend {
    group          = google_compute_region_instance_group_manager.node["origin"].instance_group
    balancing_mode = "CONNECTION"
  }
}

resource "google_compute_forwarding_rule" "rtmp" {
  name                  = "${var.name}-rtmp"
  region                = var.region
  load_balancing_scheme = "EXTERNAL"
  ip_address            = google_compute_address.rtmp.id
  ip_protocol           = "TCP"
  ports                 = ["1935"]
  backend_service       = google_compute_region_backend_service.rtmp.id
}

# --------------------------------------------------------------------------------------------------------------- MongoDB

# Empty until the machine of MongoDB has put the connection string there; so it is in no state of ours.
resource "google_secret_manager_secret" "mongo" {
  secret_id = "${var.name}-mongo"
  replication {
    auto {}
  }
}

resource "google_secret_manager_secret_iam_member" "mongo" {
  secret_id = google_secret_manager_secret.mongo.id
  role      = "roles/secretmanager.secretVersionAdder"
  member    = "serviceAccount:${google_service_account.mongo.email}"
}

resource "google_secret_manager_secret_iam_member" "node" {
  for_each  = var.roles
  secret_id = google_secret_manager_secret.mongo.id
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${google_service_account.node[each.key].email}"
}

# A machine that is made anew has the same address, so that the connection string stays what it is.
resource "google_compute_address" "mongo" {
  name         = "${var.name}-mongo"
  region       = var.region
  address_type = "INTERNAL"
  subnetwork   = google_compute_subnetwork.cluster.id
}

# It goes with no machine, and leaves a snapshot when the cluster is destroyed: mongo_snapshot takes that up again. Google
# Cloud encrypts every disk.
resource "google_compute_disk" "mongo" {
  name                           = "${var.name}-mongo"
  zone                           = var.zone
  type                           = "pd-ssd"
  size                           = var.mongo_disk_size
  snapshot                       = var.mongo_snapshot == "" ? null : var.mongo_snapshot
  create_snapshot_before_destroy = true
}

resource "google_compute_instance" "mongo" {
  name         = "${var.name}-mongo"
  zone         = var.zone
  machine_type = var.mongo_type
  boot_disk {
    initialize_params {
      image = "debian-cloud/debian-12"
      size  = 16
    }
  }
  attached_disk {
    source      = google_compute_disk.mongo.id
    device_name = "mongo"
  }
  network_interface {
    subnetwork = google_compute_subnetwork.cluster.id
    network_ip = google_compute_address.mongo.address
    # Only to fetch packages by: nobody but the nodes is let in, and mongod does not listen there. It saves a NAT.
    access_config {}
  }
  service_account {
    email  = google_service_account.mongo.email
    scopes = ["cloud-platform"]
  }
  shielded_instance_config {
    enable_secure_boot = true
  }
  metadata = {
    block-project-ssh-keys = "true"
    enable-oslogin         = "TRUE"
    startup-script = templatefile("${path.module}/mongo.sh.tftpl", {
      project   = var.project
      secret    = google_secret_manager_secret.mongo.secret_id
      release   = var.mongo_release
      databases = join(",", var.mongo_databases)
      install   = file("${path.module}/../../../image/mongodb/install.sh")
    })
  }
  lifecycle {
    # A database's machine is not replaced because Debian's image is newer.
    ignore_changes = [boot_disk]
  }
  depends_on = [google_secret_manager_secret_iam_member.mongo]
}

# ----------------------------------------------------------------------------------------------------------------- nodes

resource "google_compute_instance_template" "node" {
  for_each     = var.roles
  name_prefix  = "${var.name}-${each.key}-"
  machine_type = each.value.type
  disk {
    source_image = var.node_image
    boot         = true
    auto_delete  = true
    disk_size_gb = 30
    disk_type    = "pd-balanced"
  }
  network_interface {
    subnetwork = google_compute_subnetwork.cluster.id
    # Media goes to the nodes directly.
    access_config {}
  }
  # It may read one secret, and nothing else: the agent needs no right of Google Cloud.
  service_account {
    email  = google_service_account.node[each.key].email
    scopes = ["cloud-platform"]
  }
  # No Spot VMs: they have 30 s to go.
  scheduling {
    provisioning_model  = "STANDARD"
    preemptible         = false
    automatic_restart   = true
    on_host_maintenance = "MIGRATE"
  }
  shielded_instance_config {
    enable_secure_boot = true
  }
  metadata = {
    amsagent-role          = each.key
    block-project-ssh-keys = "true"
    enable-oslogin         = "TRUE"
    # Tried again until it works: MongoDB may come later than the node. It runs at each boot, and changes nothing where the
    # node has joined.
    startup-script = <<-END
      #!/bin/sh
      until gcloud secrets versions access latest --project ${var.project} --secret ${google_secret_manager_secret.mongo.secret_id} | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done
    END
  }
  lifecycle {
    create_before_destroy = true
  }
}

resource "google_compute_region_instance_group_manager" "node" {
  for_each           = var.roles
  name               = "${var.name}-${each.key}"
  region             = var.region
  base_instance_name = "${var.name}-${each.key}"
  version {
    instance_template = google_compute_instance_template.node[each.key].id
  }
  named_port {
    name = "ams"
    port = 5080
  }
  auto_healing_policies {
    health_check = google_compute_health_check.alive.id
    # Boot, start of Ant Media Server, join with its restart.
    initial_delay_sec = 600
  }
  # A new template is for new machines. When the others go is for somebody to say, who lets them drain.
  update_policy {
    type           = "OPPORTUNISTIC"
    minimal_action = "REPLACE"
    # As many as there are zones at least.
    max_surge_fixed       = 3
    max_unavailable_fixed = 0
  }
  depends_on = [google_compute_instance.mongo, google_secret_manager_secret_iam_member.node]
}

# Out and in. In costs viewers of that node their connection after 90 s, which is what Google Cloud leaves: docs/guides/gcp.md.
resource "google_compute_region_autoscaler" "node" {
  for_each = var.roles
  name     = "${var.name}-${each.key}"
  region   = var.region
  target   = google_compute_region_instance_group_manager.node[each.key].id
  autoscaling_policy {
    min_replicas    = each.value.min
    max_replicas    = each.value.max
    cooldown_period = 180
    mode            = "ON"
    cpu_utilization {
      target = 0.6
    }
  }
  lifecycle {
    # Who lets it only scale out by hand, to drain for longer, keeps that.
    ignore_changes = [autoscaling_policy[0].mode]
  }
}
