// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0
//
// A cluster of Ant Media Server on Azure: origins and edges that scale by themselves and leave without cutting a stream, a
// load balancer before them, and a MongoDB. docs/guides/azure.md says how to use it.
//
//   80, 443    -> origins, port 5080      5080, 5443 -> edges, port 5080      1935 (RTMP) -> origins
//   WebRTC     -> UDP 50000-60000 at the nodes' own public addresses
//
// It holds no secret but the certificate: the machine of MongoDB makes the passwords and puts the connection string into Key
// Vault, from where the nodes take it.

@description('Name of the cluster, in front of everything\'s name: letters, digits, hyphens')
@minLength(2)
@maxLength(9)
param name string = 'ams'

@description('Region of Azure')
param location string = resourceGroup().location

@description('Zones of the nodes; none in a region that has none')
param zones array = ['1', '2', '3']

@description('Id of the golden image with Ant Media Server and amsagent (packaging/image makes it): an image, or a version in a gallery')
param nodeImage string

@description('SSH key of the machines\' user ams, which Azure demands; no port is open for it')
param sshKey string

@description('Size of the origins, with accelerated networking')
param originSize string = 'Standard_F4s_v2'

@description('Fewest origins')
@minValue(0)
param originMin int = 1

@description('How many origins there are to be at first. Another deployment has to say how many there are by then, or takes some away')
@minValue(0)
param originCount int = originMin

@description('Most origins')
@minValue(1)
param originMax int = 10

@description('Size of the edges, with accelerated networking')
param edgeSize string = 'Standard_F4s_v2'

@description('Fewest edges')
@minValue(0)
param edgeMin int = 1

@description('How many edges there are to be at first. Another deployment has to say how many there are by then, or takes some away')
@minValue(0)
param edgeCount int = edgeMin

@description('Most edges')
@minValue(1)
param edgeMax int = 10

@description('From where viewers come, and browsers that publish: a CIDR, or Internet')
param viewerSource string = 'Internet'

@description('From where encoders publish by RTMP: a CIDR, or Internet')
param publisherSource string = 'Internet'

@description('Certificate of the load balancer, PFX in base64; without one there is no 443 and no 5443, and browsers do not publish')
@secure()
param certificate string = ''

@description('Password of the certificate\'s file')
@secure()
param certificatePassword string = ''

@description('Whether the hosts encrypt temporary disks and caches as well; the subscription has to be registered for it')
param encryptionAtHost bool = false

@description('Size of MongoDB\'s machine, amd64, with disks by SCSI')
param mongoSize string = 'Standard_D2s_v5'

@description('GiB of MongoDB\'s disk')
@minValue(10)
param mongoDiskSize int = 64

@description('Id of a snapshot to make MongoDB\'s disk from, such as one of a cluster that is gone; empty for a new disk')
param mongoSnapshot string = ''

@description('Major release of MongoDB')
param mongoRelease string = '8.0'

@description('db.name of each application of Ant Media Server')
param mongoDatabases string = 'live,liveapp,webrtcappee'

@description('Manual: a new model is for new machines, and when the others go is for somebody to say. Rolling: Azure replaces them, those without sessions first')
@allowed(['Manual', 'Rolling'])
param upgradeMode string = 'Manual'

@description('How long the load balancer keeps connections to a node that leaves, in seconds')
@minValue(1)
@maxValue(3600)
param drainSeconds int = 3600

var withTls = !empty(certificate)
var vaultName = '${name}-${uniqueString(resourceGroup().id)}'
var vaultHost = '${vaultName}${environment().suffixes.keyvaultDns}'
// Without the dot.
var vaultResource = substring(environment().suffixes.keyvaultDns, 1)
var gatewayId = resourceId('Microsoft.Network/applicationGateways', name)
var rtmpId = resourceId('Microsoft.Network/loadBalancers', '${name}-rtmp')
var mongoIp = '10.42.1.10'

// With surge, a new machine is there before an old one goes.
var upgrades = {
  mode: upgradeMode
  automaticOSUpgradePolicy: { enableAutomaticOSUpgrade: false }
  rollingUpgradePolicy: { maxSurge: true }
}

