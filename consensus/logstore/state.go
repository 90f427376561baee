package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// HardState is what a group must remember whatever happens, besides its log.
type HardState struct {
	NodeID uint64 // whose state this is, so that a copied directory is noticed
	Term   uint64
	Vote   uint64 // whom this node voted for in Term, 0: nobody
	Commit uint64 // a lower bound of what is committed
	// Conf is the group's membership, encoded by the engine, as of entry ConfIndex.
	Conf      []byte
	ConfIndex uint64
	// SnapIndex and SnapTerm name the snapshot that was last begun to be installed.
	// Where the state machine holds it and the log does not, a crash came between.
	SnapIndex, SnapTerm uint64
}

// The hard-state file:
//
//	 0  magic      8   "VDERHST" and the format version, 1
//	 8  nodeID     8
//	16  term       8
//	24  vote       8
//	32  commit     8
//	40  confIndex  8
//	48  snapIndex  8
//	56  snapTerm   8
//	64  confLen    4
//	68  conf
//	    crc        4   CRC-32C of everything before it
const (
	stateMagic  = "VDERHST\x01"
	stateHeader = 68
	stateName   = "state"
	maxConfLen  = 1 << 20
)

// ErrNoState is returned by ReadState where there is no hard state.
var ErrNoState = errors.New("logstore: no hard state")

// EncodeState returns the bytes of a hard-state file.
func EncodeState(s HardState) []byte {
	b := make([]byte, stateHeader, stateHeader+len(s.Conf)+4)
	copy(b, stateMagic)
	for i, v := range []uint64{s.NodeID, s.Term, s.Vote, s.Commit, s.ConfIndex, s.SnapIndex, s.SnapTerm} {
		binary.LittleEndian.PutUint64(b[8+8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[64:], uint32(len(s.Conf)))
	b = append(b, s.Conf...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// DecodeState is the reverse of EncodeState. Conf is a copy.
func DecodeState(b []byte) (HardState, error) {
	if len(b) < 8 || string(b[:7]) != stateMagic[:7] {
		return HardState{}, fmt.Errorf("%w: not a hard-state file", ErrCorrupt)
	}
	if b[7] != stateMagic[7] {
		return HardState{}, fmt.Errorf("logstore: hard-state format %d, this program reads %d", b[7], stateMagic[7])
	}
	if len(b) < stateHeader+4 {
		return HardState{}, fmt.Errorf("%w: the hard state has %d bytes, at least %d are needed", ErrCorrupt, len(b), stateHeader+4)
	}
	body, want := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != want {
		return HardState{}, fmt.Errorf("%w: the hard state has checksum %08x, its bytes have %08x", ErrCorrupt, want, got)
	}
	if n := binary.LittleEndian.Uint32(b[64:]); n > maxConfLen || int(n) != len(body)-stateHeader {
		return HardState{}, fmt.Errorf("%w: the hard state has a membership of %d bytes in a file of %d", ErrCorrupt, n, len(b))
	}
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8+8*i:]) }
	return HardState{NodeID: u(0), Term: u(1), Vote: u(2), Commit: u(3), ConfIndex: u(4),
		SnapIndex: u(5), SnapTerm: u(6), Conf: append([]byte(nil), body[stateHeader:]...)}, nil
}

// WriteState replaces the hard state in dir by s. When it returns nil, s is
// durable; whenever it is interrupted, the old or the new one is there, whole. An
// error that wraps ErrNotAppended means that the old one is, as the disk is full.
func WriteState(fs vfs.FS, dir string, s HardState) error {
	name := fs.PathJoin(dir, stateName)
	if err := replaceFile(fs, dir, name, EncodeState(s)); err != nil {
		return fmt.Errorf("logstore: writing the hard state %s: %w", name, err)
	}
	return nil
}

func replaceFile(fs vfs.FS, dir, name string, data []byte) error {
	tmp := name + ".tmp"
	f, err := fs.Create(tmp, diskCategory)
	if err != nil {
		return notWritten(err)
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return notWritten(err)
	}
	if err := fs.Rename(tmp, name); err != nil {
		return err
	}
	return SyncDir(fs, dir)
}

// notWritten marks an error before anything was replaced as one to try again after, where it is for lack of room.
func notWritten(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrNotAppended, err)
	}
	return err
}

// SyncDir makes the entries of a directory durable.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadState reads the hard state in dir. It returns ErrNoState where there is none.
func ReadState(fs vfs.FS, dir string) (HardState, error) {
	name := fs.PathJoin(dir, stateName)
	f, err := fs.Open(name)
	if oserror.IsNotExist(err) {
		return HardState{}, fmt.Errorf("%w in %s", ErrNoState, dir)
	}
	if err != nil {
		return HardState{}, fmt.Errorf("logstore: reading the hard state: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, stateHeader+maxConfLen+5))
	if err != nil {
		return HardState{}, fmt.Errorf("logstore: reading the hard state %s: %w", name, err)
	}
	s, err := DecodeState(b)
	if err != nil {
		return HardState{}, fmt.Errorf("%w (%s)", err, name)
	}
	return s, nil
}

// RemoveState removes the hard state in dir, durably: what is left in dir is no
// group any more.
func RemoveState(fs vfs.FS, dir string) error {
	if err := fs.Remove(fs.PathJoin(dir, stateName)); err != nil {
		return fmt.Errorf("logstore: %w", err)
	}
	if err := SyncDir(fs, dir); err != nil {
		return fmt.Errorf("logstore: removing the hard state in %s: %w", dir, err)
	}
	return nil
}
