package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// Write-behind, in a cluster. A write(2) that neither asks to be durable nor to be seen by other mounts at once (no O_SYNC,
// O_DIRECT or O_APPEND, no cache=strict) is answered when it is noted here, and proposed in the background: many at a time
// where they do not overlap, and small ones that continue each other as one. Every later call on the file through this
// mount waits for them first, and so do close(2), fsync(2) and the unlocking of a range: other mounts see a file as it was
// written when they open it after a close (close-to-open), which is what they are promised.
//
// Waiting for each write instead costs the time of a majority's disks per request: the kernel sends one after the other.
//
// Changes of attributes of a file that was made here and has not been closed yet are noted likewise (fs.SetAttr.Behind): tar, cp -a
// and rsync set times, owner and mode one by one. They go with the write before them, as one command.

const (
	behindChunk = 1 << 20 // bytes that are proposed together at most
	// behindSmall is below what a write that may still be continued is held back while others are on their way.
	behindSmall = 256 << 10
	// behindHold is how long a small write is held back when no other is on its way: what follows it may go with it.
	behindHold = 2 * time.Millisecond
	// Of one file so much is on its way at a time.
	behindFlights     = 64
	behindFlightBytes = 8 << 20
	behindMin         = 8 << 20 // bytes that may be noted at least, whatever the memory
)

// behind is what this mount has answered and not written yet.
type behind struct {
	v      *Volume
	limit  int           // bytes, in all files
	within time.Duration // from noting a write until it has failed

	mu    sync.Mutex
	files map[meta.Ino]*behindFile // those with writes or an error; guarded by mu
	bytes int                      // noted, in all files; guarded by mu
	moved sync.Cond                // on mu: a write is done
}

// behindFile are the writes of one file, guarded by behind.mu.
type behindFile struct {
	waiting []*behindWrite // in the order they came
	flying  []*behindWrite // proposed: no two overlap
	bytes   int            // of flying
	last    uint64         // number of the newest
	hurry   uint64         // up to this number nothing is held back
	err     error          // of the first that failed since that was last told
}

// behindWrite is one write, or several that continue each other, and what attributes are set to after it. Such a one flies alone.
type behindWrite struct {
	number uint64
	off    uint64
	data   []byte           // may be empty, with attr
	kill   bool             // set-id bits are cleared by the write
	attr   *command.SetAttr // nil: none
	blocks uint64           // reserved
	until  time.Time
	hold   *time.Timer // ends holding it back, once that has begun
	held   bool        // long enough
}

func (w *behindWrite) end() uint64 { return w.off + uint64(len(w.data)) }

func newBehind(v *Volume, memory int64, within time.Duration) *behind {
	if memory == 0 {
		memory = vde.DefaultMemory
	}
	b := &behind{v: v, limit: max(behindMin, int(memory/16)), within: within, files: map[meta.Ino]*behindFile{}}
	b.moved.L = &b.mu
	return b
}

// write notes a write that is to be done, copying data; it waits while too much is noted. It returns the error of an earlier
// write of the file until settle has told it. blocks have been reserved and are given back when it is done.
//
// kill is for who may not keep set-id bits: if the file has got some since the caller looked, they are cleared, as he may have been earlier.
func (b *behind) write(ino meta.Ino, off uint64, data []byte, kill bool, blocks uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.bytes > 0 && b.bytes+len(data) > b.limit {
		b.hurryAllLocked()
		b.moved.Wait()
	}
	f := b.files[ino]
	if f == nil {
		f = &behindFile{}
		b.files[ino] = f
	}
	if f.err != nil {
		b.v.eng.Unreserve(blocks)
		return f.err
	}
	b.bytes += len(data)
	if n := len(f.waiting); n > 0 {
		if w := f.waiting[n-1]; w.attr == nil && w.end() == off && len(w.data)+len(data) <= behindChunk {
			w.data = append(w.data, data...)
			w.kill = w.kill || kill
			w.blocks += blocks
			b.pumpLocked(ino, f)
			return nil
		}
	}
	f.last++
	f.waiting = append(f.waiting, &behindWrite{number: f.last, off: off, data: slices.Clone(data), kill: kill, blocks: blocks, until: time.Now().Add(b.within)})
	b.pumpLocked(ino, f)
	return nil
}

