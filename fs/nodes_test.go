package fs

import (
	"testing"

	"pgregory.net/rapid"
)

// A node is there as long as the kernel can name it, and every Reference that is held comes back once.
func TestNodeTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newNodeTable()
		type model struct {
			lookups, opens, writers uint64
			held                    bool
		}
		models := map[uint64]*model{}
		for id := uint64(2); id < 6; id++ {
			models[id] = new(model)
		}
		draw := func(t *rapid.T) (uint64, *model) {
			id := rapid.Uint64Range(2, 5).Draw(t, "node")
			return id, models[id]
		}
		t.Repeat(map[string]func(*rapid.T){
			"lookup": func(t *rapid.T) {
				id, m := draw(t)
				table.lookup(id)
				m.lookups++
			},
			"forget": func(t *rapid.T) {
				id, m := draw(t)
				n := rapid.Uint64Range(0, m.lookups).Draw(t, "lookups")
				if n == 0 {
					return
				}
				m.lookups -= n
				back := table.forget(id, n)
				if want := m.lookups == 0 && m.held; back != want {
					t.Fatalf("forget of %d gives a Reference back: %v, want %v", id, back, want)
				}
				if m.lookups == 0 {
					m.held = false
				}
			},
			"hold": func(t *rapid.T) {
				id, m := draw(t)
				kept := table.hold(id, true)
				if want := m.lookups > 0 && !m.held; kept != want {
					t.Fatalf("hold of %d: %v, want %v", id, kept, want)
				}
				m.held = m.held || kept
			},
			"open": func(t *rapid.T) {
				id, m := draw(t)
				if m.lookups == 0 {
					return // the kernel opens what it knows
				}
				writer := rapid.Bool().Draw(t, "writer")
				table.open(id, writer, false, false)
				m.opens++
				if writer {
					m.writers++
				}
			},
			"release": func(t *rapid.T) {
				id, m := draw(t)
				if m.opens == 0 {
					return
				}
				writer := m.writers == m.opens || m.writers > 0 && rapid.Bool().Draw(t, "writer")
				table.release(id, writer, false)
				m.opens--
				if writer {
					m.writers--
				}
			},
			"": func(t *rapid.T) {
				known, open := 0, 0
				for id, m := range models {
					n := table.get(id)
					if n.lookups != m.lookups || uint64(n.opens) != m.opens || uint64(n.writers) != m.writers || n.held != m.held {
						t.Fatalf("node %d is %+v, want %+v", id, n, *m)
					}
					if m.lookups > 0 || m.opens > 0 {
						known++
					}
					open += int(m.opens)
				}
				if k, o := table.count(); k != known || o != open {
					t.Fatalf("%d known and %d open, want %d and %d", k, o, known, open)
				}
			},
		})
		for id, references := range table.drain() {
			m := models[id]
			want := m.opens
			if m.held {
				want++
			}
			if uint64(references) != want {
				t.Fatalf("node %d leaves %d References, want %d", id, references, want)
			}
		}
	})
}

// TestSyncsAfterWrites: an fsync is expected where the write before had one, and only there.
func TestSyncsAfterWrites(t *testing.T) {
	table := newNodeTable()
	const id = 7
	if table.written(id) {
		t.Error("an fsync is expected of a file that nobody has open")
	}
	table.open(id, true, false, false)
	for i, step := range []struct{ fsyncs, writes, expected int }{
		{0, 3, 0}, // nothing is known
		{1, 1, 0}, // three writes had one together
		{1, 1, 1},
		{1, 2, 1}, // of the second it is known that it was not
		{1, 1, 0},
		{2, 1, 0}, // the last had no write
		{1, 1, 1},
	} {
		for range step.fsyncs {
			table.fsynced(id)
		}
		expected := 0
		for range step.writes {
			if table.written(id) {
				expected++
			}
		}
		if expected != step.expected {
			t.Errorf("step %d: an fsync was expected after %d of %d writes, want %d", i, expected, step.writes, step.expected)
		}
	}
}
