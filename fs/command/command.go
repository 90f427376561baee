// Package command is the closed set of operations that a group's log carries, and their encoding. A command says all
// that its effect depends on: time, owner, mask; who applies it looks at no clock and rolls no dice.
//
// Encoding: one byte of operation, one byte of form (1, or 2 with a tag), the time (8 bytes of seconds, 4 of nanoseconds),
// with form 2 the tag (session, sequence and acknowledged as numbers, retry as a boolean), then the fields of the operation in the order of its struct: numbers as unsigned varints, strings and bytes with their
// length in front, times as 12 bytes, booleans as one byte. docs/formats.md works an example.
package command

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
)

// Op numbers an operation in the log. Never reuse one.
type Op byte

const (
	OpSetAttr     Op = 1
	OpMake        Op = 2
	OpLink        Op = 3
	OpRemove      Op = 4
	OpRename      Op = 5
	OpWrite       Op = 6
	OpWriteRef    Op = 7
	OpFallocate   Op = 8
	OpShare       Op = 9
	OpSetXattr    Op = 10
	OpRemoveXattr Op = 11
	OpReap        Op = 12
	OpAtimes      Op = 13
	OpReplace     Op = 14

	OpBeginSession Op = 15
	OpEndSession   Op = 16
	OpKeepAlive    Op = 17
	OpRelease      Op = 18
	OpLock         Op = 19
	OpPutNode      Op = 20
	OpPutInvite    Op = 21
	OpJoin         Op = 22
	OpRemoveNode   Op = 23

	OpMakeApart Op = 24
	OpLinkApart Op = 25
	OpName      Op = 26
	OpUnname    Op = 27
	OpSettle    Op = 28
	OpForget    Op = 29
	OpPutGroup  Op = 30
	OpDropGroup Op = 31
	OpRoute     Op = 32
	OpSeal      Op = 33

	OpFreeze     Op = 34
	OpFreezeVote Op = 35
	OpUnfreeze   Op = 36

	OpFinish Op = 37
	OpFill   Op = 38

	OpRenameStay Op = 39
	OpSetLevel   Op = 40
)

// Level is the newest level of operations that this program knows. An operation of a level is proposed in a cluster once all its nodes know the
// level (SetLevel): nodes are upgraded one after the other, and one that meets an operation it does not know cannot go on.
const Level = 1

// Level tells to which level an operation belongs: 0 to the first one, which every program knows.
func (op Op) Level() uint64 {
	if op >= OpFinish {
		return 1 // up to OpSetLevel, with KillPrivBefore
	}
	return 0
}

// Forms of the encoding.
const (
	form       = 1
	formTagged = 2 // with a Tag behind the time
)

// Tag says whose a command is, so that one that reaches the log twice is done once. The zero value is none.
type Tag struct {
	Session uint64
	Seq     uint64 // counts the commands of the session in this group, from 1
	Acked   uint64 // all commands of the session below this one have been answered
	Retry   bool   // it may be in the log already
}

// ErrDecode marks bytes that are no command of this program.
var ErrDecode = errors.New("undecodable command")

// Command is one operation.
type Command interface {
	Op() Op
	encode(*writer)
	decode(*reader)
}

// SetAttr changes attributes; which ones is in Set.
type SetAttr struct {
	Ino                 meta.Ino
	Set                 AttrMask
	Mode, UID, GID      uint32
	Size                uint64
	Atime, Mtime, Ctime meta.Time
}

// AttrMask says which attributes a SetAttr changes.
type AttrMask uint32

const (
	SetMode AttrMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetCtime
	KillPriv // clear set-id bits
	// KillPrivBefore, of Fill alone, clears them before anything is set, as the KillPriv of a Write does.
	KillPrivBefore
)

// Make creates an inode, with a name unless Orphan is set.
type Make struct {
	Parent        meta.Ino
	Name          string
	Mode, Umask   uint32
	UID, GID      uint32
	Rdev          uint32
	Target        string
	Orphan        bool
	SecurityName  string
	SecurityValue []byte
}

// Link gives an inode another name.
type Link struct {
	Ino    meta.Ino
	Parent meta.Ino
	Name   string
}

