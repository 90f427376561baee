package diff

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// environment is what is compared: known differences hang on it.
type environment struct {
	reference string // "ext4", "tmpfs"
	variant   string // of the mount
}

// known is a difference between filesystems that is right as it is.
type known struct {
	name   string
	reason string
	// refuse tells whether the reference answers "not supported" instead of doing a call, so that contents do not part.
	refuse func(o *op) bool
	// avoid tells whether a call is left out on both sides, as its effect differs and others would follow.
	avoid func(s *side, o *op) bool
	// explains tells whether it is the reason for two lines of answers to a call to differ.
	explains func(o *op, reference, tested string, env environment) bool
}

var differences = []known{
	{
		name:   "collapse and insert",
		reason: "the kernel's FUSE client takes no FALLOC_FL_COLLAPSE_RANGE, INSERT_RANGE or UNSHARE_RANGE (fs/fuse/file.c, fuse_file_fallocate), as most filesystems do not",
		refuse: func(o *op) bool { return o.call.name == "fallocate" && contested(o) },
		explains: func(o *op, reference, tested string, _ environment) bool {
			return o.call.name == "fallocate" && reference == "not supported" && strings.HasPrefix(tested, "E")
		},
	},
	{
		name:   "reads from the cache",
		reason: "what is read out of the kernel's cache is told to nobody, so it does not move atime (as on NFS)",
		explains: func(_ *op, reference, tested string, _ environment) bool {
			r, t := lastWords(reference), lastWords(tested)
			return strings.Contains(reference, "atime of ") && strings.HasSuffix(reference, " moved") && strings.HasSuffix(tested, " stayed") ||
				strings.HasPrefix(r, "atime ") && strings.HasPrefix(t, "atime ") && strings.HasSuffix(r, " now")
		},
	},
	{
		name:   "an ACL that is not there",
		reason: "the kernel's FUSE client takes the removal of one for a change, and moves ctime; the errno and all else is as on ext4",
		explains: func(o *op, reference, tested string, _ environment) bool {
			return strings.HasSuffix(o.call.name, "xattr") && strings.HasPrefix(o.name, "system.posix_acl_") &&
				strings.HasPrefix(reference, "ctime of ") && strings.HasSuffix(reference, " stayed") && strings.HasSuffix(tested, " moved")
		},
	},
	{
		name:   "whiteout over a directory",
		reason: "ext4 makes the whiteout before it sees that the directory is not empty, and takes it back: the times of its parent change though the call fails",
		avoid: func(_ *side, o *op) bool {
			var st unix.Stat_t
			return o.call.name == "rename" && o.flags&unix.RENAME_WHITEOUT != 0 && unix.Lstat(o.path2, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
		},
	},
	{
		name:   "sendfile onto itself",
		reason: "the pages on their way are the file's own, not copies of them: what ends where depends on how many are under way at a time",
		avoid: func(s *side, o *op) bool {
			var from, to unix.Stat_t
			return o.call.name == "sendfile" && unix.Fstat(s.fd[o.slot], &from) == nil && unix.Fstat(s.fd[o.slot2], &to) == nil && from.Ino == to.Ino
		},
	},
	{
		name:   "times of a fifo",
		reason: "the kernel keeps no times for FUSE inodes that are no regular files (S_NOCMTIME), so what passes through a fifo leaves no trace on it",
		explains: func(_ *op, reference, tested string, _ environment) bool {
			if strings.Contains(reference, "of fd") && strings.Contains(reference, "(fifo)") {
				return strings.HasSuffix(reference, " moved") && strings.HasSuffix(tested, " stayed")
			}
			r, now := strings.CutSuffix(lastWords(reference), " mtime now")
			t, _, _ := strings.Cut(lastWords(tested), " mtime ")
			return now && r == t && strings.HasPrefix(r, "fifo ")
		},
	},
	{
		name: "completed pages",
		reason: "to write a part of a page that it does not hold, the kernel first reads it, and a READ request does not say whether it " +
			"is for that or for a program if the descriptor may read too: a write then moves atime",
		explains: func(o *op, reference, tested string, env environment) bool {
			if env.variant != "writeback" {
				return false
			}
			r, t := lastWords(reference), lastWords(tested)
			if strings.HasPrefix(r, "atime file ") && strings.HasPrefix(t, "atime file ") {
				return strings.HasSuffix(t, " now")
			}
			switch o.call.name {
			case "write", "pwrite", "writev", "mmap", "truncate", "ftruncate", "sendfile", "copy_file_range":
				return strings.HasPrefix(reference, "atime of ") && strings.HasSuffix(reference, " stayed") && strings.HasSuffix(tested, " moved")
			}
			return false
		},
	},
	{
		name: "truncation to the same size",
		reason: "with its writeback cache the kernel keeps mtime and ctime of regular files itself, and sets them at a truncation only " +
			"if the size changes (fs/fuse/dir.c, fuse_do_setattr)",
		avoid: func(s *side, o *op) bool {
			var st unix.Stat_t
			if s.env.variant != "writeback" {
				return false
			}
			switch o.call.name {
			case "truncate":
				return unix.Stat(o.path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == o.n
			case "ftruncate":
				return unix.Fstat(s.fd[o.slot], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == o.n
			}
			return false
		},
	},
	{
		name: "blocks",
		reason: "ext4 counts blocks of extent trees and attributes too. With the writeback cache a truncation drops pages that the filesystem " +
			"never saw, so that for it a file may grow that has shrunk, and it keeps what was preallocated behind the end (as ext4 does " +
			"when a file grows). Both have at least the blocks of the pages with data, which the tree checks",
		explains: func(_ *op, reference, tested string, env environment) bool {
			var r, t int64
			if n, _ := fmt.Sscanf(lastWords(reference), "blocks %d", &r); n != 1 {
				return false
			}
			if n, _ := fmt.Sscanf(lastWords(tested), "blocks %d", &t); n != 1 {
				return false
			}
			return t <= r || env.variant == "writeback"
		},
	},
}

// lastWords is what a line of a tree says of a path.
func lastWords(line string) string {
	if _, rest, ok := strings.Cut(line, `": `); ok {
		return rest
	}
	return line
}

// contested tells whether one of the filesystems is known to refuse a call that the other may do.
func contested(o *op) bool {
	return o.call.name == "fallocate" && o.flags&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE|unix.FALLOC_FL_UNSHARE_RANGE) != 0
}

func explained(o *op, reference, tested string, env environment) string {
	for _, k := range differences {
		if k.explains != nil && k.explains(o, reference, tested, env) {
			return k.name
		}
	}
	return ""
}

// known is the answer to a call that is not made: "" if it is.
func (s *side) known(o *op) string {
	for _, k := range differences {
		if k.avoid != nil && k.avoid(s, o) {
			return "left out"
		}
		if s.reference && k.refuse != nil && k.refuse(o) {
			return "not supported"
		}
	}
	return ""
}