// The agent says whether its server is healthy, and not to upgrade it while it has sessions. Azure repairs nothing by it: that was
// never tried there (docs/clouds/azure.md).
var health = {
  name: 'health'
  properties: {
    publisher: 'Microsoft.ManagedServices'
    type: 'ApplicationHealthLinux'
    typeHandlerVersion: '2.0'
    autoUpgradeMinorVersion: true
    settings: {
      protocol: 'http'
      port: 9771
      requestPath: '/application-health'
      intervalInSeconds: 10
      numberOfProbes: 6
      gracePeriod: 600
    }
  }
}

// ------------------------------------------------------------------------------------------------- who may talk to whom

// What both roles let in.
var nodeRules = [
  {
    // HTTP of Ant Media Server, and readiness of amsagent.
    name: 'gateway'
    properties: {
      priority: 100
      direction: 'Inbound'
      access: 'Allow'
      protocol: 'Tcp'
      sourceAddressPrefix: '10.42.0.0/24'
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRanges: ['5080', '9771']
    }
  }
  {
    name: 'nodes'
    properties: {
      priority: 110
      direction: 'Inbound'
      access: 'Allow'
      protocol: 'Tcp'
      sourceAddressPrefixes: ['10.42.4.0/22', '10.42.8.0/22']
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRanges: ['5000', '5080']
    }
  }
  {
    name: 'webrtc'
    properties: {
      priority: 120
      direction: 'Inbound'
      access: 'Allow'
      protocol: 'Udp'
      sourceAddressPrefix: viewerSource
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRanges: ['50000-60000']
    }
  }
]

// Azure lets everything in from the same network unless it is told not to: this is the last rule of each group.
var nobodyElse = {
  name: 'nobody-else'
  properties: {
    priority: 4096
    direction: 'Inbound'
    access: 'Deny'
    protocol: '*'
    sourceAddressPrefix: '*'
    sourcePortRange: '*'
    destinationAddressPrefix: '*'
    destinationPortRanges: ['0-65535']
  }
}

resource gatewayGroup 'Microsoft.Network/networkSecurityGroups@2024-01-01' = {
  name: '${name}-gateway'
  location: location
  properties: {
    securityRules: [
      {
        name: 'viewers'
        properties: {
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: viewerSource
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ['80', '443', '5080', '5443']
        }
      }
      {
        // Azure's own hand on the gateway: it does not start without.
        name: 'manager'
        properties: {
          priority: 110
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: 'GatewayManager'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ['65200-65535']
        }
      }
      {
        name: 'azure'
        properties: {
          priority: 120
          direction: 'Inbound'
          access: 'Allow'
          protocol: '*'
          sourceAddressPrefix: 'AzureLoadBalancer'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ['0-65535']
        }
      }
      nobodyElse
    ]
  }
}

resource originGroup 'Microsoft.Network/networkSecurityGroups@2024-01-01' = {
  name: '${name}-origin'
  location: location
  properties: {
    securityRules: concat(nodeRules, [
      {
        name: 'rtmp'
        properties: {
          priority: 130
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: publisherSource
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ['1935']
        }
      }
      {
        name: 'rtmp-ready'
        properties: {
          priority: 140
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: 'AzureLoadBalancer'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ['9771']
        }
      }
      nobodyElse
    ])
  }
}

resource edgeGroup 'Microsoft.Network/networkSecurityGroups@2024-01-01' = {
  name: '${name}-edge'
  location: location
  properties: {
    securityRules: concat(nodeRules, [nobodyElse])
  }
}

resource mongoGroup 'Microsoft.Network/networkSecurityGroups@2024-01-01' = {
  name: '${name}-mongo'
  location: location
  properties: {
    securityRules: [
      {
        name: 'nodes'
        properties: {
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefixes: ['10.42.4.0/22', '10.42.8.0/22']
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: ['27017']
        }
      }
      nobodyElse
    ]
  }
}

