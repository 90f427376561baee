package cluster

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The directory in a store that makes it a member of a cluster, and its files. All are readable by the owner alone. The
// directory appears whole or not at all; later only cluster.json is ever replaced.
const (
	Dir      = "cluster"
	infoFile = "cluster.json"
	caCert   = "ca.crt"
	caKey    = "ca.key"
	nodeCert = "node.crt"
	nodeKey  = "node.key"

	newSuffix   = ".new"
	infoVersion = 1
	maxFile     = 1 << 20 // bytes of one file
)

// ErrDamaged is wrapped by Load when the files of an identity do not fit together.
var ErrDamaged = errors.New("the cluster directory is damaged: restore it from a backup, or remove this node from the cluster and join again")

// Identity is who a node is: what STORE/cluster holds.
type Identity struct {
	ClusterID [16]byte
	NodeID    uint64
	Name      string
	Listen    string
	Advertise string    // as asked for; empty: Listen
	Founder   bool      // see Config
	Peers     []Node    // see Config
	Joined    time.Time // when it was admitted, as Join was told; not saved: zero after Load

	CA    *x509.Certificate // of the cluster
	CAKey *ecdsa.PrivateKey
	Cert  *x509.Certificate // of this node
	Key   *ecdsa.PrivateKey
}

// identityFile is cluster.json.
type identityFile struct {
	Version   int    `json:"version"`
	ClusterID string `json:"cluster_id"` // 32 hexadecimal digits
	NodeID    uint64 `json:"node_id"`
	Name      string `json:"name"`
	Listen    string `json:"listen"`
	Advertise string `json:"advertise,omitempty"`
	Founder   bool   `json:"founder,omitempty"`
	Peers     []Node `json:"peers,omitempty"`
}

// Load reads the identity of a store. os.ErrNotExist is wrapped when the store is no member of a cluster.
func Load(store string) (*Identity, error) {
	dir := filepath.Join(store, Dir)
	var i Identity
	err := i.load(dir)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		// A file that is missing from the directory is damage; only the missing directory says that there is no identity.
		if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", dir, statErr)
		}
		return nil, fmt.Errorf("%s: %w (%v)", dir, ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &i, nil
}

