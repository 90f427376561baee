package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func create(t *testing.T, o CreateOptions) (string, *Identity) {
	t.Helper()
	store := t.TempDir()
	if o.NodeID == 0 {
		o.NodeID = 1
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:7420"
	}
	i, err := Create(store, o)
	if err != nil {
		t.Fatal(err)
	}
	return store, i
}

func TestCreateAndLoad(t *testing.T) {
	store, want := create(t, CreateOptions{Name: "one"})
	got, err := Load(store)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("loaded %+v, want %+v", got, want)
	}
	c := got.Config()
	if c.NodeID != 1 || c.Name != "one" || c.Advertise != "127.0.0.1:7420" || !c.Founder || c.ClusterID != want.ClusterID || c.ClusterID == [16]byte{} {
		t.Fatalf("%+v", c)
	}
	if _, err := Create(store, CreateOptions{NodeID: 1, Listen: "127.0.0.1:1"}); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("made twice: %v", err)
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a store that is no member: %v", err)
	}
	for _, o := range []CreateOptions{{Listen: "127.0.0.1:1"}, {NodeID: 1, Listen: ":1"}, {NodeID: 1}, {NodeID: 1, Listen: "127.0.0.1:1", Name: "7"}} {
		dir := t.TempDir()
		if _, err := Create(dir, o); err == nil {
			t.Errorf("%+v was taken", o)
		}
		if names, _ := os.ReadDir(dir); len(names) > 0 {
			t.Errorf("%+v left %v", o, names)
		}
	}
}

// Keys are for their owner alone, whatever the mask of the process.
func TestFileModes(t *testing.T) {
	store, i := create(t, CreateOptions{})
	if _, err := i.Update(store, "other", "", ""); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(store, Dir)
	info, err := os.Stat(dir)
	if err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 5 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, n := range names {
		if info, err := n.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", n.Name(), info.Mode(), err)
		}
	}
}