resource network 'Microsoft.Network/virtualNetworks@2024-01-01' = {
  name: name
  location: location
  properties: {
    addressSpace: { addressPrefixes: ['10.42.0.0/16'] }
    // The vault is reached by an endpoint of the network, and by nothing else.
    subnets: [
      {
        name: 'gateway'
        properties: { addressPrefix: '10.42.0.0/24', networkSecurityGroup: { id: gatewayGroup.id } }
      }
      {
        name: 'mongo'
        properties: {
          addressPrefix: '10.42.1.0/24'
          networkSecurityGroup: { id: mongoGroup.id }
          serviceEndpoints: [{ service: 'Microsoft.KeyVault' }]
        }
      }
      {
        name: 'origin'
        properties: {
          addressPrefix: '10.42.4.0/22'
          networkSecurityGroup: { id: originGroup.id }
          serviceEndpoints: [{ service: 'Microsoft.KeyVault' }]
        }
      }
      {
        name: 'edge'
        properties: {
          addressPrefix: '10.42.8.0/22'
          networkSecurityGroup: { id: edgeGroup.id }
          serviceEndpoints: [{ service: 'Microsoft.KeyVault' }]
        }
      }
    ]
  }
}

// ------------------------------------------------------------------------------------------------------------ balancers

resource gatewayAddress 'Microsoft.Network/publicIPAddresses@2024-01-01' = {
  name: '${name}-gateway'
  location: location
  sku: { name: 'Standard' }
  zones: zones
  properties: { publicIPAllocationMethod: 'Static' }
}

// For HTTP, and not a load balancer that hands TCP on: the certificate is here and not on each node, and one viewer's
// requests go to one node. What it writes into X-Forwarded-For makes the RemoteIpValve of Ant Media Server answer 403:
// amsagent takes the valve out on Azure, when it joins.
resource gateway 'Microsoft.Network/applicationGateways@2024-01-01' = {
  name: name
  location: location
  zones: zones
  properties: {
    sku: { name: 'Standard_v2', tier: 'Standard_v2' }
    autoscaleConfiguration: { minCapacity: 1, maxCapacity: 10 }
    gatewayIPConfigurations: [
      { name: 'gateway', properties: { subnet: { id: '${network.id}/subnets/gateway' } } }
    ]
    frontendIPConfigurations: [
      { name: 'public', properties: { publicIPAddress: { id: gatewayAddress.id } } }
    ]
    frontendPorts: [
      { name: 'http', properties: { port: 80 } }
      { name: 'https', properties: { port: 443 } }
      { name: 'edge-http', properties: { port: 5080 } }
      { name: 'edge-https', properties: { port: 5443 } }
    ]
    sslCertificates: withTls ? [{ name: 'media', properties: { data: certificate, password: certificatePassword } }] : []
    sslPolicy: { policyType: 'Predefined', policyName: 'AppGwSslPolicy20220101' }
    backendAddressPools: [
      { name: 'origin' }
      { name: 'edge' }
    ]
    probes: [
      {
        // The agent, not the server: it says no as soon as the node is to go, while the server still serves who is there.
        name: 'ready'
        properties: {
          protocol: 'Http'
          host: '127.0.0.1'
          port: 9771
          path: '/readyz'
          interval: 10
          timeout: 5
          unhealthyThreshold: 2
          match: { statusCodes: ['200'] }
        }
      }
    ]
    backendHttpSettingsCollection: [
      {
        name: 'ams'
        properties: {
          protocol: 'Http'
          port: 5080
          // The requests of one viewer go to one node.
          cookieBasedAffinity: 'Enabled'
          requestTimeout: 300
          // Who is on a node that leaves stays on it as long as the agent drains.
          connectionDraining: { enabled: true, drainTimeoutInSec: drainSeconds }
          probe: { id: '${gatewayId}/probes/ready' }
        }
      }
    ]
    httpListeners: concat([
      {
        name: 'http'
        properties: {
          protocol: 'Http'
          frontendIPConfiguration: { id: '${gatewayId}/frontendIPConfigurations/public' }
          frontendPort: { id: '${gatewayId}/frontendPorts/http' }
        }
      }
      {
        name: 'edge-http'
        properties: {
          protocol: 'Http'
          frontendIPConfiguration: { id: '${gatewayId}/frontendIPConfigurations/public' }
          frontendPort: { id: '${gatewayId}/frontendPorts/edge-http' }
        }
      }
    ], withTls ? [
      {
        name: 'https'
        properties: {
          protocol: 'Https'
          frontendIPConfiguration: { id: '${gatewayId}/frontendIPConfigurations/public' }
          frontendPort: { id: '${gatewayId}/frontendPorts/https' }
          sslCertificate: { id: '${gatewayId}/sslCertificates/media' }
        }
      }
      {
        name: 'edge-https'
        properties: {
          protocol: 'Https'
          frontendIPConfiguration: { id: '${gatewayId}/frontendIPConfigurations/public' }
          frontendPort: { id: '${gatewayId}/frontendPorts/edge-https' }
          sslCertificate: { id: '${gatewayId}/sslCertificates/media' }
        }
      }
    ] : [])
    requestRoutingRules: concat([
      {
        name: 'http'
        properties: {
          ruleType: 'Basic'
          priority: 100
          httpListener: { id: '${gatewayId}/httpListeners/http' }
          backendAddressPool: { id: '${gatewayId}/backendAddressPools/origin' }
          backendHttpSettings: { id: '${gatewayId}/backendHttpSettingsCollection/ams' }
        }
      }
      {
        name: 'edge-http'
        properties: {
          ruleType: 'Basic'
          priority: 120
          httpListener: { id: '${gatewayId}/httpListeners/edge-http' }
          backendAddressPool: { id: '${gatewayId}/backendAddressPools/edge' }
          backendHttpSettings: { id: '${gatewayId}/backendHttpSettingsCollection/ams' }
        }
      }
    ], withTls ? [
      {
        name: 'https'
        properties: {
          ruleType: 'Basic'
          priority: 110
          httpListener: { id: '${gatewayId}/httpListeners/https' }
          backendAddressPool: { id: '${gatewayId}/backendAddressPools/origin' }
          backendHttpSettings: { id: '${gatewayId}/backendHttpSettingsCollection/ams' }
        }
      }
      {
        name: 'edge-https'
        properties: {
          ruleType: 'Basic'
          priority: 130
          httpListener: { id: '${gatewayId}/httpListeners/edge-https' }
          backendAddressPool: { id: '${gatewayId}/backendAddressPools/edge' }
          backendHttpSettings: { id: '${gatewayId}/backendHttpSettingsCollection/ams' }
        }
      }
    ] : [])
  }
}

