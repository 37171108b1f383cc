# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# A cluster of Ant Media Server on AWS, for OpenTofu and Terraform: the same as ../cloudformation.yaml, with the same
# names where there is a name.
#
#   80, 443    -> origins, port 5080      5080, 5443 -> edges, port 5080      1935 (RTMP) -> origins
#   WebRTC     -> UDP 50000-60000 at the nodes' own public addresses
#
# The state has no secret in it: the machine of MongoDB makes the passwords and puts the connection string into Secrets
# Manager, from where the nodes take it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40, < 7.0"
    }
  }
}

provider "aws" {
  region = var.region
}

data "aws_availability_zones" "here" {
  state = "available"
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_caller_identity" "me" {}

data "aws_partition" "here" {}

locals {
  balancer_ports = merge(
    {
      http      = { port = 80, role = "origin", protocol = "HTTP" }
      edge_http = { port = 5080, role = "edge", protocol = "HTTP" }
    },
    var.certificate == "" ? {} : {
      https      = { port = 443, role = "origin", protocol = "HTTPS" }
      edge_https = { port = 5443, role = "edge", protocol = "HTTPS" }
    },
  )
}

# ------------------------------------------------------------------------------------------------------------- network

resource "aws_vpc" "cluster" {
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_internet_gateway" "cluster" {
  vpc_id = aws_vpc.cluster.id
  tags   = { Name = var.name }
}

resource "aws_route_table" "cluster" {
  vpc_id = aws_vpc.cluster.id
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.cluster.id
  }
  tags = { Name = var.name }
}

# Two zones, as a load balancer demands. The nodes' addresses are public, because media goes to them directly.
resource "aws_subnet" "cluster" {
  count             = 2
  vpc_id            = aws_vpc.cluster.id
  cidr_block        = cidrsubnet(var.vpc_cidr, 1, count.index)
  availability_zone = data.aws_availability_zones.here.names[count.index]
  tags              = { Name = "${var.name}-${count.index}" }
}

resource "aws_route_table_association" "cluster" {
  count          = 2
  subnet_id      = aws_subnet.cluster[count.index].id
  route_table_id = aws_route_table.cluster.id
}

# ----------------------------------------------------------------------------------------------- who may talk to whom

