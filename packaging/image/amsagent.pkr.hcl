# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# A golden image for the nodes of a cluster: Debian 12, Ant Media Server, amsagent; nothing in it names a machine, and it
# has no secret. It joins by its user data.
#
#   packer init amsagent.pkr.hcl
#   packer build -only='amazon-ebs.node' -var region=eu-west-1 -var ams=./ant-media-server-enterprise.zip \
#     -var installer=./install_ant-media-server.sh -var agent=./amsagent_1.0.0-1_amd64.deb amsagent.pkr.hcl

packer {
  required_version = ">= 1.9"
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.8"
    }
    googlecompute = {
      source  = "github.com/hashicorp/googlecompute"
      version = ">= 1.1.4"
    }
  }
}

variable "ams" {
  description = "The zip file of Ant Media Server, on this machine"
  type        = string
}

variable "installer" {
  description = "The vendor's install_ant-media-server.sh of the same release, on this machine"
  type        = string
}

variable "agent" {
  description = "The package of amsagent for amd64 (make package), on this machine"
  type        = string
}

variable "name" {
  description = "Name of the image, before the time"
  type        = string
  default     = "amsagent"
}

variable "region" {
  description = "Region of AWS in which it is built"
  type        = string
  default     = ""
}

variable "project" {
  description = "Project of Google Cloud"
  type        = string
  default     = ""
}

variable "zone" {
  description = "Zone of Google Cloud in which it is built"
  type        = string
  default     = "europe-west1-b"
}

locals {
  stamp = formatdate("YYYYMMDDhhmmss", timestamp())
}

source "amazon-ebs" "node" {
  region        = var.region
  instance_type = "c7i.large"
  ami_name      = "${var.name}-${local.stamp}"
  ssh_username  = "admin"
  # The owner is Debian: a name alone could be anybody's.
  source_ami_filter {
    owners      = ["136693071363"]
    most_recent = true
    filters = {
      name                = "debian-12-amd64-*"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
  }
  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = 16
    delete_on_termination = true
  }
  encrypt_boot = true
  # The image, and the machine that makes it, speak version 2 of the metadata service alone.
  imds_support = "v2.0"
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  # Packer's own key is not for the clones.
  ssh_clear_authorized_keys = true
}

source "googlecompute" "node" {
  project_id              = var.project
  zone                    = var.zone
  machine_type            = "n2-standard-2"
  source_image_family     = "debian-12"
  source_image_project_id = ["debian-cloud"]
  image_name              = "${var.name}-${local.stamp}"
  image_family            = var.name
  disk_size               = 16
  ssh_username            = "packer"
}

build {
  sources = ["source.amazon-ebs.node", "source.googlecompute.node"]

  provisioner "file" {
    source      = var.ams
    destination = "/tmp/ant-media-server.zip"
  }
  provisioner "file" {
    source      = var.installer
    destination = "/tmp/install_ant-media-server.sh"
  }
  provisioner "file" {
    source      = var.agent
    destination = "/tmp/amsagent.deb"
  }
  provisioner "file" {
    source      = "${path.root}/prepare.sh"
    destination = "/tmp/prepare.sh"
  }
  provisioner "shell" {
    # cloud-init of the machine that makes it may be at work still, and hold dpkg.
    inline = [
      "cloud-init status --wait >/dev/null || true",
      "sudo sh /tmp/prepare.sh --cloud ${source.type == "amazon-ebs" ? "aws" : "gcp"} --ams /tmp/ant-media-server.zip --installer /tmp/install_ant-media-server.sh --agent /tmp/amsagent.deb",
      "rm -f /tmp/ant-media-server.zip /tmp/install_ant-media-server.sh /tmp/amsagent.deb /tmp/prepare.sh",
    ]
  }
}
