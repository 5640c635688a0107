package drive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// jsonLength is the header with the length of the JSON before a body's binary tensors.
const jsonLength = "Inference-Header-Content-Length"

// maxResponse bounds what is read of one response.
const maxResponse = 64 << 20

// HTTPOptions are the settings of a Sender over HTTP.
type HTTPOptions struct {
	// URL is the frontend: scheme, host and port.
	URL string
	// Connections is how many requests can be in flight; further ones wait in this process, which
	// their send lag shows.
	Connections int
	// Timeout is asked for with every request; zero leaves it to the model.
	Timeout time.Duration
}

// httpSender posts v2 inference requests with binary tensors over a fixed set of connections.
type httpSender struct {
	*callers
	client  *http.Client
	timeout time.Duration // to ask for; zero: none
	streams []httpStream
}

type httpStream struct {
	url    string
	bodies []httpBody
}

type httpBody struct {
	data        []byte
	contentType string
	jsonLength  string            // empty: the body is no v2 request
	header      map[string]string // of an image: its choice of outputs
}

// HTTP returns a Sender to a frontend's v2 API.
func HTTP(o HTTPOptions, streams []Stream, sink Sink) (Sender, error) {
	s := &httpSender{
		client:  &http.Client{Transport: &http.Transport{MaxConnsPerHost: o.Connections, MaxIdleConnsPerHost: o.Connections, DisableCompression: true}},
		timeout: o.Timeout,
	}
	for _, st := range streams {
		hs, err := encodeStream(o, st)
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", st.Model, err)
		}
		s.streams = append(s.streams, hs)
	}
	s.callers = newCallers(o.Connections, sink, s.post)
	return s, nil
}

func encodeStream(o HTTPOptions, st Stream) (httpStream, error) {
	hs := httpStream{url: strings.TrimSuffix(o.URL, "/") + "/v2/models/" + url.PathEscape(st.Model) + "/infer"}
	for i, it := range st.Items {
		if it.Image != nil {
			hs.bodies = append(hs.bodies, httpBody{data: it.Image, contentType: it.ContentType, header: imageHeaders(it)})
			continue
		}
		req := wire.V2Request{Request: it.Request, Timeout: o.Timeout, BinaryOutputs: true}
		data, n, err := wire.EncodeV2Request(req, true)
		if err != nil {
			return hs, fmt.Errorf("request %d: %w", i, err)
		}
		hs.bodies = append(hs.bodies, httpBody{data: data, contentType: wire.TypeRaw, jsonLength: strconv.Itoa(n)})
	}
	return hs, nil
}

// Close implements Sender.
func (s *httpSender) Close() {
	s.callers.Close()
	s.client.CloseIdleConnections()
}

// post sends one request. An error means that no answer can come.
func (s *httpSender) post(ctx context.Context, r Request) (wire.Reply, error) {
	st := &s.streams[r.Stream]
	body := st.bodies[r.Item]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, st.url, bytes.NewReader(body.data))
	if err != nil {
		return wire.Reply{}, err
	}
	req.Header.Set(wire.HeaderType, body.contentType)
	for name, value := range body.header {
		req.Header.Set(name, value)
	}
	if body.jsonLength != "" {
		req.Header.Set(jsonLength, body.jsonLength)
	} else if s.timeout > 0 {
		req.Header.Set(wire.HeaderTimeout, s.timeout.String())
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return wire.Reply{}, unwrapURL(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return wire.Reply{}, err
	}
	return decodeResponse(resp, answer), nil
}

// unwrapURL leaves out the URL, which would make every error different.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func decodeResponse(resp *http.Response, body []byte) wire.Reply {
	if resp.StatusCode != http.StatusOK {
		return wire.Reply{Status: statusOfResponse(resp), Detail: errorOf(resp, body)}
	}
	n := wire.AllJSON
	if h := resp.Header.Get(jsonLength); h != "" {
		var err error
		if n, err = strconv.Atoi(h); err != nil {
			return wire.Reply{Status: wire.Failed, Detail: fmt.Sprintf("header %s: found %q: expected a number", jsonLength, h)}
		}
	}
	v2, err := wire.DecodeV2Response(body, n, wire.Limits{MaxBytes: maxResponse})
	if err != nil {
		return wire.Reply{Status: wire.Failed, Detail: err.Error()}
	}
	return wire.Reply{Status: wire.StatusOK, Model: v2.Model, Outputs: v2.Outputs}
}

// statusOfResponse is the error code that a response names, or else the one of its HTTP status.
func statusOfResponse(resp *http.Response) wire.Status {
	if s := wire.Status(resp.Header.Get(wire.HeaderStatus)); s != "" && s != wire.StatusOK {
		return s
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return wire.BadRequest
	case http.StatusNotFound:
		return wire.UnknownModel
	case http.StatusTooManyRequests:
		return wire.Overloaded
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		return wire.Unavailable
	case http.StatusGatewayTimeout, http.StatusRequestTimeout:
		return wire.Expired
	}
	return wire.Failed
}

// errorOf is the v2 protocol's {"error": "..."}, or what there is instead.
func errorOf(resp *http.Response, body []byte) string {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) == nil && e.Error != "" {
		return e.Error
	}
	return fmt.Sprintf("HTTP status %s: %.200q", resp.Status, body)
}
