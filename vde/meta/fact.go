package meta

import "fmt"

// Limits of a fact of a group.
const (
	MaxFactName  = 512     // bytes; at least one
	MaxFactValue = 1 << 20 // bytes
)

// CheckFact tells whether a fact of a group may be stored.
func CheckFact(name string, value []byte) error {
	if len(name) == 0 || len(name) > MaxFactName {
		return fmt.Errorf("name of a fact has %d bytes, 1 to %d are allowed", len(name), MaxFactName)
	}
	if len(value) > MaxFactValue {
		return fmt.Errorf("fact %q has %d bytes, at most %d are allowed", name, len(value), MaxFactValue)
	}
	return nil
}