// setAttr notes a change of attributes that is to be done, which is made for the inode as it will be before, and returns that as it
// will be after. It is false if that cannot be said, or nothing can be noted: then the change must be done at once.
func (b *behind) setAttr(ino meta.Ino, change func(before *meta.Inode) *command.SetAttr) (meta.Inode, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.files[ino]
	if f != nil && (f.err != nil || slices.ContainsFunc(f.flying, func(w *behindWrite) bool { return w.attr != nil })) {
		return meta.Inode{}, false
	}
	in, err := b.v.inode(ino)
	if err != nil || in.Mode&unix.S_IFMT != unix.S_IFREG || in.Flags&meta.FlagXattr != 0 {
		return meta.Inode{}, false // ACLs and capabilities depend on these
	}
	if f == nil {
		f = &behindFile{}
		b.files[ino] = f
	}
	now := fs.Now()
	wrote := func(w *behindWrite) {
		in.Size, in.Mtime = max(in.Size, w.end()), now
		if w.kill {
			posix.SetAttrs(&in, &command.SetAttr{Set: command.KillPriv}, now)
		}
	}
	for _, w := range f.flying {
		wrote(w)
	}
	for _, w := range f.waiting {
		if len(w.data) > 0 {
			wrote(w)
		}
		if w.attr != nil {
			posix.SetAttrs(&in, w.attr, now)
		}
	}
	c := change(&in)
	posix.SetAttrs(&in, c, now)
	if n := len(f.waiting); n > 0 {
		switch w := f.waiting[n-1]; {
		case w.attr == nil:
			w.attr = c
			b.pumpLocked(ino, f)
			return in, true
		case w.attr.Set&command.SetMode == 0 || c.Set&command.KillPriv == 0: // else bits that were set are to be cleared again
			merge(w.attr, c)
			b.pumpLocked(ino, f)
			return in, true
		}
	}
	f.last++
	f.waiting = append(f.waiting, &behindWrite{number: f.last, attr: c, until: time.Now().Add(b.within)})
	b.pumpLocked(ino, f)
	return in, true
}

// setsID tells whether a set-id bit of a file is about to be set.
func (b *behind) setsID(ino meta.Ino) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.files[ino]
	if f == nil {
		return false
	}
	sets := func(w *behindWrite) bool {
		return w.attr != nil && w.attr.Set&command.SetMode != 0 && w.attr.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
	}
	return slices.ContainsFunc(f.flying, sets) || slices.ContainsFunc(f.waiting, sets)
}

// merge adds to a change of attributes one that comes after it.
func merge(to, c *command.SetAttr) {
	if c.Set&command.SetMode != 0 {
		to.Mode = c.Mode
	}
	if c.Set&command.SetUID != 0 {
		to.UID = c.UID
	}
	if c.Set&command.SetGID != 0 {
		to.GID = c.GID
	}
	if c.Set&command.SetAtime != 0 {
		to.Atime = c.Atime
	}
	if c.Set&command.SetMtime != 0 {
		to.Mtime = c.Mtime
	}
	to.Set |= c.Set
}

// hurryAllLocked holds nothing back that has been noted so far.
func (b *behind) hurryAllLocked() {
	for ino, f := range b.files {
		f.hurry = f.last
		b.pumpLocked(ino, f)
	}
}

// pumpLocked proposes what can be.
func (b *behind) pumpLocked(ino meta.Ino, f *behindFile) {
	for len(f.waiting) > 0 {
		w := f.waiting[0]
		grows := len(f.waiting) == 1 && len(w.data) < behindSmall && w.number > f.hurry
		if len(f.flying) == 0 && grows && !w.held {
			b.holdLocked(ino, f, w)
			return
		}
		if len(f.flying) > 0 {
			if grows || w.attr != nil || f.flying[0].attr != nil || len(f.flying) >= behindFlights || f.bytes+len(w.data) > behindFlightBytes {
				return
			}
			if slices.ContainsFunc(f.flying, func(o *behindWrite) bool { return o.off < w.end() && w.off < o.end() }) {
				return // proposals are not kept in order
			}
		}
		if w.hold != nil {
			w.hold.Stop()
		}
		f.waiting = slices.Delete(f.waiting, 0, 1)
		f.flying = append(f.flying, w)
		f.bytes += len(w.data)
		go b.fly(ino, f, w)
	}
}

// holdLocked has the file pumped again when a write has been held back for long enough.
func (b *behind) holdLocked(ino meta.Ino, f *behindFile, w *behindWrite) {
	if w.hold != nil {
		return
	}
	w.hold = time.AfterFunc(behindHold, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		w.held = true
		b.pumpLocked(ino, f)
	})
}

// command returns what does a write.
func (w *behindWrite) command(ino meta.Ino) command.Command {
	if w.attr == nil {
		return &command.Write{Ino: ino, Off: w.off, KillPriv: w.kill, Data: w.data}
	}
	a, set := w.attr, w.attr.Set
	if w.kill {
		set |= command.KillPrivBefore
	}
	return &command.Fill{Ino: ino, Off: w.off, Set: set, Mode: a.Mode, UID: a.UID, GID: a.GID, Atime: a.Atime, Mtime: a.Mtime, Data: w.data}
}

