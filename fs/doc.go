// Package fs is the mount: a FUSE server on go-fuse's raw API that answers the kernel out of a Volume.
//
// Node ids are inode numbers (but for renewed ones, see renew.go). The server keeps no descriptor and no table per open
// file: every request names its inode, so a handle is only a number (handles.go).
//
// # What the kernel caches
//
// One mount is the only one that changes its volume, so the kernel may keep entries (also negative ones), attributes,
// data, symlinks and directory listings for as long as it likes. Where an operation changes something that the kernel
// did not name in the request, the kernel invalidates it by itself (the parents of what is made, removed or renamed, the
// ctime and link count of the inode concerned). Changes that do not come through the mount are pushed with
// Server.InvalidateInode and its neighbours (invalidate.go).
//
// With the writeback cache (unless MountOptions.NoWriteback) size, mtime and ctime of regular files are the kernel's: it
// ignores what the server says of them as long as it knows the inode, and sends its own times in a SETATTR. Hence:
//
//   - a write may arrive through any handle, and reads through write-only ones;
//   - O_APPEND is the kernel's: the offset of a WRITE is where the data goes;
//   - LSEEK asks about data that the kernel may still hold: the server first has it written (opLseek);
//   - FOPEN_DIRECT_IO is not used, as the kernel would not count such writes in mtime.
//
// Locks are the kernel's too, as long as there is one mount: its own tables know owners, signals and deadlocks, and cost
// no request. MountOptions.ServerLocks sends them here (locks.go).
//
// # Order of locks
//
//	renewals.mu           before any shard of the nodeTable
//	nodeTable.shard.mu    one shard at a time; no call into the volume or the kernel under it
//	lockTable.mu          likewise
//
// # Goroutines
//
//	serve       started by Mount, ends when the connection is gone; Server.Wait and Unmount wait for it
//	readers     go-fuse's, one per request under way; serve waits for them
package fs
