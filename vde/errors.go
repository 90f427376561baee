package vde

import "errors"

// What can go wrong, by the moment it does.
var (
	// When a store is made or opened.

	// ErrStoreExists: the directory holds a store already (or something else).
	ErrStoreExists = errors.New("there is a store already")
	// ErrNotAStore: there is no vde.json.
	ErrNotAStore = errors.New("not a VDE store")
	// ErrStoreInUse: another process has the store open.
	ErrStoreInUse = errors.New("the store is in use")
	// ErrTooSmall: the size leaves no room for data.
	ErrTooSmall = errors.New("too small for a store")
	// ErrDamaged: the store contradicts itself; vde fsck tells more.
	ErrDamaged = errors.New("the store is damaged")

	// While it is open.

	// ErrNoSpace: no free blocks.
	ErrNoSpace = errors.New("no space left in the image")
	// ErrBadBlock: a block of a file fails its checksum.
	ErrBadBlock = errors.New("bad block")
	// ErrFailed: the disk failed; the engine does not go on with memory only. Open the store again once it is mended.
	ErrFailed = errors.New("the store stopped after a disk error")
	// ErrClosed: the engine was closed.
	ErrClosed = errors.New("the store is closed")
)
