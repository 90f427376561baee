package fs

import "sync/atomic"

// op names a kind of request, for counting and for log lines.
type op uint8

const (
	opLookup op = iota
	opForget
	opGetattr
	opSetattr
	opStatx
	opMknod
	opMkdir
	opSymlink
	opReadlink
	opLink
	opUnlink
	opRmdir
	opRename
	opCreate
	opTmpfile
	opOpen
	opRead
	opWrite
	opFlush
	opRelease
	opFsync
	opReaddir
	opReaddirplus
	opStatfs
	opGetxattr
	opListxattr
	opSetxattr
	opRemovexattr
	opFallocate
	opLseek
	opCopyFileRange
	opGetlk
	opSetlk
	opIoctl
	opCount
)

var opNames = [opCount]string{
	"lookup", "forget", "getattr", "setattr", "statx", "mknod", "mkdir", "symlink", "readlink", "link", "unlink", "rmdir",
	"rename", "create", "tmpfile", "open", "read", "write", "flush", "release", "fsync", "readdir", "readdirplus", "statfs",
	"getxattr", "listxattr", "setxattr", "removexattr", "fallocate", "lseek", "copy_file_range", "getlk", "setlk", "ioctl",
}

func (o op) String() string { return opNames[o] }

// counters count since the mount. They are written by every request.
type counters struct {
	requests     [opCount]atomic.Uint64
	errors       atomic.Uint64
	bytesRead    atomic.Uint64
	bytesWritten atomic.Uint64
}

// Stats is what a mount has done since it was mounted, and what it holds now.
type Stats struct {
	Requests     map[string]uint64 // by operation; those that never came are left out
	Errors       uint64            // requests answered with an error, "no such file" for one included
	BytesRead    uint64            // by requests, not by the kernel's cache
	BytesWritten uint64
	KnownInodes  int // that the kernel may hold
	OpenFiles    int
}

// Stats reads the counters; they are not of one instant.
func (s *Server) Stats() Stats {
	c := &s.fs.stats
	stats := Stats{
		Requests: make(map[string]uint64), Errors: c.errors.Load(),
		BytesRead: c.bytesRead.Load(), BytesWritten: c.bytesWritten.Load(),
	}
	for o := range c.requests {
		if n := c.requests[o].Load(); n > 0 {
			stats.Requests[op(o).String()] = n
		}
	}
	stats.KnownInodes, stats.OpenFiles = s.fs.nodes.count()
	return stats
}