// The gateway knows HTTP alone. Encoders need one address that stays.
resource rtmpAddress 'Microsoft.Network/publicIPAddresses@2024-01-01' = {
  name: '${name}-rtmp'
  location: location
  sku: { name: 'Standard' }
  zones: zones
  properties: { publicIPAllocationMethod: 'Static' }
}

resource rtmp 'Microsoft.Network/loadBalancers@2024-01-01' = {
  name: '${name}-rtmp'
  location: location
  // The other sku cuts connections to a node whose probe says no, which is what a node does that drains.
  sku: { name: 'Standard' }
  properties: {
    frontendIPConfigurations: [
      { name: 'public', properties: { publicIPAddress: { id: rtmpAddress.id } } }
    ]
    backendAddressPools: [
      { name: 'origin' }
    ]
    probes: [
      {
        name: 'ready'
        properties: { protocol: 'Http', port: 9771, requestPath: '/readyz', intervalInSeconds: 10, probeThreshold: 2 }
      }
    ]
    loadBalancingRules: [
      {
        name: 'rtmp'
        properties: {
          protocol: 'Tcp'
          frontendPort: 1935
          backendPort: 1935
          idleTimeoutInMinutes: 30
          enableTcpReset: true
          // The nodes go out by their own addresses.
          disableOutboundSnat: true
          frontendIPConfiguration: { id: '${rtmpId}/frontendIPConfigurations/public' }
          backendAddressPool: { id: '${rtmpId}/backendAddressPools/origin' }
          probe: { id: '${rtmpId}/probes/ready' }
        }
      }
    ]
  }
}

// ----------------------------------------------------------------------------------------------------------- identities

// Made before the machines, so that their rights are there when they start.
resource originIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-origin'
  location: location
}

resource edgeIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-edge'
  location: location
}

resource mongoIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-mongo'
  location: location
}

