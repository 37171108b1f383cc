// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/amsagent/amsagent/internal/redact"
)

// AddSecrets adds texts that must never be printed.
func (p *Printer) AddSecrets(secrets ...redact.Secret) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range secrets {
		if s != "" && !slices.Contains(p.secrets, s) {
			p.secrets = append(p.secrets, s)
		}
	}
}

// Redact masks the secrets in a text.
func (p *Printer) Redact(text string) string {
	p.mu.Lock()
	secrets := slices.Clone(p.secrets)
	p.mu.Unlock()
	return redact.Text(text, secrets...)
}

// redactAttr redacts a log attribute before it is quoted and escaped, which hides a secret.
func (p *Printer) redactAttr(a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(p.Redact(a.Value.String()))
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error, fmt.Stringer, []string, []byte:
			a.Value = slog.StringValue(p.Redact(fmt.Sprint(v)))
		}
	case slog.KindBool, slog.KindDuration, slog.KindFloat64, slog.KindInt64, slog.KindTime, slog.KindUint64,
		slog.KindGroup, slog.KindLogValuer:
	}
	return a
}

// RedactJSON redacts only the string values of a JSON text: a password "1" or "kind" must not break the object.
func (p *Printer) RedactJSON(b []byte) []byte {
	var out bytes.Buffer
	for len(b) > 0 {
		start := bytes.IndexByte(b, '"')
		if start < 0 {
			break
		}
		end := start + 1
		for end < len(b) && b[end] != '"' {
			if b[end] == '\\' {
				end++
			}
			end++
		}
		end = min(end+1, len(b))
		lit := b[start:end]
		out.Write(b[:start])
		b = b[end:]
		if bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte(":")) {
			out.Write(lit) // a field's name
			continue
		}
		out.Write(p.redactLiteral(lit))
	}
	out.Write(b)
	return out.Bytes()
}

func (p *Printer) redactLiteral(lit []byte) []byte {
	var s string
	if err := json.Unmarshal(lit, &s); err != nil {
		return lit
	}
	r := p.Redact(s)
	if r == s {
		return lit
	}
	b, _ := JSONLine(r) // a string
	return bytes.TrimSpace(b)
}

// redactWriter redacts what is written through it. Handlers write one record per call, so no secret is cut in two.
type redactWriter struct {
	w      io.Writer
	redact func(string) string
}

func (r redactWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(r.w, r.redact(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
