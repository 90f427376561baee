package png

import (
	"os/exec"
	"strings"
)

// goRoot is where the Go library and its test pictures lie; "" where there is no go command.
func goRoot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
