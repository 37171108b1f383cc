# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0

output "origins" {
  description = "Publish and manage here, or at https:// with a certificate"
  value       = "http://${aws_lb.cluster.dns_name}"
}

output "edges" {
  description = "Play here, or at https:// and port 5443 with a certificate"
  value       = "http://${aws_lb.cluster.dns_name}:5080"
}

output "rtmp" {
  description = "Encoders publish here"
  value       = "rtmp://${aws_lb.rtmp.dns_name}/LiveApp"
}

output "mongo_connection" {
  description = "Secret with the connection string"
  value       = aws_secretsmanager_secret.mongo.arn
}

output "mongo_address" {
  description = "Private address of MongoDB"
  value       = aws_instance.mongo.private_ip
}

output "next_step" {
  description = "Whether the nodes serve; then point your domain at the balancer"
  value       = "aws autoscaling describe-auto-scaling-groups --region ${var.region} --auto-scaling-group-names ${join(" ", [for g in aws_autoscaling_group.node : g.name])}"
}
