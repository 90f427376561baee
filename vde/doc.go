// Package vde is a disk in a store directory: an image of checksummed blocks, metadata in Pebble, free space, and
// locks on ranges of blocks. It knows names, numbers and blocks; it knows nothing of POSIX, Raft or FUSE.
//
// Every change is a transaction (Tx) that belongs to one entry of a log which the caller keeps: the log is the redo
// log of the engine. Begin, changes and Commit run in log order within a group; what Commit leaves to do (Rest: the
// data of writes) may run in parallel. After a crash the caller applies the entries after Engine.Group(slot).Applied
// again. What holds at every instant:
//
//	R1 Nothing in meta/ becomes durable before the log records and data blocks it depends on: Engine.barrier.
//	R2 A mapped block is overwritten in place only with whole new contents, and only after the log record of
//	   that write is durable: overlay. Contents that depend on what a block held go to a fresh block.
//	R3 A freed block is not given out again before the state that freed it is durable in meta/, nor while a reader
//	   or an open snapshot may still use it: Engine.Checkpoint. (Durability of the log record alone would not do: replay completes
//	   partly written blocks from what their old block holds.)
//	R4 A transaction reads no file data, except to complete a partly written block.
//
// Large writes put their blocks into the image before their record into the log: refwrite.go.
//
// Order of locks, outermost first:
//
//	caller's order of a group
//	  Engine.settle (read: from Begin until Rest has run)
//	    Engine.readGate (read: while blocks of a file are found and read; nobody who has queued for a range takes it)
//	      rangelock of a file
//	        Engine.commitGate (read: while a commit changes memory and meta/)
//	      fileTable.mu, refs.mu, overlay.mu, frees.mu, holdBack.mu, alloc's (leaves)
//	overlay.flushMu > overlay.mu
//	checkpointMu > everything that Flush needs; never held by what settle waits for
//
// Goroutines: overlay's writer (started by Open, ended by Close); the checkpointer (same).
package vde
