package recode

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/media/png"
	"vdefs/vde/meta"
)

// Store is what is needed of the volume. All methods may be called concurrently.
type Store interface {
	// Inode returns the attributes of an inode.
	Inode(ctx context.Context, ino meta.Ino) (meta.Inode, error)
	// Read fills dst from offset off; fewer bytes only at the end of the file.
	Read(ctx context.Context, ino meta.Ino, off uint64, dst []byte) (int, error)
	// Xattr returns an attribute, nil without an error if there is none.
	Xattr(ctx context.Context, in *meta.Inode, name string) ([]byte, error)
	// RemoveXattr removes one.
	RemoveXattr(ctx context.Context, ino meta.Ino, name string) error
	// Entry returns the inode that a name in a directory names, 0 without an error if there is none.
	Entry(ctx context.Context, dir meta.Ino, name string) (meta.Ino, error)
	// Swap gives a file that nobody has open other contents and attributes. While nobody can open it, it calls begin, makes
	// the change, and calls applied with the inode as it is then. It fails with ErrBusy if the file is open, and with
	// ErrChanged if it does not have the version of c any more.
	Swap(ctx context.Context, c *command.Replace, begin func(), applied func(meta.Inode)) error
}

// Why Store.Swap does nothing.
var (
	ErrBusy    = errors.New("the file is open")
	ErrChanged = errors.New("the file has changed or is gone")
)

// Options say how files are re-encoded. The zero value is a Recoder that heeds the directories' attributes only.
type Options struct {
	Mode    Mode
	Level   png.Level // 0: png.Default
	Workers int       // in the background; 0: half of the processors, 2 at most
	Memory  int64     // bytes that all pictures may take that are worked on at a time, 24 MiB at least; 0: 320 MiB
	// FS and Queue are a file that keeps what is to be looked at for the next mount (see noted). FS nil: nothing is kept.
	FS     vfs.FS
	Queue  string
	Delay  time.Duration // from the close to the first look; 0: 250 ms, in which many a program opens the file again
	Logger logrus.FieldLogger
}

const (
	defaultMemory = 320 << 20
	leastMemory   = 24 << 20
	defaultDelay  = 250 * time.Millisecond

	// maxFile is the largest file that is looked at, in bytes: one with its replacement fits into one log entry.
	maxFile = 48 << 20

	closingSlots  = 2                // closes served at a time
	closingWait   = time.Second      // that a request by path waits for the swap behind a close to begin
	swapWait      = 10 * time.Second // and for one under way
	maxPrepared   = 64 << 20         // bytes made at closes and not yet swapped in
	preparedStale = time.Minute      // after which a prepared swap whose close never came is dropped

	busyTries = 20 // to find a file closed
	busyPause = 50 * time.Millisecond
)

// Recoder re-encodes the files of one volume. It is a replica.Watcher and, but for the volume, a fs.SelfChanger.
type Recoder struct {
	store   Store
	options Options
	png     png.Options
	closing chan struct{}       // a place for every close that is served
	memory  *semaphore.Weighted // Options.Memory: who encodes holds what the picture needs

	ctx    context.Context // ends with Run
	cancel context.CancelFunc

	wake     chan struct{} // something is in order
	swapWake chan struct{} // something is in swaps

	mu    sync.Mutex
	mount fs.Announcer          // nil: not mounted, nothing is done; guarded by mu, as all below
	names map[meta.Ino]place    // of files that are called .png
	dirty map[meta.Ino]struct{} // written since they were closed
	// waiting are files that were looked at, but open.
	waiting map[meta.Ino]struct{}
	kept    map[meta.Ino]uint64 // version at which a file was looked at and is as small as it gets
	queued  map[meta.Ino]job    // candidates
	order   []job               // the queue, by due; entries that are not the latest of their file are void
	seq     uint64              // of the latest entry of order
	// working are files that somebody looks at, encodes, has prepared or swaps: one at a time, from BeginChange to
	// EndChange. freed is signalled when one is taken out or is prepared.
	working  map[meta.Ino]struct{}
	freed    sync.Cond
	prepared map[meta.Ino]*prepared // made at a close that may not have been the last
	swaps    []*prepared            // prepared ones whose file is closed
	stats    Stats

	preparedBytes int // of prepared
	noted         noted
}

// prepared is a file that was encoded and not yet swapped in.
type prepared struct {
	ino     meta.Ino
	place   place
	version uint64 // that was read
	written int    // bytes read
	made    []byte
	record  []byte
	at      time.Time
}

