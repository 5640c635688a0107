package profiler

import (
	"cmp"
	"math/rand/v2"
	"slices"

	"github.com/gpulet/gpulet/shared/profile"
)

// load is a model kept busy with batches of one size.
type load struct {
	model string
	batch int
}

// chooser picks which loads to run beside each other on the shares of a split, the most informative
// combination next: on every share first each model and then each of its batches as often as the
// others, beside the neighbours that were seen least. So a few combinations already cover every model
// as the one that suffers and as a neighbour, since each member is both. The same seed gives the same
// combinations.
type chooser struct {
	split  []int
	loads  map[int][]load // by share: those that can run there
	random *rand.Rand

	models map[seenModel]int
	single map[profile.Running]int
	pairs  map[[2]seenModel]int
}

type seenModel struct {
	share int
	model string
}

func newChooser(seed uint64, split []int, loads []load) *chooser {
	c := &chooser{
		split: split, loads: map[int][]load{}, random: rand.New(rand.NewPCG(seed, uint64(len(split)))),
		models: map[seenModel]int{}, single: map[profile.Running]int{}, pairs: map[[2]seenModel]int{},
	}
	for _, share := range split {
		c.loads[share] = slices.Clone(loads)
	}
	return c
}

// drop takes a model from a share, because it does not run there.
func (c *chooser) drop(share int, model string) {
	c.loads[share] = slices.DeleteFunc(c.loads[share], func(l load) bool { return l.model == model })
}

// next is a load for every share of the split, in its order; nil when some share has none.
func (c *chooser) next() []profile.Running {
	var combo []profile.Running
	for _, share := range c.split {
		best, found := c.pick(share, combo)
		if !found {
			return nil
		}
		combo = append(combo, best)
	}
	c.saw(combo)
	return combo
}

// pick is the load for a share beside those that were picked.
func (c *chooser) pick(share int, beside []profile.Running) (profile.Running, bool) {
	type scored struct {
		run                          profile.Running
		model, single, pairs, chance int
	}
	var list []scored
	for _, l := range c.loads[share] {
		r := profile.Running{Model: l.model, Share: share, Batch: l.batch}
		me := seenModel{share, l.model}
		s := scored{run: r, model: c.models[me], single: c.single[r], chance: c.random.Int()}
		for _, o := range beside {
			if o.Share == share { // picked just now, not yet counted
				s.model += btoi(o.Model == r.Model)
				s.single += btoi(o == r)
			}
			s.pairs += c.pairs[pairOf(me, seenModel{o.Share, o.Model})]
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		return profile.Running{}, false
	}
	return slices.MinFunc(list, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.model, b.model), cmp.Compare(a.single, b.single), cmp.Compare(a.pairs, b.pairs), cmp.Compare(a.chance, b.chance))
	}).run, true
}

// saw counts a combination.
func (c *chooser) saw(combo []profile.Running) {
	for i, r := range combo {
		me := seenModel{r.Share, r.Model}
		c.models[me]++
		c.single[r]++
		for _, o := range combo[i+1:] {
			c.pairs[pairOf(me, seenModel{o.Share, o.Model})]++
		}
	}
}

// pairOf names two models on their shares, whichever comes first.
func pairOf(a, b seenModel) [2]seenModel {
	if cmp.Or(cmp.Compare(a.share, b.share), cmp.Compare(a.model, b.model)) > 0 {
		a, b = b, a
	}
	return [2]seenModel{a, b}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
