package meta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// BadTable is a file of the store that is not what was written.
type BadTable struct {
	Name  string `json:"name"` // in the directory of the store
	Error string `json:"error"`
}

// VerifyTables reads every table that is in use now, from the disk and not from what the kernel remembers, and compares its blocks with their
// checksums. pace is called before each with its size in bytes; its error ends the work. Bad tables are no error.
func (s *Store) VerifyTables(pace func(bytes uint64) error) (tables int, bad []BadTable, err error) {
	live, err := s.liveTables()
	if err != nil {
		return 0, nil, err
	}
	for name, size := range live {
		if err := pace(size); err != nil {
			return tables, bad, err
		}
		verr := s.verifyTable(name)
		if verr != nil {
			// One that was replaced meanwhile is gone, or about to go.
			now, err := s.liveTables()
			if err != nil {
				return tables, bad, err
			}
			if _, used := now[name]; !used {
				continue
			}
			bad = append(bad, BadTable{name, Words(verr).Error()})
		}
		tables++
	}
	return tables, bad, nil
}

// liveTables are the names and sizes in bytes of the tables that are in use.
func (s *Store) liveTables() (map[string]uint64, error) {
	levels, err := s.db.SSTables()
	if err != nil {
		return nil, fmt.Errorf("listing the metadata tables: %w", err)
	}
	live := map[string]uint64{}
	for _, level := range levels {
		for _, t := range level {
			live[t.BackingSSTNum.String()+".sst"] = t.Size
		}
	}
	return live, nil
}

func (s *Store) verifyTable(name string) (err error) {
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the file is missing")
	}
	if err != nil {
		return err
	}
	forget := func() {
		if fd := f.Fd(); fd != vfs.InvalidFd {
			_ = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) // only a hint
		}
	}
	forget()
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r, err := sstable.NewReader(context.Background(), readable, s.readers)
	if err != nil {
		return err // it has closed the file
	}
	err = r.ValidateBlockChecksums()
	forget() // nobody asked for it
	return errors.Join(err, r.Close())
}
