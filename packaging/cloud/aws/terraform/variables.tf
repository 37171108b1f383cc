# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0

variable "name" {
  description = "Name of the cluster, in front of everything's name"
  type        = string
  default     = "ams"
  validation {
    # Load balancers take 32 letters, and "-origin" and "-edge" follow.
    condition     = can(regex("^[a-z][a-z0-9-]{0,19}$", var.name))
    error_message = "The name has up to 20 small letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of AWS"
  type        = string
}

variable "node_image" {
  description = "The golden image with Ant Media Server and amsagent (packaging/image makes it)"
  type        = string
}

variable "mongo_image" {
  description = "Debian 12 for amd64, as it comes; docs/guides/aws.md says how to find it"
  type        = string
}

variable "roles" {
  description = "Instance type, fewest and most nodes of each role"
  type        = map(object({ type = string, min = number, max = number }))
  default = {
    origin = { type = "c7i.xlarge", min = 1, max = 10 }
    edge   = { type = "c7i.xlarge", min = 1, max = 10 }
  }
  validation {
    condition     = toset(keys(var.roles)) == toset(["origin", "edge"])
    error_message = "The roles are origin and edge."
  }
}

variable "viewer_cidr" {
  description = "From where viewers come, and browsers that publish"
  type        = string
  default     = "0.0.0.0/0"
}

variable "publisher_cidr" {
  description = "From where encoders publish by RTMP"
  type        = string
  default     = "0.0.0.0/0"
}

variable "certificate" {
  description = "ARN of a certificate of ACM in this region; without one there is no 443 and no 5443, and browsers do not publish"
  type        = string
  default     = ""
}

variable "session_manager" {
  description = "Whether Systems Manager may open a shell on the machines; no port is opened for it, nor for SSH"
  type        = bool
  default     = false
}

variable "mongo_type" {
  description = "Instance type of MongoDB, amd64"
  type        = string
  default     = "m7i.large"
}

variable "mongo_disk_size" {
  description = "GiB of MongoDB's disk"
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
  # The agent's own limit is drain_deadline, one hour if nobody changed it.
  description = "How long the load balancers keep connections to a node that leaves; 3600 at most"
  type        = number
  default     = 3600
}

variable "hook_seconds" {
  # Short, since the agent prolongs it at half of this time: a machine whose agent is dead is let go soon. AWS prolongs a
  # hook up to 100 times this, which has to be longer than the longest drain.
  description = "How long the end of a machine waits for a word of the agent"
  type        = number
  default     = 300
}

variable "launch_seconds" {
  # Boot, start of Ant Media Server, join. Nobody prolongs it before the agent runs.
  description = "How long a new machine may take until it serves; then it is replaced"
  type        = number
  default     = 900
}

variable "vpc_cidr" {
  description = "Network of the cluster, private, /16 to /24"
  type        = string
  default     = "10.42.0.0/16"
}
