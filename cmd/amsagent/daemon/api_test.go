// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
)

func TestRefuse(t *testing.T) {
	for _, tt := range []struct {
		err    error
		code   daemon.RefusalCode
		status int
	}{
		{lifecycle.ErrNotJoined, daemon.RefusedNotMember, http.StatusConflict},
		{lifecycle.ErrNotDraining, daemon.RefusedNotDraining, http.StatusConflict},
		{fmt.Errorf("%w (step stopping)", lifecycle.ErrTooLate), daemon.RefusedTooLate, http.StatusConflict},
		{lifecycle.ErrLeft, daemon.RefusedLeft, http.StatusConflict},
		{errors.New("no room on the disk"), daemon.RefusedFailed, http.StatusInternalServerError},
	} {
		r := daemon.Refuse(tt.err, lifecycle.View{State: lifecycle.StateLeft})
		if r.Code != tt.code || r.HTTPStatus() != tt.status || r.Error() != tt.err.Error() || r.View.State != lifecycle.StateLeft {
			t.Errorf("%v: %+v, status %d", tt.err, r, r.HTTPStatus())
		}
	}
	must.Equal(t, "refusal", (&daemon.Refusal{Code: daemon.RefusedInvalid}).Error(), "the daemon refused: invalid")
}
