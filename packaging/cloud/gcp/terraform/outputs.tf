# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0

output "origins" {
  description = "Publish and manage here, or at https:// with a certificate"
  value       = "http://${google_compute_global_address.cluster.address}"
}

output "edges" {
  description = "Play here, or at https:// and port 5443 with a certificate"
  value       = "http://${google_compute_global_address.cluster.address}:5080"
}

output "rtmp" {
  description = "Encoders publish here"
  value       = "rtmp://${google_compute_address.rtmp.address}/LiveApp"
}

output "mongo_connection" {
  description = "Secret with the connection string"
  value       = google_secret_manager_secret.mongo.id
}

output "next_step" {
  description = "Whether the nodes serve; then point your domain at the balancer"
  value       = "gcloud compute backend-services get-health ${google_compute_backend_service.node["edge"].name} --global --project ${var.project}"
}
