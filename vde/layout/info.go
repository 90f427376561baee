package layout

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// Info is vde.json: what a store is. It is written once, when the store is formatted.
type Info struct {
	FormatVersion uint32    `json:"format_version"`
	UUID          string    `json:"uuid"` // 8-4-4-4-12 hexadecimal digits
	NodeID        uint64    `json:"node_id"`
	BlockSize     int       `json:"block_size"`             // bytes
	Size          uint64    `json:"size"`                   // bytes of the image
	BlockDevice   string    `json:"block_device,omitempty"` // absolute path; empty: disk.vde in the store
	Created       time.Time `json:"created"`
}

// EncodeInfo returns the bytes of vde.json.
func EncodeInfo(i Info) ([]byte, error) {
	b, err := json.MarshalIndent(i, "", "  ")
	return append(b, '\n'), err
}

// DecodeInfo reads vde.json and checks every value.
func DecodeInfo(b []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(bytes.TrimRight(b, "\x00"), &i); err != nil {
		return i, fmt.Errorf("vde.json: %w", err)
	}
	if err := CheckVersion("vde.json", i.FormatVersion); err != nil {
		return i, err
	}
	if i.BlockSize != BlockSize {
		return i, fmt.Errorf("vde.json: block_size %d, expected %d", i.BlockSize, BlockSize)
	}
	if _, err := ParseUUID(i.UUID); err != nil {
		return i, fmt.Errorf("vde.json: %w", err)
	}
	if i.NodeID == 0 {
		return i, fmt.Errorf("vde.json: node_id 0 is not allowed")
	}
	if i.Size%BlockSize != 0 || i.Size == 0 {
		return i, fmt.Errorf("vde.json: size %d is not a multiple of %d", i.Size, BlockSize)
	}
	if _, err := Geometry(i.Size / BlockSize); err != nil {
		return i, fmt.Errorf("vde.json: %w", err)
	}
	return i, nil
}

// FormatUUID writes 16 bytes in the usual form.
func FormatUUID(u [16]byte) string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ParseUUID reads the usual form.
func ParseUUID(s string) (u [16]byte, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("uuid %q is not of the form 8-4-4-4-12", s)
	}
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil || len(b) != 16 {
		return u, fmt.Errorf("uuid %q is not hexadecimal", s)
	}
	return [16]byte(b), nil
}
