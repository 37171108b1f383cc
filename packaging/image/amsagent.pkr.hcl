# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# A golden image for the nodes of a cluster: Debian 12, Ant Media Server, amsagent; nothing in it names a machine, and it
# has no secret. It joins by its user data.
#
#   packer init amsagent.pkr.hcl
#   packer build -only='amazon-ebs.node' -var region=eu-west-1 -var ams=./ant-media-server-enterprise.zip \
#     -var installer=./install_ant-media-server.sh -var agent=./amsagent_1.0.0-1_amd64.deb amsagent.pkr.hcl
#
# or -only='googlecompute.node', 'azure-arm.node', 'alicloud-ecs.node'. Who builds is known by the environment: AWS_*, gcloud,
# `az login`, ALICLOUD_ACCESS_KEY and ALICLOUD_SECRET_KEY.

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
    azure = {
      source  = "github.com/hashicorp/azure"
      version = ">= 2.0.0"
    }
    alicloud = {
      source  = "github.com/hashicorp/alicloud"
      version = ">= 1.1.0"
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
  description = "Region of AWS or Alibaba Cloud in which it is built"
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

variable "location" {
  description = "Region of Azure in which it is built"
  type        = string
  default     = "westeurope"
}

variable "resource_group" {
  description = "Resource group of Azure into which the image comes; it has to be there"
  type        = string
  default     = ""
}

variable "debian" {
  description = "Id of Alibaba Cloud's own image of Debian 12 for amd64 in the region"
  type        = string
  default     = ""
}

locals {
  stamp = formatdate("YYYYMMDDhhmmss", timestamp())
  clouds = {
    amazon-ebs    = "aws"
    googlecompute = "gcp"
    azure-arm     = "azure"
    alicloud-ecs  = "alibaba"
  }
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

source "azure-arm" "node" {
  use_azure_cli_auth                = true
  location                          = var.location
  managed_image_resource_group_name = var.resource_group
  managed_image_name                = "${var.name}-${local.stamp}"
  os_type                           = "Linux"
  # Generation 1: Azure makes no plain image of a machine with Trusted Launch.
  image_publisher = "Debian"
  image_offer     = "debian-12"
  image_sku       = "12"
  vm_size         = "Standard_F4s_v2"
}

source "alicloud-ecs" "node" {
  region               = var.region
  source_image         = var.debian
  image_name           = "${var.name}-${local.stamp}"
  instance_type        = "ecs.c7.large"
  io_optimized         = true
  internet_charge_type = "PayByTraffic"
  ssh_username         = "root"
  system_disk_mapping {
    disk_category = "cloud_essd"
    disk_size     = 20
  }
  ssh_clear_authorized_keys = true
}

build {
  sources = ["source.amazon-ebs.node", "source.googlecompute.node", "source.azure-arm.node", "source.alicloud-ecs.node"]

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
      # Who is root already may have no sudo.
      "$(command -v sudo) sh /tmp/prepare.sh --cloud ${local.clouds[source.type]} --ams /tmp/ant-media-server.zip --installer /tmp/install_ant-media-server.sh --agent /tmp/amsagent.deb",
      "rm -f /tmp/ant-media-server.zip /tmp/install_ant-media-server.sh /tmp/amsagent.deb /tmp/prepare.sh",
    ]
  }
  # Azure's agent takes away what it made for this machine: Packer's user, its key, and what the network gave.
  provisioner "shell" {
    only   = ["azure-arm.node"]
    inline = ["sudo sh -c 'waagent -force -deprovision+user && sync'"]
  }
}
