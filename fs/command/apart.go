package command

import "vdefs/vde/meta"

// The commands in this file are the halves of operations on a name and a file that live in different groups. The group of
// the name decides: see docs/design.md.

// TxID names an operation on two groups: the session and sequence of the command that began it. It is unique among the
// commands of the group in which that was.
type TxID struct{ Session, Seq uint64 }

// MakeApart makes a regular file in a group that its directory is not in. Until a Settle says whether it got its name, it
// counts as pending.
type MakeApart struct {
	Mode, Umask   uint32
	UID, GID      uint32
	ParentMode    uint32 // of the directory: for the set-group-id bit
	ParentGID     uint32
	DefaultACL    []byte // of the directory, empty for none
	SecurityName  string
	SecurityValue []byte
}

// LinkApart counts one more name of a file, which it gets in another group. Until a Settle it counts as pending.
type LinkApart struct{ Ino meta.Ino }

// Name adds a name for a file of another group, where a MakeApart or LinkApart (Tx) has prepared it.
type Name struct {
	Parent meta.Ino
	Name   string
	Ino    meta.Ino
	Mode   uint32 // type of the file
	Tx     TxID
}

// Unname takes a name away from a file: it was removed in another group, by the command Tx.
type Unname struct {
	Tx  TxID
	Ino meta.Ino
}

// Finish is the second halves of several operations on names in another group: Unnames, and change times of files whose names were
// changed there. A time that is not after the one that a file has changes nothing.
type Finish struct {
	Unnamed []Unname
	Changed []Changed
}

// Changed is one of Finish.
type Changed struct {
	Ino   meta.Ino
	Ctime meta.Time
}

// Settle ends what MakeApart and LinkApart have left pending.
type Settle struct{ Items []Settlement }

// Settlement is one of Settle: the name is there (Named), or never will be.
type Settlement struct {
	Tx    TxID
	Named bool
}

// Forget drops records of operations that are over: of names given (Placed), of names taken away here (Dropped), and of
// Unnames done here (Done).
type Forget struct {
	Placed  []Placement
	Dropped []TxID
	Done    []TxID
}

// Placement is a name given to a file of another group.
type Placement struct {
	Ino meta.Ino
	Tx  TxID
}

// PutGroup makes a group known. Its nodes open it; nothing is placed in it before a Route.
type PutGroup struct {
	Name   string
	Voters []uint64 // who makes it
}

// DropGroup takes a group away, which no slot of the routing table may name any more.
type DropGroup struct{ Slot uint16 }

// Seal ends a group without files: nothing can be made in it any more. ENOTEMPTY if it has some.
type Seal struct{}

// Route changes the routing table: Slot gets a slot of its own, or, with Instead, all slots of Slot are given to Instead.
type Route struct {
	Slot    uint16
	Replace bool
	Instead uint16
}

func (*MakeApart) Op() Op { return OpMakeApart }
func (*LinkApart) Op() Op { return OpLinkApart }
func (*Name) Op() Op      { return OpName }
func (*Unname) Op() Op    { return OpUnname }
func (*Finish) Op() Op    { return OpFinish }
func (*Settle) Op() Op    { return OpSettle }
func (*Forget) Op() Op    { return OpForget }
func (*PutGroup) Op() Op  { return OpPutGroup }
func (*DropGroup) Op() Op { return OpDropGroup }
func (*Seal) Op() Op      { return OpSeal }
func (*Route) Op() Op     { return OpRoute }

func (w *writer) tx(t TxID) { w.num(t.Session); w.num(t.Seq) }
func (r *reader) tx() TxID  { return TxID{r.num(), r.num()} }

func (w *writer) txs(list []TxID) {
	w.num(uint64(len(list)))
	for _, t := range list {
		w.tx(t)
	}
}
func (r *reader) txs() (list []TxID) {
	for n := r.count(2); n > 0; n-- {
		list = append(list, r.tx())
	}
	return list
}

