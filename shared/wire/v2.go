package wire

import (
	"errors"

	"github.com/gpulet/gpulet/shared/tensor"
)

func clip(s string) string { return s[:min(len(s), maxDetail)] }

var errNoJSON = errors.New("not yet")

func decodeJSONRequest([]byte, []tensor.Spec, Limits) (Request, error) { return Request{}, errNoJSON }
func appendJSONRequest(b []byte, req Request) ([]byte, error)          { return nil, errNoJSON }
func appendJSONReply(b []byte, rep Reply) ([]byte, error)              { return nil, errNoJSON }
func decodeJSONReply(body []byte) (Reply, error)                       { return Reply{}, errNoJSON }
