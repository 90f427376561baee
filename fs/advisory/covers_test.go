package advisory

import "testing"

func TestCovers(t *testing.T) {
	one, two := Owner{ID: 1}, Owner{ID: 2}
	var s Set
	for _, l := range []Lock{{Start: 0, End: 9, Owner: one, Exclusive: true}, {Start: 10, End: 19, Owner: one, Handle: 5, Exclusive: true}, {Start: 30, End: 1<<64 - 1, Owner: one}} {
		if ok, _ := s.Take(POSIX, l); !ok {
			t.Fatal(l)
		}
	}
	for _, c := range []struct {
		class Class
		l     Lock
		want  bool
	}{
		{POSIX, Lock{Start: 0, End: 19, Owner: one, Exclusive: true}, true},
		{POSIX, Lock{Start: 5, End: 12, Owner: one, Exclusive: true}, true},
		{POSIX, Lock{Start: 5, End: 20, Owner: one, Exclusive: true}, false},
		{POSIX, Lock{Start: 5, End: 12, Owner: one}, false},
		{POSIX, Lock{Start: 5, End: 12, Owner: two, Exclusive: true}, false},
		{Flock, Lock{Start: 5, End: 12, Owner: one, Exclusive: true}, false},
		{POSIX, Lock{Start: 31, End: 1<<64 - 1, Owner: one}, true},
		{POSIX, Lock{Start: 29, End: 31, Owner: one}, false},
	} {
		if got := s.Covers(c.class, c.l); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
