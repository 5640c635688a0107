package v2

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// headerJSONLength says how many bytes at the start of a body are JSON; binary data follows them.
const headerJSONLength = "Inference-Header-Content-Length"

// image reports whether the headers announce an image as the whole body, and of which type. It is the
// gpu-let that decodes it: here would be the wrong machine to spend that time on.
func image(h http.Header) (kind string, ok bool, err error) {
	if enc := h.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return "", false, fmt.Errorf("content encoding %q: expected none", enc)
	}
	kind, ok = wire.ImageType(h.Get("Content-Type"))
	if n := h.Get(headerJSONLength); ok && n != "" {
		return "", false, fmt.Errorf("header %s: found %q: expected none with a body of %s", headerJSONLength, n, kind)
	}
	return kind, ok, nil
}

// decode decodes a body by its headers: JSON with binary data behind it where headerJSONLength is
// set, one raw tensor where that is 0 or the content type says so, else JSON alone.
func decode(h http.Header, body []byte, m *model.Model, limits wire.Limits) (wire.V2Request, error) {
	jsonLen := wire.AllJSON
	if v := h.Get(headerJSONLength); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return wire.V2Request{}, fmt.Errorf("header %s: found %q: expected 0 or more", headerJSONLength, v)
		}
		jsonLen = n
	}
	if jsonLen == 0 || jsonLen == wire.AllJSON && strings.HasPrefix(h.Get("Content-Type"), wire.TypeRaw) {
		req, err := wire.DecodeRequest(wire.TypeRaw, body, m.Inputs, limits)
		return wire.V2Request{Request: req}, err
	}
	return wire.DecodeV2Request(body, jsonLen, m.Inputs, limits)
}