# A group lets nobody in but who is named. SSH is not.
resource "aws_security_group" "balancer" {
  name_prefix = "${var.name}-balancer-"
  description = "Load balancer of the cluster"
  vpc_id      = aws_vpc.cluster.id
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "rtmp" {
  name_prefix = "${var.name}-rtmp-"
  description = "Load balancer for RTMP"
  vpc_id      = aws_vpc.cluster.id
  lifecycle {
    create_before_destroy = true
  }
}

# All nodes: what both roles need, and what they say to each other.
resource "aws_security_group" "node" {
  name_prefix = "${var.name}-node-"
  description = "Nodes of the cluster"
  vpc_id      = aws_vpc.cluster.id
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "origin" {
  name_prefix = "${var.name}-origin-"
  description = "Origins of the cluster"
  vpc_id      = aws_vpc.cluster.id
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "mongo" {
  name_prefix = "${var.name}-mongo-"
  description = "MongoDB of the cluster"
  vpc_id      = aws_vpc.cluster.id
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "balancer" {
  for_each          = local.balancer_ports
  security_group_id = aws_security_group.balancer.id
  description       = "${each.value.role}s, ${each.value.protocol}"
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = var.viewer_cidr
}

resource "aws_vpc_security_group_ingress_rule" "rtmp" {
  security_group_id = aws_security_group.rtmp.id
  description       = "RTMP"
  ip_protocol       = "tcp"
  from_port         = 1935
  to_port           = 1935
  cidr_ipv4         = var.publisher_cidr
}

resource "aws_vpc_security_group_ingress_rule" "webrtc" {
  security_group_id = aws_security_group.node.id
  description       = "WebRTC"
  ip_protocol       = "udp"
  from_port         = 50000
  to_port           = 60000
  cidr_ipv4         = var.viewer_cidr
}

resource "aws_vpc_security_group_ingress_rule" "http" {
  security_group_id            = aws_security_group.node.id
  description                  = "HTTP of Ant Media Server"
  ip_protocol                  = "tcp"
  from_port                    = 5080
  to_port                      = 5080
  referenced_security_group_id = aws_security_group.balancer.id
}

resource "aws_vpc_security_group_ingress_rule" "ready" {
  security_group_id            = aws_security_group.node.id
  description                  = "readiness of amsagent"
  ip_protocol                  = "tcp"
  from_port                    = 9771
  to_port                      = 9771
  referenced_security_group_id = aws_security_group.balancer.id
}

resource "aws_vpc_security_group_ingress_rule" "node_http" {
  security_group_id            = aws_security_group.node.id
  description                  = "node to node"
  ip_protocol                  = "tcp"
  from_port                    = 5080
  to_port                      = 5080
  referenced_security_group_id = aws_security_group.node.id
}

resource "aws_vpc_security_group_ingress_rule" "node_media" {
  security_group_id            = aws_security_group.node.id
  description                  = "node to node"
  ip_protocol                  = "tcp"
  from_port                    = 5000
  to_port                      = 5000
  referenced_security_group_id = aws_security_group.node.id
}

resource "aws_vpc_security_group_ingress_rule" "origin_rtmp" {
  security_group_id            = aws_security_group.origin.id
  description                  = "RTMP"
  ip_protocol                  = "tcp"
  from_port                    = 1935
  to_port                      = 1935
  referenced_security_group_id = aws_security_group.rtmp.id
}

resource "aws_vpc_security_group_ingress_rule" "origin_ready" {
  security_group_id            = aws_security_group.origin.id
  description                  = "readiness of amsagent"
  ip_protocol                  = "tcp"
  from_port                    = 9771
  to_port                      = 9771
  referenced_security_group_id = aws_security_group.rtmp.id
}

resource "aws_vpc_security_group_ingress_rule" "mongo" {
  security_group_id            = aws_security_group.mongo.id
  description                  = "nodes"
  ip_protocol                  = "tcp"
  from_port                    = 27017
  to_port                      = 27017
  referenced_security_group_id = aws_security_group.node.id
}

# The provider takes away the rule that lets everything out, which AWS makes by itself.
resource "aws_vpc_security_group_egress_rule" "all" {
  for_each = {
    balancer = aws_security_group.balancer.id
    rtmp     = aws_security_group.rtmp.id
    node     = aws_security_group.node.id
    mongo    = aws_security_group.mongo.id
  }
  security_group_id = each.value
  description       = "out"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}

# ----------------------------------------------------------------------------------------------------------- balancers

resource "aws_lb" "cluster" {
  name               = var.name
  load_balancer_type = "application"
  internal           = false
  subnets            = aws_subnet.cluster[*].id
  security_groups    = [aws_security_group.balancer.id]
  # A WebSocket of a viewer may be silent for longer than the minute that is usual.
  idle_timeout               = 300
  drop_invalid_header_fields = true
  depends_on                 = [aws_route_table.cluster]
}

resource "aws_lb_target_group" "node" {
  for_each    = var.roles
  name        = "${var.name}-${each.key}"
  vpc_id      = aws_vpc.cluster.id
  target_type = "instance"
  protocol    = "HTTP"
  port        = 5080
  # Who is on a node that leaves stays on it as long as the agent drains.
  deregistration_delay = var.drain_seconds
  # The agent, not the server: it says no as soon as the node is to go, while the server still serves who is there.
  health_check {
    protocol            = "HTTP"
    port                = "9771"
    path                = "/readyz"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
    matcher             = "200"
  }
  # The requests of one viewer go to one node.
  stickiness {
    enabled = true
    type    = "lb_cookie"
  }
}

resource "aws_lb_listener" "cluster" {
  for_each          = local.balancer_ports
  load_balancer_arn = aws_lb.cluster.arn
  protocol          = each.value.protocol
  port              = each.value.port
  ssl_policy        = each.value.protocol == "HTTPS" ? "ELBSecurityPolicy-TLS13-1-2-2021-06" : null
  certificate_arn   = each.value.protocol == "HTTPS" ? var.certificate : null
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.node[each.value.role].arn
  }
}

# The balancer above knows HTTP alone. Encoders need one name that stays.
resource "aws_lb" "rtmp" {
  name               = "${var.name}-rtmp"
  load_balancer_type = "network"
  internal           = false
  subnets            = aws_subnet.cluster[*].id
  security_groups    = [aws_security_group.rtmp.id]
  # There may be fewer origins than zones.
  enable_cross_zone_load_balancing = true
  depends_on                       = [aws_route_table.cluster]
}

resource "aws_lb_target_group" "rtmp" {
  name                 = "${var.name}-rtmp"
  vpc_id               = aws_vpc.cluster.id
  target_type          = "instance"
  protocol             = "TCP"
  port                 = 1935
  deregistration_delay = var.drain_seconds
  # A stream goes on while its node drains, which is "unhealthy" to the balancer: it would cut it at once.
  connection_termination = false
  target_health_state {
    enable_unhealthy_connection_termination = false
  }
  health_check {
    protocol            = "HTTP"
    port                = "9771"
    path                = "/readyz"
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 2
    matcher             = "200"
  }
}

resource "aws_lb_listener" "rtmp" {
  load_balancer_arn = aws_lb.rtmp.arn
  protocol          = "TCP"
  port              = 1935
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.rtmp.arn
  }
}

# ------------------------------------------------------------------------------------------------------------- MongoDB

# Empty until the machine of MongoDB has put the connection string there; so it is in no state of ours.
resource "aws_secretsmanager_secret" "mongo" {
  name_prefix = "${var.name}-mongo-"
  description = "MongoDB of ${var.name}: the connection string for amsagent join"
}

data "aws_iam_policy_document" "ec2" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.${data.aws_partition.here.dns_suffix}"]
    }
  }
}

