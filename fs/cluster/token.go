package cluster

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
	"unicode"
)

// ErrToken is wrapped by ParseToken: what was given is no token, or not all of one.
var ErrToken = errors.New("this is no whole invitation")

// Token is an invitation as it is printed on one machine and typed in on another. It holds the secret: whoever has it
// may join, once.
type Token struct {
	Invite      [16]byte
	Secret      [32]byte
	Fingerprint [32]byte  // SHA-256 of the certificate of the cluster's authority
	Expires     time.Time // in whole seconds
	Addr        string    // of a node that admits
}

// A token is "vde1-" and, in base64url without padding,
//
//	 0  invite      16
//	16  secret      32
//	48  fingerprint 32
//	80  expires      8   seconds since 1970, little-endian
//	88  addr         n   1 to 259 bytes
//	    checksum     4   CRC-32C of "vde1-" and all before, little-endian: half a token is noticed
const (
	tokenPrefix = "vde1-"
	tokenAddr   = 16 + 32 + 32 + 8
	maxAddr     = 253 + 6 // a host name, and a colon with a port
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func tokenChecksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(tokenPrefix), castagnoli), castagnoli, b)
}

// String writes the token.
func (t Token) String() string {
	b := make([]byte, 0, tokenAddr+len(t.Addr)+4)
	b = append(b, t.Invite[:]...)
	b = append(b, t.Secret[:]...)
	b = append(b, t.Fingerprint[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, t.Addr...)
	b = binary.LittleEndian.AppendUint32(b, tokenChecksum(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads a token. White space in it, as mail programs and terminals put it there, does not count.
func ParseToken(text string) (Token, error) {
	var t Token
	text = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text)
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return t, fmt.Errorf("%w: it does not begin with %s: copy all that `vde cluster invite` printed", ErrToken, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) < tokenAddr+1+4 || tokenChecksum(b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return t, fmt.Errorf("%w: a part is missing or changed: copy all that `vde cluster invite` printed", ErrToken)
	}
	copy(t.Invite[:], b)
	copy(t.Secret[:], b[16:])
	copy(t.Fingerprint[:], b[48:])
	t.Expires = time.Unix(int64(binary.LittleEndian.Uint64(b[80:])), 0).UTC()
	t.Addr = string(b[tokenAddr : len(b)-4])
	if err := CheckAddr(t.Addr); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

// NewInvite makes an invitation: the token for the new machine, and what the cluster keeps of it.
func (i *Identity) NewInvite(expires time.Time) (Token, Invite, error) {
	t := Token{Fingerprint: fingerprint(i.CA), Expires: time.Unix(expires.Unix(), 0).UTC(), Addr: i.address()}
	if _, err := rand.Read(t.Invite[:]); err != nil {
		return Token{}, Invite{}, fmt.Errorf("make an invitation: %w", err)
	}
	var err error
	if t.Secret, err = i.inviteSecret(t.Invite, t.Expires); err != nil {
		return Token{}, Invite{}, fmt.Errorf("make an invitation: %w", err)
	}
	return t, Invite{ID: t.Invite, SecretHash: HashSecret(t.Secret), Expires: t.Expires}, nil
}

// inviteSecret is the secret of an invitation: a function of the authority's key, so that any node can refuse a wrong one
// by itself, before it asks the cluster or does anything else for a stranger.
func (i *Identity) inviteSecret(invite [16]byte, expires time.Time) (secret [32]byte, err error) {
	scalar, err := i.CAKey.Bytes()
	if err != nil {
		return secret, err
	}
	key, err := hkdf.Key(sha256.New, scalar, i.ClusterID[:], "vde invitation secrets", 32)
	if err != nil {
		return secret, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(invite[:])
	mac.Write(binary.LittleEndian.AppendUint64(nil, uint64(expires.Unix())))
	return [32]byte(mac.Sum(nil)), nil
}