func (c *MakeApart) encode(w *writer) {
	for _, v := range [...]uint32{c.Mode, c.Umask, c.UID, c.GID, c.ParentMode, c.ParentGID} {
		w.num(uint64(v))
	}
	w.bytes(c.DefaultACL)
	w.str(c.SecurityName)
	w.bytes(c.SecurityValue)
}
func (c *MakeApart) decode(r *reader) {
	*c = MakeApart{
		Mode: r.num32(), Umask: r.num32(), UID: r.num32(), GID: r.num32(), ParentMode: r.num32(), ParentGID: r.num32(),
		DefaultACL: r.bytes(), SecurityName: r.str(), SecurityValue: r.bytes(),
	}
}

func (c *LinkApart) encode(w *writer) { w.num(uint64(c.Ino)) }
func (c *LinkApart) decode(r *reader) { *c = LinkApart{Ino: r.ino()} }

func (c *Name) encode(w *writer) {
	w.num(uint64(c.Parent))
	w.str(c.Name)
	w.num(uint64(c.Ino))
	w.num(uint64(c.Mode))
	w.tx(c.Tx)
}
func (c *Name) decode(r *reader) {
	*c = Name{Parent: r.ino(), Name: r.str(), Ino: r.ino(), Mode: r.num32(), Tx: r.tx()}
}

func (c *Unname) encode(w *writer) { w.tx(c.Tx); w.num(uint64(c.Ino)) }
func (c *Unname) decode(r *reader) { *c = Unname{Tx: r.tx(), Ino: r.ino()} }

func (c *Finish) encode(w *writer) {
	w.num(uint64(len(c.Unnamed)))
	for i := range c.Unnamed {
		c.Unnamed[i].encode(w)
	}
	w.num(uint64(len(c.Changed)))
	for _, t := range c.Changed {
		w.num(uint64(t.Ino))
		w.time(t.Ctime)
	}
}
func (c *Finish) decode(r *reader) {
	for n := r.count(3); n > 0; n-- {
		c.Unnamed = append(c.Unnamed, Unname{Tx: r.tx(), Ino: r.ino()})
	}
	for n := r.count(13); n > 0; n-- {
		c.Changed = append(c.Changed, Changed{r.ino(), r.time()})
	}
}

func (c *Settle) encode(w *writer) {
	w.num(uint64(len(c.Items)))
	for _, i := range c.Items {
		w.tx(i.Tx)
		w.bool(i.Named)
	}
}
func (c *Settle) decode(r *reader) {
	for n := r.count(3); n > 0; n-- {
		c.Items = append(c.Items, Settlement{r.tx(), r.bool()})
	}
}

func (c *Forget) encode(w *writer) {
	w.num(uint64(len(c.Placed)))
	for _, p := range c.Placed {
		w.num(uint64(p.Ino))
		w.tx(p.Tx)
	}
	w.txs(c.Dropped)
	w.txs(c.Done)
}
func (c *Forget) decode(r *reader) {
	for n := r.count(3); n > 0; n-- {
		c.Placed = append(c.Placed, Placement{r.ino(), r.tx()})
	}
	c.Dropped, c.Done = r.txs(), r.txs()
}

func (c *PutGroup) encode(w *writer) {
	w.str(c.Name)
	w.num(uint64(len(c.Voters)))
	for _, v := range c.Voters {
		w.num(v)
	}
}
func (c *PutGroup) decode(r *reader) {
	c.Name = r.str()
	for n := r.count(1); n > 0; n-- {
		c.Voters = append(c.Voters, r.num())
	}
}

func (c *DropGroup) encode(w *writer) { w.num(uint64(c.Slot)) }
func (c *DropGroup) decode(r *reader) { c.Slot = r.slot() }

func (c *Seal) encode(*writer) {}
func (c *Seal) decode(*reader) {}

func (c *Route) encode(w *writer) {
	w.num(uint64(c.Slot))
	w.bool(c.Replace)
	w.num(uint64(c.Instead))
}
func (c *Route) decode(r *reader) { *c = Route{Slot: r.slot(), Replace: r.bool(), Instead: r.slot()} }

func (r *reader) slot() uint16 {
	v := r.num()
	if v > 1<<16-1 {
		r.fail()
		return 0
	}
	return uint16(v)
}
