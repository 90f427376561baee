package vde

import (
	"errors"
	"strings"

	"vdefs/vde/meta"
)

// maxDepth bounds how far Paths climbs: deeper trees are named from there on.
const maxDepth = 1024

// Paths tells under which name, from the root on, each of some inodes can be found: one of them where it has several. One
// that is missing has no name. It reads every entry of the store, so it is for reports.
func (e *Engine) Paths(inos []meta.Ino) (map[meta.Ino]string, error) {
	type place struct {
		dir  meta.Ino
		name string
	}
	places := map[meta.Ino]place{}
	want := map[meta.Ino]bool{}
	for _, ino := range inos {
		want[ino] = true
	}
	if len(want) == 0 {
		return nil, nil
	}
	err := e.meta.AllDirents(func(dir meta.Ino, x meta.Dirent) (bool, error) {
		if want[x.Ino] {
			delete(want, x.Ino)
			places[x.Ino] = place{dir, x.Name}
		}
		return len(want) > 0, nil
	})
	if err != nil {
		return nil, err
	}
	paths := map[meta.Ino]string{}
	for ino, p := range places {
		names := []string{p.name}
		for dir := p.dir; dir != meta.RootIno && len(names) < maxDepth; {
			in, err := e.meta.Inode(dir)
			if errors.Is(err, meta.ErrNotFound) {
				break // removed meanwhile
			}
			if err != nil {
				return nil, err
			}
			name := "?"
			if err := e.meta.Dirents(in.Parent, 0, func(x meta.Dirent) (bool, error) {
				if x.Ino == dir {
					name = x.Name
				}
				return x.Ino != dir, nil
			}); err != nil {
				return nil, err
			}
			names = append(names, name)
			dir = in.Parent
		}
		var b strings.Builder
		for i := len(names) - 1; i >= 0; i-- {
			b.WriteString("/" + names[i])
		}
		paths[ino] = b.String()
	}
	return paths, nil
}