// Remove removes a name: of a directory (Dir) or of anything else. An inode without a name stays until a Reap.
type Remove struct {
	Parent meta.Ino
	Name   string
	Dir    bool
}

// Rename is renameat2(2). Stay makes it an operation of its own, OpRenameStay: an entry that gets a free name in its own directory keeps
// its place there. With OpRename, of which logs of earlier programs are full, it goes to the end.
type Rename struct {
	Stay      bool // not encoded: the operation says it
	OldParent meta.Ino
	OldName   string
	NewParent meta.Ino
	NewName   string
	Flags     uint32 // RENAME_WHITEOUT goes with Stay only
	UID, GID  uint32 // of the whiteout; encoded if there is one
}

// leavesWhiteout tells whether a device 0:0 takes the old name. Flags of the old operation say it in vain.
func (c *Rename) leavesWhiteout() bool { return c.Stay && c.Flags&unix.RENAME_WHITEOUT != 0 }

// Write writes data, at Off or at the end.
type Write struct {
	Ino       meta.Ino
	Off       uint64
	Append    bool
	KillPriv  bool
	FromCache bool
	Data      []byte
}

// Fill is a Write and then a SetAttr: what a program does to a file that it has made, before it closes it. Data may be empty.
type Fill struct {
	Ino            meta.Ino
	Off            uint64
	Set            AttrMask // without SetSize and SetCtime
	Mode, UID, GID uint32
	Atime, Mtime   meta.Time
	Data           []byte
}

// WriteRef maps blocks that are in the image of the proposing node already: a large write of whole blocks that is not
// copied through the log. Only a group whose one voter is that node may carry it.
type WriteRef struct {
	Ino       meta.Ino
	FileBlock uint64
	End       uint64 // byte behind the data: the least size of the file
	KillPriv  bool
	FromCache bool
	Durable   uint64 // index that was known to be durable when this was proposed
	Extents   []alloc.Extent
	Sums      []byte // CRC-32C of every block, 4 bytes each
}

// Fallocate is fallocate(2).
type Fallocate struct {
	Ino         meta.Ino
	Mode        uint32
	Off, Length uint64
}

// Share maps whole blocks of one file into another.
type Share struct {
	Src      meta.Ino
	SrcBlock uint64
	Dst      meta.Ino
	DstBlock uint64
	Count    uint64
	DstSize  uint64 // least size of Dst afterwards
}

// SetXattr is setxattr(2).
type SetXattr struct {
	Ino       meta.Ino
	Name      string
	Value     []byte
	Flags     uint32
	ClearSGID bool
}

// RemoveXattr is removexattr(2).
type RemoveXattr struct {
	Ino  meta.Ino
	Name string
}

// Reap frees inodes without a name that nobody has open any more.
type Reap struct{ Inos []meta.Ino }

// Atimes sets access times, each only forward.
type Atimes struct{ Times []Atime }

// Atime is one of Atimes.
type Atime struct {
	Ino  meta.Ino
	Time meta.Time
}

// Replace gives a file other contents if its version is still the expected one; times stay, attributes are set.
type Replace struct {
	Ino     meta.Ino
	Version uint64
	Data    []byte
	Xattrs  []Xattr
}

// Xattr is one attribute of Replace.
type Xattr struct {
	Name  string
	Value []byte
}

func (*SetAttr) Op() Op { return OpSetAttr }
func (*Make) Op() Op    { return OpMake }
func (*Link) Op() Op    { return OpLink }
func (*Remove) Op() Op  { return OpRemove }
func (c *Rename) Op() Op {
	if c.Stay {
		return OpRenameStay
	}
	return OpRename
}
func (*Write) Op() Op       { return OpWrite }
func (*WriteRef) Op() Op    { return OpWriteRef }
func (*Fill) Op() Op        { return OpFill }
func (*Fallocate) Op() Op   { return OpFallocate }
func (*Share) Op() Op       { return OpShare }
func (*SetXattr) Op() Op    { return OpSetXattr }
func (*RemoveXattr) Op() Op { return OpRemoveXattr }
func (*Reap) Op() Op        { return OpReap }
func (*Atimes) Op() Op      { return OpAtimes }
func (*Replace) Op() Op     { return OpReplace }

