package logstore

import (
	"fmt"
	"sync"
)

// MemoryLogStore is a LogStore in memory, for tests. Sync makes nothing more
// durable than it is, but counts as if.
type MemoryLogStore struct {
	mu      sync.Mutex
	entries []Entry
	// base and baseTerm are index and term of the entry before entries[0].
	base, baseTerm uint64
	durable        uint64
	closed         bool
}

var _ LogStore = (*MemoryLogStore)(nil)

// NewMemory returns an empty log.
func NewMemory() *MemoryLogStore { return &MemoryLogStore{} }

func (l *MemoryLogStore) lastLocked() uint64 { return l.base + uint64(len(l.entries)) }

// Append implements LogStore.
func (l *MemoryLogStore) Append(entries []Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if err := checkAppend(l.lastLocked(), entries); err != nil {
		return err
	}
	l.entries = append(l.entries, entries...)
	return nil
}

// Entry implements LogStore.
func (l *MemoryLogStore) Entry(index uint64) (Entry, error) {
	es, err := l.Entries(nil, index, index+1, 0)
	if err != nil {
		return Entry{}, err
	}
	return es[0], nil
}

// Entries implements LogStore.
func (l *MemoryLogStore) Entries(dst []Entry, lo, hi, maxBytes uint64) ([]Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return dst, ErrClosed
	}
	if err := checkRange(l.base+1, l.lastLocked(), lo, hi); err != nil {
		return dst, err
	}
	size := uint64(0)
	for i := lo; i < hi; i++ {
		e := l.entries[i-l.base-1]
		size += uint64(len(e.Data))
		if size > maxBytes && i > lo {
			break
		}
		dst = append(dst, e)
	}
	return dst, nil
}

// Term implements LogStore.
func (l *MemoryLogStore) Term(index uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, ErrClosed
	}
	if index == l.base {
		return l.baseTerm, nil
	}
	if err := checkRange(l.base+1, l.lastLocked(), index, index+1); err != nil {
		return 0, err
	}
	return l.entries[index-l.base-1].Term, nil
}

// TruncateFrom implements LogStore.
func (l *MemoryLogStore) TruncateFrom(index uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return ErrClosed
	case index > l.lastLocked():
		return nil
	case index <= l.base:
		return fmt.Errorf("%w: truncating from %d, the first one is %d", ErrCompacted, index, l.base+1)
	}
	// A fresh array: entries handed out by value share only Data.
	l.entries = append([]Entry(nil), l.entries[:index-l.base-1]...)
	l.durable = min(l.durable, index-1)
	return nil
}

// CompactTo implements LogStore.
func (l *MemoryLogStore) CompactTo(index uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return ErrClosed
	case index <= l.base:
		return nil
	case index > l.lastLocked():
		return fmt.Errorf("%w: compacting to %d, the last one is %d", ErrUnavailable, index, l.lastLocked())
	}
	l.baseTerm = l.entries[index-l.base-1].Term
	l.entries = append([]Entry(nil), l.entries[index-l.base:]...)
	l.base = index
	l.durable = max(l.durable, index)
	return nil
}

// Tail implements LogStore.
func (l *MemoryLogStore) Tail(bytes int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.entries)
	for ; n > 0 && bytes > 0; n-- {
		bytes -= recordSize(len(l.entries[n-1].Data))
	}
	return l.base + uint64(n)
}

// Reset implements LogStore.
func (l *MemoryLogStore) Reset(index, term uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.entries, l.base, l.baseTerm, l.durable = nil, index, term, index
	return nil
}

// FirstIndex implements LogStore.
func (l *MemoryLogStore) FirstIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base + 1
}

// LastIndex implements LogStore.
func (l *MemoryLogStore) LastIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastLocked()
}

// LastTerm implements LogStore.
func (l *MemoryLogStore) LastTerm() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Term
	}
	return l.baseTerm
}

// Sync implements LogStore.
func (l *MemoryLogStore) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.durable = l.lastLocked()
	return nil
}

// DurableIndex implements LogStore.
func (l *MemoryLogStore) DurableIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// Close implements LogStore.
func (l *MemoryLogStore) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}
