package gpulet

import (
	"runtime"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/images"
)

// picture is an image on its way to being a request's input. The loop fills it, one goroutine
// decodes it, the loop takes it back: it belongs to one of them at a time.
type picture struct {
	req      *request
	model    string
	kind     string // wire.TypeJPEG, wire.TypePNG
	data     []byte // the message's
	to       images.Shape
	deadline time.Time
	pixels   []byte
	err      error // for the client
}

// decoders decode images beside the loop, as many at once as there are cores for it, in the order
// in which they came.
type decoders struct {
	decoder *images.Decoder
	limit   int
	out     chan *picture
	quit    chan struct{} // closed when nobody reads out any more
	working sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	queue   []*picture
	running int
	idle    []*witness // of goroutines that do not run
}

// maxDecoders bounds what a gpu-let takes of a large host, which it shares with others.
const maxDecoders = 16

// startDecoders starts none yet: a gpu-let that gets no images has no use for them.
func startDecoders(d *images.Decoder, limit int, box *blackbox.Recorder) *decoders {
	if limit <= 0 {
		limit = runtime.GOMAXPROCS(0)
	}
	ds := &decoders{decoder: d, limit: min(limit, maxDecoders), out: make(chan *picture, 256), quit: make(chan struct{})}
	for range ds.limit {
		ds.idle = append(ds.idle, newWitness(box))
	}
	return ds
}

// add queues p. It does not block.
func (d *decoders) add(p *picture) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = append(d.queue, p)
	if d.running < d.limit {
		last := len(d.idle) - 1
		w := d.idle[last]
		d.running, d.idle = d.running+1, d.idle[:last]
		d.working.Go(func() { d.work(w) })
	}
}

// next takes the oldest picture; nil ends the goroutine that asks, whose witness is w.
func (d *decoders) next(w *witness) *picture {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 {
		d.running, d.idle = d.running-1, append(d.idle, w)
		d.queue = nil // lets go of what its array still points to
		return nil
	}
	p := d.queue[0]
	d.queue = d.queue[1:]
	return p
}

func (d *decoders) work(w *witness) {
	for p := d.next(w); p != nil; p = d.next(w) {
		if time.Now().Before(p.deadline) { // else the loop says so: nobody waits for it any more
			w.begin(p.model, p.req)
			p.err = d.decoder.Decode(p.pixels, p.data, p.kind, p.to)
			w.end(nil)
		}
		select {
		case d.out <- p:
		case <-d.quit:
			return
		}
	}
}

// stop waits for what is being decoded; the rest is dropped.
func (d *decoders) stop() {
	d.abandon()
	d.working.Wait()
}

func (d *decoders) abandon() { close(d.quit) }

// decodeImage starts decoding a request whose body is an image: one sample of the model's only
// input. Meanwhile the request is open, and counts as held.
func (l *loop) decodeImage(req *request, kind string) error {
	m := req.model
	spec, err := m.Config.ImageInput()
	if err != nil {
		return err
	}
	if err := req.choose(wire.Request{}); err != nil {
		return err
	}
	to := images.Shape{Channels: int(spec.Shape[0]), Height: int(spec.Shape[1]), Width: int(spec.Shape[2])}
	req.pixels = m.takePixels(to.Bytes())
	req.inputs = []tensor.Tensor{{Name: spec.Name, DType: spec.DType, Shape: append([]int64{1}, spec.Shape...), Data: req.pixels}}
	m.decoding++
	l.decoders.add(&picture{req: req, model: m.name(), kind: kind, data: req.msg.Data, to: to, deadline: req.deadline, pixels: req.pixels})
	return nil
}

// decoded takes a picture back and its request on.
func (l *loop) decoded(p *picture) {
	req, now := p.req, time.Now()
	req.model.decoding--
	req.model.sawDecoding(now.Sub(req.fetched))
	switch {
	case p.err != nil:
		l.reject(req, p.err)
	case now.Add(req.model.estimate.exec(1)).After(req.deadline):
		l.expire(req, now)
	default:
		l.hold(req, now)
	}
}

// sawDecoding notes how long an image took from being fetched to being decoded. Pulls are made so
// much earlier: the batch waits for its slowest, so what is longer counts for more.
func (m *bound) sawDecoding(took time.Duration) {
	weight := time.Duration(32)
	if took > m.decodeLead {
		weight = 4
	}
	m.decodeLead += (min(took, maxLead) - m.decodeLead) / weight
}

// keepPixels is how many bytes of pictures a model keeps for the next ones.
const keepPixels = 64 << 20

// takePixels returns n bytes with anything in them.
func (m *bound) takePixels(n int) []byte {
	if last := len(m.pixels) - 1; last >= 0 && len(m.pixels[last]) == n {
		b := m.pixels[last]
		m.pixels = m.pixels[:last]
		return b
	}
	m.pixels = nil // of a size that the model had before
	return make([]byte, n)
}

// givePixels takes back what takePixels returned and nothing reads any more.
func (m *bound) givePixels(b []byte) {
	if len(b) > 0 && len(m.pixels) < keepPixels/len(b) {
		m.pixels = append(m.pixels, b)
	}
}