// New makes a Recoder, which does nothing before Attach and Run.
func New(store Store, o Options) *Recoder {
	if o.Level == 0 {
		o.Level = png.Default
	}
	if o.Workers == 0 {
		o.Workers = max(1, min(2, runtime.NumCPU()/2))
	}
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	o.Memory = max(o.Memory, leastMemory)
	if o.Delay == 0 {
		o.Delay = defaultDelay
	}
	if o.Logger == nil {
		o.Logger = logrus.StandardLogger()
	}
	r := &Recoder{
		store: store, options: o, png: png.DefaultOptions(), closing: make(chan struct{}, closingSlots),
		memory: semaphore.NewWeighted(o.Memory),
		wake:   make(chan struct{}, 1), swapWake: make(chan struct{}, 1),
		names: map[meta.Ino]place{}, dirty: map[meta.Ino]struct{}{}, waiting: map[meta.Ino]struct{}{}, kept: map[meta.Ino]uint64{},
		queued: map[meta.Ino]job{}, working: map[meta.Ino]struct{}{}, prepared: map[meta.Ino]*prepared{}, stats: Stats{Skipped: map[string]uint64{}},
	}
	r.freed.L = &r.mu
	r.noted = noted{fs: o.FS, path: o.Queue, wake: make(chan struct{}, 1), todo: map[meta.Ino]place{}, failed: map[meta.Ino]struct{}{}}
	r.loadNoted()
	r.png.Level = o.Level
	r.png.MaxBytes = min(maxFile, o.Memory/2)
	// See png.Needs; a file is about as large as the decoded picture at most.
	r.png.MaxRaw = max(1<<20, (o.Memory-16<<20)/5)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Attach implements fs.SelfChanger.
func (r *Recoder) Attach(mount fs.Announcer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mount = mount
	if mount == nil {
		clear(r.queued)
		r.order = nil
		for ino := range r.prepared {
			r.dropLocked(ino)
		}
		return
	}
	r.resumeLocked()
}

// WaitsAtClose implements fs.SelfChanger.
func (r *Recoder) WaitsAtClose() bool { return r.options.Mode == Sync }

// Run works until stop is closed; what is under way then is given up.
func (r *Recoder) Run(stop <-chan struct{}) {
	var workers sync.WaitGroup
	for range r.options.Workers {
		workers.Go(r.work)
	}
	workers.Go(r.swapper)
	workers.Go(r.keeper)
	<-stop
	r.mu.Lock()
	r.cancel()
	r.freed.Broadcast()
	r.mu.Unlock()
	workers.Wait()
}

// work looks at candidates.
func (r *Recoder) work() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for r.ctx.Err() == nil {
		ino, wait, ok := r.next()
		if ok {
			r.look(ino)
			continue
		}
		if wait == 0 {
			wait = time.Hour
		}
		timer.Reset(wait)
		select {
		case <-r.ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// swapper swaps in what closes have prepared.
func (r *Recoder) swapper() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.swapWake:
		}
		for {
			r.mu.Lock()
			if len(r.swaps) == 0 {
				r.swaps = nil
				r.mu.Unlock()
				break
			}
			p, mount := r.swaps[0], r.mount
			r.swaps = r.swaps[1:]
			r.mu.Unlock()
			if mount != nil {
				r.swap(mount, p)
				mount.EndChange(p.ino, p.place.parent, p.place.name)
			}
			r.release(p.ino)
		}
	}
}

// candidate returns what is known of a file; mount is nil if there is nothing to be done.
func (r *Recoder) candidate(ino meta.Ino) (p place, mount fs.Announcer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.names[ino]
	if !ok {
		return p, nil
	}
	return p, r.mount
}

// take makes the caller the one who works on a file; false: there is one already.
func (r *Recoder) take(ino meta.Ino) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.working[ino]; taken {
		if r.prepared[ino] == nil {
			r.enqueueLocked(ino)
		}
		return false // or it comes back with the close
	}
	r.working[ino] = struct{}{}
	return true
}

// takeClosing waits until nobody works on a file, and takes what has been prepared for it before. It fails when Run ends.
func (r *Recoder) takeClosing(ino meta.Ino) (before *prepared, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.ctx.Err() != nil {
			return nil, false
		}
		before = r.prepared[ino]
		if _, taken := r.working[ino]; !taken || before != nil {
			break
		}
		r.freed.Wait()
	}
	if before != nil {
		delete(r.prepared, ino)
		r.preparedBytes -= len(before.made)
	}
	r.working[ino] = struct{}{}
	return before, true
}

func (r *Recoder) release(ino meta.Ino) {
	r.mu.Lock()
	r.releaseLocked(ino)
	r.mu.Unlock()
}

func (r *Recoder) releaseLocked(ino meta.Ino) {
	delete(r.working, ino)
	r.settleLocked(ino)
	r.freed.Broadcast()
}

