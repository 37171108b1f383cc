// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestBound(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	i := Instance{
		ID: text(MaxText), Group: text(MaxText + 1), Zone: "z",
		Tags: Tags{"role": "edge", "long": text(maxTag + 1), "just": text(maxTag), text(MaxText + 1): "v"},
	}
	must.OK(t, i.Bound())
	if i.Group != "" || i.Zone != "z" || len(i.Notes) != 2 {
		t.Errorf("%+v", i)
	}
	must.NoDiff(t, "tags", map[string]string(i.Tags), map[string]string{"role": "edge", "just": text(maxTag)})

	i.ID += "x"
	if err := i.Bound(); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("%v", err)
	}

	many := Tags{}
	for n := range 2 * MaxTags {
		many[fmt.Sprintf("%05d", n)] = "v"
	}
	set := Instance{ID: "i-1", Tags: many, Group: text(1 << 20)}
	if err := set.Bound(); err != nil || len(set.Tags) != MaxTags || len(set.Group) > MaxText {
		t.Errorf("%d tags, a group of %d bytes, %v", len(set.Tags), len(set.Group), err)
	}

	plain := Instance{ID: "i-1"}
	if err := plain.Bound(); err != nil || plain.Tags != nil || plain.Notes != nil {
		t.Errorf("%v, %+v", err, plain)
	}
}
