package recode

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/meta"
)

// What is to be looked at is written to a file beside the volume, so that the next mount does what this one has not come to: candidates are
// noted from when they are written (or renamed) until they have been looked at. A line is inode, directory and name:
//
//	1234 1 "a.png"
//
// The file is a help and no truth: who reads it looks at each file anew. So it is written behind everybody's back, a moment later, and not
// synced more than once a second; a line that cannot be read is left out. When all is done it is made empty, and it is written anew when
// most of what it tells is done.
type noted struct {
	fs   vfs.FS // nil: nothing is kept
	path string
	wake chan struct{}

	// Guarded by Recoder.mu.
	todo  map[meta.Ino]place // noted and not done
	added []meta.Ino         // of todo: not in the file yet
	lines int                // in the file, with those of added
	over  bool               // there is more in the file than in todo
	// failed are files that could not be looked at: they stay noted, for the next mount.
	failed map[meta.Ino]struct{}
}

const (
	syncQueueEvery = time.Second
	staleLines     = 1024 // that may be in the file, beside as many as count
	maxQueueFile   = 64 << 20
)

// loadNoted reads what the mount before has left.
func (r *Recoder) loadNoted() {
	q := &r.noted
	if q.fs == nil {
		return
	}
	f, err := q.fs.Open(q.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, maxQueueFile))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		r.options.Logger.WithError(err).Warn("what PNG files were still to be looked at is not known")
		return
	}
	for line := range bytes.Lines(data) {
		q.lines++
		if ino, at, ok := parseNoted(string(bytes.TrimSuffix(line, []byte{'\n'}))); ok && len(q.todo) < maxQueue {
			q.todo[ino] = at
		}
	}
	q.over = q.lines > len(q.todo)
	if len(q.todo) > 0 {
		r.options.Logger.WithField("files", len(q.todo)).Info("PNG files that the last mount did not come to are looked at")
	}
}

func parseNoted(line string) (ino meta.Ino, at place, ok bool) {
	var quoted string
	if n, err := fmt.Sscanf(line, "%d %d %q", &ino, &at.parent, &quoted); err != nil || n != 3 {
		return 0, place{}, false
	}
	at.name = quoted
	return ino, at, isPNG(at.name)
}

func appendNoted(b []byte, ino meta.Ino, at place) []byte {
	b = append(strconv.AppendUint(b, uint64(ino), 10), ' ')
	b = append(strconv.AppendUint(b, uint64(at.parent), 10), ' ')
	return append(strconv.AppendQuoteToASCII(b, at.name), '\n')
}

// resumeLocked puts what the mount before has left in the queue; mu is held.
func (r *Recoder) resumeLocked() {
	for ino, at := range r.noted.todo {
		if _, known := r.names[ino]; !known {
			put(r.names, ino, at, maxNames)
		}
		r.enqueueLocked(ino)
	}
}

// noteLocked notes that a file is to be looked at, by this mount or the next; mu is held.
func (r *Recoder) noteLocked(ino meta.Ino) {
	q := &r.noted
	at, named := r.names[ino]
	if q.fs == nil || !named {
		return
	}
	if old, noted := q.todo[ino]; noted && old == at || !noted && len(q.todo) >= maxQueue {
		return
	}
	q.todo[ino] = at
	q.added = append(q.added, ino)
	q.lines++
	wake(q.wake)
}

// failedLocked notes that a file could not be looked at; mu is held.
func (r *Recoder) failedLocked(ino meta.Ino) {
	if r.noted.fs != nil {
		put(r.noted.failed, ino, struct{}{}, maxKept)
	}
}

// settleLocked takes a file out of what is to be looked at, if it has been and nothing of it is open; mu is held.
func (r *Recoder) settleLocked(ino meta.Ino) {
	q := &r.noted
	if _, noted := q.todo[ino]; !noted || r.mount == nil || r.ctx.Err() != nil {
		return
	}
	if _, failed := q.failed[ino]; failed {
		delete(q.failed, ino)
		return
	}
	_, queued := r.queued[ino]
	_, working := r.working[ino]
	_, dirty := r.dirty[ino]
	_, waiting := r.waiting[ino]
	if queued || working || dirty || waiting {
		return
	}
	delete(q.todo, ino)
	if q.over = true; len(q.todo) == 0 || q.lines > 2*len(q.todo)+staleLines {
		wake(q.wake)
	}
}

// keeper writes the file until Run ends.
func (r *Recoder) keeper() {
	q := &r.noted
	if q.fs == nil {
		return
	}
	var file vfs.File // behind what is in it; nil: it is to be written anew
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	said := false
	// save brings the file up to date; whole: also where more is in it than counts.
	save := func(whole bool) (changed bool) {
		r.mu.Lock()
		var b []byte
		anew := file == nil && len(q.added) > 0 || q.over && (whole || len(q.todo) == 0 || q.lines > 2*len(q.todo)+staleLines)
		if anew {
			for ino, at := range q.todo {
				b = appendNoted(b, ino, at)
			}
			q.lines, q.over = len(q.todo), false
		} else {
			for _, ino := range q.added {
				if at, ok := q.todo[ino]; ok {
					b = appendNoted(b, ino, at)
				}
			}
		}
		q.added = nil
		r.mu.Unlock()
		var err error
		switch {
		case anew:
			if file != nil {
				err = file.Close()
				file = nil
			}
			if err == nil {
				file, err = q.write(b)
			}
		case len(b) > 0:
			_, err = file.Write(b)
		default:
			return false
		}
		if err != nil && file != nil {
			file.Close()
			file = nil // all of it is written the next time
		}
		if err != nil && !said {
			said = true
			r.options.Logger.WithError(err).Warn("PNG files that are to be looked at are not noted for the next mount")
		}
		return file != nil
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for unsynced := false; ; {
		select {
		case <-r.ctx.Done():
			save(true)
			if file != nil {
				_ = file.SyncData()
			}
			return
		case <-q.wake:
			if save(false) && !unsynced {
				unsynced = true
				timer.Reset(syncQueueEvery)
			}
		case <-timer.C:
			if unsynced = false; file != nil {
				_ = file.SyncData() // what is lost by that is looked at when it is written the next time
			}
		}
	}
}

// write puts a new file in the place of the old one, and returns it.
func (q *noted) write(b []byte) (vfs.File, error) {
	tmp := q.path + ".new"
	f, err := q.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(b); err == nil {
		err = q.fs.Rename(tmp, q.path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
