package glet

import (
	"encoding/json"
	"fmt"
	"slices"
)

// config is what glet's scheduler configuration says.
type config struct {
	gpus         []gpuCount
	maxModel     int
	parts        []int
	latencyRatio float64
	interference bool
}

type gpuCount struct {
	kind  string
	count int
}

// deadKeys are keys that glet's own scheduler reads or documents and that change nothing.
var deadKeys = map[string]string{
	"SLO Ratio": "glet no longer reads it", "Residue": "glet reads it and never uses it", "Incremental": "glet always plans incrementally",
	"Force Part": "glet no longer reads it", "Reserved_ratio": "glet no longer reads it",
}

// config reads a sched-config.json or sim-config.json.
func (from source) config(path string) (config, []string, error) {
	c := config{latencyRatio: 1, parts: []int{100}}
	var keys map[string]json.RawMessage
	if err := from.json(path, &keys); err != nil {
		return c, nil, err
	}
	var file struct {
		GPUs []struct {
			Type string
			Num  int
		}
		MaxModel     int      `json:"Max Model"`
		Part         flag     `json:"Part"`
		LatencyRatio *float64 `json:"Latency Ratio"`
		Interference flag     `json:"Interference"`
		SelfTuning   flag     `json:"Self Tuning"`
		Parts        []int    `json:"Avail_Parts"`
	}
	if err := from.json(path, &file); err != nil {
		return c, nil, err
	}
	for _, g := range file.GPUs {
		if g.Type == "" || g.Num < 1 || g.Num > 100000 {
			return c, nil, fmt.Errorf("%s: key %q: found type %q, number %d: expected a type and 1..100000", path, "GPUs", g.Type, g.Num)
		}
		c.gpus = append(c.gpus, gpuCount{g.Type, g.Num})
	}
	if len(c.gpus) == 0 {
		return c, nil, fmt.Errorf("%s: key %q: found none: expected a list of {Type, Num}", path, "GPUs")
	}
	if file.LatencyRatio != nil {
		if c.latencyRatio = *file.LatencyRatio; !(c.latencyRatio >= 1 && c.latencyRatio <= 100) {
			return c, nil, fmt.Errorf("%s: key %q: found %v: expected 1 or more", path, "Latency Ratio", c.latencyRatio)
		}
	}
	if c.maxModel = file.MaxModel; c.maxModel < 0 {
		return c, nil, fmt.Errorf("%s: key %q: found %d: expected 0 (no limit) or more", path, "Max Model", c.maxModel)
	}
	if file.Part {
		if err := c.setParts(path, file.Parts); err != nil {
			return c, nil, err
		}
	}
	c.interference = bool(file.Interference)
	warnings := warnDead(path, keys)
	if _, ok := keys["Self Tuning"]; ok { // glet turns both off as soon as the key is there
		c.interference = false
		if file.SelfTuning {
			c.maxModel = 1
		}
		warnings = append(warnings, fmt.Sprintf("%s: key %q: planned without interference, as glet does", path, "Self Tuning"))
	}
	return c, warnings, nil
}

func (c *config) setParts(path string, parts []int) error {
	for _, p := range parts {
		if p < 1 || p > 100 {
			return fmt.Errorf("%s: key %q: found %d: expected 1..100 percent", path, "Avail_Parts", p)
		}
	}
	if len(parts) == 0 {
		return fmt.Errorf("%s: key %q: found none: expected percentages, such as [20,40,50,60,80,100]", path, "Avail_Parts")
	}
	c.parts = slices.Clone(parts)
	slices.Sort(c.parts)
	c.parts = slices.Compact(c.parts)
	return nil
}

// warnDead lists keys without effect, documented or not.
func warnDead(path string, keys map[string]json.RawMessage) []string {
	live := []string{"GPUs", "Max Model", "Part", "Latency Ratio", "Interference", "Avail_Parts", "Self Tuning"}
	var out []string
	for _, key := range sortedKeys(keys) {
		switch why, dead := deadKeys[key]; {
		case dead:
			out = append(out, fmt.Sprintf("%s: key %q has no effect: %s", path, key, why))
		case !slices.Contains(live, key):
			out = append(out, fmt.Sprintf("%s: key %q is unknown and has no effect", path, key))
		}
	}
	return out
}

// flag is a truth value that glet's files write as 0 and 1, or true and false.
type flag bool

// UnmarshalJSON implements json.Unmarshaler.
func (f *flag) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case "0", "false", "null":
		*f = false
	case "1", "true":
		*f = true
	default:
		return fmt.Errorf("found %s: expected 0 or 1", data)
	}
	return nil
}

// device is an entry of device-config.json.
type device struct {
	memMB           int64
	constants, util string
}

// devices reads device-config.json; an empty path gives no devices.
func (from source) devices(path string) (map[string]device, error) {
	if path == "" {
		return nil, nil
	}
	var file struct {
		Specs []struct {
			Type      string `json:"type"`
			MemMB     int64  `json:"mem_mb"`
			Constants string `json:"interference_const_file"`
			Util      string `json:"interference_util_file"`
		} `json:"device_specs"`
	}
	if err := from.json(path, &file); err != nil {
		return nil, err
	}
	out := map[string]device{}
	for i, s := range file.Specs {
		if s.Type == "" || s.MemMB < 0 || s.MemMB > 1<<30 {
			return nil, fmt.Errorf("%s: key %q: found type %q, mem_mb %d: expected a type and its memory in MB", path, fmt.Sprintf("device_specs[%d]", i), s.Type, s.MemMB)
		}
		out[s.Type] = device{s.MemMB, s.Constants, s.Util}
	}
	return out, nil
}

// mem reads mem-config.json into bytes by model; an empty path gives none.
func (from source) mem(path string) (map[string]int64, error) {
	if path == "" {
		return nil, nil
	}
	var file struct {
		Models []struct {
			Name string `json:"name"`
			Mem  int64  `json:"mem"`
		} `json:"models"`
	}
	if err := from.json(path, &file); err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for i, m := range file.Models {
		if m.Name == "" || m.Mem < 0 || m.Mem > 1<<30 {
			return nil, fmt.Errorf("%s: key %q: found name %q, mem %d: expected a name and its memory in MB", path, fmt.Sprintf("models[%d]", i), m.Name, m.Mem)
		}
		out[m.Name] = m.Mem << 20
	}
	return out, nil
}
