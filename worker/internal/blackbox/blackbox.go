// Package blackbox lets an agent see what a gpu-let's process was working on when it died.
//
// The box is memory that the agent shares with its child through an open file. Every thread of the
// child that may bring the process down has a slot of its own in it, writes down what it begins and
// wipes that out when it is done. That takes some nanoseconds and no system call, and what is written
// stays when the process goes, however it goes. The package does not judge.
package blackbox

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	slotBytes = 32 << 10
	maxSlots  = 128
	headBytes = 8 // length of the rest, written last; length of the model's name
	itemBytes = 16
	maxItems  = (slotBytes - headBytes - 64) / itemBytes
)

// Request names a request of a model's queue.
type Request struct {
	Seq    uint64
	Stored time.Time // when the queue stored it, by its server's clock
}

// Work is what one thread is doing: it works on requests of a model, or, without requests, loads it.
type Work struct {
	Model    string
	Requests []Request
}

// Box is the agent's side.
type Box struct{ file *os.File }

// New makes an empty box. It takes memory only as far as it is written.
func New() (*Box, error) {
	fd, err := unix.MemfdCreate("gpulet-blackbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("black box: %w", err)
	}
	file := os.NewFile(uintptr(fd), "blackbox")
	if err := file.Truncate(maxSlots * slotBytes); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("black box: %w", err)
	}
	return &Box{file}, nil
}

// File is what the child is given.
func (b *Box) File() *os.File { return b.file }

// Read returns what is being worked on now, or was when the process died.
func (b *Box) Read() ([]Work, error) {
	var all []Work
	buf := make([]byte, slotBytes)
	for slot := range maxSlots {
		n, err := b.file.ReadAt(buf, int64(slot)*slotBytes)
		if err != nil && err != io.EOF {
			return all, fmt.Errorf("black box: %w", err)
		}
		if w, ok := decode(buf[:n]); ok {
			all = append(all, w)
		}
	}
	return all, nil
}

// Close lets go of the box; the child's side stays usable.
func (b *Box) Close() { _ = b.file.Close() }

// Recorder is the child's side. A nil Recorder records nothing.
type Recorder struct {
	memory []byte
	slots  atomic.Int64
}

// Open takes a box that the process was given as an open file, for as long as it lives.
func Open(fd int) (*Recorder, error) {
	memory, err := unix.Mmap(fd, 0, maxSlots*slotBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("black box: file descriptor %d: %w", fd, err)
	}
	return &Recorder{memory: memory}, nil
}

// Slot returns a slot for one thread. Nil, which records nothing, is what is left when all are
// taken: such a thread is never accused.
func (r *Recorder) Slot() *Slot {
	if r == nil {
		return nil
	}
	n := r.slots.Add(1) - 1
	if n >= maxSlots {
		return nil
	}
	return &Slot{r.memory[n*slotBytes : (n+1)*slotBytes]}
}

// Slot is where one goroutine at a time writes what it does.
type Slot struct{ memory []byte }

// Begin writes down what the goroutine is about to do. Requests beyond what fits (about 2,000) are
// left out.
func (s *Slot) Begin(w Work) {
	if s != nil {
		s.publish(encode(s.memory, w))
	}
}

// End wipes out what Begin wrote.
func (s *Slot) End() {
	if s != nil {
		s.publish(0)
	}
}

// publish makes what was written valid, in one step, so that a process that dies in between leaves
// nothing half written.
func (s *Slot) publish(size uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&s.memory[0])), size)
}

// encode writes w behind its length, which it returns.
func encode(b []byte, w Work) (size uint32) {
	name := w.Model[:min(len(w.Model), 64)]
	items := w.Requests[:min(len(w.Requests), maxItems)]
	at := headBytes + copy(b[headBytes:], name)
	ne := binary.NativeEndian
	ne.PutUint32(b[4:], uint32(len(name)))
	for _, r := range items {
		ne.PutUint64(b[at:], r.Seq)
		ne.PutUint64(b[at+8:], uint64(r.Stored.UnixNano()))
		at += itemBytes
	}
	return uint32(at - headBytes)
}

// decode reads a slot; false: nothing is being done there, or it holds no sense.
func decode(b []byte) (Work, bool) {
	if len(b) < headBytes {
		return Work{}, false
	}
	ne := binary.NativeEndian
	size, name := uint64(ne.Uint32(b)), uint64(ne.Uint32(b[4:]))
	if b = b[headBytes:]; size == 0 || size > uint64(len(b)) || name > size || (size-name)%itemBytes != 0 {
		return Work{}, false
	}
	w := Work{Model: string(b[:name])}
	for b = b[name:size]; len(b) > 0; b = b[itemBytes:] {
		w.Requests = append(w.Requests, Request{Seq: ne.Uint64(b), Stored: time.Unix(0, int64(ne.Uint64(b[8:])))})
	}
	return w, true
}
