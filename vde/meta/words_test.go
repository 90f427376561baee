package meta

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(string, ...any) {}

// listed remembers what Pebble reports of damage. Pebble reports from goroutines of its own, also while a store is being opened.
type listed struct {
	silent
	mu   sync.Mutex
	said []string
}

func (l *listed) Errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range args {
		if err, ok := a.(error); ok {
			l.said = append(l.said, err.Error())
		}
	}
}

// all returns what was reported until now.
func (l *listed) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.said)
}

func noBarrier() error { return nil }

// somewhat makes a closed store with some inodes in it.
func somewhat(t *testing.T) vfs.FS {
	t.Helper()
	f := vfs.NewMem()
	s, err := Open("meta", Options{FS: f, Barrier: noBarrier, Logger: silent{}, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	b := s.NewBatch()
	for ino := Ino(1); ino < 2000; ino++ {
		b.SetInode(&Inode{Ino: ino, Mode: 0o100644, Nlink: 1})
	}
	if err := errors.Join(b.Commit(), s.Flush(), s.Close()); err != nil {
		t.Fatal(err)
	}
	return f
}

// named finds a file of the store by the beginning and the end of its name.
func named(t *testing.T, f vfs.FS, prefix, suffix string) string {
	t.Helper()
	names, err := f.List("meta")
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
			last = max(last, name)
		}
	}
	if last == "" {
		t.Fatalf("no file %s…%s in %q", prefix, suffix, names)
	}
	return "meta/" + last
}

// change replaces the bytes of a file.
func change(t *testing.T, f vfs.FS, path string, change func([]byte) []byte) {
	t.Helper()
	file, err := f.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if file, err = f.Create(path, vfs.WriteCategoryUnspecified); err != nil {
		t.Fatal(err)
	}
	_, err = file.Write(change(b))
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

func half(b []byte) []byte { return b[:len(b)/2] }
func flipped(b []byte) []byte {
	for i := range b {
		if i%16 == 0 {
			b[i] ^= 0x41
		}
	}
	return b
}

// Whatever happens to the notes of Pebble's options, the store opens, and there is one of them afterwards.
func TestOptionsAreOurs(t *testing.T) {
	for name, do := range map[string]func([]byte) []byte{
		"cut off": half, "changed": flipped, "of another comparer": func(b []byte) []byte {
			return []byte(strings.Replace(string(b), "comparer=", "comparer=of.another.", 1))
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			f := somewhat(t)
			change(t, f, named(t, f, "OPTIONS-", ""), do)
			s, err := Open("meta", Options{FS: f, Barrier: noBarrier, Logger: silent{}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Inode(1999); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			names, err := f.List("meta")
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(strings.Join(names, " "), "OPTIONS-"); n != 1 {
				t.Errorf("%d files with options: %q", n, names)
			}
		})
	}
}

// What keeps a store from being opened is damage, and said in words that name the file.
func TestDamageInWords(t *testing.T) {
	for _, c := range []struct {
		name           string
		prefix, suffix string
		do             func([]byte) []byte // nil: it is removed
		says           string
	}{
		{"no list of tables is named", "marker.manifest.", "", nil, "the file marker.manifest."},
		{"list of tables missing", "MANIFEST-", "", nil, "the list of tables MANIFEST-"},
		{"list of tables empty", "MANIFEST-", "", func([]byte) []byte { return nil }, "the list of tables MANIFEST-"},
		{"no version", "marker.format-version.", "", nil, "the file marker.format-version."},
		{"table missing", "", ".sst", nil, ".sst is missing"},
		{"table cut off", "", ".sst", half, ".sst has "},
		{"table changed", "", ".sst", flipped, ".sst"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			f := somewhat(t)
			if path := named(t, f, c.prefix, c.suffix); c.do == nil {
				if err := f.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				change(t, f, path, c.do)
			}
			logged := &listed{}
			s, err := Open("meta", Options{FS: f, Barrier: noBarrier, Logger: logged})
			if err == nil {
				err = s.Walk(func(_, _ []byte) (bool, error) { return true, nil })
				if cerr := s.Close(); cerr != nil {
					t.Errorf("closing: %v", cerr)
				}
			}
			if err == nil {
				t.Fatal("nothing is said")
			}
			if !IsDamage(err) {
				t.Errorf("not called damage: %v", err)
			}
			for _, text := range append(logged.all(), err.Error()) {
				if strings.ContainsAny(text, "<\n") || strings.Contains(text, "objstorage") || strings.Contains(text, "dirname") {
					t.Errorf("says %q", text)
				}
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("says %q, wanted %q", err, c.says)
			}
		})
	}
}

func TestWordsKeepTheError(t *testing.T) {
	if Words(nil) != nil {
		t.Error("nil became an error")
	}
	err := Words(pebble.ErrDBDoesNotExist)
	if !errors.Is(err, pebble.ErrDBDoesNotExist) || Words(err) != err {
		t.Errorf("the error is lost: %v", err)
	}
}
