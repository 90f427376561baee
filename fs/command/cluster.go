package command

import "vdefs/vde/meta"

// The commands in this file change what a group knows of the nodes and mounts that use it.

// BeginSession makes a mount known. It ends what sessions the node had before: it has started anew.
type BeginSession struct {
	Session uint64 // random, not 0
	Node    uint64
}

// EndSession ends a session: its locks are released, and what only it kept from being freed is freed.
type EndSession struct{ Session uint64 }

// KeepAlive says that a session's node lives, and how much room its store has.
type KeepAlive struct {
	Session uint64
	Free    uint64 // blocks
}

// Release says that a session has none of these inodes, which have lost their last name, open, and will not open them any
// more. One that no session keeps is freed.
type Release struct {
	Session uint64
	Inos    []meta.Ino
}

// Lock takes or gives back an advisory lock.
type Lock struct {
	Session    uint64
	Ino        meta.Ino
	Act        LockAct
	Flock      bool // of flock(2); else of fcntl(2)
	Exclusive  bool
	Start, End uint64 // bytes, both inclusive
	Owner      uint64 // of one session
	Handle     uint64 // open file through which it was taken
	PID        uint32
}

// LockAct is what a Lock does.
type LockAct uint32

const (
	LockTake   LockAct = iota // EAGAIN if another owner's lock is in the way
	LockUnlock                // the range of an owner
	LockOwner                 // all fcntl locks of an owner
	LockHandle                // all locks taken through a handle
)

// PutNode records a node's name and address.
type PutNode struct {
	ID         uint64
	Name, Addr string
}

// PutInvite records an invitation.
type PutInvite struct {
	ID      [16]byte
	Hash    [32]byte // SHA-256 of the secret
	Expires int64    // seconds of Unix time
}

// Join uses an invitation up and admits a node, under a new id.
type Join struct {
	Invite     [16]byte
	Hash       [32]byte
	Now        int64 // seconds of Unix time
	Name, Addr string
}

// RemoveNode forgets a node and ends its sessions.
type RemoveNode struct{ ID uint64 }

// SetLevel says that all nodes know the operations up to a level. It never falls.
type SetLevel struct{ Level uint64 }

// Freeze asks all other mounts to keep a file closed that is to be replaced (Replace). EAGAIN if it has not this version any
// more, EBUSY if somebody else asks.
type Freeze struct {
	Session uint64
	Ino     meta.Ino
	Version uint64
}

// FreezeVote is a mount's answer: it keeps the file closed (Ready), or somebody has it open, which ends the freeze.
type FreezeVote struct {
	Session uint64
	Ino     meta.Ino
	Ready   bool
}

// Unfreeze ends a freeze of the session.
type Unfreeze struct {
	Session uint64
	Ino     meta.Ino
}

func (*Freeze) Op() Op       { return OpFreeze }
func (*FreezeVote) Op() Op   { return OpFreezeVote }
func (*Unfreeze) Op() Op     { return OpUnfreeze }
func (*BeginSession) Op() Op { return OpBeginSession }
func (*EndSession) Op() Op   { return OpEndSession }
func (*KeepAlive) Op() Op    { return OpKeepAlive }
func (*Release) Op() Op      { return OpRelease }
func (*Lock) Op() Op         { return OpLock }
func (*PutNode) Op() Op      { return OpPutNode }
func (*PutInvite) Op() Op    { return OpPutInvite }
func (*Join) Op() Op         { return OpJoin }
func (*RemoveNode) Op() Op   { return OpRemoveNode }
func (*SetLevel) Op() Op     { return OpSetLevel }

func (c *SetLevel) encode(w *writer) { w.num(c.Level) }
func (c *SetLevel) decode(r *reader) { *c = SetLevel{Level: r.num()} }

func (c *Freeze) encode(w *writer) { w.num(c.Session); w.num(uint64(c.Ino)); w.num(c.Version) }
func (c *Freeze) decode(r *reader) { *c = Freeze{Session: r.num(), Ino: r.ino(), Version: r.num()} }

func (c *FreezeVote) encode(w *writer) { w.num(c.Session); w.num(uint64(c.Ino)); w.bool(c.Ready) }
func (c *FreezeVote) decode(r *reader) {
	*c = FreezeVote{Session: r.num(), Ino: r.ino(), Ready: r.bool()}
}

func (c *Unfreeze) encode(w *writer) { w.num(c.Session); w.num(uint64(c.Ino)) }
func (c *Unfreeze) decode(r *reader) { *c = Unfreeze{Session: r.num(), Ino: r.ino()} }

func (c *BeginSession) encode(w *writer) { w.num(c.Session); w.num(c.Node) }
func (c *BeginSession) decode(r *reader) { *c = BeginSession{Session: r.num(), Node: r.num()} }

func (c *EndSession) encode(w *writer) { w.num(c.Session) }
func (c *EndSession) decode(r *reader) { *c = EndSession{Session: r.num()} }

func (c *KeepAlive) encode(w *writer) { w.num(c.Session); w.num(c.Free) }
func (c *KeepAlive) decode(r *reader) { *c = KeepAlive{Session: r.num(), Free: r.num()} }

func (c *Release) encode(w *writer) {
	w.num(c.Session)
	w.num(uint64(len(c.Inos)))
	for _, i := range c.Inos {
		w.num(uint64(i))
	}
}
func (c *Release) decode(r *reader) {
	c.Session = r.num()
	for n := r.count(1); n > 0; n-- {
		c.Inos = append(c.Inos, r.ino())
	}
}

func (c *Lock) encode(w *writer) {
	w.num(c.Session)
	w.num(uint64(c.Ino))
	w.num(uint64(c.Act))
	w.bool(c.Flock)
	w.bool(c.Exclusive)
	w.num(c.Start)
	w.num(c.End)
	w.num(c.Owner)
	w.num(c.Handle)
	w.num(uint64(c.PID))
}
func (c *Lock) decode(r *reader) {
	*c = Lock{
		Session: r.num(), Ino: r.ino(), Act: LockAct(r.num32()), Flock: r.bool(), Exclusive: r.bool(), Start: r.num(), End: r.num(),
		Owner: r.num(), Handle: r.num(), PID: r.num32(),
	}
}

func (c *PutNode) encode(w *writer) { w.num(c.ID); w.str(c.Name); w.str(c.Addr) }
func (c *PutNode) decode(r *reader) { *c = PutNode{ID: r.num(), Name: r.str(), Addr: r.str()} }

func (c *PutInvite) encode(w *writer) {
	w.bytes(c.ID[:])
	w.bytes(c.Hash[:])
	w.num(uint64(c.Expires))
}
func (c *PutInvite) decode(r *reader) {
	r.array(c.ID[:])
	r.array(c.Hash[:])
	c.Expires = int64(r.num())
}

func (c *Join) encode(w *writer) {
	w.bytes(c.Invite[:])
	w.bytes(c.Hash[:])
	w.num(uint64(c.Now))
	w.str(c.Name)
	w.str(c.Addr)
}
func (c *Join) decode(r *reader) {
	r.array(c.Invite[:])
	r.array(c.Hash[:])
	c.Now, c.Name, c.Addr = int64(r.num()), r.str(), r.str()
}

func (c *RemoveNode) encode(w *writer) { w.num(c.ID) }
func (c *RemoveNode) decode(r *reader) { *c = RemoveNode{ID: r.num()} }

// array fills dst, which the field must fit exactly.
func (r *reader) array(dst []byte) {
	b := r.bytes()
	if len(b) != len(dst) {
		r.fail()
		return
	}
	copy(dst, b)
}
