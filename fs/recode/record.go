package recode

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"vdefs/media/png"
)

// Record is the value of the attribute Xattr of a file that was made smaller, as JSON. Fields are added, never renamed.
type Record struct {
	OriginalSize int64     `json:"original-size"` // bytes, as the file was written
	Size         int64     `json:"size"`          // bytes, as it was made
	SHA256       string    `json:"sha256"`        // of the file as it was written
	Encoder      int       `json:"encoder"`       // png.Version
	Level        png.Level `json:"level"`
}

func newRecord(written, made []byte, level png.Level) Record {
	sum := sha256.Sum256(written)
	return Record{
		OriginalSize: int64(len(written)), Size: int64(len(made)), SHA256: hex.EncodeToString(sum[:]),
		Encoder: png.Version, Level: level,
	}
}

func (r Record) encode() ([]byte, error) { return json.Marshal(r) }

// parseRecord reads an attribute; ok is false for anything that is no Record.
func parseRecord(value []byte) (r Record, ok bool) {
	err := json.Unmarshal(value, &r)
	return r, err == nil && r.SHA256 != "" && r.Size > 0
}