data "aws_iam_policy_document" "mongo" {
  statement {
    actions   = ["secretsmanager:PutSecretValue"]
    resources = [aws_secretsmanager_secret.mongo.arn]
  }
}

resource "aws_iam_role" "mongo" {
  name_prefix        = "${var.name}-mongo-"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
}

resource "aws_iam_role_policy" "mongo" {
  name   = "connection-string"
  role   = aws_iam_role.mongo.id
  policy = data.aws_iam_policy_document.mongo.json
}

resource "aws_iam_instance_profile" "mongo" {
  name_prefix = "${var.name}-mongo-"
  role        = aws_iam_role.mongo.name
}

# It goes with no machine, and leaves a snapshot when the cluster is destroyed: mongo_snapshot takes that up again.
resource "aws_ebs_volume" "mongo" {
  availability_zone = aws_subnet.cluster[0].availability_zone
  size              = var.mongo_disk_size
  type              = "gp3"
  encrypted         = true
  snapshot_id       = var.mongo_snapshot == "" ? null : var.mongo_snapshot
  final_snapshot    = true
  tags              = { Name = "${var.name}-mongo" }
}

resource "aws_volume_attachment" "mongo" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.mongo.id
  instance_id = aws_instance.mongo.id
  # A disk is taken from a machine that is off.
  stop_instance_before_detaching = true
}

resource "aws_instance" "mongo" {
  ami                    = var.mongo_image
  instance_type          = var.mongo_type
  subnet_id              = aws_subnet.cluster[0].id
  vpc_security_group_ids = [aws_security_group.mongo.id]
  iam_instance_profile   = aws_iam_instance_profile.mongo.name
  # A public address only to fetch packages by: nobody but the nodes is let in, and mongod does not listen there. It saves
  # a NAT gateway.
  associate_public_ip_address = true
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  root_block_device {
    volume_type = "gp3"
    volume_size = 16
    encrypted   = true
  }
  # Compressed: there is room for 16 KB.
  user_data_base64 = base64gzip(templatefile("${path.module}/mongo.sh.tftpl", {
    region    = var.region
    secret    = aws_secretsmanager_secret.mongo.arn
    release   = var.mongo_release
    databases = join(",", var.mongo_databases)
    volume    = replace(aws_ebs_volume.mongo.id, "-", "")
    install   = file("${path.module}/../../../image/mongodb/install.sh")
  }))
  tags = { Name = "${var.name}-mongo" }
  lifecycle {
    # A database's machine is not replaced because something is newer.
    ignore_changes = [ami, user_data_base64]
  }
  depends_on = [aws_route_table_association.cluster, aws_iam_role_policy.mongo, aws_vpc_security_group_egress_rule.all]
}

# --------------------------------------------------------------------------------------------------------------- nodes

# What amsagent needs, for its own group alone: its name is given because the role has to be there before the group.
data "aws_iam_policy_document" "node" {
  for_each = var.roles
  statement {
    actions = ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
    resources = [
      "arn:${data.aws_partition.here.partition}:autoscaling:${var.region}:${data.aws_caller_identity.me.account_id}:autoScalingGroup:*:autoScalingGroupName/${var.name}-${each.key}",
    ]
  }
  statement {
    # AWS knows no narrower resource for these.
    actions   = ["autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLifecycleHooks"]
    resources = ["*"]
  }
  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [aws_secretsmanager_secret.mongo.arn]
  }
}

