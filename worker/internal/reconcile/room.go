package reconcile

import "slices"

// Make before break takes device memory for both. Where a GPU lacks it, what has to leave makes room first,
// and what needs the room starts when it has gone: then there is a gap, but only then, and nothing is tried
// that cannot be had.

// room is who waits for memory, and who makes room for it, by id.
type room struct{ waits, yields map[string]bool }

// findRoom decides it, GPU by GPU.
func (d *decision) findRoom(children []Child) {
	d.room = room{waits: map[string]bool{}, yields: map[string]bool{}}
	for gpu, total := range d.want.Memory {
		if total <= 0 {
			continue
		}
		held := int64(0)
		var leaving []Child
		for _, c := range children {
			if c.GPU != gpu || !c.ExitedAt.IsZero() {
				continue
			}
			g, wanted := d.wanted[c.ID]
			if !wanted || !samePlace(c, g) {
				leaving = append(leaving, c)
			}
			held += max(c.MemBytes, g.MemBytes)
		}
		if len(leaving) > 0 {
			d.roomOn(gpu, total-held, leaving)
		}
	}
}

// roomOn has gpu-lets of the plan wait for which a GPU with so much free memory has too little, and as many
// of those that have to leave make room as it takes, those that came first before others.
func (d *decision) roomOn(gpu int, free int64, leaving []Child) {
	lacks := false
	for _, g := range d.want.Gpulets {
		if g.GPU != gpu || d.runs(g.ID) {
			continue
		}
		if free -= g.MemBytes; free < 0 && g.MemBytes > 0 {
			d.room.waits[g.ID], lacks = true, true
		}
	}
	slices.SortFunc(leaving, func(a, b Child) int { return a.StartedAt.Compare(b.StartedAt) })
	for _, c := range leaving { // those that go already
		if !c.DrainedAt.IsZero() || !c.KilledAt.IsZero() {
			free += c.MemBytes
		}
	}
	for _, c := range leaving {
		if lacks && free < 0 && c.DrainedAt.IsZero() && c.KilledAt.IsZero() {
			d.room.yields[c.ID] = true
			free += c.MemBytes
		}
	}
}

// runs reports whether a gpu-let of the plan has a process.
func (d *decision) runs(id string) bool {
	c, known := d.byID[id]
	return known && c.ExitedAt.IsZero()
}
