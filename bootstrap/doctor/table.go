// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"slices"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
)

// The ids that only the doctor has. Package bootstrap has the others.
const (
	idApps        = "AMS-APP"           // the applications
	idAppName     = "AMS-APP-NAME"      // an application lost its name, and its settings
	idSettings    = "AMS-SETTINGS"      // files that do not agree about the mode
	idHosts       = "AMS-HOSTS"         // what is left in /etc/hosts
	idMongoOpen   = "AMS-MONGO-OPEN"    // MongoDB is open to every client
	idMongoPlain  = "AMS-MONGO-PLAIN"   // no TLS over a public network
	idMongoSlow   = "AMS-MONGO-SLOW"    // far away
	idMongoNoName = "AMS-MONGO-MISSING" // no address is known
	idNotPrimary  = "AMS-MONGO-NOT-PRIMARY"
	idRows        = "AGENT-SAME-ADDRESS" // two nodes with one address
	idUnequal     = "AMS-UNEQUAL"        // nodes of one role with other settings
	idPeers       = "AMS-PEERS"          // other nodes cannot be reached
	idPorts       = "AMS-PORTS"          // ports that are taken
	idTimeline    = bootstrap.IDTimeline
	idHook        = "AGENT-HOOK"            // no hook of the cloud
	idHookDenied  = "AGENT-HOOK-DENIED"     // a permission is missing
	idSecret      = "AGENT-SECRET"          // a secret that others can read
	idUnit        = "AMS-UNIT"              // how the service is doing
	idReload      = "AMS-RELOAD"            // systemd has not read its files
	idDropIn      = "AGENT-DROP-IN"         // our drop-in
	idNoDaemon    = "AGENT-DAEMON-DOWN"     // no daemon answers
	idTrouble     = "AGENT-DAEMON-DEGRADED" // the daemon's own view
	idViews       = "AGENT-DISAGREES"       // the views of this node disagree
	idUnfinished  = "AGENT-UNFINISHED"      // a run was killed while it wrote
	idTimeSync    = "AMS-TIME-SYNC"         // no time service sets the clock
	idGPU         = "AMS-GPU"               // devices and driver
	idGPUDriver   = "AMS-GPU-DRIVER"        // a driver that does not do
	idStatusStem  = "STATUS-"
)

