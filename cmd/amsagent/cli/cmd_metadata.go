// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/metadata"
)

func newMetadataCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "metadata [flags]",
		Short: "print what the cloud reports about this machine",
		Long: "The cloud is detected by the firmware's strings, then by cloud-init's data.\n" +
			"The evidence is printed after the provider.",
		Example: "  amsagent metadata\n" +
			"  amsagent metadata --provider aws -o json\n" +
			"  amsagent metadata --log-level debug",
		RunE: func(cmd *cobra.Command, _ []string) error { return runMetadata(cmd.Context(), g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitUnknown, exitInterrupted)
	readsOnly(cmd)
	g.addSettings(cmd, settings.KeyProvider)
	return cmd
}

// metadataData is what `metadata` prints.
type metadataData struct {
	Instance  metadata.Instance  `json:"instance"`
	Detection metadata.Detection `json:"detection"`
}

func runMetadata(ctx context.Context, g *globals) error {
	m, err := g.ask(ctx, g.question())
	if err != nil {
		return cannot("tell what this machine is", err)
	}
	data := metadataData{Instance: m.Instance, Detection: m.Detection}
	return g.result("metadata", data, func(w *output.Text) { metadataText(w, data) })
}

func metadataText(w *output.Text, data metadataData) {
	inst := data.Instance
	w.Line("%s", output.Printable(metadataVerdict(data)))
	w.Blank()
	address := ""
	if inst.Address.IsValid() {
		address = inst.Address.String()
		if inst.AddressSource != "" {
			address += " (" + inst.AddressSource + ")"
		}
	}
	provider := inst.Provider
	if because := data.Detection.Because; because != "" {
		provider += " (" + because + ")"
	}
	id := inst.ID
	if inst.IDSource != "" {
		id += " (" + inst.IDSource + ")"
	}
	w.Fields(
		"provider", provider,
		"id", id,
		"address", address,
		"public address", addrText(inst.PublicAddress),
		"ipv6", addrText(inst.IPv6),
		"hostname", inst.Hostname,
		"region", inst.Region,
		"zone", inst.Zone,
		"type", inst.Type,
		"life cycle", inst.LifeCycle,
		"group", inst.Group,
		"account", inst.AccountID,
		"not readable", strings.Join(inst.Missing, ", "),
	)

	switch {
	case len(inst.Tags) > 0:
		w.Heading("TAGS")
		var rows [][]string
		red := inst.Tags.Redacted()
		for _, k := range slices.Sorted(maps.Keys(red)) {
			rows = append(rows, []string{k, red[k]})
		}
		w.Table(rows)
	case inst.TagsKnown:
		w.Heading("TAGS")
		w.Line("  none")
	default:
		w.Heading("TAGS")
		w.Line("  not known: %s", output.OneLine(inst.TagsHint))
	}

	if len(inst.Notes) > 0 {
		w.Heading("NOTES")
		for _, n := range inst.Notes {
			w.Line("  %s", output.OneLine(n))
		}
	}
	w.Blank()
	w.Line("which settings come from this: %s", w.Color.Bold("amsagent config"))
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// metadataVerdict is the first line: what this machine is, in one sentence.
func metadataVerdict(data metadataData) string {
	inst, d := data.Instance, data.Detection
	name := map[string]string{
		metadata.AWS: "AWS", metadata.Azure: "Azure", metadata.Alibaba: "Alibaba Cloud", metadata.GCP: "Google Cloud",
	}[d.Provider]
	var what string
	switch {
	case name != "":
		what = "an instance in " + name
	case d.Platform != "":
		what = "an instance in " + d.Platform
	default:
		what = "a machine in no cloud that we know"
	}
	verdict := fmt.Sprintf("this is %s, %s", inst.ID, what)
	if inst.Type != "" {
		verdict += ", " + inst.Type
	}
	if place := inst.Zone; place != "" {
		verdict += ", in " + place
	} else if inst.Region != "" {
		verdict += ", in " + inst.Region
	}
	return verdict
}
