package vde

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"vdefs/vde/meta"
)

// TestFactsAgainstModel compares facts with a map under random transactions, inside of them and after.
func TestFactsAgainstModel(t *testing.T) {
	mem := vfs.NewMem()
	e, l := openTest(t, mem, 2<<20)
	defer func() { e.Close() }()
	// Facts of neighbours must not be seen.
	if err := l.apply(func(tx *Tx) error {
		tx.batch.SetGroupFact(1, "a", []byte("of group 1"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	model := map[string]string{}
	rapid.Check(t, func(rt *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "ab", "abc", "b", "b\xff", "b\xff\xff", "c", "\x00", "\xff"})
		next := maps.Clone(model)
		same := func(what string, facts func(string, func(string, []byte) (bool, error)) error, fact func(string) ([]byte, error), want map[string]string) {
			for _, prefix := range []string{"", "a", "b\xff", "\xff", "x"} {
				var got, exp []string
				stop := rapid.IntRange(0, 20).Draw(rt, "stop")
				err := facts(prefix, func(name string, value []byte) (bool, error) {
					got = append(got, name+"="+string(value))
					return len(got) != stop, nil
				})
				if err != nil {
					rt.Fatal(err)
				}
				for _, name := range slices.Sorted(maps.Keys(want)) {
					if strings.HasPrefix(name, prefix) && (stop == 0 || len(exp) < stop) {
						exp = append(exp, name+"="+want[name])
					}
				}
				if !slices.Equal(got, exp) {
					rt.Fatalf("%s: facts with prefix %q up to %d: %q, want %q", what, prefix, stop, got, exp)
				}
			}
			name := names.Draw(rt, "look")
			got, err := fact(name)
			if exp, ok := want[name]; !ok && !errors.Is(err, meta.ErrNotFound) || ok && (err != nil || string(got) != exp) {
				rt.Fatalf("%s: fact %q is %q, %v; want %q", what, name, got, err, exp)
			}
		}
		refused := errors.New("refused")
		discard := rapid.Bool().Draw(rt, "discard")
		err := l.apply(func(tx *Tx) error {
			for range rapid.IntRange(0, 8).Draw(rt, "changes") {
				name := names.Draw(rt, "name")
				if rapid.Bool().Draw(rt, "delete") {
					tx.DeleteFact(name)
					delete(next, name)
				} else {
					value := []byte(fmt.Sprint(rapid.IntRange(0, 99).Draw(rt, "value")))
					if err := tx.SetFact(name, value); err != nil {
						return err
					}
					next[name] = string(value)
					clear(value)
				}
				same("inside", tx.Facts, tx.Fact, next)
			}
			if discard {
				return refused
			}
			return nil
		})
		if discard && errors.Is(err, refused) {
			next = model
		} else if err != nil {
			rt.Fatal(err)
		}
		model = next
		stored := func(prefix string, yield func(string, []byte) (bool, error)) error {
			return e.meta.GroupFacts(0, prefix, yield)
		}
		same("after", stored, func(name string) ([]byte, error) { return e.meta.GroupFact(0, name) }, model)
	})
}

// What a fact may be is checked at the gate.
func TestFactLimits(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 2<<20)
	defer e.Close()
	if err := l.apply(func(tx *Tx) error {
		for _, c := range []struct {
			name  string
			value int
			ok    bool
		}{
			{"", 1, false}, {"n", 0, true}, {"n", meta.MaxFactValue, true}, {"n", meta.MaxFactValue + 1, false},
			{strings.Repeat("n", meta.MaxFactName), 1, true}, {strings.Repeat("n", meta.MaxFactName+1), 1, false},
		} {
			if err := tx.SetFact(c.name, bytes.Repeat([]byte{1}, c.value)); (err == nil) != c.ok {
				t.Errorf("name of %d bytes, value of %d: %v", len(c.name), c.value, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if v, err := e.meta.GroupFact(0, "n"); err != nil || len(v) != meta.MaxFactValue {
		t.Errorf("the fact has %d bytes: %v", len(v), err)
	}
}
