// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"fmt"
	"sync"
)

// machines are those of a cloud, by their ids, with what the cloud has for each.
type machines[M any] struct {
	mu   sync.Mutex
	byID map[string]M
}

func newMachines[M any]() *machines[M] { return &machines[M]{byID: map[string]M{}} }

func (ms *machines[M]) add(id string, m M) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.byID[id] = m
}

func (ms *machines[M]) find(id string) (M, error) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m, ok := ms.byID[id]
	if !ok {
		return m, fmt.Errorf("no machine %q in this cloud", id)
	}
	return m, nil
}
