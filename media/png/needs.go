package png

import "encoding/binary"

const (
	// needsFixed is what a call takes beside buffers as large as the picture and the file.
	needsFixed = 16 << 20
	// needsMost is what Needs gives at most, in bytes.
	needsMost = 1 << 40
	// needsHead is how much of a file tells the size of the picture: the signature and IHDR with its length and type.
	needsHead = len(signature) + 8 + headerLen
)

// Needs tells how many bytes Reencode takes at most for a file of size bytes that begins with head, the file itself
// included: 4 times the decoded size, the file, and 16 MiB. 64 bytes of the file are enough. What is no PNG is refused before
// anything is decoded, and needs the last two.
func Needs(head []byte, size int64) int64 {
	need := needsFixed + max(0, min(size, needsMost))
	if len(head) < needsHead || string(head[:len(signature)]) != signature ||
		binary.BigEndian.Uint32(head[len(signature):]) != headerLen || string(head[len(signature)+4:][:4]) != "IHDR" {
		return need
	}
	hdr, ref := parseHeader(head[len(signature)+8 : needsHead])
	if ref != nil {
		return need
	}
	return min(need+4*hdr.rawSize(needsMost), needsMost)
}