// dropLocked drops what was prepared for a file; mu is held.
func (r *Recoder) dropLocked(ino meta.Ino) {
	r.preparedBytes -= len(r.prepared[ino].made)
	delete(r.prepared, ino)
	r.releaseLocked(ino)
}

// look looks at a file in the background, and makes it smaller if it can be.
func (r *Recoder) look(ino meta.Ino) {
	at, mount := r.candidate(ino)
	if mount == nil || !r.take(ino) {
		return
	}
	defer r.release(ino)
	mode, err := r.modeOf(r.ctx, at.parent)
	if err != nil || mode == Off {
		r.skipError(ino, at, skipMode, err)
		return
	}
	mount.BeginChange(ino, 0)
	defer mount.EndChange(ino, at.parent, at.name)
	if p := r.encode(ino, at); p != nil {
		r.swap(mount, p)
	}
}

// Closing implements fs.SelfChanger: it encodes a file, so that the swap has only to be made when it is closed.
func (r *Recoder) Closing(ino meta.Ino) {
	at, mount := r.candidate(ino)
	r.mu.Lock()
	_, dirty := r.dirty[ino]
	r.mu.Unlock()
	if mount == nil || !dirty {
		return
	}
	if mode, err := r.modeOf(r.ctx, at.parent); err != nil || mode != Sync {
		return
	}
	select {
	case r.closing <- struct{}{}:
		defer func() { <-r.closing }()
	case <-r.ctx.Done():
		return
	}
	before, ok := r.takeClosing(ino)
	if !ok {
		return
	}
	p := before // of another close of the same open file
	if before == nil || !r.current(before) {
		p = r.encode(ino, at)
	}
	if p != nil {
		mount.BeginChange(ino, closingWait)
	}
	for _, dropped := range r.prepare(ino, p) {
		mount.EndChange(dropped, 0, "")
	}
}

// prepare keeps what was made at a close until the file is closed. It returns the files that no change is prepared for
// any more: this one if p is nil or there is no room for it (then it is done in the background), and those that nobody has
// come for.
func (r *Recoder) prepare(ino meta.Ino, p *prepared) (dropped []meta.Ino) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, old := range r.prepared {
		if time.Since(old.at) > preparedStale {
			r.dropLocked(other)
			dropped = append(dropped, other)
		}
	}
	if p == nil || r.mount == nil || r.preparedBytes+len(p.made) > maxPrepared {
		r.releaseLocked(ino)
		return append(dropped, ino)
	}
	r.prepared[ino] = p
	r.preparedBytes += len(p.made)
	r.freed.Broadcast()
	return dropped
}

// current tells whether a file is still what was read.
func (r *Recoder) current(p *prepared) bool {
	in, err := r.store.Inode(r.ctx, p.ino)
	return err == nil && in.Version == p.version
}

// encode reads a file and encodes it, when there is memory for it; nil: it stays as it is.
func (r *Recoder) encode(ino meta.Ino, at place) *prepared {
	in, need, err := r.size(ino, at)
	if err != nil || need == 0 {
		r.skipError(ino, at, skipGone, err)
		return nil
	}
	r.mu.Lock()
	version, ok := r.kept[ino]
	r.mu.Unlock()
	if ok && version == in.Version {
		r.skip(string(png.ReasonAlreadyDone))
		return nil
	}
	if err := r.memory.Acquire(r.ctx, need); err != nil {
		r.skipError(ino, at, skipError, err)
		return nil
	}
	defer r.memory.Release(need)
	data, err := r.read(&in)
	if errors.Is(err, ErrChanged) {
		r.mu.Lock()
		r.skipLocked(skipChanged)
		r.enqueueLocked(ino) // in case it is closed already
		r.mu.Unlock()
		return nil
	}
	if err != nil {
		r.skipError(ino, at, skipGone, err)
		return nil
	}
	made, report, err := png.Reencode(r.ctx, data, r.png)
	if err != nil {
		r.skipError(ino, at, skipError, err)
		return nil
	}
	if report.Reason == png.ReasonVerify {
		r.log(ino, at).WithField("detail", report.Detail).Error("a re-encoded PNG did not verify and was thrown away: please report this")
	}
	if made == nil {
		r.keep(&in)
		r.skip(string(report.Reason))
		r.dropRecord(&in, at)
		return nil
	}
	record, err := newRecord(data, made, r.options.Level).encode()
	if err != nil {
		r.skipError(ino, at, skipError, err)
		return nil
	}
	return &prepared{ino: ino, place: at, version: in.Version, written: len(data), made: made, record: record, at: time.Now()}
}