// For one secret, "mongo", which is not there until MongoDB's machine has put it there. Policies of the vault and not roles:
// no role of Azure's own writes a secret and does nothing else, none reads one and does not list, and who deploys this needs
// no right to give rights. Who may change the vault may change MongoDB's machine as well.
resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: vaultName
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: false
    enableSoftDelete: true
    softDeleteRetentionInDays: 7
    networkAcls: {
      defaultAction: 'Deny'
      bypass: 'None'
      virtualNetworkRules: [
        { id: '${network.id}/subnets/mongo' }
        { id: '${network.id}/subnets/origin' }
        { id: '${network.id}/subnets/edge' }
      ]
    }
    accessPolicies: [
      {
        tenantId: subscription().tenantId
        objectId: originIdentity.properties.principalId
        permissions: { secrets: ['get'] }
      }
      {
        tenantId: subscription().tenantId
        objectId: edgeIdentity.properties.principalId
        permissions: { secrets: ['get'] }
      }
      {
        tenantId: subscription().tenantId
        objectId: mongoIdentity.properties.principalId
        permissions: { secrets: ['set'] }
      }
    ]
  }
}

// -------------------------------------------------------------------------------------------------------------- MongoDB

resource mongoAddress 'Microsoft.Network/publicIPAddresses@2024-01-01' = {
  name: '${name}-mongo'
  location: location
  sku: { name: 'Standard' }
  properties: { publicIPAllocationMethod: 'Static' }
}

resource mongoInterface 'Microsoft.Network/networkInterfaces@2024-01-01' = {
  name: '${name}-mongo'
  location: location
  properties: {
    ipConfigurations: [
      {
        name: 'mongo'
        properties: {
          subnet: { id: '${network.id}/subnets/mongo' }
          // A machine that is made anew has the same address, so that the connection string stays what it is.
          privateIPAllocationMethod: 'Static'
          privateIPAddress: mongoIp
          // Only to fetch packages by: nobody but the nodes is let in, and mongod does not listen there. It saves a NAT.
          publicIPAddress: { id: mongoAddress.id }
        }
      }
    ]
  }
}

// It goes with no machine. Azure encrypts every disk.
resource mongoDisk 'Microsoft.Compute/disks@2023-10-02' = {
  name: '${name}-mongo-data'
  location: location
  sku: { name: 'Premium_LRS' }
  properties: {
    creationData: empty(mongoSnapshot) ? { createOption: 'Empty' } : { createOption: 'Copy', sourceResourceId: mongoSnapshot }
    diskSizeGB: mongoDiskSize
    networkAccessPolicy: 'DenyAll'
    publicNetworkAccess: 'Disabled'
  }
}

// Azure changes no custom data of a machine that is there: docs/guides/azure.md says how it is made anew.
resource mongo 'Microsoft.Compute/virtualMachines@2024-03-01' = {
  name: '${name}-mongo'
  location: location
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${mongoIdentity.id}': {} } }
  properties: {
    hardwareProfile: { vmSize: mongoSize }
    securityProfile: { encryptionAtHost: encryptionAtHost }
    networkProfile: { networkInterfaces: [{ id: mongoInterface.id }] }
    diagnosticsProfile: { bootDiagnostics: { enabled: true } }
    storageProfile: {
      imageReference: { publisher: 'Debian', offer: 'debian-12', sku: '12-gen2', version: 'latest' }
      // By which the disk has the name that the script waits for.
      diskControllerType: 'SCSI'
      osDisk: { createOption: 'FromImage', managedDisk: { storageAccountType: 'Premium_LRS' }, deleteOption: 'Delete' }
      dataDisks: [{ lun: 0, createOption: 'Attach', managedDisk: { id: mongoDisk.id }, deleteOption: 'Detach' }]
    }
    osProfile: {
      computerName: 'mongo'
      adminUsername: 'ams'
      linuxConfiguration: {
        disablePasswordAuthentication: true
        ssh: { publicKeys: [{ path: '/home/ams/.ssh/authorized_keys', keyData: sshKey }] }
      }
      customData: base64(replace(replace(replace(replace(replace(replace(loadTextContent('mongo.sh.tmpl'), '{{release}}', mongoRelease), '{{databases}}', mongoDatabases), '{{vaults}}', vaultResource), '{{vault}}', vaultHost), '{{identity}}', mongoIdentity.properties.clientId), '{{install}}', loadTextContent('../../image/mongodb/install.sh')))
    }
  }
  dependsOn: [vault]
}

// ---------------------------------------------------------------------------------------------------------------- nodes

