package command

import (
	"encoding/binary"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
)

type writer struct{ b []byte }

func (w *writer) num(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) bool(v bool) {
	if v {
		w.b = append(w.b, 1)
	} else {
		w.b = append(w.b, 0)
	}
}
func (w *writer) bytes(v []byte) { w.num(uint64(len(v))); w.b = append(w.b, v...) }
func (w *writer) str(v string)   { w.num(uint64(len(v))); w.b = append(w.b, v...) }
func (w *writer) time(t meta.Time) {
	w.b = binary.LittleEndian.AppendUint64(w.b, uint64(t.Sec))
	w.b = binary.LittleEndian.AppendUint32(w.b, t.Nsec)
}

// reader takes fields off the front; what does not fit makes it bad, and every later field zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.bad, r.b = true, nil }

func (r *reader) num() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) num32() uint32 {
	v := r.num()
	if v > 1<<32-1 {
		r.fail()
		return 0
	}
	return uint32(v)
}

func (r *reader) ino() meta.Ino { return meta.Ino(r.num()) }

func (r *reader) bool() bool {
	if len(r.b) == 0 || r.b[0] > 1 {
		r.fail()
		return false
	}
	v := r.b[0] == 1
	r.b = r.b[1:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.num()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string { return string(r.bytes()) }

func (r *reader) time() meta.Time {
	if len(r.b) < 12 {
		r.fail()
		return meta.Time{}
	}
	t := meta.Time{Sec: int64(binary.LittleEndian.Uint64(r.b)), Nsec: binary.LittleEndian.Uint32(r.b[8:])}
	if t.Nsec > 999_999_999 {
		r.fail()
	} else {
		r.b = r.b[12:]
	}
	return t
}

// count reads the length of a list whose items take at least size bytes each, so that damage cannot ask for memory.
func (r *reader) count(size int) int {
	n := r.num()
	if n > uint64(len(r.b)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (c *SetAttr) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.num(uint64(c.Set))
	w.num(uint64(c.Mode))
	w.num(uint64(c.UID))
	w.num(uint64(c.GID))
	w.num(c.Size)
	w.time(c.Atime)
	w.time(c.Mtime)
	w.time(c.Ctime)
}

func (c *SetAttr) decode(r *reader) {
	*c = SetAttr{
		Ino: r.ino(), Set: AttrMask(r.num32()), Mode: r.num32(), UID: r.num32(), GID: r.num32(), Size: r.num(),
		Atime: r.time(), Mtime: r.time(), Ctime: r.time(),
	}
}

func (c *Make) encode(w *writer) {
	w.num(uint64(c.Parent))
	w.str(c.Name)
	w.num(uint64(c.Mode))
	w.num(uint64(c.Umask))
	w.num(uint64(c.UID))
	w.num(uint64(c.GID))
	w.num(uint64(c.Rdev))
	w.str(c.Target)
	w.bool(c.Orphan)
	w.str(c.SecurityName)
	w.bytes(c.SecurityValue)
}

func (c *Make) decode(r *reader) {
	*c = Make{
		Parent: r.ino(), Name: r.str(), Mode: r.num32(), Umask: r.num32(), UID: r.num32(), GID: r.num32(), Rdev: r.num32(),
		Target: r.str(), Orphan: r.bool(), SecurityName: r.str(), SecurityValue: r.bytes(),
	}
}

func (c *Link) encode(w *writer) { w.num(uint64(c.Ino)); w.num(uint64(c.Parent)); w.str(c.Name) }
func (c *Link) decode(r *reader) { *c = Link{Ino: r.ino(), Parent: r.ino(), Name: r.str()} }

func (c *Remove) encode(w *writer) {
	w.num(uint64(c.Parent))
	w.str(c.Name)
	w.bool(c.Dir)
}
func (c *Remove) decode(r *reader) {
	*c = Remove{Parent: r.ino(), Name: r.str(), Dir: r.bool()}
}

func (c *Rename) encode(w *writer) {
	w.num(uint64(c.OldParent))
	w.str(c.OldName)
	w.num(uint64(c.NewParent))
	w.str(c.NewName)
	w.num(uint64(c.Flags))
	if c.leavesWhiteout() {
		w.num(uint64(c.UID))
		w.num(uint64(c.GID))
	}
}
func (c *Rename) decode(r *reader) {
	*c = Rename{
		Stay:      c.Stay,
		OldParent: r.ino(), OldName: r.str(), NewParent: r.ino(), NewName: r.str(), Flags: r.num32(),
	}
	if c.leavesWhiteout() {
		c.UID, c.GID = r.num32(), r.num32()
	}
}

// Data stands last: Encode relies on it.
func (c *Write) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.num(c.Off)
	w.bool(c.Append)
	w.bool(c.KillPriv)
	w.bool(c.FromCache)
	w.bytes(c.Data)
}
func (c *Write) decode(r *reader) {
	*c = Write{Ino: r.ino(), Off: r.num(), Append: r.bool(), KillPriv: r.bool(), FromCache: r.bool(), Data: r.bytes()}
}

func (c *Fill) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.num(c.Off)
	w.num(uint64(c.Set))
	w.num(uint64(c.Mode))
	w.num(uint64(c.UID))
	w.num(uint64(c.GID))
	w.time(c.Atime)
	w.time(c.Mtime)
	w.bytes(c.Data)
}

func (c *Fill) decode(r *reader) {
	*c = Fill{
		Ino: r.ino(), Off: r.num(), Set: AttrMask(r.num32()), Mode: r.num32(), UID: r.num32(), GID: r.num32(),
		Atime: r.time(), Mtime: r.time(), Data: r.bytes(),
	}
}

func (c *WriteRef) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.num(c.FileBlock)
	w.num(c.End)
	w.bool(c.KillPriv)
	w.bool(c.FromCache)
	w.num(c.Durable)
	w.num(uint64(len(c.Extents)))
	for _, x := range c.Extents {
		w.num(x.Start)
		w.num(x.Count)
	}
	w.bytes(c.Sums)
}

