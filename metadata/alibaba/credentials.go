// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Credentials are those of the instance's RAM role, for a few hours.
type Credentials struct {
	AccessKeyID, AccessKeySecret, SecurityToken string
	Expiration                                  time.Time
}

// String implements fmt.Stringer: a key is not shown.
func (c Credentials) String() string {
	return "credentials until " + c.Expiration.Format(time.RFC3339)
}

// GoString implements fmt.GoStringer, so that %#v hides what %v hides.
func (c Credentials) GoString() string { return c.String() }

// LogValue implements slog.LogValuer.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON implements json.Marshaler.
func (c Credentials) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

const (
	// credentialsEarly: they are renewed so long before their end, in which the service already gives out the next ones.
	credentialsEarly = 5 * time.Minute
	credentialsDir   = "meta-data/ram/security-credentials/"
)

// ParseCredentials reads the answer about one role. The error shows nothing of it.
func ParseCredentials(body []byte) (Credentials, error) {
	var doc struct {
		Code            string `json:"Code"`
		AccessKeyID     string `json:"AccessKeyId"`
		AccessKeySecret string `json:"AccessKeySecret"`
		SecurityToken   string `json:"SecurityToken"`
		Expiration      string `json:"Expiration"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return Credentials{}, errors.New("the credentials of the role are not the JSON expected")
	}
	if doc.Code != "Success" && doc.Code != "" {
		return Credentials{}, fmt.Errorf("the credentials of the role cannot be had: %s", cloud.Quote(doc.Code))
	}
	until, err := parseTime(doc.Expiration)
	if doc.AccessKeyID == "" || doc.AccessKeySecret == "" || doc.SecurityToken == "" || err != nil ||
		strings.ContainsFunc(doc.AccessKeyID+doc.SecurityToken, notInToken) {
		return Credentials{}, errors.New("the credentials of the role are not complete")
	}
	return Credentials{doc.AccessKeyID, doc.AccessKeySecret, doc.SecurityToken, until}, nil
}

// ParseRole reads the list of roles, of which an instance has one at most. "" is none.
func ParseRole(body []byte) (string, error) {
	fields := strings.Fields(string(body))
	if len(fields) == 0 {
		return "", nil
	}
	role := strings.Trim(fields[0], "/")
	if !isWord(role) || len(role) > 64 {
		return "", fmt.Errorf("%s is no name of a role", cloud.Quote(string(body)))
	}
	return role, nil
}

// errNoRole: nobody gave this instance a RAM role.
var errNoRole = errors.New("the instance has no RAM role")

// roleKeys keeps the credentials until shortly before their end.
type roleKeys struct {
	mu  sync.Mutex
	now Credentials
	// renew is when the next ones are fetched: by the lifetime that they had left when they came, so that a clock of
	// ours that is off does not matter much.
	renew time.Time
}

func (k *roleKeys) get(ctx context.Context, p *Provider) (Credentials, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if k.now.AccessKeyID != "" && now.Before(k.renew) {
		return k.now, nil
	}
	fresh, err := p.roleCredentials(ctx)
	if err != nil {
		if e, ok := errors.AsType[*cloud.Error](err); ok && !errors.Is(e, cloud.ErrNotFound) && now.Before(k.now.Expiration) {
			// Those that we have are good for some minutes still.
			return k.now, nil
		}
		k.now = Credentials{}
		return Credentials{}, err
	}
	// Those that say that they have ended are tried all the same, for a while: whose clock is wrong is not known here.
	k.now, k.renew = fresh, fresh.Expiration.Add(-credentialsEarly)
	if soon := now.Add(time.Minute); k.renew.Before(soon) {
		k.renew = soon
	}
	return fresh, nil
}

// drop forgets credentials that the API refused.
func (k *roleKeys) drop(c Credentials) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now.SecurityToken == c.SecurityToken {
		k.now = Credentials{}
	}
}

func (p *Provider) roleCredentials(ctx context.Context) (Credentials, error) {
	role, err := cloud.ReadItem(ctx, p.items, optional("name of the RAM role", credentialsDir), ParseRole)
	if errors.Is(err, cloud.ErrNotFound) || err == nil && role == "" {
		return Credentials{}, errNoRole
	}
	if err != nil {
		return Credentials{}, err
	}
	c, err := cloud.ReadItem(ctx, p.items, optional("credentials of the RAM role", credentialsDir+role), ParseCredentials)
	if errors.Is(err, cloud.ErrNotFound) {
		return Credentials{}, errNoRole
	}
	return c, err
}
