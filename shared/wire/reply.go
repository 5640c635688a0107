package wire

import (
	"fmt"
	"strings"
)

// EncodeReply encodes a reply for a request of contentType: JSON for JSON, msgpack for everything
// else, because only those hold tensors with their types and shapes. It returns the reply's headers
// (status, request id, content type) and its body. It fails on outputs whose bytes do not match
// their shape, and on NaN or infinity in JSON.
func EncodeReply(contentType string, rep Reply) (header map[string]string, body []byte, err error) {
	if rep.Status == "" {
		return nil, nil, fmt.Errorf("encode reply %q: no status", rep.RequestID)
	}
	header = map[string]string{HeaderStatus: string(rep.Status), HeaderType: TypeMsgpack}
	if rep.RequestID != "" {
		header[HeaderRequestID] = rep.RequestID
	}
	for _, t := range rep.Outputs {
		if err := t.Validate(); err != nil {
			return nil, nil, fmt.Errorf("encode reply: %w", err)
		}
	}
	if mediaType(contentType, nil) != TypeJSON {
		return header, appendMsgpackReply(make([]byte, 0, replySize(rep)), rep), nil
	}
	header[HeaderType] = TypeJSON
	if body, err = appendJSONReply(rep); err != nil {
		return nil, nil, fmt.Errorf("encode reply: %w", err)
	}
	return header, body, nil
}

// DecodeReply decodes a reply; header looks up its headers. The outputs' Data aliases body. Unlike
// in requests, unknown keys are passed over, so that a client may be older than the workers.
func DecodeReply(header func(string) string, body []byte) (Reply, error) {
	var rep Reply
	var err error
	switch t := mediaType(header(HeaderType), body); {
	case len(body) == 0: // an error may come without a body
	case t == TypeMsgpack:
		rep, err = decodeMsgpackReply(body)
	case t == TypeJSON:
		rep, err = decodeJSONReply(body)
	default:
		err = fmt.Errorf("content type %q: expected %s or %s", t, TypeMsgpack, TypeJSON)
	}
	if err == nil {
		err = rep.settle(Status(header(HeaderStatus)), len(body) > 0)
	}
	if err != nil {
		return Reply{}, fmt.Errorf("reply body: %w", err)
	}
	rep.RequestID = header(HeaderRequestID)
	return rep, nil
}

// settle brings the status of the header and that of the body together.
func (r *Reply) settle(header Status, hasBody bool) error {
	if header != "" && header != StatusOK {
		if err := header.isError(); err != nil {
			return fmt.Errorf("header %s: %w", HeaderStatus, err)
		}
	}
	if hasBody && r.Status == "" {
		r.Status = StatusOK
	}
	switch {
	case header == "" && r.Status == "":
		return fmt.Errorf("neither a body nor a %s header", HeaderStatus)
	case header == StatusOK && !hasBody:
		return fmt.Errorf("status ok without a body")
	case header == "" || r.Status == "" || header == r.Status:
		if header != "" {
			r.Status = header
		}
		if r.Status == StatusOK {
			r.Detail = "" // the text of an error, which this is not
		}
		return nil
	}
	return fmt.Errorf("status %q in the body, %q in the %s header", r.Status, header, HeaderStatus)
}

var (
	replyKeys  = &schema{keys: []string{"v", "model", "version", "outputs", "timing", "error", "detail"}, open: true}
	timingKeys = &schema{keys: []string{"queued_us", "batched_us", "exec_us", "batch", "gpulet", "share", "plan"}, open: true}
)

// replyLimits bound what a reply may hold; its size is bounded by the server.
var replyLimits = Limits{MaxTensors: 256, MaxName: 4096}

// maxDetail bounds the text of an error in bytes.
const maxDetail = 64 << 10

func decodeMsgpackReply(body []byte) (Reply, error) {
	var rep Reply
	r := &reader{buf: body}
	err := r.object(replyKeys, func(key string) (err error) {
		switch key {
		case "v":
			err = r.version()
		case "model":
			rep.Model, err = r.name(nil, replyLimits)
		case "version":
			err = r.intInto(&rep.Version)
		case "outputs":
			rep.Outputs, err = r.tensors(nil, replyLimits)
		case "timing":
			err = r.timing(&rep.Timing)
		case "error":
			err = r.status(&rep.Status)
		case "detail":
			rep.Detail, err = r.text(maxDetail)
		}
		return err
	})
	if err != nil {
		return Reply{}, err
	}
	return rep, r.end()
}

func (r *reader) timing(t *Timing) error {
	return r.object(timingKeys, func(key string) (err error) {
		switch key {
		case "queued_us":
			t.QueuedUs, err = r.int()
		case "batched_us":
			t.BatchedUs, err = r.int()
		case "exec_us":
			t.ExecUs, err = r.int()
		case "batch":
			err = r.intInto(&t.Batch)
		case "gpulet":
			t.Gpulet, err = r.name(nil, replyLimits)
		case "share":
			err = r.intInto(&t.Share)
		case "plan":
			var v int64
			v, err = r.int()
			t.Plan = uint64(v)
		}
		return err
	})
}

func (r *reader) intInto(dst *int) error {
	v, err := r.int()
	*dst = int(v)
	return err
}

func (r *reader) text(limit int) (string, error) {
	b, err := r.str(limit)
	return string(b), err
}

func (r *reader) status(dst *Status) error {
	s, err := r.text(maxKey)
	*dst = Status(s)
	if err != nil {
		return err
	}
	return dst.isError()
}

// isError refuses what cannot name an error. Codes of a newer worker pass.
func (s Status) isError() error {
	odd := strings.ContainsFunc(string(s), func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' })
	if s == "" || s == StatusOK || odd || len(s) > maxKey {
		return fmt.Errorf("found %q: expected an error code", string(s))
	}
	return nil
}

// clip makes the text of an error one that can be sent: bounded and UTF-8.
func clip(detail string) string {
	return strings.ToValidUTF8(detail[:min(len(detail), maxDetail)], "?")
}

func replySize(rep Reply) int {
	return 192 + len(rep.Model) + len(rep.Timing.Gpulet) + len(rep.Status) + min(len(rep.Detail), maxDetail) + tensorsSize(rep.Outputs)
}

func appendMsgpackReply(b []byte, rep Reply) []byte {
	if rep.Status != StatusOK {
		b = appendMap(b, 3)
		b = appendInt(appendStr(b, "v"), Version)
		b = appendStr(appendStr(b, "error"), string(rep.Status))
		return appendStr(appendStr(b, "detail"), clip(rep.Detail))
	}
	b = appendMap(b, 5)
	b = appendInt(appendStr(b, "v"), Version)
	b = appendStr(appendStr(b, "model"), rep.Model)
	b = appendInt(appendStr(b, "version"), int64(rep.Version))
	b = appendTensors(appendStr(b, "outputs"), rep.Outputs)
	return appendTiming(appendStr(b, "timing"), rep.Timing)
}

func appendTiming(b []byte, t Timing) []byte {
	b = appendMap(b, 7)
	b = appendInt(appendStr(b, "queued_us"), t.QueuedUs)
	b = appendInt(appendStr(b, "batched_us"), t.BatchedUs)
	b = appendInt(appendStr(b, "exec_us"), t.ExecUs)
	b = appendInt(appendStr(b, "batch"), int64(t.Batch))
	b = appendStr(appendStr(b, "gpulet"), t.Gpulet)
	b = appendInt(appendStr(b, "share"), int64(t.Share))
	return appendInt(appendStr(b, "plan"), int64(t.Plan))
}
