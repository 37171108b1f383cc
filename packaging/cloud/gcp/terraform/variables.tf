# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0

variable "name" {
  description = "Name of the cluster, in front of everything's name"
  type        = string
  default     = "ams"
  validation {
    # Accounts of services take 30 letters, and "-origin" follows.
    condition     = can(regex("^[a-z][a-z0-9-]{2,19}$", var.name))
    error_message = "The name has 3 to 20 small letters, digits and hyphens."
  }
}

variable "project" {
  description = "Project of Google Cloud"
  type        = string
}

variable "region" {
  description = "Region of Google Cloud; the nodes are in all of its zones"
  type        = string
}

variable "zone" {
  description = "Zone of MongoDB"
  type        = string
}

variable "node_image" {
  description = "The golden image with Ant Media Server and amsagent (packaging/image makes it), or its family"
  type        = string
}

variable "roles" {
  description = "Machine type, fewest and most nodes of each role"
  type        = map(object({ type = string, min = number, max = number }))
  default = {
    origin = { type = "n2-standard-4", min = 1, max = 10 }
    edge   = { type = "n2-standard-4", min = 1, max = 10 }
  }
  validation {
    condition     = toset(keys(var.roles)) == toset(["origin", "edge"])
    error_message = "The roles are origin and edge."
  }
}

variable "viewer_cidr" {
  description = "From where media of viewers comes, and of browsers that publish"
  type        = string
  default     = "0.0.0.0/0"
}

variable "publisher_cidr" {
  description = "From where encoders publish by RTMP"
  type        = string
  default     = "0.0.0.0/0"
}

variable "certificate" {
  description = "Id of a certificate for load balancers (projects/P/global/sslCertificates/N); without one there is no 443 and no 5443, and browsers do not publish"
  type        = string
  default     = ""
}

variable "mongo_type" {
  description = "Machine type of MongoDB"
  type        = string
  default     = "n2-standard-2"
}

variable "mongo_disk_size" {
  description = "GB of MongoDB's disk"
  type        = number
  default     = 50
}

variable "mongo_snapshot" {
  description = "Snapshot to make MongoDB's disk from, such as the one that a destroyed cluster left; empty for a new disk"
  type        = string
  default     = ""
}

variable "mongo_release" {
  description = "Major release of MongoDB"
  type        = string
  default     = "8.0"
}

variable "mongo_databases" {
  description = "db.name of each application of Ant Media Server"
  type        = list(string)
  default     = ["live", "liveapp", "webrtcappee"]
}

variable "drain_seconds" {
  description = "How long the load balancers keep connections to a node that leaves; 3600 at most"
  type        = number
  default     = 3600
}

variable "subnet_cidr" {
  description = "Network of the cluster, private"
  type        = string
  default     = "10.42.0.0/20"
}
