// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
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
		return cannot("identify this machine", err)
	}
	data := metadataData{Instance: m.Instance, Detection: m.Detection}
	return g.result("metadata", data, func(w *output.Text) { metadataText(w, data) })
}

func metadataText(w *output.Text, data metadataData) {
	inst := data.Instance
	w.Line("%s\n", output.Printable(metadataHeadline(data)))
	with := func(text, source string) string {
		if text == "" || source == "" {
			return text
		}
		return text + " (" + source + ")"
	}
	w.Fields(
		"provider", with(inst.Provider, data.Detection.Because),
		"id", with(inst.ID, inst.IDSource),
		"address", with(addrText(inst.Address), inst.AddressSource),
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

	w.Heading("TAGS")
	switch {
	case len(inst.Tags) > 0:
		var rows [][]string
		red := inst.Tags.Redacted()
		for _, k := range slices.Sorted(maps.Keys(red)) {
			rows = append(rows, []string{k, red[k]})
		}
		w.Table(rows)
	case inst.TagsKnown:
		w.Line("  none")
	default:
		w.Line("  not known: %s", output.OneLine(inst.TagsHint))
	}

	if len(inst.Notes) > 0 {
		w.Heading("NOTES")
		for _, n := range inst.Notes {
			w.Line("  %s", output.OneLine(n))
		}
	}
	w.Line("\nwhich settings come from this: %s", w.Color.Bold("amsagent config"))
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// metadataHeadline describes the machine in one sentence.
func metadataHeadline(data metadataData) string {
	inst, d := data.Instance, data.Detection
	cloud := map[string]string{
		metadata.AWS: "AWS", metadata.Azure: "Azure", metadata.Alibaba: "Alibaba Cloud", metadata.GCP: "Google Cloud",
	}[d.Provider]
	text := "this is " + inst.ID + ", a machine in no known cloud"
	if cloud = cmp.Or(cloud, d.Platform); cloud != "" {
		text = "this is " + inst.ID + ", an instance in " + cloud
	}
	if inst.Type != "" {
		text += ", " + inst.Type
	}
	if place := cmp.Or(inst.Zone, inst.Region); place != "" {
		text += ", in " + place
	}
	return text
}
