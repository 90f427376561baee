package posix

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"vdefs/fs/advisory"
	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// Facts of a group that make several mounts share it (numbers in names are big-endian, in values little-endian):
//
//	sessions                   session8 node8 ...          the mounts that use the group
//	ack session8               acked8                      commands below this one have been answered
//	res session8 seq8          errno4 ino8 replaced8 n8    what a command answered that may be asked again
//	hold ino8                  session8 ...                who keeps an inode without a name from being freed
//	lock ino8                  advisory.Set                locks of a file
//
// A group without sessions is used by one mount, which knows all this by itself.
const (
	factSessions = "sessions"
	factAck      = "ack"
	factResult   = "res"
	factHold     = "hold"
	factLock     = "lock"
)

// ErrNoSession is the result of a command of a session that has ended or was never begun: its node was away for too long.
const ErrNoSession = syscall.EKEYEXPIRED

// errAnswered is the result of a command that was answered long ago: nobody waits for it.
const errAnswered = syscall.EALREADY

func numbered(kind string, numbers ...uint64) string {
	b := []byte(kind)
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return string(b)
}

// fact reads a fact, nil if there is none.
func (a *applier) fact(name string) ([]byte, error) {
	value, err := a.Fact(name)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, nil
	}
	return value, err
}

// setFact stores a fact; one that cannot be is the command's refusal.
func (a *applier) setFact(name string, value []byte) {
	if err := a.SetFact(name, value); err != nil && a.unfit == nil {
		a.unfit = errors.Join(syscall.ENOLCK, err)
	}
}

// numbers reads a fact that is a list of numbers.
func (a *applier) numbers(name string, group int) ([]uint64, error) {
	b, err := a.fact(name)
	if err != nil {
		return nil, err
	}
	if len(b)%(8*group) != 0 {
		return nil, fmt.Errorf("%w: fact %q has %d bytes", meta.ErrDecode, name, len(b))
	}
	return decodeNumbers(b), nil
}

func decodeNumbers(b []byte) []uint64 {
	list := make([]uint64, 0, len(b)/8)
	for ; len(b) >= 8; b = b[8:] {
		list = append(list, binary.LittleEndian.Uint64(b))
	}
	return list
}

