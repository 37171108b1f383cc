// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
)

// removedKind is the place in which a removed name would stand.
type removedKind int

const (
	removedSetting removedKind = iota // a key of config.yaml that also was a variable of the environment
	removedKey                        // a key of config.yaml whose variable stays
	removedEnv                        // a variable of the environment, with its prefix
	removedFlag                       // a flag, without its dashes
	removedCommand                    // a command of amsagent
	removedValue                      // a value of a setting, in each of its places
	removedItem                       // an item of seal
)

// removed lists what earlier versions read. It is refused with its replacement, so that no image loses a setting in silence.
var removed = []struct {
	kind removedKind
	// of is the command of a flag ("" is each command) or of a word after it, or the key of a value.
	of, name string
	instead  string
}{
	{removedSetting, "", "auto_restart", "the daemon never restarts the server; `amsagent status` names what differs, and the command that applies it"},
	{removedFlag, "converge", "restart", "use " + bootstrap.RestartHint},
	{removedFlag, "converge", "no-restart", "the daemon never restarts the server"},
	{removedFlag, "", "no-color", "use --color never"},
	{removedFlag, "doctor", "only-problems", "problems stand last; with -o json the verdict of each check is a field"},
	{removedFlag, "doctor", "fix", "the hint of each finding names the line to write"},
	{removedFlag, "doctor", "kind", "--user-data reads user data; for other files: `haproxy -c -f FILE`, `mongod --config FILE --outputConfig`"},
	{removedFlag, "nodes", "no-probe", "no port is tried any more"},
	{removedFlag, "seal", "joined", "leave first: amsagent leave --offline"},
	{removedItem, "seal", "ssh", "SSH keys are the image builder's: rm /etc/ssh/ssh_host_*"},
	{removedFlag, "metadata", "record", "`--log-level debug` shows path, status and size of each answer"},
	{removedSetting, "", "drain_deadlines", "use `join --drain-deadline`, or the tag amsagent:drain-deadline (amsagent-drain-deadline)"},
	{removedSetting, "", "rebalance", "the advice to leave a Spot instance is ignored; in a group the termination hook drains"},
	{removedSetting, "", "abandon_on_failure", "put the launch hook with `--default-result ABANDON`: the cloud then replaces a machine that does not join in time"},
	{removedSetting, "", "force_address", "use `join --force-address`, which is kept"},
	{removedFlag, "config", "force-address", "it is a flag of join alone"},
	{removedKey, "", "aws_endpoint", setVariable + "AMSAGENT_AWS_ENDPOINT" + dropIn},
	{removedKey, "", "aws_autoscaling_endpoint", setVariable + "AMSAGENT_AWS_AUTOSCALING_ENDPOINT" + dropIn},
	{removedKey, "", "azure_endpoint", setVariable + "AMSAGENT_AZURE_ENDPOINT" + dropIn},
	{removedKey, "", "alibaba_endpoint", setVariable + "AMSAGENT_ALIBABA_ENDPOINT" + dropIn},
	{removedKey, "", "alibaba_ess_endpoint", setVariable + "AMSAGENT_ALIBABA_ESS_ENDPOINT" + dropIn},
	{removedKey, "", "alibaba_ecs_endpoint", setVariable + "AMSAGENT_ALIBABA_ECS_ENDPOINT" + dropIn},
	{removedKey, "", "gcp_endpoint", setVariable + "AMSAGENT_GCP_ENDPOINT" + dropIn},
	{removedValue, keyProvider, "none", "use generic"},
	{removedCommand, "help", "exit-codes", "the help of each command lists its codes"},
	{removedCommand, "help", "errors", "`amsagent doctor --explain ID` prints the page of an id"},
	{removedCommand, "help", "environment", "man 5 amsagent-config lists the variables; that of a setting is AMSAGENT_ and its key in capitals"},
	{removedSetting, "", "tag_mongo", tagsAreFixed},
	{removedSetting, "", "tag_role", tagsAreFixed},
	{removedSetting, "", "tag_group", tagsAreFixed},
	{removedSetting, "", "tag_hooks", "no tag names hooks; use `join --hooks`, or hooks: in config.yaml"},
}

const (
	setVariable = "set the environment variable "
	dropIn      = " (for the daemon in a drop-in: systemctl edit amsagent amsagent-node)"
)

const tagsAreFixed = "tags are amsagent:role, amsagent:group and amsagent:mongo, or amsagent-role, amsagent-group and amsagent-mongo"

// removedError returns the refusal of a name in the table, and nil for any other name.
func removedError(kind removedKind, of, name string) error {
	for _, r := range removed {
		same := r.kind == kind || kind == removedKey && r.kind == removedSetting
		if !same || r.name != name || r.of != of {
			continue
		}
		if kind == removedFlag {
			name = "--" + name
		}
		return valueError{text: fmt.Sprintf("%s was removed: %s", name, r.instead)}
	}
	return nil
}

// removedVariables returns the refusals of variables that are set.
func removedVariables(lookup func(string) (string, bool)) []error {
	var errs []error
	for _, r := range removed {
		name := r.name
		switch r.kind {
		case removedSetting:
			name = envPrefix + strings.ToUpper(name)
		case removedEnv:
		default:
			continue
		}
		if lookupNonEmpty(lookup, name) != "" {
			errs = append(errs, &settingError{layer: layerEnv, err: fmt.Errorf("%s was removed: %s", name, r.instead)})
		}
	}
	return errs
}

// removedFlagError returns the refusal of a flag of cmd.
func removedFlagError(cmd *cobra.Command, name string) error {
	err := removedError(removedFlag, cmd.Name(), name)
	if err == nil {
		err = removedError(removedFlag, "", name)
	}
	return err
}
