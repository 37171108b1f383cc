// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/internal/redact"
)

// digestSize is in bytes: enough for the nodes of a cluster, and a few bytes in each heartbeat.
const digestSize = 6

// Digest returns a short hash of the texts, which it sorts: their order does not count.
func Digest(texts []string) string {
	slices.Sort(texts)
	sum := sha256.Sum256([]byte(strings.Join(texts, "\x00")))
	return hex.EncodeToString(sum[:digestSize])
}

// DigestFile hashes what the server reads from its settings file, the same for each spelling. Secrets, addresses, and the
// properties that skip names count as if they were equal everywhere.
func DigestFile(kind Kind, src []byte, skip func(key string) bool) (string, error) {
	if kind == KindContainer {
		return digestBeans(src)
	}
	p, err := ParseProperties(src)
	if err != nil {
		return "", err
	}
	var texts []string
	for key, i := range p.last {
		value := strings.TrimSpace(p.entries[i].value)
		if skip(key) {
			continue
		}
		if a, err := netip.ParseAddr(value); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			value = "address"
		}
		texts = append(texts, key+"="+maskedAs(key, value))
	}
	return Digest(texts), nil
}

func digestBeans(src []byte) (string, error) {
	parsed, err := parseXML(src)
	if err != nil {
		return "", err
	}
	tokens := meaning(parsed)
	for i, t := range tokens {
		tokens[i] = redact.Text(t)
		if strings.HasPrefix(t, "text ") && redact.Name(strings.Join(tokens[max(0, i-2):i], " ")) {
			tokens[i] = redact.Placeholder
		}
	}
	return Digest([]string{strings.Join(tokens, "\x00")}), nil
}
