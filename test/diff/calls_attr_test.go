package diff

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The calls on attributes and locks.
func init() {
	register(
		&call{name: "chmod", weight: 8, draw: func(g *generator, o *op) { o.path, o.mode = g.path(), g.perm() },
			run: func(s *side, o *op) string { return status(unix.Chmod(o.path, o.mode)) }, show: showMode},
		&call{name: "fchmod", weight: 4, draw: func(g *generator, o *op) { o.slot, o.mode = g.anySlot(), g.perm() },
			run:  func(s *side, o *op) string { return status(unix.Fchmod(s.fd[o.slot], o.mode)) },
			show: func(o *op) string { return fmt.Sprintf("fd%d, %#o", o.slot, o.mode) }},
		&call{name: "chown", weight: 8, draw: func(g *generator, o *op) {
			o.path, o.flags = g.path(), pick(g, 0, unix.AT_SYMLINK_NOFOLLOW)
			drawOwner(g, o)
		}, run: func(s *side, o *op) string {
			return status(unix.Fchownat(unix.AT_FDCWD, o.path, int(o.off), int(o.off2), o.flags))
		}, show: func(o *op) string {
			return fmt.Sprintf("%q, %d, %d, %s", o.path, o.off, o.off2, bits(o.flags, "0", unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"))
		}},
		&call{name: "fchown", weight: 3, draw: func(g *generator, o *op) {
			o.slot = g.anySlot()
			drawOwner(g, o)
		}, run: func(s *side, o *op) string { return status(unix.Fchown(s.fd[o.slot], int(o.off), int(o.off2))) },
			show: func(o *op) string { return fmt.Sprintf("fd%d, %d, %d", o.slot, o.off, o.off2) }},
		&call{name: "utimensat", weight: 10, draw: func(g *generator, o *op) {
			o.path, o.flags, o.off, o.off2 = g.path(), pick(g, 0, unix.AT_SYMLINK_NOFOLLOW), drawTime(g), drawTime(g)
		}, run: func(s *side, o *op) string {
			return status(unix.UtimesNanoAt(unix.AT_FDCWD, o.path, []unix.Timespec{timespec(o.off), timespec(o.off2)}, o.flags))
		}, show: func(o *op) string {
			return fmt.Sprintf("%q, {%s, %s}, %s", o.path, showTime(o.off), showTime(o.off2), bits(o.flags, "0", unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"))
		}},
		&call{name: "stat", weight: 16, draw: func(g *generator, o *op) { o.path, o.flags = g.path(), pick(g, 0, unix.AT_SYMLINK_NOFOLLOW) },
			run: func(s *side, o *op) string {
				var st unix.Stat_t
				if err := unix.Fstatat(unix.AT_FDCWD, o.path, &st, o.flags); err != nil {
					return errno(err)
				}
				return describe(&st)
			}, show: func(o *op) string {
				return fmt.Sprintf("%q, %s", o.path, bits(o.flags, "0", unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"))
			}},
		&call{name: "fstat", weight: 8, draw: onSlot, run: func(s *side, o *op) string {
			st, err := s.fstat(o.slot)
			if err != nil {
				return errno(err)
			}
			return describe(&st)
		}, show: showSlot},
		&call{name: "statx", weight: 4, draw: func(g *generator, o *op) { o.path = g.path() }, run: runStatx, show: showPath},
		&call{name: "access", weight: 6, draw: func(g *generator, o *op) {
			o.path, o.mode, o.flags = g.path(), uint32(g.IntN(8)), pick(g, 0, unix.AT_EACCESS)
		}, run: func(s *side, o *op) string {
			return status(unix.Faccessat2(unix.AT_FDCWD, o.path, o.mode, o.flags))
		}, show: func(o *op) string {
			return fmt.Sprintf("%q, %d, %s", o.path, o.mode, bits(o.flags, "0", unix.AT_EACCESS, "AT_EACCESS"))
		}},

		&call{name: "setxattr", weight: 10, draw: drawSetxattr, run: func(s *side, o *op) string {
			return status(unix.Lsetxattr(o.path, o.name, o.value, o.flags))
		}, show: func(o *op) string {
			return fmt.Sprintf("%q, %q, %q, %s", o.path, o.name, o.value, bits(o.flags, "0", unix.XATTR_CREATE, "XATTR_CREATE", unix.XATTR_REPLACE, "XATTR_REPLACE"))
		}},
		&call{name: "fsetxattr", weight: 3, draw: func(g *generator, o *op) {
			drawSetxattr(g, o)
			o.slot, o.path = g.anySlot(), ""
		}, run: func(s *side, o *op) string {
			return status(unix.Fsetxattr(s.fd[o.slot], o.name, o.value, o.flags))
		}, show: func(o *op) string { return fmt.Sprintf("fd%d, %q, %q, %d", o.slot, o.name, o.value, o.flags) }},
		&call{name: "getxattr", weight: 5, draw: func(g *generator, o *op) {
			o.path, o.name, o.n = g.path(), drawXattr(g), pick[int64](g, 0, 1, 4, 1000)
		}, run: func(s *side, o *op) string {
			n, err := unix.Lgetxattr(o.path, o.name, s.buf[:o.n])
			if o.n == 0 {
				return result(n, err)
			}
			return s.got(n, err)
		}, show: func(o *op) string { return fmt.Sprintf("%q, %q, %d", o.path, o.name, o.n) }},
		&call{name: "listxattr", weight: 4, draw: func(g *generator, o *op) { o.path, o.n = g.path(), pick[int64](g, 0, 3, 1000) }, run: func(s *side, o *op) string {
			n, err := unix.Llistxattr(o.path, s.buf[:o.n])
			if err != nil || o.n == 0 {
				return result(n, err)
			}
			names := strings.Split(string(s.buf[:n]), "\x00")
			sort.Strings(names)
			return fmt.Sprintf("%q", names)
		}, show: func(o *op) string { return fmt.Sprintf("%q, %d", o.path, o.n) }},
		&call{name: "removexattr", weight: 4, draw: func(g *generator, o *op) { o.path, o.name = g.path(), drawXattr(g) },
			run:  func(s *side, o *op) string { return status(unix.Lremovexattr(o.path, o.name)) },
			show: func(o *op) string { return fmt.Sprintf("%q, %q", o.path, o.name) }},

		&call{name: "flock", weight: 4, draw: func(g *generator, o *op) {
			o.slot, o.flags = g.anySlot(), pick(g, unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN)
		},
			run: func(s *side, o *op) string { return status(unix.Flock(s.fd[o.slot], o.flags|unix.LOCK_NB)) },
			show: func(o *op) string {
				return fmt.Sprintf("fd%d, %s", o.slot, bits(o.flags, "0", unix.LOCK_SH, "LOCK_SH", unix.LOCK_EX, "LOCK_EX", unix.LOCK_UN, "LOCK_UN"))
			}},
		&call{name: "lock", weight: 6, draw: func(g *generator, o *op) {
			o.slot, o.off, o.n = g.anySlot(), int64(g.IntN(100)), int64(g.IntN(100))
			o.flags = pick(g, unix.F_OFD_SETLK, unix.F_OFD_SETLK, unix.F_OFD_GETLK, unix.F_SETLK, unix.F_GETLK)
			o.mode = pick[uint32](g, unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK)
		}, run: func(s *side, o *op) string {
			l := unix.Flock_t{Type: int16(o.mode), Start: o.off, Len: o.n}
			err := unix.FcntlFlock(uintptr(s.fd[o.slot]), o.flags, &l)
			return fmt.Sprintf("%s, type %d, start %d, length %d, ofd %t", status(err), l.Type, l.Start, l.Len, l.Pid == -1)
		}, show: func(o *op) string {
			return fmt.Sprintf("fd%d, %s, %s, %d, %d", o.slot,
				map[int]string{unix.F_OFD_SETLK: "F_OFD_SETLK", unix.F_OFD_GETLK: "F_OFD_GETLK", unix.F_SETLK: "F_SETLK", unix.F_GETLK: "F_GETLK"}[o.flags],
				[...]string{"F_RDLCK", "F_WRLCK", "F_UNLCK"}[o.mode], o.off, o.n)
		}},
	)
}

func drawOwner(g *generator, o *op) {
	o.off, o.off2 = int64(users[g.IntN(len(users))].uid), int64(users[g.IntN(len(users))].gid)
	switch g.IntN(4) {
	case 0:
		o.off = -1
	case 1:
		o.off2 = -1
	}
}

// Special values of a time to set.
const (
	timeNow  = -1 << 40
	timeOmit = -1<<40 + 1
)

// drawTime draws times that are far from now, so that one that was set is told from one that moved. ext4 knows none before
// 1901-12-13 20:45:52 or after 2446.
func drawTime(g *generator) int64 {
	return pick[int64](g, timeNow, timeOmit, 0, 1, old, 1<<31-1, 1<<31+10, 1<<32+5, 1<<33+7, -5, -1<<31+10)
}

func timespec(t int64) unix.Timespec {
	switch t {
	case timeNow:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case timeOmit:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t, Nsec: 123456789}
}

func showTime(t int64) string {
	switch t {
	case timeNow:
		return "UTIME_NOW"
	case timeOmit:
		return "UTIME_OMIT"
	}
	return fmt.Sprintf("%d.123456789", t)
}

// moment tells a time that somebody set from one that the filesystem did.
func moment(t unix.Timespec) string {
	if d := time.Since(time.Unix(t.Sec, t.Nsec)); d > -time.Hour && d < 24*time.Hour {
		return "now"
	}
	return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
}

// describe says what stat tells, as lines; what is each filesystem's own (numbers of inodes and devices, the size of
// directories) is left out, blocks are looked at with the whole tree.
func describe(st *unix.Stat_t) string {
	size := ""
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		size = fmt.Sprintf(" size %d", st.Size)
	}
	return fmt.Sprintf("%s %#o nlink %d owner %d:%d%s rdev %d mtime %s\natime %s %s",
		kindOf(st.Mode), st.Mode&0o7777, st.Nlink, st.Uid, st.Gid, size, st.Rdev, moment(st.Mtim), kindOf(st.Mode), moment(st.Atim))
}

func runStatx(s *side, o *op) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, o.path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return errno(err)
	}
	born := "no"
	if st.Mask&unix.STATX_BTIME != 0 {
		born = moment(unix.Timespec{Sec: st.Btime.Sec, Nsec: int64(st.Btime.Nsec)})
	}
	return fmt.Sprintf("%#o nlink %d owner %d:%d mtime %s ctime %s btime %s", st.Mode, st.Nlink, st.Uid, st.Gid,
		moment(unix.Timespec{Sec: st.Mtime.Sec, Nsec: int64(st.Mtime.Nsec)}), moment(unix.Timespec{Sec: st.Ctime.Sec, Nsec: int64(st.Ctime.Nsec)}), born)
}

func drawXattr(g *generator) string {
	return pick(g, "user.a", "user.b", "user.a", "trusted.t", "security.s", "system.posix_acl_access", "system.posix_acl_access",
		"system.posix_acl_default", "security.capability", "system.nonsense", "nonsense", "user.", "user."+strings.Repeat("l", 250), "user."+strings.Repeat("l", 251))
}

func drawSetxattr(g *generator, o *op) {
	o.path, o.name, o.flags = g.path(), drawXattr(g), pick(g, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	o.value = make([]byte, pick(g, 0, 1, 10, 100))
	for i := range o.value {
		o.value[i] = o.fill
	}
	switch {
	case strings.HasPrefix(o.name, "system.posix_acl") && !g.one(8):
		o.value = drawACL(g)
	case o.name == "security.capability" && (len(o.value) == 0 || !g.one(4)): // no file loses empty ones
		o.value = []byte{0, 0, 0, 2, o.fill, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // VFS_CAP_REVISION_2
	}
}

// drawACL draws an ACL, mostly a valid one.
func drawACL(g *generator) []byte {
	const (
		userObj, user, groupObj, group, mask, other = 1, 2, 4, 8, 16, 32

		none = 0xFFFFFFFF
	)
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 2)
	add := func(tag uint16, id uint32) {
		b = le.AppendUint16(b, tag)
		b = le.AppendUint16(b, uint16(g.IntN(8)))
		b = le.AppendUint32(b, id)
	}
	if g.one(20) {
		return b
	}
	add(userObj, none)
	long := false
	if g.one(2) {
		add(user, 1001)
		long = true
	}
	if g.one(4) {
		add(user, 1003)
		long = true
	}
	add(groupObj, none)
	if g.one(2) {
		add(group, 1003)
		long = true
	}
	if long != g.one(12) {
		add(mask, none)
	}
	if !g.one(20) {
		add(other, none)
	}
	return b
}