func (a *applier) setNumbers(name string, list []uint64) {
	if len(list) == 0 {
		a.DeleteFact(name)
		return
	}
	b := make([]byte, 0, 8*len(list))
	for _, n := range list {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	a.setFact(name, b)
}

// Session is a mount that uses a group.
type Session struct{ ID, Node uint64 }

// Sessions decodes the fact of that name; read gets a fact of the group, nil if there is none.
func Sessions(read func(name string) ([]byte, error)) ([]Session, error) {
	b, err := read(factSessions)
	if err != nil {
		return nil, err
	}
	n := decodeNumbers(b)
	list := make([]Session, 0, len(n)/2)
	for ; len(n) >= 2; n = n[2:] {
		list = append(list, Session{n[0], n[1]})
	}
	return list, nil
}

// Held tells whether the fact that an inode waits to be freed by sessions is there, and Locks decodes those of a file.
func Held(read func(name string) ([]byte, error), ino meta.Ino) (bool, error) {
	b, err := read(numbered(factHold, uint64(ino)))
	return b != nil, err
}

// Locks are the locks of a file.
func Locks(read func(name string) ([]byte, error), ino meta.Ino) (*advisory.Set, error) {
	b, err := read(numbered(factLock, uint64(ino)))
	if err != nil {
		return nil, err
	}
	return advisory.Decode(b)
}

// hasSession tells whether a session has begun and not ended.
func (a *applier) hasSession(session uint64) (bool, error) {
	sessions, err := a.numbers(factSessions, 2)
	for i := 0; i < len(sessions); i += 2 {
		if sessions[i] == session {
			return true, err
		}
	}
	return false, err
}

// answered looks whether a tagged command has been done before: then a.res is what it answered.
func (a *applier) answered(tag command.Tag) (done bool, err error) {
	if alive, err := a.hasSession(tag.Session); err != nil || !alive {
		return true, errors.Join(ErrNoSession, err)
	}
	acked, err := a.numbers(numbered(factAck, tag.Session), 1)
	if err != nil {
		return false, err
	}
	if len(acked) > 0 && tag.Seq < acked[0] {
		return true, errAnswered
	}
	b, err := a.fact(numbered(factResult, tag.Session, tag.Seq))
	if err != nil || b == nil {
		return false, err
	}
	if len(b) != resultSize {
		return false, fmt.Errorf("%w: a stored result has %d bytes", meta.ErrDecode, len(b))
	}
	le := binary.LittleEndian
	for at, in := range map[int]*meta.Inode{4: &a.res.Inode, 12: &a.res.Replaced} {
		ino := meta.Ino(le.Uint64(b[at:]))
		if ino == 0 {
			continue
		}
		if a.apart(ino) {
			in.Ino = ino
		} else if now, err := a.inode(ino); err == nil {
			*in = *now
		} else if !errors.Is(err, syscall.ESTALE) {
			return false, err
		}
	}
	a.res.Bytes = le.Uint64(b[20:])
	if errno := syscall.Errno(le.Uint32(b)); errno != 0 {
		return true, errno
	}
	return true, nil
}

const resultSize = 4 + 3*8

// remember stores what a tagged command answers, and forgets the answers that nobody will ask for.
func (a *applier) remember(tag command.Tag, errno syscall.Errno) error {
	le := binary.LittleEndian
	b := le.AppendUint32(make([]byte, 0, resultSize), uint32(errno))
	for _, n := range [...]uint64{uint64(a.res.Inode.Ino), uint64(a.res.Replaced.Ino), a.res.Bytes} {
		b = le.AppendUint64(b, n)
	}
	a.setFact(numbered(factResult, tag.Session, tag.Seq), b)
	name := numbered(factAck, tag.Session)
	acked, err := a.numbers(name, 1)
	if err != nil {
		return err
	}
	from := uint64(1)
	if len(acked) > 0 {
		from = acked[0]
	}
	if tag.Acked <= from {
		return nil
	}
	a.setNumbers(name, []uint64{tag.Acked})
	if tag.Acked-from < ackedAtOnce {
		for seq := from; seq < tag.Acked; seq++ {
			a.DeleteFact(numbered(factResult, tag.Session, seq))
		}
		return nil
	}
	var old []string
	end := numbered(factResult, tag.Session, tag.Acked)
	err = a.Facts(numbered(factResult, tag.Session), func(name string, _ []byte) (bool, error) {
		if name >= end {
			return false, nil
		}
		old = append(old, name)
		return true, nil
	})
	for _, name := range old {
		a.DeleteFact(name)
	}
	return err
}

// ackedAtOnce bounds deletes of results that may not even be there.
const ackedAtOnce = 4096

func (a *applier) beginSession(c *command.BeginSession) error {
	if c.Session == 0 {
		return syscall.EINVAL
	}
	sessions, err := a.numbers(factSessions, 2)
	if err != nil {
		return err
	}
	for i := 0; i < len(sessions); i += 2 {
		if sessions[i] == c.Session {
			return nil // asked again
		}
	}
	for i := 0; i < len(sessions); i += 2 {
		if sessions[i+1] == c.Node {
			if err := a.endSession(sessions[i]); err != nil {
				return err
			}
		}
	}
	if err := a.thaw(0); err != nil {
		return err
	}
	if sessions, err = a.numbers(factSessions, 2); err != nil {
		return err
	}
	a.setNumbers(factSessions, append(sessions, c.Session, c.Node))
	return nil
}

// endSession forgets a session and all that it keeps.
func (a *applier) endSession(session uint64) error {
	sessions, err := a.numbers(factSessions, 2)
	if err != nil {
		return err
	}
	for i := 0; i < len(sessions); i += 2 {
		if sessions[i] == session {
			a.setNumbers(factSessions, slices.Delete(sessions, i, i+2))
			break
		}
	}
	a.DeleteFact(numbered(factAck, session))
	if err := a.thaw(session); err != nil {
		return err
	}
	var names []string
	collect := func(prefix string) error {
		return a.Facts(prefix, func(name string, _ []byte) (bool, error) { names = append(names, name); return true, nil })
	}
	if err := collect(numbered(factResult, session)); err != nil {
		return err
	}
	for _, name := range names {
		a.DeleteFact(name)
	}
	names = nil
	if err := collect(factHold); err != nil {
		return err
	}
	for _, name := range names {
		if err := a.letGo(inoOf(name, factHold), session); err != nil {
			return err
		}
	}
	names = nil
	if err := collect(factLock); err != nil {
		return err
	}
	for _, name := range names {
		if err := a.changeLocks(inoOf(name, factLock), func(s *advisory.Set) { s.ReleaseSession(session) }); err != nil {
			return err
		}
	}
	return nil
}

func inoOf(name, kind string) meta.Ino {
	if len(name) != len(kind)+8 {
		return 0
	}
	return meta.Ino(binary.BigEndian.Uint64([]byte(name[len(kind):])))
}

// keep notes who may have an inode open that has just lost its last name; only is the one session that can, 0 for all.
func (a *applier) keep(ino meta.Ino, only uint64) error {
	sessions, err := a.numbers(factSessions, 2)
	if err != nil || len(sessions) == 0 {
		return err
	}
	var holders []uint64
	for i := 0; i < len(sessions); i += 2 {
		if only == 0 || sessions[i] == only {
			holders = append(holders, sessions[i])
		}
	}
	a.setNumbers(numbered(factHold, uint64(ino)), holders)
	return nil
}

// letGo takes a session out of those that keep an inode; without any it is freed, if it has no name.
func (a *applier) letGo(ino meta.Ino, session uint64) error {
	name := numbered(factHold, uint64(ino))
	holders, err := a.numbers(name, 1)
	if err != nil {
		return err
	}
	i := slices.Index(holders, session)
	if i < 0 {
		return nil
	}
	holders = slices.Delete(holders, i, i+1)
	a.setNumbers(name, holders)
	if len(holders) > 0 {
		return nil
	}
	in, err := a.inode(ino)
	if errors.Is(err, syscall.ESTALE) || err == nil && in.Nlink > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	a.DeleteFact(numbered(factLock, uint64(ino)))
	return a.FreeInode(in)
}

func (a *applier) release(c *command.Release) error {
	for _, ino := range c.Inos {
		if err := a.letGo(ino, c.Session); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) changeLocks(ino meta.Ino, change func(*advisory.Set)) error {
	name := numbered(factLock, uint64(ino))
	b, err := a.fact(name)
	if err != nil {
		return err
	}
	set, err := advisory.Decode(b)
	if err != nil {
		return fmt.Errorf("%w: locks of inode %d: %w", meta.ErrDecode, ino, err)
	}
	change(set)
	if set.Empty() {
		a.DeleteFact(name)
	} else {
		a.setFact(name, set.Encode(nil))
	}
	return nil
}

// lockOf is the lock that a command speaks of.
func lockOf(c *command.Lock) (advisory.Class, advisory.Lock) {
	class := advisory.POSIX
	if c.Flock {
		class = advisory.Flock
	}
	return class, advisory.Lock{
		Start: c.Start, End: c.End, Owner: advisory.Owner{Session: c.Session, ID: c.Owner}, Handle: c.Handle, PID: c.PID, Exclusive: c.Exclusive,
	}
}

// lockAnswered completes the answer of a Lock that was done before. That it was refused is not among what is remembered; it is read off the
// locks: who was given one has it still, as he has not heard of it.
func (a *applier) lockAnswered(c *command.Lock) error {
	if c.Act != command.LockTake {
		return nil
	}
	set, err := Locks(a.fact, c.Ino)
	if err != nil {
		return err
	}
	a.res.Refused = !set.Covers(lockOf(c))
	return nil
}

func (a *applier) lock(c *command.Lock) error {
	if c.Start > c.End {
		return syscall.EINVAL
	}
	if _, err := a.inode(c.Ino); err != nil {
		return err
	}
	class, l := lockOf(c)
	refused, freed := false, true
	err := a.changeLocks(c.Ino, func(s *advisory.Set) {
		switch c.Act {
		case command.LockTake:
			var ok bool
			ok, freed = s.Take(class, l)
			refused = !ok
		case command.LockUnlock:
			s.Release(class, l)
		case command.LockOwner:
			s.ReleaseOwner(l.Owner)
		case command.LockHandle:
			s.ReleaseHandle(c.Session, c.Handle)
		}
	})
	if err == nil && refused {
		// What was given back all the same (a flock that changes its kind) has to stay so.
		a.res.Refused = true
	}
	if freed {
		a.res.Bytes = 1 // somebody who waits may look again
	}
	return err
}
