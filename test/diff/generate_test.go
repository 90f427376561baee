package diff

import (
	"math/rand/v2"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// generator draws the calls of a sequence. It does not know how they end, but keeps a guess of what is there, as calls
// on names that do not exist soon all look alike.
type generator struct {
	*rand.Rand
	files, dirs []string // guesses; dirs begins with the root
	names       []string
	kinds       []*call
	total       int // of their weights
}

// leaves are the names that are used: few, so that they meet.
var leaves = []string{"a", "b", "c", "d", "e", "f"}

func newGenerator(seed uint64) *generator {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0)), dirs: []string{"/"}, names: leaves}
	for name := range calls {
		g.kinds = append(g.kinds, calls[name])
	}
	sort.Slice(g.kinds, func(i, k int) bool { return g.kinds[i].name < g.kinds[k].name })
	for _, c := range g.kinds {
		g.total += c.weight
	}
	return g
}

// sequence draws n calls. Every so many of them, and at the end, the tree is looked at whole.
func sequence(seed uint64, n int) []*op {
	g := newGenerator(seed)
	ops := make([]*op, 0, n)
	tree := func() { ops = append(ops, &op{call: calls["tree"], slot: -1, slot2: -1, flags: g.IntN(2)}) }
	for len(ops) < n {
		switch {
		case len(ops)%80 == 0:
			ops = append(ops, g.begin()...)
		case len(ops)%80 == 79:
			tree()
		default:
			ops = append(ops, g.op())
		}
	}
	tree()
	return ops
}

// begin makes some directories and open files, as after a while few names are left that are what they seem.
func (g *generator) begin() (ops []*op) {
	g.files, g.dirs = nil, []string{"/"}
	for _, name := range []string{"/" + pick(g, g.names...), "/a/" + pick(g, g.names...)} {
		ops = append(ops, &op{call: calls["mkdir"], slot: -1, slot2: -1, path: name, mode: 0o777})
		g.madeDir(name)
	}
	for slot := range slots - 1 {
		o := &op{call: calls["open"], slot: slot, slot2: -1, path: g.fresh(), flags: unix.O_RDWR | unix.O_CREAT | unix.O_NONBLOCK, mode: 0o666}
		if g.one(6) {
			o.flags |= unix.O_DIRECT
		}
		ops = append(ops, o)
		g.madeFile(o.path)
	}
	return ops
}

func (g *generator) op() *op {
	at := g.IntN(g.total)
	for _, c := range g.kinds {
		if at -= c.weight; at < 0 {
			o := &op{call: c, slot: -1, slot2: -1, fill: byte(1 + g.IntN(255))}
			if g.one(6) {
				o.as = 1 + g.IntN(len(users)-1)
			}
			c.draw(g, o)
			// What one side is known to refuse is not watched, as watching sets times.
			o.probe = g.one(40) && !contested(o)
			return o
		}
	}
	panic("weights do not add up")
}

func (g *generator) one(of int) bool { return g.IntN(of) == 0 }

func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

// longName is as long as a name may be.
var longName = strings.Repeat("n", 255)

// fresh is a path that may well be new.
func (g *generator) fresh() string {
	switch {
	case g.one(60):
		return "/" + longName
	case g.one(120):
		return "/" + longName + "n"
	case g.one(60):
		return "/über \n name"
	}
	return path.Join(g.dir(), pick(g, g.names...))
}

// dir is a path that is probably a directory.
func (g *generator) dir() string { return pick(g, g.dirs...) }

// path is a path of any kind.
func (g *generator) path() string {
	var p string
	switch k := g.IntN(20); {
	case k < 11 && len(g.files) > 0:
		p = pick(g, g.files...)
	case k < 15:
		p = g.dir()
	default:
		p = g.fresh()
	}
	switch {
	case g.one(25):
		p += "/"
	case g.one(40):
		p += "/."
	case g.one(40):
		p += "/.."
	case g.one(25):
		p = path.Join(p, pick(g, g.names...))
	case g.one(15):
		p = strings.TrimPrefix(p, "/")
		if p == "" {
			p = "."
		}
	}
	return p
}

// file is a path that is probably a file.
func (g *generator) file() string {
	if len(g.files) > 0 && !g.one(5) {
		return pick(g, g.files...)
	}
	return g.path()
}

func (g *generator) madeFile(p string) {
	if len(g.files) < 24 {
		g.files = append(g.files, p)
	} else {
		g.files[g.IntN(len(g.files))] = p
	}
}

func (g *generator) madeDir(p string) {
	if len(g.dirs) < 8 && strings.Count(p, "/") < 5 && len(p) < 100 {
		g.dirs = append(g.dirs, p)
	}
}

// anySlot is one of the descriptors.
func (g *generator) anySlot() int { return g.IntN(slots) }

// offset is a place in a file.
func (g *generator) offset() int64 {
	switch k := g.IntN(12); {
	case k < 3:
		return int64(g.IntN(20)) * 4096
	case k < 5:
		return int64(g.IntN(20))*4096 + int64(g.IntN(9)) - 4
	case k < 6:
		return int64(g.IntN(1000))
	case k == 6 && g.one(8):
		return 1<<33 + int64(g.IntN(10000))
	}
	return int64(g.IntN(dataMax))
}

// place is an offset that is not negative.
func (g *generator) place() int64 { return max(0, g.offset()) }

// length is how much is read or written.
func (g *generator) length() int64 {
	switch k := g.IntN(12); {
	case k == 0:
		return 0
	case k < 4:
		return int64(1+g.IntN(16)) * 4096
	case k < 9:
		return int64(g.IntN(5000))
	}
	return int64(g.IntN(dataMax))
}

// perm is a mode with all sorts of bits.
func (g *generator) perm() uint32 {
	return pick[uint32](g, 0o644, 0o666, 0o600, 0o755, 0o777, 0o700, 0, 0o444, 0o2755, 0o4755, 0o6777, 0o1777, 0o2777, uint32(g.IntN(0o10000)))
}
