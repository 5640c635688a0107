package wire

import (
	"strconv"

	"github.com/gpulet/gpulet/shared/tensor"
)

// JSON bodies on the bus: the tensors are those of v2.go, the rest has the names of the msgpack
// bodies.

func decodeJSONRequest(body []byte, specs []tensor.Spec, lim Limits) (Request, error) {
	req, err := DecodeV2Request(body, AllJSON, specs, lim)
	return req.Request, err
}

func appendJSONRequest(req Request) ([]byte, error) {
	body, _, err := EncodeV2Request(V2Request{Request: req}, false)
	return body, err
}

func appendJSONReply(rep Reply) ([]byte, error) {
	if rep.Status != StatusOK {
		b := appendJSONString([]byte(`{"error":`), string(rep.Status))
		b = appendJSONString(append(b, `,"detail":`...), clip(rep.Detail))
		return append(b, '}'), nil
	}
	b := make([]byte, 0, 256+len(rep.Model)+v2Size(rep.Outputs, false))
	b = appendJSONString(append(b, `{"model":`...), rep.Model)
	b = strconv.AppendInt(append(b, `,"version":`...), int64(rep.Version), 10)
	b, err := appendV2Tensors(append(b, `,"outputs":`...), rep.Outputs, func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	return append(appendJSONTiming(append(b, `,"timing":`...), rep.Timing), '}'), nil
}

func appendJSONTiming(b []byte, t Timing) []byte {
	b = strconv.AppendInt(append(b, `{"queued_us":`...), t.QueuedUs, 10)
	b = strconv.AppendInt(append(b, `,"batched_us":`...), t.BatchedUs, 10)
	b = strconv.AppendInt(append(b, `,"exec_us":`...), t.ExecUs, 10)
	b = strconv.AppendInt(append(b, `,"batch":`...), int64(t.Batch), 10)
	b = appendJSONString(append(b, `,"gpulet":`...), t.Gpulet)
	b = strconv.AppendInt(append(b, `,"share":`...), int64(t.Share), 10)
	b = strconv.AppendUint(append(b, `,"plan":`...), t.Plan, 10)
	return append(b, '}')
}

func decodeJSONReply(body []byte) (Reply, error) {
	var rep Reply
	d := v2Decoder{jsonReader: jsonReader{buf: body}, lim: replyLimits.orDefault()}
	err := d.object(replyKeys, func(key string) (err error) {
		switch key {
		case "v":
			err = d.version()
		case "model":
			rep.Model, err = d.text(replyLimits.MaxName)
		case "version":
			err = d.intInto(&rep.Version)
		case "outputs":
			rep.Outputs, err = d.tensors()
		case "timing":
			err = d.timing(&rep.Timing)
		case "error":
			var s string
			s, err = d.text(maxKey)
			rep.Status = Status(s)
			if err == nil {
				err = rep.Status.isError()
			}
		case "detail":
			rep.Detail, err = d.text(maxDetail)
		}
		return err
	})
	if err == nil {
		err = d.end()
	}
	if err != nil {
		return Reply{}, err
	}
	return rep, nil
}

func (d *v2Decoder) version() error {
	v, err := d.int()
	if err != nil {
		return err
	}
	return checkVersion(v)
}

func (d *v2Decoder) intInto(dst *int) error {
	v, err := d.int()
	*dst = int(v)
	return err
}

func (d *v2Decoder) timing(t *Timing) error {
	return d.object(timingKeys, func(key string) (err error) {
		switch key {
		case "queued_us":
			t.QueuedUs, err = d.int()
		case "batched_us":
			t.BatchedUs, err = d.int()
		case "exec_us":
			t.ExecUs, err = d.int()
		case "batch":
			err = d.intInto(&t.Batch)
		case "gpulet":
			t.Gpulet, err = d.text(replyLimits.MaxName)
		case "share":
			err = d.intInto(&t.Share)
		case "plan":
			var v int64
			v, err = d.int()
			t.Plan = uint64(v)
		}
		return err
	})
}