// size returns a file and how many bytes of memory encoding it takes; 0 without an error if it is not there or cannot be a picture.
func (r *Recoder) size(ino meta.Ino, at place) (in meta.Inode, need int64, err error) {
	if found, err := r.store.Entry(r.ctx, at.parent, at.name); err != nil || found != ino {
		return in, 0, err
	}
	in, err = r.store.Inode(r.ctx, ino)
	if err != nil || !regular(&in) || in.Nlink == 0 || in.Size == 0 || in.Size > uint64(r.png.MaxBytes) {
		return in, 0, err
	}
	var head [64]byte
	n, err := r.store.Read(r.ctx, ino, 0, head[:min(in.Size, uint64(len(head)))])
	if err != nil {
		return in, 0, err
	}
	// A picture that needs more than there is, is refused by its header.
	return in, min(png.Needs(head[:n], int64(in.Size)), r.options.Memory), nil
}

// read reads a whole file as it was when size looked at it, or fails with ErrChanged.
func (r *Recoder) read(in *meta.Inode) ([]byte, error) {
	data := make([]byte, in.Size)
	n, err := r.store.Read(r.ctx, in.Ino, 0, data)
	if err != nil {
		return nil, err
	}
	after, err := r.store.Inode(r.ctx, in.Ino)
	if err != nil {
		return nil, err
	}
	if n < len(data) || after.Version != in.Version {
		return nil, ErrChanged
	}
	return data, nil
}

// swap puts what was made in place of what was written, as soon as nobody has the file open.
func (r *Recoder) swap(mount fs.Announcer, p *prepared) {
	// Noted first: whoever closes the file after a try that found it open brings it back.
	r.mu.Lock()
	put(r.waiting, p.ino, struct{}{}, maxDirty)
	r.mu.Unlock()
	c := &command.Replace{Ino: p.ino, Version: p.version, Data: p.made, Xattrs: []command.Xattr{{Name: Xattr, Value: p.record}}}
	try := func() error {
		if !r.current(p) {
			return ErrChanged // without waiting for whoever has it open
		}
		return r.store.Swap(r.ctx, c, func() { mount.BeginChange(p.ino, swapWait) }, func(in meta.Inode) {
			mount.Changed(p.ino, in.Version)
			r.swapped(p, &in)
		})
	}
	err := try()
	for n := 1; errors.Is(err, ErrBusy) && n < busyTries; n++ {
		select {
		case <-r.ctx.Done():
			return
		case <-time.After(busyPause):
		}
		err = try()
	}
	switch {
	case err == nil:
		r.log(p.ino, p.place).WithFields(logrus.Fields{"before": p.written, "after": len(p.made)}).Debug("PNG made smaller")
	case errors.Is(err, ErrBusy):
		r.skip(skipBusy)
	case errors.Is(err, ErrChanged):
		r.mu.Lock()
		r.skipLocked(skipChanged)
		delete(r.waiting, p.ino)
		r.enqueueLocked(p.ino) // in case it is closed already
		r.mu.Unlock()
	default:
		r.mu.Lock()
		delete(r.waiting, p.ino)
		r.mu.Unlock()
		r.skipError(p.ino, p.place, skipError, err)
	}
}

// swapped counts a swap and remembers that the file is done.
func (r *Recoder) swapped(p *prepared, in *meta.Inode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiting, p.ino)
	put(r.kept, p.ino, in.Version, maxKept)
	r.stats.Done++
	r.stats.BytesBefore += uint64(p.written)
	r.stats.BytesAfter += uint64(len(p.made))
}

// keep remembers that a file stays as it is at this version.
func (r *Recoder) keep(in *meta.Inode) {
	r.mu.Lock()
	put(r.kept, in.Ino, in.Version, maxKept)
	r.mu.Unlock()
}

// dropRecord removes an attribute that tells of contents that the file does not have any more.
func (r *Recoder) dropRecord(in *meta.Inode, at place) {
	value, err := r.store.Xattr(r.ctx, in, Xattr)
	if record, ok := parseRecord(value); err == nil && ok && record.Size != int64(in.Size) {
		err = r.store.RemoveXattr(r.ctx, in.Ino, Xattr)
	}
	if err != nil {
		r.log(in.Ino, at).WithError(err).Warn("an attribute of what a PNG was before stays on it")
	}
}

// skipError counts a file that stays, and logs an error if there is one that is not the end of the volume.
func (r *Recoder) skipError(ino meta.Ino, at place, reason string, err error) {
	if err == nil {
		r.skip(reason)
		return
	}
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	r.skipLocked(skipError)
	r.failedLocked(ino)
	r.mu.Unlock()
	r.log(ino, at).WithError(err).Warn("a PNG stays as it was written")
}

func (r *Recoder) log(ino meta.Ino, at place) logrus.FieldLogger {
	return r.options.Logger.WithFields(logrus.Fields{"name": at.name, "ino": uint64(ino), "dir": fmt.Sprint(at.parent)})
}
