package model

import "testing"

const resnet = `name: resnet50
slo: 108ms
max_batch: 32
inputs:  [{name: input,  dtype: FP32, shape: [3, 224, 224]}]
outputs: [{name: output, dtype: FP32, shape: [1000]}]
`

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(resnet))
	f.Add([]byte("name: a\nslo: 1ms\nmax_batch: 1\ninputs: [{name: x, dtype: FP32, shape: []}]\noutputs: [{}]"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig("f", data)
		if err == nil && (c.Name == "" || c.SLO <= 0 || c.Timeout < c.SLO || c.MaxBatch < 1 || len(c.Inputs) == 0) {
			t.Errorf("accepted %+v", c)
		}
	})
}
