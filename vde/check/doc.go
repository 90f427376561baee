// Package check judges a store that nobody has open, and repairs what it can without losing data.
//
// It reads what is documented (docs/formats.md) with the decoders of vde/layout, vde/meta and consensus/logstore, and
// draws its own conclusions: free space, counts and references are computed here from the keys alone, not with the
// engine's code.
//
// # What is judged
//
// A store consists of a state (meta/, which says how far the log was applied to it) and a log that may hold more. A
// store that was closed has nothing in the log beyond its state. After a crash it has: the state is whole by itself,
// as batches reach meta/ in order and each of them leaves it consistent, but blocks of the image may be newer than it
// (rule R2: they are overwritten in place once the log record of the write is durable), and may be torn. So a block
// that fails its checksum means nothing before the log was replayed.
//
// Run therefore judges what the next mount would work with. Where the log holds more than the state, it has
// Options.Replay apply it: when nothing may be written, on a file system that keeps every change in memory and leaves
// the store as it is; with Repair, on the store, after trying it that way first. Replay is a function given by the
// caller because applying the log takes rooms that stand above this one. Without it the state is judged as it is, bad
// blocks are counted in a note instead of being findings, and the repairs that would disturb a later replay (those
// that make inodes or change which number the next one gets) are left alone.
//
// # Repair
//
// Nothing is ever deleted but entries that point nowhere and counts that count nothing. Inodes without a name get one
// in /lost+found: "#" and their number. Extents, entries or attributes whose inode is lost get a new inode of the same
// number. Files that map the same blocks keep them, as shared blocks. What has no certain answer (an undecodable value,
// an extent outside of the image, a block that fails its checksum) stays as it is and is reported.
//
// Repairs build on each other, so they are made in stages, lowest first, each followed by another look at the whole
// store, until nothing is left that can be repaired. Each stage becomes durable as a whole; an interrupted repair is
// continued by the next one.
//
// A damaged log keeps a store from being opened, though the metadata has nearly all that was in it. Where nothing else can have been in it,
// or what can be read of it has the rest, a new one takes its place (see judgeLog).
//
// Repairs happen outside of the log. Where a store is one of several replicas, its copy would differ from the others
// afterwards, so only what each has for itself is repaired: superblocks, bitmap, reference counts.
//
// # Nodes of a cluster
//
// How much of the log counts, only the other nodes could say. Options.Rehearse applies all of it, in memory: any prefix of it makes a whole
// state of its group. Between groups it may not: see halves.go.
//
// # Cost
//
// Every key is read once, in order, by letter. Memory is about 50 bytes for an inode, 80 more for a directory, and
// 3 bits for a block in use; of extents only those with shared blocks are held.
package check
