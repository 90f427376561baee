package recode

import (
	"fmt"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/vde/meta"
)

func putQueue(t testing.TB, fs vfs.FS, text string) {
	t.Helper()
	f, err := fs.Create("queue", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func getQueue(t testing.TB, fs vfs.FS) string {
	t.Helper()
	f, err := fs.Open("queue")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestNotedIsDone: what the mount before has noted is done, where it is still called so, and nothing else; then the notes are empty.
func TestNotedIsDone(t *testing.T) {
	t.Parallel()
	v, fs := newVolume(), vfs.NewMem()
	data := gray(t, 40, 40)
	there, renamed, other := v.add("a\n\".png", data), v.add("was.orig", data), v.add("other.png", data)
	putQueue(t, fs, fmt.Sprintf("%d 1 %q\n%d 1 \"was.png\"\n999 1 \"gone.png\"\n%d 1 \"b.txt\"\nnonsense\n%d 1 \"b.p", there.Ino, "a\n\".png", renamed.Ino, other.Ino, other.Ino))
	started(t, v, Options{Mode: Async, FS: fs, Queue: "queue"})
	soon(t, "what was noted is not done", func() bool { return v.swaps(there.Ino) == 1 })
	soon(t, "the notes stay", func() bool { return getQueue(t, fs) == "" })
	if n := v.swaps(renamed.Ino); n != 0 {
		t.Error("a file that is not called .png any more was changed")
	}
	if n := v.swaps(other.Ino); n != 0 {
		t.Error("a file that was noted under no name of a PNG was changed")
	}
}

// TestNotedIsKept: a candidate is noted from its first write until it has been looked at, and stays noted when the mount ends before.
func TestNotedIsKept(t *testing.T) {
	t.Parallel()
	v, fs := newVolume(), vfs.NewMem()
	r := started(t, v, Options{Mode: Async, FS: fs, Queue: "queue"})
	in := v.add("a.png", gray(t, 40, 40))
	r.Named(meta.RootIno, "a.png", &in)
	r.Wrote(in.Ino)
	soon(t, "a file that is written is not noted", func() bool {
		if _, err := fs.Stat("queue"); err != nil {
			return false
		}
		return getQueue(t, fs) == fmt.Sprintf("%d 1 \"a.png\"\n", in.Ino)
	})
	if v.swaps(in.Ino) != 0 {
		t.Error("it was changed before it was closed")
	}
	r.Closed(in.Ino)
	soon(t, "it is not done", func() bool { return v.swaps(in.Ino) == 1 })
	soon(t, "it stays noted", func() bool { return getQueue(t, fs) == "" })
}

// FuzzNoted: any file can be read, and what is read from it is written as it was.
func FuzzNoted(f *testing.F) {
	f.Add("1234 1 \"a.png\"\n5 6 \"\\xff\\n.PNG\"\n")
	f.Add("1 1 `a.png`\n18446744073709551616 1 \"a.png\"\n-1 1 \"a.png\"\n\n\x00")
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	f.Fuzz(func(t *testing.T, text string) {
		fs := vfs.NewMem()
		putQueue(t, fs, text)
		r := New(newVolume(), Options{FS: fs, Queue: "queue", Logger: logger})
		for ino, at := range r.noted.todo {
			if !isPNG(at.name) {
				t.Errorf("%q is a candidate", at.name)
			}
			line := appendNoted(nil, ino, at)
			if i, a, ok := parseNoted(string(line[:len(line)-1])); !ok || i != ino || a != at {
				t.Errorf("%d %+v was written as %q and read as %d %+v, %v", ino, at, line, i, a, ok)
			}
		}
	})
}