// fly does a write.
func (b *behind) fly(ino meta.Ino, f *behindFile, w *behindWrite) {
	ctx, cancel := context.WithDeadline(context.Background(), w.until)
	_, err := b.v.change(ctx, w.command(ino))
	cancel()
	if err == nil && len(w.data) > 0 {
		b.v.watch.wrote(ino)
	}
	if err == nil && w.attr != nil && w.attr.Set&command.SetAtime != 0 {
		b.v.atimes.forget(ino)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(f.flying, w)
	f.flying = slices.Delete(f.flying, i, i+1)
	f.bytes -= len(w.data)
	b.doneLocked(w)
	if err != nil {
		b.failedLocked(ino, f, w, err)
	}
	b.pumpLocked(ino, f)
	b.dropLocked(ino, f)
	b.moved.Broadcast()
}

func (b *behind) doneLocked(w *behindWrite) {
	b.bytes -= len(w.data)
	b.v.eng.Unreserve(w.blocks)
}

// failedLocked notes an error, and gives up what waits behind the write: its writer is to be told, not to wait as long for each.
func (b *behind) failedLocked(ino meta.Ino, f *behindFile, w *behindWrite, err error) {
	lost := len(w.data)
	for _, w := range f.waiting {
		lost += len(w.data)
		b.doneLocked(w)
		if w.hold != nil {
			w.hold.Stop()
		}
	}
	f.waiting = nil
	if f.err == nil {
		f.err = fmt.Errorf("writing behind to inode %d: %w", ino, err)
	}
	b.v.log.WithError(err).WithFields(map[string]any{"ino": uint64(ino), "offset": w.off, "bytes": lost}).
		Error("bytes that a program has written, or attributes that it has set, are lost; it is told at fsync or close")
	// The kernel takes what it has of them for written.
	b.v.node.kernel.forget(ino)
}

// dropLocked forgets a file of which nothing is left.
func (b *behind) dropLocked(ino meta.Ino, f *behindFile) {
	if len(f.waiting) == 0 && len(f.flying) == 0 && f.err == nil && b.files[ino] == f {
		delete(b.files, ino)
	}
}

// wait returns when all writes of a file that were noted before the call are done or have failed.
func (b *behind) wait(ino meta.Ino) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waitLocked(ino)
}

func (b *behind) waitLocked(ino meta.Ino) {
	f := b.files[ino]
	if f == nil {
		return
	}
	upTo := f.last
	f.hurry = upTo
	b.pumpLocked(ino, f)
	for slices.ContainsFunc(f.flying, func(w *behindWrite) bool { return w.number <= upTo }) ||
		len(f.waiting) > 0 && f.waiting[0].number <= upTo {
		b.moved.Wait()
	}
}

// settle is wait; it returns the error of the first write that has failed since the last call.
func (b *behind) settle(ino meta.Ino) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waitLocked(ino)
	f := b.files[ino]
	if f == nil {
		return nil
	}
	err := f.err
	f.err = nil
	b.dropLocked(ino, f)
	return err
}

// waitAll returns when everything that was noted before the call is done.
func (b *behind) waitAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	inos := make([]meta.Ino, 0, len(b.files))
	for ino, f := range b.files {
		f.hurry = f.last
		inos = append(inos, ino)
		b.pumpLocked(ino, f)
	}
	for _, ino := range inos {
		b.waitLocked(ino)
	}
}

// writeBehind notes a write that need not be done when the call returns. EAGAIN: it must be done at once.
func (v *Volume) writeBehind(ctx context.Context, ino meta.Ino, off uint64, data []byte, kill bool) error {
	if !v.replicated(ino.Group()) || v.readOnly.Load() || len(data) == 0 || off+uint64(len(data)) > vde.MaxFileSize {
		return syscall.EAGAIN
	}
	blocks := vde.BlocksFor(off, uint64(len(data))) + 1
	if _, err := v.reserve(ctx, blocks); err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return syscall.EAGAIN
		}
		return err
	}
	return v.behind.write(ino, off, data, kill, blocks)
}

// setAttrBehind is SetAttr for what need not be done when the call returns. false: it must be done at once.
func (v *Volume) setAttrBehind(ino meta.Ino, change func(before *meta.Inode) *command.SetAttr) (meta.Inode, bool) {
	if v.behind == nil || v.readOnly.Load() || !v.replicated(ino.Group()) || !v.mayUse(command.OpFill) {
		return meta.Inode{}, false
	}
	return v.behind.setAttr(ino, change)
}

// SetACLBehind implements fs.SharedVolume.
func (v *Volume) SetACLBehind(ino meta.Ino, value []byte, clearSGID bool) bool {
	mode, ok := posix.ModeOfACL(value)
	if !ok {
		return false
	}
	_, ok = v.setAttrBehind(ino, func(before *meta.Inode) *command.SetAttr {
		mode := before.Mode&0o7000 | mode
		if clearSGID {
			mode &^= unix.S_ISGID
		}
		return &command.SetAttr{Ino: ino, Set: command.SetMode, Mode: mode}
	})
	return ok
}

// MayHaveSetID implements fs.SharedVolume.
func (v *Volume) MayHaveSetID(ino meta.Ino) bool {
	if v.behind != nil && v.behind.setsID(ino) {
		return true
	}
	in, err := v.inode(ino)
	return err != nil || in.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

// settled waits until what this mount has changed of an inode is what it reads of it.
func (v *Volume) settled(ino meta.Ino) {
	if v.behind != nil {
		v.behind.wait(ino)
		v.later.wait(ino)
	}
}

// Settle implements fs.SharedVolume.
func (v *Volume) Settle(_ context.Context, ino meta.Ino) error {
	if v.behind == nil {
		return nil
	}
	return v.behind.settle(ino)
}
