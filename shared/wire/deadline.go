package wire

import (
	"fmt"
	"strconv"
	"time"
)

// ResolveDeadline returns when a request is given up: at its deadline header, else its timeout
// header after stored (the stream's own timestamp, so no two clocks need to agree), else fallback
// after stored. header looks up the request's headers. A header that does not parse, or a timeout
// that is not positive, is an error that names it.
func ResolveDeadline(header func(string) string, stored time.Time, fallback time.Duration) (time.Time, error) {
	if s := header(HeaderDeadline); s != "" {
		us, err := strconv.ParseInt(s, 10, 64)
		if err != nil || us <= 0 {
			return time.Time{}, fmt.Errorf("header %s: found %q: expected microseconds since 1970", HeaderDeadline, s)
		}
		return time.UnixMicro(us), nil
	}
	if s := header(HeaderTimeout); s != "" {
		d, err := ParseTimeout(s)
		if err != nil {
			return time.Time{}, fmt.Errorf("header %s: %w", HeaderTimeout, err)
		}
		return stored.Add(d), nil
	}
	return stored.Add(fallback), nil
}

// ParseTimeout parses the value of a timeout header: a positive Go duration such as "250ms".
func ParseTimeout(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("found %q: expected a positive duration such as 250ms", s)
	}
	return d, nil
}

// FormatDeadline is the value of a deadline header.
func FormatDeadline(t time.Time) string { return strconv.FormatInt(t.UnixMicro(), 10) }