// checks is the table of all checks, in the order of the report.
func checks() []check {
	return []check{
		{bootstrap.IDInstall, GroupServer, "installation", preflight(seeInstall, bootstrap.IDInstall)},
		{bootstrap.IDRelease, GroupServer, "release", inspected(checkRelease)},
		{bootstrap.IDSections, GroupServer, "sections of jee-container.xml", preflight(seeSections, bootstrap.IDSections)},
		{bootstrap.IDFile, GroupServer, "settings files", preflight(seeFiles, bootstrap.IDFile, bootstrap.IDFileLink, bootstrap.IDFileSize, bootstrap.IDHardLink,
			bootstrap.IDConflict, ams.WarnServerSyntax, ams.WarnHTTPPort)},
		{idApps, GroupServer, "applications", preflight(seeApps, ams.WarnAppIncomplete, ams.WarnAppEncoding)},
		{idAppName, GroupServer, "names of the applications", inspected(checkAppNames)},
		{bootstrap.IDFileOwner, GroupServer, "owners of the files", inspected(checkOwners)},
		{idSettings, GroupServer, "agreement of the settings", inspected(checkSettings)},

		{idMongoNoName, GroupMongo, "address of MongoDB", checkMongoAddress},
		{bootstrap.IDMongoForm, GroupMongo, "connection string and release", inspected(checkMongoForm)},
		{bootstrap.IDMongoLocal, GroupMongo, "reach of the address", inspected(checkMongoLocal)},
		{bootstrap.IDMongo, GroupMongo, "answer", checkMongoAnswer},
		{bootstrap.IDMongoAuth, GroupMongo, "login and rights", checkMongoAuth},
		{idNotPrimary, GroupMongo, "writes", checkMongoWrites},
		{idMongoOpen, GroupMongo, "closed to strangers", checkMongoOpen},
		{idMongoPlain, GroupMongo, "encryption", checkMongoPlain},
		{idMongoSlow, GroupMongo, "latency", checkMongoSlow},
		{bootstrap.IDClock, GroupMongo, "clock against MongoDB's", checkClock},
		{idRows, GroupMongo, "one node for one address", looked(checkRows)},
		{bootstrap.IDRole, GroupMongo, "role", looked(checkRole)},
		{idUnequal, GroupMongo, "equal settings in the role", looked(checkUnequal)},

		{bootstrap.IDIdentity, groupNetwork, "identity of this machine", preflight(seeIdentity, bootstrap.IDIdentity)},
		{bootstrap.IDAddress, groupNetwork, "node address", preflight(seeAddress, bootstrap.IDAddress, ams.WarnAddressLoopback,
			ams.WarnAddressPublic, ams.WarnAddressNotHere, ams.WarnAddressUnchecked)},
		{bootstrap.IDHostname, groupNetwork, "host name", inspected(checkHostname)},
		{idHosts, groupNetwork, "lines of /etc/hosts", inspected(checkHosts)},
		{idPorts, groupNetwork, "ports", inspected(checkPorts)},
		{idPeers, groupNetwork, "other nodes", looked(checkPeers)},

		{idHook, GroupShutdown, "hook of the cloud", checkHook},
		{idTimeline, GroupShutdown, "deadlines", checkTimeline},

		{bootstrap.IDRecord, GroupAgent, "the agent's own files", inspected(checkRecord)},
		{bootstrap.IDConfig, GroupAgent, "settings", checkConfig},
		{idSecret, GroupAgent, "secrets", checkSecrets},
		{bootstrap.IDService, GroupAgent, "control of the server", preflight(seeService, bootstrap.IDService)},
		{idUnit, GroupAgent, "the server's unit", inspected(checkUnit)},
		{bootstrap.IDCount, GroupAgent, "count of viewers", inspected(checkCount)},
		{idDropIn, GroupAgent, "drop-in of the server's unit", inspected(checkDropIn)},
		{bootstrap.IDDaemon, GroupAgent, "the daemon's units", checkDaemonUnits},
		{idNoDaemon, GroupAgent, "the daemon", checkDaemon},
		{idViews, GroupAgent, "files, server, registry", checkViews},

		{bootstrap.IDWritable, GroupMachine, "writable folders", checkWritable},
		{bootstrap.IDSpace, GroupMachine, "disk space", inspected(checkSpace)},
		{idTimeSync, GroupMachine, "time synchronisation", checkTimeSync},
		{idGPU, GroupMachine, "GPUs", checkGPU},
	}
}

// IDs lists every id that a result may have, except for those of package cli's table of errors about MongoDB.
func IDs() []string {
	ids := []string{
		bootstrap.IDRoot, bootstrap.IDMongoOption, bootstrap.IDFileLink, bootstrap.IDFileSize, bootstrap.IDHardLink, bootstrap.IDConflict, bootstrap.IDUnverified,
		ams.WarnServerSyntax, ams.WarnHTTPPort, ams.WarnAppIncomplete, ams.WarnAppEncoding,
		ams.WarnAddressLoopback, ams.WarnAddressPublic, ams.WarnAddressNotHere, ams.WarnAddressUnchecked,
		bootstrap.IDCloned, bootstrap.IDNotEnabled, bootstrap.IDDuplicate, bootstrap.IDMongoMember, idHookDenied, idReload, idTrouble, idUnfinished, idGPUDriver,
	}
	for _, c := range checks() {
		ids = append(ids, c.id)
	}
	ids = append(ids, bootstrap.StatusIDs()...)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// advice is for findings of a join without a hint: a join reports them beside its own repair.
func advice(id string) string {
	switch id {
	case ams.WarnHTTPPort:
		return "write the port on which the server listens as a number into http.port of red5.properties"
	case ams.WarnServerSyntax:
		return "correct that line of red5.properties"
	case bootstrap.IDFileLink:
		return "let root make the link, or remove it"
	case bootstrap.IDHardLink:
		return "remove the other names: find / -xdev -samefile FILE"
	case bootstrap.IDConflict:
		return "look at that place: a leave cannot give it back as it was"
	case ams.WarnAppIncomplete:
		return "deploy the application again, mount the volume that a link leads to, or move the folder out of webapps"
	case ams.WarnAppEncoding:
		return "give the folder another name, as the server needs it, too"
	case ams.WarnAddressPublic, ams.WarnAddressLoopback, ams.WarnAddressNotHere:
		return "give this node's private address, by which the other nodes reach it, with --address"
	case bootstrap.IDHostname:
		return "give the machine a name: hostnamectl set-hostname NAME"
	case bootstrap.IDRecord:
		return "amsagent join writes it again"
	case bootstrap.IDRelease:
		return "say which it is with --ams-release"
	}
	return ""
}
