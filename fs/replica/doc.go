// Package replica is the only room where the log meets the disk: it turns calls of the mount into commands, proposes
// them to the group that holds the inode, and applies what the log brings to the engine.
//
// Goroutines of a Volume: the reaper (frees what has neither name nor reader), the atime writer; both end in Close.
package replica
