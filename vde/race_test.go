//go:build race

package vde

import "flag"

// The race detector makes the model-based tests many times slower, and finds what it finds in a few runs. Without it they
// run in full.
func init() {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
}
