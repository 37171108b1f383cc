// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package pattern holds regular expressions that are compiled when they are first used: each
// command would pay for those of all clouds and of doctor, which it does not use.
package pattern

import (
	"regexp"
	"sync"
)

// Pattern is a regular expression. Its methods may be called at the same time.
type Pattern struct {
	text string
	once sync.Once
	re   *regexp.Regexp
}

// New takes a regular expression, whose first use panics where it is malformed.
func New(text string) *Pattern { return &Pattern{text: text} }

// Get is the expression, compiled.
func (p *Pattern) Get() *regexp.Regexp {
	p.once.Do(func() { p.re = regexp.MustCompile(p.text) })
	return p.re
}