func empty(op Op) Command {
	switch op {
	case OpSetAttr:
		return &SetAttr{}
	case OpMake:
		return &Make{}
	case OpLink:
		return &Link{}
	case OpRemove:
		return &Remove{}
	case OpRename:
		return &Rename{}
	case OpRenameStay:
		return &Rename{Stay: true}
	case OpWrite:
		return &Write{}
	case OpWriteRef:
		return &WriteRef{}
	case OpFallocate:
		return &Fallocate{}
	case OpShare:
		return &Share{}
	case OpSetXattr:
		return &SetXattr{}
	case OpRemoveXattr:
		return &RemoveXattr{}
	case OpReap:
		return &Reap{}
	case OpAtimes:
		return &Atimes{}
	case OpReplace:
		return &Replace{}
	case OpBeginSession:
		return &BeginSession{}
	case OpEndSession:
		return &EndSession{}
	case OpKeepAlive:
		return &KeepAlive{}
	case OpRelease:
		return &Release{}
	case OpLock:
		return &Lock{}
	case OpPutNode:
		return &PutNode{}
	case OpPutInvite:
		return &PutInvite{}
	case OpJoin:
		return &Join{}
	case OpRemoveNode:
		return &RemoveNode{}
	case OpMakeApart:
		return &MakeApart{}
	case OpLinkApart:
		return &LinkApart{}
	case OpName:
		return &Name{}
	case OpUnname:
		return &Unname{}
	case OpSettle:
		return &Settle{}
	case OpForget:
		return &Forget{}
	case OpPutGroup:
		return &PutGroup{}
	case OpDropGroup:
		return &DropGroup{}
	case OpRoute:
		return &Route{}
	case OpSeal:
		return &Seal{}
	case OpFreeze:
		return &Freeze{}
	case OpFreezeVote:
		return &FreezeVote{}
	case OpUnfreeze:
		return &Unfreeze{}
	case OpFinish:
		return &Finish{}
	case OpFill:
		return &Fill{}
	case OpSetLevel:
		return &SetLevel{}
	}
	return nil
}

// Encode returns the bytes of a command. The data of a Write is copied into them, and c.Data is made to point to the
// copy: the caller's buffer is free again.
func Encode(c Command, t meta.Time, tag Tag) []byte {
	size := 128
	switch c := c.(type) {
	case *Write:
		size = 64 + len(c.Data)
	case *Fill:
		size = 128 + len(c.Data)
	}
	w := &writer{b: make([]byte, 0, size)}
	if tag.Session == 0 {
		w.b = append(w.b, byte(c.Op()), form)
		w.time(t)
	} else {
		w.b = append(w.b, byte(c.Op()), formTagged)
		w.time(t)
		w.num(tag.Session)
		w.num(tag.Seq)
		w.num(tag.Acked)
		w.bool(tag.Retry)
	}
	c.encode(w)
	if wr, ok := c.(*Write); ok {
		wr.Data = w.b[len(w.b)-len(wr.Data) : len(w.b) : len(w.b)]
	}
	return w.b
}

// Decode reads a command, its time and its tag. Byte slices of the command are parts of b.
func Decode(b []byte) (Command, meta.Time, Tag, error) {
	refuse := func(format string, args ...any) (Command, meta.Time, Tag, error) {
		return nil, meta.Time{}, Tag{}, fmt.Errorf("%w: "+format, append([]any{ErrDecode}, args...)...)
	}
	if len(b) < 2 {
		return refuse("%d bytes", len(b))
	}
	c := empty(Op(b[0]))
	if c == nil {
		return refuse("operation %d is unknown: written by a newer program?", b[0])
	}
	if b[1] != form && b[1] != formTagged {
		return refuse("operation %d has form %d: written by a newer program?", b[0], b[1])
	}
	r := &reader{b: b[2:]}
	t := r.time()
	var tag Tag
	if b[1] == formTagged {
		tag = Tag{Session: r.num(), Seq: r.num(), Acked: r.num(), Retry: r.bool()}
		r.bad = r.bad || tag.Session == 0
	}
	c.decode(r)
	if r.bad || len(r.b) != 0 {
		return refuse("operation %d: %d bytes do not have its form", b[0], len(b))
	}
	return c, t, tag, nil
}
