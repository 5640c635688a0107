package v2_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// classifier has an input of n floats, and 10 floats come out.
func classifier(n int64) model.Model {
	return frontendtest.Model("bench", []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{n}}},
		[]tensor.Spec{{Name: "y", DType: tensor.FP32, Shape: []int64{10}}})
}

func classify(*bus.Msg, wire.Request) wire.Reply {
	return wire.Reply{Status: wire.StatusOK, Model: "bench", Version: 1, Outputs: []tensor.Tensor{
		{Name: "y", DType: tensor.FP32, Shape: []int64{1, 10}, Data: make([]byte, 40)},
	}}
}

// BenchmarkInfer is the whole way over loopback: HTTP client, door, queue, worker and back, all on
// this machine's cores.
func BenchmarkInfer(b *testing.B) {
	for _, size := range []struct {
		name   string
		floats int64
	}{{"1KB", 256}, {"600KB", 3 * 224 * 224}} {
		for _, binary := range []bool{true, false} {
			body, headers := benchBody(b, size.floats, binary)
			name := fmt.Sprintf("%s/binary=%v", size.name, binary)
			b.Run(name+"/one", func(b *testing.B) {
				d := benchDoor(b, size.floats)
				b.ReportAllocs()
				for b.Loop() {
					d.mustInfer(b, body, headers)
				}
			})
			b.Run(name+"/many", func(b *testing.B) {
				d := benchDoor(b, size.floats)
				b.ReportAllocs()
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						d.mustInfer(b, body, headers)
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
			})
		}
	}
}

func benchDoor(b *testing.B, floats int64) *door {
	m := classifier(floats)
	d := open(b, frontendtest.Start(b, m))
	d.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	b.Cleanup(d.client.CloseIdleConnections)
	d.Work(b, m, classify)
	return d
}

func benchBody(b *testing.B, floats int64, binary bool) ([]byte, http.Header) {
	x := tensor.Tensor{Name: "x", DType: tensor.FP32, Shape: []int64{1, floats}}
	for i := range floats {
		x.Data = append(x.Data, frontendtest.Floats(float32(i)/float32(floats))...)
	}
	req := wire.V2Request{BinaryOutputs: binary, Request: wire.Request{Inputs: []tensor.Tensor{x}}}
	body, n, err := wire.EncodeV2Request(req, binary)
	if err != nil {
		b.Fatal(err)
	}
	h := http.Header{}
	if binary {
		h.Set(jsonLength, strconv.Itoa(n))
	}
	return body, h
}

func (d *door) mustInfer(b *testing.B, body []byte, h http.Header) {
	req, err := http.NewRequestWithContext(b.Context(), "POST", d.url+"/v2/models/bench/infer", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	req.Header = h
	resp, err := d.client.Do(req)
	if err != nil {
		b.Error(err)
		return
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		b.Errorf("%d, %v", resp.StatusCode, err)
	}
	_ = resp.Body.Close()
}

// BenchmarkRefused is what a request costs that a full queue has no room for.
func BenchmarkRefused(b *testing.B) {
	m := classifier(256)
	d := open(b, frontendtest.Start(b, m))
	d.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	b.Cleanup(d.client.CloseIdleConnections)
	q := frontendtest.Queue(m.Name)
	q.MaxMsgs = 1
	if err := d.Planner.EnsureQueue(b.Context(), q); err != nil {
		b.Fatal(err)
	}
	if err := d.Bus.Publish(b.Context(), &bus.Message{Model: m.Name, Body: []byte("x")}); err != nil {
		b.Fatal(err)
	}
	body, _ := benchBody(b, 256, false)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := d.client.Post(d.url+"/v2/models/"+m.Name+"/infer", "application/json", bytes.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusTooManyRequests {
				b.Errorf("HTTP status %d: expected 429", resp.StatusCode)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}
