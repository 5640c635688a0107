package plan

import "strings"

// maxHostPart is how much of a host's name goes into a gpu-let's id, in bytes.
const maxHostPart = 60

// HostPart is what the id of a gpu-let may hold of its host's name: [a-z0-9-], 1 to 60 characters.
// Hosts that differ elsewhere get the same part; whoever makes ids tells them apart by a number.
func HostPart(host string) string {
	part := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, host)
	if part == "" {
		return "host"
	}
	return part[:min(maxHostPart, len(part))]
}
