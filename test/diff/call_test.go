package diff

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// op is one call of a sequence. Which fields mean something depends on the call.
type op struct {
	call         *call
	path, path2  string
	slot, slot2  int // descriptors are named by slots: an open puts one there, whatever was there before is closed
	flags        int
	mode         uint32
	off, off2, n int64
	name         string // of an extended attribute
	value        []byte
	fill         byte // what is written
	as           int  // index into users
	probe        bool // watch which times the call moves
}

// call is a kind of call.
type call struct {
	name   string
	weight int
	draw   func(g *generator, o *op)
	run    func(s *side, o *op) string
	show   func(o *op) string // its arguments, to be read by people
}

// calls are all kinds, by name.
var calls = map[string]*call{}

func register(list ...*call) {
	for _, c := range list {
		if calls[c.name] != nil {
			panic("two calls of the name " + c.name)
		}
		calls[c.name] = c
	}
}

// user is who makes a call: the filesystem ids of the thread, which take the capabilities along.
type user struct{ uid, gid int }

// users: root, two ordinary users with a group in common, and another one.
var users = []user{{0, 0}, {1001, 1001}, {1002, 1001}, {1003, 1003}}

func (o *op) String() string {
	who := ""
	if o.as != 0 {
		who = fmt.Sprintf("as %d:%d ", users[o.as].uid, users[o.as].gid)
	}
	probe := ""
	if o.probe {
		probe = "  // times watched"
	}
	return fmt.Sprintf("%s%s(%s)%s", who, o.call.name, o.call.show(o), probe)
}

// bits names flags.
func bits(value int, zero string, names ...any) string {
	var words []string
	for i := 0; i < len(names); i += 2 {
		if bit := names[i].(int); value&bit == bit {
			words = append(words, names[i+1].(string))
			value &^= bit
		}
	}
	if value != 0 {
		words = append(words, fmt.Sprintf("%#x", value))
	}
	if len(words) == 0 {
		return zero
	}
	return strings.Join(words, "|")
}

func openFlags(flags int) string {
	mode := [...]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "3"}[flags&unix.O_ACCMODE]
	rest := bits(flags&^(unix.O_ACCMODE|unix.O_NONBLOCK), "",
		unix.O_TMPFILE, "O_TMPFILE", unix.O_DIRECTORY, "O_DIRECTORY", unix.O_CREAT, "O_CREAT", unix.O_EXCL, "O_EXCL",
		unix.O_TRUNC, "O_TRUNC", unix.O_APPEND, "O_APPEND", unix.O_NOFOLLOW, "O_NOFOLLOW", unix.O_PATH, "O_PATH",
		unix.O_SYNC, "O_SYNC", unix.O_DSYNC, "O_DSYNC", unix.O_DIRECT, "O_DIRECT", unix.O_NOATIME, "O_NOATIME")
	if rest != "" {
		return mode + "|" + rest
	}
	return mode
}

// result says how a call ended that returns a number.
func result(n int, err error) string {
	if err != nil {
		return errno(err)
	}
	return fmt.Sprint(n)
}

// status says how a call ended that returns nothing else.
func status(err error) string { return result(0, err) }

func errno(err error) string {
	if e, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(e)
	}
	return err.Error()
}
