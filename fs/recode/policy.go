package recode

import (
	"context"
	"fmt"
	"strings"

	"vdefs/vde/meta"
)

// Mode says when files are re-encoded.
type Mode uint8

const (
	// Off: never.
	Off Mode = iota
	// Async: in the background, a moment after the last close.
	Async
	// Sync: before the last close returns.
	Sync
)

func (m Mode) String() string { return [...]string{"off", "async", "sync"}[m] }

// ParseMode reads the text that String gives.
func ParseMode(text string) (Mode, error) {
	for _, m := range []Mode{Off, Async, Sync} {
		if text == m.String() {
			return m, nil
		}
	}
	return Off, fmt.Errorf("png mode %q: use async, sync or off", text)
}

// Xattr is the attribute that tells on a file what was done, and that sets the mode on a directory.
const Xattr = "user.vde.png"

// workTrees are entries that make a directory the top of a work tree.
var workTrees = []string{".git", ".hg", ".svn", ".jj"}

// maxDepth bounds the walk to the root.
const maxDepth = 4096

// modeOf tells what holds for the files of a directory.
func (r *Recoder) modeOf(ctx context.Context, dir meta.Ino) (Mode, error) {
	for range maxDepth {
		in, err := r.store.Inode(ctx, dir)
		if err != nil {
			return Off, err
		}
		value, err := r.store.Xattr(ctx, &in, Xattr)
		if err != nil {
			return Off, err
		}
		if mode, err := ParseMode(strings.TrimSpace(string(value))); err == nil {
			return mode, nil
		}
		for _, name := range workTrees {
			if entry, err := r.store.Entry(ctx, dir, name); err != nil {
				return Off, err
			} else if entry != 0 {
				return Off, nil
			}
		}
		if in.Parent == dir || in.Parent == 0 {
			return r.options.Mode, nil
		}
		dir = in.Parent
	}
	return Off, nil
}