func (c *WriteRef) decode(r *reader) {
	*c = WriteRef{
		Ino: r.ino(), FileBlock: r.num(), End: r.num(), KillPriv: r.bool(), FromCache: r.bool(), Durable: r.num(),
	}
	var blocks uint64
	for n := r.count(2); n > 0; n-- {
		x := alloc.Extent{Start: r.num(), Count: r.num()}
		if x.Count == 0 || x.Count > 1<<32 {
			r.fail()
			return
		}
		blocks += x.Count
		c.Extents = append(c.Extents, x)
	}
	if c.Sums = r.bytes(); uint64(len(c.Sums)) != blocks*4 {
		r.fail()
	}
}

func (c *Fallocate) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.num(uint64(c.Mode))
	w.num(c.Off)
	w.num(c.Length)
}
func (c *Fallocate) decode(r *reader) {
	*c = Fallocate{Ino: r.ino(), Mode: r.num32(), Off: r.num(), Length: r.num()}
}

func (c *Share) encode(w *writer) {
	for _, v := range [...]uint64{uint64(c.Src), c.SrcBlock, uint64(c.Dst), c.DstBlock, c.Count, c.DstSize} {
		w.num(v)
	}
}
func (c *Share) decode(r *reader) {
	*c = Share{Src: r.ino(), SrcBlock: r.num(), Dst: r.ino(), DstBlock: r.num(), Count: r.num(), DstSize: r.num()}
}

func (c *SetXattr) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.str(c.Name)
	w.bytes(c.Value)
	w.num(uint64(c.Flags))
	w.bool(c.ClearSGID)
}
func (c *SetXattr) decode(r *reader) {
	*c = SetXattr{Ino: r.ino(), Name: r.str(), Value: r.bytes(), Flags: r.num32(), ClearSGID: r.bool()}
}

func (c *RemoveXattr) encode(w *writer) { w.num(uint64(c.Ino)); w.str(c.Name) }
func (c *RemoveXattr) decode(r *reader) { *c = RemoveXattr{Ino: r.ino(), Name: r.str()} }

func (c *Reap) encode(w *writer) {
	w.num(uint64(len(c.Inos)))
	for _, i := range c.Inos {
		w.num(uint64(i))
	}
}
func (c *Reap) decode(r *reader) {
	for n := r.count(1); n > 0; n-- {
		c.Inos = append(c.Inos, r.ino())
	}
}

func (c *Atimes) encode(w *writer) {
	w.num(uint64(len(c.Times)))
	for _, a := range c.Times {
		w.num(uint64(a.Ino))
		w.time(a.Time)
	}
}
func (c *Atimes) decode(r *reader) {
	for n := r.count(13); n > 0; n-- {
		c.Times = append(c.Times, Atime{Ino: r.ino(), Time: r.time()})
	}
}

func (c *Replace) encode(w *writer) {
	w.num(uint64(c.Ino))
	w.num(c.Version)
	w.bytes(c.Data)
	w.num(uint64(len(c.Xattrs)))
	for _, x := range c.Xattrs {
		w.str(x.Name)
		w.bytes(x.Value)
	}
}
func (c *Replace) decode(r *reader) {
	*c = Replace{Ino: r.ino(), Version: r.num(), Data: r.bytes()}
	for n := r.count(2); n > 0; n-- {
		c.Xattrs = append(c.Xattrs, Xattr{Name: r.str(), Value: r.bytes()})
	}
}
