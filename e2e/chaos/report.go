package chaos

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// Report is what a run of the suite says.
type Report struct {
	Seed    uint64  `json:"seed"`
	Seconds float64 `json:"seconds"`
	Faults  int     `json:"faults"`
	// Total are the requests of all sites, those between faults included.
	Total   Account  `json:"total"`
	Unasked int      `json:"unasked"` // answers to requests that were never sent
	Kinds   []Kind   `json:"kinds"`
	Skipped []string `json:"skipped,omitempty"` // what this host does not allow
}

// Kind is what came of one kind of fault at one site.
type Kind struct {
	Site    string  `json:"site"`
	Kind    string  `json:"kind"`
	Faults  int     `json:"faults"`
	Account Account `json:"requests"`
	// Recovery is the time from each fault to the answer of the last request that it disturbed, for
	// faults that last including that time.
	RecoveryMedianS float64 `json:"recovery_median_s"`
	RecoveryMaxS    float64 `json:"recovery_max_s"`

	told       bool
	recoveries []time.Duration
}

// add enters the faults of one injection, which began at marks, and the requests settled until then.
func (k *Kind) add(l *Ledger, marks []time.Duration, until time.Duration) {
	k.Faults += len(marks)
	k.Account.Merge(l.Account(marks[0], until))
	for i, from := range marks {
		end := until
		if i+1 < len(marks) {
			end = marks[i+1]
		}
		k.recoveries = append(k.recoveries, l.Recovery(from, end))
	}
	slices.Sort(k.recoveries)
	k.RecoveryMedianS = k.recoveries[len(k.recoveries)/2].Seconds()
	k.RecoveryMaxS = k.recoveries[len(k.recoveries)-1].Seconds()
}

// broken says what of k must not be; "" when nothing is.
func (k *Kind) broken() string {
	a := k.Account
	switch {
	case a.Lost+a.Twice+a.Wrong > 0:
		return fmt.Sprintf("%d lost, %d accepted twice, %d wrong", a.Lost, a.Twice, a.Wrong)
	case a.Errors() > 0 && !k.told:
		return fmt.Sprintf("%v: expected every request to be answered ok", a.Told)
	case a.OK == 0 && k.Faults > 0:
		return "no request was answered ok"
	}
	return ""
}

// writeTable writes the report for people.
func (r *Report) writeTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "site\tfault\tfaults\trequests\tok\ttold\tlost\ttwice\twrong\tlate\tagain\trecovery p50\tmax\t")
	row := func(site, kind string, faults int, a Account, p50, worst string) {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t\n",
			site, kind, faults, a.Requests, a.OK, told(a.Told), a.Lost, a.Twice, a.Wrong, a.Late, a.Again, p50, worst)
	}
	for _, k := range r.Kinds {
		row(k.Site, k.Kind, k.Faults, k.Account, fmt.Sprintf("%.2f s", k.RecoveryMedianS), fmt.Sprintf("%.2f s", k.RecoveryMaxS))
	}
	row("all", "", r.Faults, r.Total, "", "")
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range r.Skipped {
		fmt.Fprintln(w, "skipped:", s)
	}
	_, err := fmt.Fprintf(w, "seed %d, %.0f s; %d second answers were not accepted, of %d requests they said something else; %d answers to requests that were never sent\n",
		r.Seed, r.Seconds, r.Total.Dropped, r.Total.Differs, r.Unasked)
	return err
}

func told(by map[wire.Status]int) string {
	var words []string
	for status, n := range by {
		if n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, status))
		}
	}
	if len(words) == 0 {
		return "0"
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

func writeJSON(file string, document any) error {
	data, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