resource originSet 'Microsoft.Compute/virtualMachineScaleSets@2024-03-01' = {
  name: '${name}-origin'
  location: location
  zones: zones
  // The machines have them as well, from their first moment.
  tags: { 'amsagent-role': 'origin' }
  sku: { name: originSize, tier: 'Standard', capacity: originCount }
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${originIdentity.id}': {} } }
  properties: {
    orchestrationMode: 'Uniform'
    // One that is too many would join, and be gone without notice.
    overprovision: false
    singlePlacementGroup: false
    platformFaultDomainCount: 1
    upgradePolicy: upgrades
    // A node that drains is not ready on purpose, and would be replaced in the middle of it.
    automaticRepairsPolicy: { enabled: false }
    virtualMachineProfile: {
      // No Spot machines: they have 30 s to go, and no notice of their end.
      priority: 'Regular'
      // The most that Azure gives. The agent drains in it, and says when it is done.
      scheduledEventsProfile: { terminateNotificationProfile: { enable: true, notBeforeTimeout: 'PT15M' } }
      securityProfile: { encryptionAtHost: encryptionAtHost }
      extensionProfile: { extensions: [health] }
      diagnosticsProfile: { bootDiagnostics: { enabled: true } }
      storageProfile: {
        imageReference: { id: nodeImage }
        osDisk: { createOption: 'FromImage', caching: 'ReadWrite', managedDisk: { storageAccountType: 'Premium_LRS' } }
      }
      osProfile: {
        computerNamePrefix: '${name}-origin-'
        adminUsername: 'ams'
        linuxConfiguration: {
          disablePasswordAuthentication: true
          ssh: { publicKeys: [{ path: '/home/ams/.ssh/authorized_keys', keyData: sshKey }] }
        }
        // Tried again until it works: MongoDB may come later than the node.
        customData: base64(replace(replace(replace(loadTextContent('node.sh.tmpl'), '{{vaults}}', vaultResource), '{{vault}}', vaultHost), '{{identity}}', originIdentity.properties.clientId))
      }
      networkProfile: {
        networkInterfaceConfigurations: [
          {
            name: 'node'
            properties: {
              primary: true
              enableAcceleratedNetworking: true
              ipConfigurations: [
                {
                  name: 'node'
                  properties: {
                    primary: true
                    subnet: { id: '${network.id}/subnets/origin' }
                    // Media goes to the nodes directly.
                    publicIPAddressConfiguration: {
                      name: 'media'
                      sku: { name: 'Standard', tier: 'Regional' }
                      properties: { idleTimeoutInMinutes: 30 }
                    }
                    applicationGatewayBackendAddressPools: [{ id: '${gatewayId}/backendAddressPools/origin' }]
                    loadBalancerBackendAddressPools: [{ id: '${rtmpId}/backendAddressPools/origin' }]
                  }
                }
              ]
            }
          }
        ]
      }
    }
  }
  dependsOn: [gateway, rtmp, vault, mongo]
}

resource edgeSet 'Microsoft.Compute/virtualMachineScaleSets@2024-03-01' = {
  name: '${name}-edge'
  location: location
  zones: zones
  tags: { 'amsagent-role': 'edge' }
  sku: { name: edgeSize, tier: 'Standard', capacity: edgeCount }
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${edgeIdentity.id}': {} } }
  properties: {
    orchestrationMode: 'Uniform'
    overprovision: false
    singlePlacementGroup: false
    platformFaultDomainCount: 1
    upgradePolicy: upgrades
    automaticRepairsPolicy: { enabled: false }
    virtualMachineProfile: {
      priority: 'Regular'
      scheduledEventsProfile: { terminateNotificationProfile: { enable: true, notBeforeTimeout: 'PT15M' } }
      securityProfile: { encryptionAtHost: encryptionAtHost }
      extensionProfile: { extensions: [health] }
      diagnosticsProfile: { bootDiagnostics: { enabled: true } }
      storageProfile: {
        imageReference: { id: nodeImage }
        osDisk: { createOption: 'FromImage', caching: 'ReadWrite', managedDisk: { storageAccountType: 'Premium_LRS' } }
      }
      osProfile: {
        computerNamePrefix: '${name}-edge-'
        adminUsername: 'ams'
        linuxConfiguration: {
          disablePasswordAuthentication: true
          ssh: { publicKeys: [{ path: '/home/ams/.ssh/authorized_keys', keyData: sshKey }] }
        }
        customData: base64(replace(replace(replace(loadTextContent('node.sh.tmpl'), '{{vaults}}', vaultResource), '{{vault}}', vaultHost), '{{identity}}', edgeIdentity.properties.clientId))
      }
      networkProfile: {
        networkInterfaceConfigurations: [
          {
            name: 'node'
            properties: {
              primary: true
              enableAcceleratedNetworking: true
              ipConfigurations: [
                {
                  name: 'node'
                  properties: {
                    primary: true
                    subnet: { id: '${network.id}/subnets/edge' }
                    publicIPAddressConfiguration: {
                      name: 'media'
                      sku: { name: 'Standard', tier: 'Regional' }
                      properties: { idleTimeoutInMinutes: 30 }
                    }
                    applicationGatewayBackendAddressPools: [{ id: '${gatewayId}/backendAddressPools/edge' }]
                  }
                }
              ]
            }
          }
        ]
      }
    }
  }
  dependsOn: [gateway, vault, mongo]
}