resource "aws_iam_role" "node" {
  for_each           = var.roles
  name_prefix        = "${var.name}-${each.key}-"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
}

resource "aws_iam_role_policy" "node" {
  for_each = var.roles
  name     = "amsagent"
  role     = aws_iam_role.node[each.key].id
  policy   = data.aws_iam_policy_document.node[each.key].json
}

resource "aws_iam_instance_profile" "node" {
  for_each    = var.roles
  name_prefix = "${var.name}-${each.key}-"
  role        = aws_iam_role.node[each.key].name
}

resource "aws_iam_role_policy_attachment" "session_manager" {
  for_each = var.session_manager ? {
    mongo  = aws_iam_role.mongo.name
    origin = aws_iam_role.node["origin"].name
    edge   = aws_iam_role.node["edge"].name
  } : {}
  role       = each.value
  policy_arn = "arn:${data.aws_partition.here.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_launch_template" "node" {
  for_each               = var.roles
  name_prefix            = "${var.name}-${each.key}-"
  image_id               = var.node_image
  instance_type          = each.value.type
  update_default_version = true
  iam_instance_profile {
    arn = aws_iam_instance_profile.node[each.key].arn
  }
  # Version 2 alone; the tags below are read by it, too.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }
  network_interfaces {
    device_index                = 0
    associate_public_ip_address = true
    delete_on_termination       = true
    security_groups             = each.key == "origin" ? [aws_security_group.node.id, aws_security_group.origin.id] : [aws_security_group.node.id]
  }
  block_device_mappings {
    # The root of Debian's images, and of those that packaging/image makes of them.
    device_name = "/dev/xvda"
    ebs {
      volume_type           = "gp3"
      volume_size           = 30
      encrypted             = true
      delete_on_termination = true
    }
  }
  # Here and not at the group: the machine has them from its first moment. No key may have a blank, which would keep the
  # machine from starting while its metadata shows tags.
  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-${each.key}", "amsagent:role" = each.key }
  }
  tag_specifications {
    resource_type = "volume"
    tags          = { Name = "${var.name}-${each.key}" }
  }
  # Tried again until it works: MongoDB may come later than the node. The launch hook replaces a machine that never comes
  # so far.
  user_data = base64encode(<<-END
    #!/bin/sh
    until aws secretsmanager get-secret-value --region ${var.region} --secret-id ${aws_secretsmanager_secret.mongo.arn} --query SecretString --output text | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done
  END
  )
}

resource "aws_autoscaling_group" "node" {
  for_each            = var.roles
  name                = "${var.name}-${each.key}"
  min_size            = each.value.min
  max_size            = each.value.max
  vpc_zone_identifier = aws_subnet.cluster[*].id
  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }
  target_group_arns = each.key == "origin" ? [aws_lb_target_group.node["origin"].arn, aws_lb_target_group.rtmp.arn] : [aws_lb_target_group.node["edge"].arn]
  # Not ELB: a node that drains is not ready on purpose, and would be replaced in the middle of it.
  health_check_type         = "EC2"
  health_check_grace_period = 60
  default_instance_warmup   = 180
  # The machines come when MongoDB does, which may be later than this resource: nobody waits for them here.
  wait_for_capacity_timeout = "0"
  # In the group itself, so that the first machine has them as well.
  initial_lifecycle_hook {
    name                 = "amsagent-launch"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = var.launch_seconds
    # What did not join in time is replaced.
    default_result = "ABANDON"
  }
  initial_lifecycle_hook {
    name                 = "amsagent-terminate"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = var.hook_seconds
    # A machine that nobody speaks for is to go.
    default_result = "CONTINUE"
  }
  timeouts {
    # When the cluster is destroyed its nodes drain first.
    delete = "90m"
  }
  depends_on = [
    aws_volume_attachment.mongo, aws_iam_role_policy.node, aws_route_table_association.cluster,
    aws_lb_listener.cluster, aws_lb_listener.rtmp, aws_vpc_security_group_egress_rule.all,
  ]
}

# Out and in: a node that goes cuts nobody any more, so there is no reason to keep it.
resource "aws_autoscaling_policy" "cpu" {
  for_each               = var.roles
  name                   = "cpu"
  autoscaling_group_name = aws_autoscaling_group.node[each.key].name
  policy_type            = "TargetTrackingScaling"
  target_tracking_configuration {
    predefined_metric_specification {
      predefined_metric_type = "ASGAverageCPUUtilization"
    }
    target_value     = 60
    disable_scale_in = false
  }
}