// Wherever saving breaks off, there is either no identity or a whole one, and it can be saved again.
func TestCrashWhileSaving(t *testing.T) {
	_, i := create(t, CreateOptions{})
	crash := errors.New("crash")
	var steps []string
	if err := i.save(t.TempDir(), false, func(step string) error { steps = append(steps, step); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(steps) != 7 {
		t.Fatalf("steps %v", steps)
	}
	for n, last := range steps {
		store := t.TempDir()
		done := 0
		err := i.save(store, false, func(string) error {
			if done == n {
				return crash
			}
			done++
			return nil
		})
		if !errors.Is(err, crash) {
			t.Fatal(err)
		}
		got, err := Load(store)
		if last == "rename" {
			if err != nil || got.NodeID != 1 {
				t.Fatalf("after %s: %v", last, err)
			}
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("after %s: %v", last, err)
		}
		if err := i.Save(store); err != nil {
			t.Fatalf("saving again after %s: %v", last, err)
		}
		if _, err := os.Stat(filepath.Join(store, Dir+newSuffix)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("after %s something was left: %v", last, err)
		}
	}
}

// Wherever replacing an identity breaks off, the store has the former one or the new one, and it can be done again.
func TestCrashWhileReplacing(t *testing.T) {
	crash := errors.New("crash")
	for n := range 7 {
		store, old := create(t, CreateOptions{})
		i, err := newIdentity(CreateOptions{NodeID: old.NodeID, Name: old.Name, Listen: old.Listen})
		if err != nil {
			t.Fatal(err)
		}
		done, last := 0, ""
		err = i.save(store, true, func(step string) error {
			if last = step; done == n {
				return crash
			}
			done++
			return nil
		})
		if !errors.Is(err, crash) {
			t.Fatal(err)
		}
		want := old
		if last == "rename" {
			want = i
		}
		if got, err := Load(store); err != nil || got.ClusterID != want.ClusterID {
			t.Fatalf("after %s: %v", last, err)
		}
		next, err := Refound(store)
		if err != nil {
			t.Fatalf("again after %s: %v", last, err)
		}
		if got, err := Load(store); err != nil || got.ClusterID != next.ClusterID || got.ClusterID == want.ClusterID || got.Name != old.Name || !got.Founder {
			t.Fatalf("again after %s: %+v, %v", last, got, err)
		}
		if _, err := os.Stat(filepath.Join(store, Dir+newSuffix)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("again after %s something was left: %v", last, err)
		}
	}
}

func TestUpdate(t *testing.T) {
	store, i := create(t, CreateOptions{Name: "one"})
	for _, c := range []struct {
		name, listen, advertise string
		changed                 bool
		want                    Node
	}{
		{"", "", "", false, Node{ID: 1, Name: "one", Addr: "127.0.0.1:7420"}},
		{"one", "127.0.0.1:7420", "", false, Node{ID: 1, Name: "one", Addr: "127.0.0.1:7420"}},
		{"", "127.0.0.2:7421", "", true, Node{ID: 1, Name: "one", Addr: "127.0.0.2:7421"}},
		{"uno", "", "vde.example.org:1", true, Node{ID: 1, Name: "uno", Addr: "vde.example.org:1"}},
		{"", ":7422", "", true, Node{ID: 1, Name: "uno", Addr: "vde.example.org:1"}},
	} {
		changed, err := i.Update(store, c.name, c.listen, c.advertise)
		if err != nil || changed != c.changed {
			t.Fatalf("%+v: %v, %v", c, changed, err)
		}
		loaded, err := Load(store)
		if err != nil || loaded.Config().Self() != c.want || i.Config().Self() != c.want {
			t.Fatalf("%+v: %+v, %v", c, loaded, err)
		}
	}
	before, err := Load(store)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Update(store, "7", "", ""); !errors.Is(err, ErrBadName) {
		t.Fatal(err)
	}
	if after, err := Load(store); err != nil || !reflect.DeepEqual(before, after) {
		t.Fatalf("a refused change left %+v, %v", after, err)
	}
}

// Files that do not fit together are damage, never a reason to make a new identity.
func TestDamagedIdentity(t *testing.T) {
	_, other := create(t, CreateOptions{})
	otherKey, err := encodeKey(other.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	strange, err := certify(other.CA, other.CAKey, 1, other.Key.Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]struct {
		file string
		data []byte // nil: removed
	}{
		"no cluster.json":               {infoFile, nil},
		"no key":                        {nodeKey, nil},
		"empty":                         {infoFile, []byte{}},
		"half":                          {infoFile, []byte(`{"version":1,`)},
		"newer":                         {infoFile, []byte(`{"version":2}`)},
		"no id":                         {infoFile, []byte(`{"version":1,"cluster_id":"00","node_id":1,"name":"a","listen":"127.0.0.1:1"}`)},
		"other node":                    {infoFile, []byte(`{"version":1,"cluster_id":"00112233445566778899aabbccddeeff","node_id":2,"name":"a","listen":"127.0.0.1:1"}`)},
		"no node":                       {infoFile, []byte(`{"version":1,"cluster_id":"00112233445566778899aabbccddeeff","node_id":0,"name":"a","listen":"127.0.0.1:1"}`)},
		"key of another authority":      {caKey, otherKey},
		"authority of another cluster":  {caCert, encodeCert(other.CA)},
		"certificate of another":        {nodeCert, encodeCert(strange)},
		"a certificate that is no PEM":  {nodeCert, []byte("hello")},
		"a key where a certificate is":  {nodeCert, otherKey},
		"a certificate and more behind": {caCert, append(encodeCert(other.CA), "more"...)},
		"too large":                     {caCert, make([]byte, maxFile+1)},
	} {
		store, _ := create(t, CreateOptions{})
		path := filepath.Join(store, Dir, damage.file)
		if damage.data == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, damage.data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Load(store); !errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzIdentityFile(f *testing.F) {
	i := Identity{ClusterID: [16]byte{1}, NodeID: 3, Name: "a", Listen: "127.0.0.1:1", Peers: []Node{{ID: 1, Name: "b"}}}
	b, err := i.encodeInfo()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var i Identity
		if i.decodeInfo(b) != nil {
			return
		}
		again, err := i.encodeInfo()
		if err != nil {
			t.Skip(err) // times that JSON cannot write
		}
		var j Identity
		if err := j.decodeInfo(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
	})
}