// Out and in at the same 60 %: autoscale itself takes no machine away whose load would bring the others above it.
resource originScaling 'Microsoft.Insights/autoscaleSettings@2022-10-01' = {
  name: '${name}-origin'
  location: location
  properties: {
    enabled: true
    targetResourceUri: originSet.id
    profiles: [
      {
        name: 'cpu'
        capacity: { minimum: string(originMin), maximum: string(originMax), default: string(originMin) }
        rules: [
          {
            metricTrigger: {
              metricName: 'Percentage CPU'
              metricResourceUri: originSet.id
              timeGrain: 'PT1M'
              statistic: 'Average'
              timeWindow: 'PT5M'
              timeAggregation: 'Average'
              operator: 'GreaterThan'
              threshold: 60
            }
            scaleAction: { direction: 'Increase', type: 'ChangeCount', value: '1', cooldown: 'PT5M' }
          }
          {
            metricTrigger: {
              metricName: 'Percentage CPU'
              metricResourceUri: originSet.id
              timeGrain: 'PT1M'
              statistic: 'Average'
              timeWindow: 'PT5M'
              timeAggregation: 'Average'
              operator: 'LessThan'
              threshold: 60
            }
            scaleAction: { direction: 'Decrease', type: 'ChangeCount', value: '1', cooldown: 'PT5M' }
          }
        ]
      }
    ]
  }
}

resource edgeScaling 'Microsoft.Insights/autoscaleSettings@2022-10-01' = {
  name: '${name}-edge'
  location: location
  properties: {
    enabled: true
    targetResourceUri: edgeSet.id
    profiles: [
      {
        name: 'cpu'
        capacity: { minimum: string(edgeMin), maximum: string(edgeMax), default: string(edgeMin) }
        rules: [
          {
            metricTrigger: {
              metricName: 'Percentage CPU'
              metricResourceUri: edgeSet.id
              timeGrain: 'PT1M'
              statistic: 'Average'
              timeWindow: 'PT5M'
              timeAggregation: 'Average'
              operator: 'GreaterThan'
              threshold: 60
            }
            scaleAction: { direction: 'Increase', type: 'ChangeCount', value: '1', cooldown: 'PT5M' }
          }
          {
            metricTrigger: {
              metricName: 'Percentage CPU'
              metricResourceUri: edgeSet.id
              timeGrain: 'PT1M'
              statistic: 'Average'
              timeWindow: 'PT5M'
              timeAggregation: 'Average'
              operator: 'LessThan'
              threshold: 60
            }
            scaleAction: { direction: 'Decrease', type: 'ChangeCount', value: '1', cooldown: 'PT5M' }
          }
        ]
      }
    ]
  }
}

@description('Publish and manage here, or at https:// with a certificate')
output originUrl string = 'http://${gatewayAddress.properties.ipAddress}'

@description('Play here, or at https:// and port 5443 with a certificate')
output edgeUrl string = 'http://${gatewayAddress.properties.ipAddress}:5080'

@description('Encoders publish here')
output rtmpUrl string = 'rtmp://${rtmpAddress.properties.ipAddress}/LiveApp'

@description('Secret with the connection string')
output mongoSecret string = 'https://${vaultHost}/secrets/mongo'

@description('Private address of MongoDB')
output mongoPrivateAddress string = mongoIp

@description('Whether the nodes serve; then point your domain at the balancer')
output nextStep string = 'az network application-gateway show-backend-health --resource-group ${resourceGroup().name} --name ${name}'
