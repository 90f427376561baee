package replica

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// Atime says when reading a file changes its access time.
type Atime int32

const (
	// Relatime: when it is not newer than the last change, or a day old (the kernel's default, mount(8)).
	Relatime Atime = iota
	// Noatime: never.
	Noatime
	// Strictatime: always.
	Strictatime
)

// atimes holds access times that are not in the log yet. Readers never wait for it.
type atimes struct {
	v    *Volume
	mode atomic.Int32 // an Atime
	mu   sync.RWMutex
	new  map[meta.Ino]meta.Time // guarded by mu
}

const (
	atimeEvery = 5 * time.Second
	atimeBatch = 4096 // inodes a command
	aDay       = 24 * 60 * 60
)

// touch notes a read.
func (a *atimes) touch(ino meta.Ino) {
	mode := Atime(a.mode.Load())
	if mode == Noatime || a.v.readOnly.Load() {
		return
	}
	now := fs.Now()
	a.mu.RLock()
	last, noted := a.new[ino]
	a.mu.RUnlock()
	if noted && (mode == Relatime && now.Sec-last.Sec < aDay || last == now) {
		return
	}
	if mode == Relatime && !noted {
		in, err := a.v.eng.Meta().Inode(ino)
		if err != nil || in.Mtime.Before(in.Atime) && in.Ctime.Before(in.Atime) && now.Sec-in.Atime.Sec < aDay {
			return
		}
	}
	a.mu.Lock()
	a.new[ino] = now
	a.mu.Unlock()
}

// SetAtime changes when reads are noted, from now on.
func (v *Volume) SetAtime(mode Atime) { v.atimes.mode.Store(int32(mode)) }

// overlay puts a noted access time into an inode.
func (a *atimes) overlay(in *meta.Inode) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if len(a.new) == 0 {
		return
	}
	if t, ok := a.new[in.Ino]; ok && in.Atime.Before(t) {
		in.Atime = t
	}
}

// forget drops a noted time: somebody set another one.
func (a *atimes) forget(ino meta.Ino) {
	a.mu.Lock()
	delete(a.new, ino)
	a.mu.Unlock()
}

// run writes noted times until stop is closed.
func (a *atimes) run(stop <-chan struct{}) {
	tick := time.NewTicker(atimeEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if err := a.flush(context.Background()); err != nil {
			a.v.log.WithError(err).Warn("writing access times failed")
		}
	}
}

// flush proposes what is noted.
func (a *atimes) flush(ctx context.Context) error {
	a.mu.RLock()
	list := make([]command.Atime, 0, len(a.new))
	for ino, t := range a.new {
		list = append(list, command.Atime{Ino: ino, Time: t})
	}
	a.mu.RUnlock()
	slices.SortFunc(list, func(a, b command.Atime) int { return cmp.Compare(a.Ino, b.Ino) }) // by group
	for len(list) > 0 {
		n := 1
		for n < min(len(list), atimeBatch) && list[n].Ino.Group() == list[0].Ino.Group() {
			n++
		}
		if _, err := a.v.propose(ctx, &command.Atimes{Times: list[:n]}); err != nil {
			return err
		}
		a.mu.Lock()
		for _, t := range list[:n] {
			if a.new[t.Ino] == t.Time {
				delete(a.new, t.Ino)
			}
		}
		a.mu.Unlock()
		list = list[n:]
	}
	return nil
}
