// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
)

// Items is a metadata service that has a path for each item. Its fields are not changed once it is used; several goroutines
// may read from it.
type Items struct {
	Provider string
	Options  Options
	// Fetch asks for one path, once.
	Fetch func(ctx context.Context, path string) ([]byte, error)
	// Judge is that of [Call].
	Judge func(*Error, *Attempt)
	// Slots holds a place for each item that may be read at the same time.
	Slots chan struct{}
}

// Item is one of them: where it is, and how hard to try. The numbers are those of [Call].
type Item struct {
	Name, Path                 string
	Attempts, NotFoundAttempts int
}

// ReadItem fetches and parses one item through the retry loop.
func ReadItem[T any](ctx context.Context, s *Items, i Item, parse func([]byte) (T, error)) (T, error) {
	var found, zero T
	err := s.read(ctx, i, func(body []byte) (err error) {
		found, err = parse(body)
		return err
	})
	if err != nil {
		return zero, err
	}
	return found, nil
}

// read is the part of ReadItem that is compiled once, for all types.
func (s *Items) read(ctx context.Context, i Item, parse func([]byte) error) error {
	select {
	case s.Slots <- struct{}{}:
		defer func() { <-s.Slots }()
	case <-ctx.Done():
		return &Error{Provider: s.Provider, Item: i.Name, Kind: ErrNotReady, Cause: ctx.Err()}
	}
	call := Call{Provider: s.Provider, Item: i.Name, Attempts: i.Attempts, NotFoundAttempts: i.NotFoundAttempts, Judge: s.Judge}
	return retry(ctx, s.Options, call, func(ctx context.Context) error {
		body, err := s.Fetch(ctx, i.Path)
		if err != nil {
			return err
		}
		if err := parse(body); err != nil {
			return BadAnswer(err)
		}
		return nil
	})
}

// LookAt reads an item once, as who looks again and again does, or twice where the service refused the session token: Fetch
// has dropped that. found is false for an item that is not set.
func LookAt[T any](ctx context.Context, s *Items, name, path string, parse func([]byte) (T, error)) (v T, found bool, err error) {
	for again := false; ; again = true {
		v, err = ReadItem(ctx, s, Item{Name: name, Path: path, Attempts: 1}, parse)
		e, ok := errors.AsType[*Error](err)
		switch {
		case err == nil:
			return v, true, nil
		case !ok || ctx.Err() != nil:
			return v, false, err
		case errors.Is(e.Kind, ErrNotFound):
			return v, false, nil
		case e.Status == http.StatusUnauthorized && !again:
			// With a new token this goes, or the service means it.
		default:
			return v, false, err
		}
	}
}

// Reached sets the addresses: the private one, with its source, or the first of IPv6 that others can reach, and the first
// public one.
func (i *Instance) Reached(private netip.Addr, source string, public, v6 []netip.Addr) {
	if len(public) > 0 {
		i.PublicAddress = public[0]
	}
	for _, a := range v6 {
		if a.Is6() && a.IsGlobalUnicast() {
			i.IPv6 = a
			break
		}
	}
	switch {
	case private.IsValid():
		i.Address, i.AddressSource = private, source
	case i.IPv6.IsValid():
		i.Address, i.AddressSource = i.IPv6, "first IPv6 address of the first interface, since the instance has no IPv4 address"
	default:
		i.Notes = append(i.Notes, "the metadata tells no private address of this instance")
	}
}