func (i *Identity) load(dir string) error {
	b, err := readFile(filepath.Join(dir, infoFile))
	if err != nil {
		return err
	}
	if err := i.decodeInfo(b); err != nil {
		return fmt.Errorf("%s: %w", infoFile, err)
	}
	for _, f := range []struct {
		name string
		cert **x509.Certificate
		key  **ecdsa.PrivateKey
	}{{name: caCert, cert: &i.CA}, {name: caKey, key: &i.CAKey}, {name: nodeCert, cert: &i.Cert}, {name: nodeKey, key: &i.Key}} {
		b, err := readFile(filepath.Join(dir, f.name))
		if err != nil {
			return err
		}
		if f.cert != nil {
			*f.cert, err = decodeCert(b)
		} else {
			*f.key, err = decodeKey(b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return i.check()
}

// check tells whether the parts of an identity fit together.
func (i *Identity) check() error {
	switch {
	case i.NodeID == 0:
		return errors.New("node id 0 is no node")
	case !i.CA.IsCA || !pair(i.CA, i.CAKey):
		return errors.New("the key and the certificate of the authority are not a pair")
	case !pair(i.Cert, i.Key):
		return errors.New("the key and the certificate of the node are not a pair")
	}
	if err := CheckName(i.Name); err != nil {
		return err
	}
	if _, err := advertised(i.Listen, i.Advertise); err != nil {
		return err
	}
	// That a clock is wrong is no damage: the time of the certificate itself is taken.
	if err := verifyNode(i.CA, i.Cert, i.NodeID, i.Cert.NotBefore.Add(certSlack)); err != nil {
		return fmt.Errorf("the certificate of the node: %w", err)
	}
	return nil
}

func (i *Identity) decodeInfo(b []byte) error {
	var f identityFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.Version != infoVersion {
		return fmt.Errorf("version %d, this program knows version %d", f.Version, infoVersion)
	}
	id, err := hex.DecodeString(f.ClusterID)
	if err != nil || len(id) != len(i.ClusterID) {
		return fmt.Errorf("cluster_id %.80q is not of 32 hexadecimal digits", f.ClusterID)
	}
	i.ClusterID = [16]byte(id)
	i.NodeID, i.Name, i.Listen, i.Advertise, i.Founder, i.Peers = f.NodeID, f.Name, f.Listen, f.Advertise, f.Founder, f.Peers
	return nil
}

func (i *Identity) encodeInfo() ([]byte, error) {
	b, err := json.MarshalIndent(identityFile{infoVersion, hex.EncodeToString(i.ClusterID[:]), i.NodeID, i.Name, i.Listen, i.Advertise, i.Founder, i.Peers}, "", "  ")
	return append(b, '\n'), err
}

// CreateOptions say how a cluster of one is made.
type CreateOptions struct {
	NodeID    uint64 // as in the store
	Name      string // empty: DefaultName
	Listen    string
	Advertise string    // empty: Listen
	Now       time.Time // zero: now
}

// Create makes a cluster of which the store is the only member, and saves its identity. The caller holds the store so that nobody
// else does the same.
func Create(store string, o CreateOptions) (*Identity, error) {
	i, err := newIdentity(o)
	if err != nil {
		return nil, err
	}
	return i, i.Save(store)
}

// Refound makes the store of a node the only member of a cluster of its own: the nodes of the former one are strangers to it.
func Refound(store string) (*Identity, error) {
	old, err := Load(store)
	if err != nil {
		return nil, err
	}
	i, err := newIdentity(CreateOptions{NodeID: old.NodeID, Name: old.Name, Listen: old.Listen, Advertise: old.Advertise})
	if err != nil {
		return nil, err
	}
	return i, i.Replace(store)
}

func newIdentity(o CreateOptions) (*Identity, error) {
	if o.Name == "" {
		o.Name = DefaultName()
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	i := &Identity{NodeID: o.NodeID, Name: o.Name, Listen: o.Listen, Advertise: o.Advertise, Founder: true}
	_, err := rand.Read(i.ClusterID[:])
	if err == nil {
		i.CA, i.CAKey, err = newAuthority(i.ClusterID, o.Now)
	}
	if err == nil {
		i.Key, err = newKey()
	}
	if err == nil {
		i.Cert, err = certify(i.CA, i.CAKey, i.NodeID, i.Key.Public(), o.Now)
	}
	if err == nil {
		err = i.check()
	}
	if err != nil {
		return nil, fmt.Errorf("make a cluster: %w", err)
	}
	return i, nil
}

// Save writes the identity into a store that has none. After a crash there is all of it or nothing.
func (i *Identity) Save(store string) error {
	return i.save(store, false, func(string) error { return nil })
}

// Replace puts the identity in the place of the one that the store has. After a crash there is one or the other.
func (i *Identity) Replace(store string) error {
	return i.save(store, true, func(string) error { return nil })
}

// save is Save or Replace; after is called after each step, and ends it there when it fails, as a crash would.
func (i *Identity) save(store string, replace bool, after func(step string) error) error {
	dir := filepath.Join(store, Dir)
	fail := func(err error) error { return fmt.Errorf("save the identity in %s: %w", dir, err) }
	if _, err := os.Lstat(dir); err == nil && !replace {
		return fail(fs.ErrExist)
	}
	info, err := i.encodeInfo()
	if err != nil {
		return fail(err)
	}
	authorityKey, err := encodeKey(i.CAKey)
	if err != nil {
		return fail(err)
	}
	key, err := encodeKey(i.Key)
	if err != nil {
		return fail(err)
	}
	// What a crash left behind is of no use to anybody.
	fresh := dir + newSuffix
	if err := os.RemoveAll(fresh); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return fail(err)
	}
	if err := after("mkdir"); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{caCert, encodeCert(i.CA)}, {caKey, authorityKey}, {nodeCert, encodeCert(i.Cert)}, {nodeKey, key}, {infoFile, info}} {
		if err := writeFile(filepath.Join(fresh, f.name), f.data); err != nil {
			return fail(err)
		}
		if err := after(f.name); err != nil {
			return err
		}
	}
	if err := syncDir(fresh); err != nil {
		return fail(err)
	}
	if replace {
		err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	} else {
		err = os.Rename(fresh, dir) // never over a directory that holds something
	}
	if err != nil {
		return fail(err)
	}
	if err := after("rename"); err != nil {
		return err
	}
	if err := syncDir(store); err != nil {
		return fail(err)
	}
	if replace {
		if err := os.RemoveAll(fresh); err != nil { // the former one
			return fail(err)
		}
	}
	return nil
}

// Update replaces what may change: the name and the addresses, an empty one is left as it is. It tells whether anything is new. The
// caller holds the store.
func (i *Identity) Update(store, name, listen, advertise string) (bool, error) {
	next := *i
	for _, c := range []struct {
		to   *string
		from string
	}{{&next.Name, name}, {&next.Listen, listen}, {&next.Advertise, advertise}} {
		if c.from != "" {
			*c.to = c.from
		}
	}
	if next.Name == i.Name && next.Listen == i.Listen && next.Advertise == i.Advertise {
		return false, nil
	}
	if err := next.check(); err != nil {
		return false, err
	}
	b, err := next.encodeInfo()
	if err != nil {
		return false, err
	}
	path := filepath.Join(store, Dir, infoFile)
	if err := writeFile(path+newSuffix, b); err != nil {
		return false, err
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return false, err
	}
	*i = next
	return true, syncDir(filepath.Dir(path))
}

// Config is what the node needs to take part. OnJoin is not set.
func (i *Identity) Config() *Config {
	pool := x509.NewCertPool()
	pool.AddCert(i.CA)
	c := &Config{
		ClusterID: i.ClusterID, NodeID: i.NodeID, Name: i.Name, Listen: i.Listen, Advertise: i.address(), Founder: i.Founder, Peers: i.Peers,
		TLS: &tls.Config{
			// The authority is shown too: by it a machine that joins knows the cluster.
			Certificates: []tls.Certificate{{Certificate: [][]byte{i.Cert.Raw, i.CA.Raw}, PrivateKey: i.Key, Leaf: i.Cert}},
			RootCAs:      pool, ClientCAs: pool, MinVersion: tls.VersionTLS13,
		},
	}
	return c
}

// address is where others reach the node.
func (i *Identity) address() string {
	if i.Advertise != "" {
		return i.Advertise
	}
	return i.Listen
}

// readFile reads a file that is not larger than one of ours.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return b, err
}

// writeFile makes a file for the owner alone and has it on the disk.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
