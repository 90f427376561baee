// Package recode makes the .png files of a mounted volume smaller, behind everybody's back: it finds files that have been
// written and closed, has media/png encode them again, and swaps the contents for smaller ones with the same picture.
//
// # Which files
//
// A file whose name ends in .png (in any case) becomes a candidate when it is closed for the last time after it was
// written, or when it gets that name by a rename (browsers and editors write x.tmp and rename it). The swap is made when
// nobody has the file open; a reader who has goes on reading what it opened, and the swap comes after its close. A file
// that changes meanwhile is left alone until it is closed again. Times, mode, owner and all other attributes stay: what
// anybody asked for has not changed, so make and rsync see no new file by its time (rsync does see another size).
//
// What is not a complete and valid PNG, or does not get smaller, stays as it is, byte for byte, and gets no attribute
// (package png says what is not touched).
//
// # Files that are done
//
// The mark that a file has been re-encoded is in its image data (package png), so it survives cp -a, tar and rsync:
// a copy is read and its chunks are checked, but it is not inflated again. Files that were looked at and kept are
// remembered in memory by inode and version, a bounded number of them; after a mount they are looked at again when they
// are written or renamed, and not before.
//
// A file that was made smaller has an attribute user.vde.png that tells from what (Record). It goes with cp -a, which is
// right as long as the bytes go too; when a file that has one is written anew and stays as it is, the attribute is
// removed, unless the size is still the one it tells.
//
// # Where
//
// The mode of the mount (Mode) holds for all directories; an attribute user.vde.png of "async", "sync" or "off" on a
// directory overrides it for what is below. The nearest directory upwards decides.
//
// Work trees of version control are left alone: a directory that holds an entry .git, .hg, .svn or .jj counts as "off",
// unless it or a directory between it and the file says otherwise. A checkout writes exactly the bytes that were
// committed, and a smaller file would show up as a change that nobody made. Who wants smaller pictures in a repository
// runs `vde png` on it and commits the result.
//
// # Sync
//
// In mode sync close(2) returns when the smaller file is in place, as far as anybody can see: the close waits while the
// file is encoded; the swap comes when the kernel has let go of the open file, which it says in a request of its own that
// nobody waits for, right behind the close; and until then (a second at most) whoever asks for the file by its path
// waits. If a duplicate of the descriptor stays open, in another process for example, the swap comes with its close. The
// mount asks for the request at close(2), one for every file, only if its own mode is sync; so a directory with "sync" on
// a mount with another mode is treated as async.
//
// # Limits
//
// Candidates are noted in a file from when they are written until they have been looked at, so that the next mount does what
// this one was ended before (see noted).
//
// Workers in the background: half of the processors, 2 at most. Beside them at most closingSlots closes are served at a
// time. All together take at most Options.Memory: who encodes waits until there is room for what the picture needs (png.Needs),
// and one that needs more than there is in all stays as it is. A mount gives them a third of its memory. The queue holds maxQueue files;
// what finds no room in it stays as it was written.
//
// # Goroutines and locks
//
// Run starts the workers, the swapper (it swaps what a close has prepared) and the keeper of the file of candidates, and waits for them. Recoder.mu is held for
// no call out of this package.
package recode
