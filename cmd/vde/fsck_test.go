package main

import (
	"strings"
	"testing"

	"vdefs/vde/check"
)

// The last line of fsck says what can be done, and no more than that.
func TestAdvise(t *testing.T) {
	for _, c := range []struct {
		finding   check.Finding
		says, not string
	}{
		{check.Finding{Kind: check.KindLinks, Repairable: true}, "run `vde fsck --repair /s`", "backup"},
		{check.Finding{Kind: check.KindLog, Droppable: true}, "--drop-log /s`", "cannot be repaired"},
		{check.Finding{Kind: check.KindMetadata}, "it cannot be repaired: restore", "--repair"},
		{check.Finding{Kind: check.KindBlock, Path: "/a"}, "write the files with bad blocks anew", "--repair"},
	} {
		got := advise("/s", check.Report{Findings: []check.Finding{c.finding}})
		if !strings.Contains(got, c.says) || strings.Contains(got, c.not) {
			t.Errorf("%s: %q", c.finding.Kind, got)
		}
	}
}
