// Package diff runs random sequences of system calls on a mount and on a reference filesystem (ext4 where there is one),
// and compares everything that a program can see: results and errnos, contents, attributes, which times moved, listings and
// whole trees.
//
// A sequence runs on a fresh directory on either side, by a thread that has it as its root, so that absolute paths and ".."
// mean the same on both. The two sides do not wait for each other: the calls of a sequence are chosen beforehand, and the
// answers compared at its end. A sequence that differs is shrunk to the few calls that matter and printed as a program.
//
// Where Linux filesystems differ by right, known.go says so, with the reason: one entry per difference, as narrow as it can
// be.
//
//	go test ./test/diff                                           what make test runs
//	go test ./test/diff -args -diff.seed=7 -diff.calls=100000     more, and other ones
//	go test ./test/diff -timeout 0 -v -args -diff.for=8h          for hours, with new seeds (make posix)
//	go test ./test/diff -args -diff.seed=7 -diff.only=writeback/12   one sequence again
package diff
