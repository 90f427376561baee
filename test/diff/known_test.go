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
	// refuse is what the reference answers instead of doing a call, so that contents do not part; "": it does it.
	refuse func(o *op, env environment) string
	// explains tells whether it is the reason for two lines of answers to a call to differ.
	explains func(o *op, reference, tested string, env environment) bool
}

var differences = []known{
	{
		name:   "collapse and insert",
		reason: "the kernel's FUSE client takes no FALLOC_FL_COLLAPSE_RANGE, INSERT_RANGE or UNSHARE_RANGE (fs/fuse/file.c, fuse_file_fallocate), as most filesystems do not",
		refuse: func(o *op, _ environment) string {
			if o.call.name == "fallocate" && contested(o) {
				return "not supported"
			}
			return ""
		},
		explains: func(o *op, reference, tested string, _ environment) bool {
			return o.call.name == "fallocate" && reference == "not supported" && strings.HasPrefix(tested, "E")
		},
	},
	{
		name:   "whiteout",
		reason: "the kernel's FUSE client takes no RENAME_WHITEOUT (fs/fuse/dir.c, fuse_rename2); overlayfs does without",
		refuse: func(o *op, _ environment) string {
			var from, to unix.Stat_t
			if o.call.name != "rename" || !contested(o) ||
				unix.Lstat(o.path, &from) == nil && unix.Lstat(o.path2, &to) == nil && from.Ino == to.Ino {
				return "" // nothing to do is the kernel's answer for all filesystems
			}
			return "not supported"
		},
		explains: func(o *op, reference, tested string, _ environment) bool {
			return o.call.name == "rename" && reference == "not supported" && strings.HasPrefix(tested, "E")
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
	return o.call.name == "rename" && o.flags&unix.RENAME_WHITEOUT != 0 ||
		o.call.name == "fallocate" && o.flags&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE|unix.FALLOC_FL_UNSHARE_RANGE) != 0
}

func explained(o *op, reference, tested string, env environment) string {
	for _, k := range differences {
		if k.explains != nil && k.explains(o, reference, tested, env) {
			return k.name
		}
	}
	return ""
}

// refusal is the answer of the reference to what the tested filesystem is known not to support.
func refusal(env environment) func(*op) string {
	return func(o *op) string {
		for _, k := range differences {
			if k.refuse != nil {
				if answer := k.refuse(o, env); answer != "" {
					return answer
				}
			}
		}
		return ""
	}
}
