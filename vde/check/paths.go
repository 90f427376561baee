package check

import (
	"slices"
	"strings"

	"vdefs/vde/meta"
)

// maxDepth bounds how far paths climbs; what is deeper is named from there on.
const maxDepth = 1024

// paths tells under which name, from the root on, each of some inodes can be found: one of them where it has several. An inode without
// a name is missing from the answer. Where the way up is broken, the part that is not known is "?".
func (p *pass) paths(inos map[meta.Ino]bool) (map[meta.Ino]string, error) {
	// Upwards, one level of directories after the other: each is one reading of all names, and in most trees the levels are few.
	places := map[meta.Ino]named{}
	want := inos
	for depth := 0; len(want) > 0 && depth < maxDepth; depth++ {
		parents := map[meta.Ino]bool{}
		err := p.scan([]byte{'d'}, []byte{'d' + 1}, "names of files", func(k meta.Key, v []byte) {
			e, err := meta.DecodeDirent(k.Name, v)
			if err != nil || !want[e.Ino] {
				return
			}
			if _, known := places[e.Ino]; known {
				return
			}
			places[e.Ino] = named{k.Ino, e}
			if k.Ino != meta.RootIno {
				parents[k.Ino] = true
			}
		})
		if err != nil {
			return nil, err
		}
		for dir := range parents {
			if _, known := places[dir]; known {
				delete(parents, dir)
			}
		}
		want = parents
	}
	paths := map[meta.Ino]string{}
	for ino := range inos {
		if e, ok := places[ino]; ok {
			paths[ino] = pathOf(e, places)
		}
	}
	return paths, nil
}

// pathOf joins the names of an entry and of the directories above it.
func pathOf(e named, places map[meta.Ino]named) string {
	names := []string{e.Name}
	passed := map[meta.Ino]bool{}
	for e.dir != meta.RootIno {
		up, ok := places[e.dir]
		if !ok || passed[e.dir] {
			names = append(names, "?")
			break
		}
		passed[e.dir] = true
		e = up
		names = append(names, e.Name)
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}
