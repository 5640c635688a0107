package loadgencmd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
)

// catalog knows the registered models.
type catalog interface {
	// lookup returns the named models. A name that is not registered is a usage error that lists
	// those that are.
	lookup(ctx context.Context, names []string) (map[string]model.Config, error)
}

// lookupTimeout bounds a look at the catalog.
const lookupTimeout = 10 * time.Second

// busCatalog reads the planner's registrations.
type busCatalog struct{ bus *bus.Bus }

func (c busCatalog) lookup(ctx context.Context, names []string) (map[string]model.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	registered, err := c.bus.Models(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the registered models: %w", err)
	}
	known := map[string]model.Config{}
	var list []string
	for _, m := range registered {
		known[m.Name] = m.Config
		list = append(list, m.Name)
	}
	for _, name := range names {
		if _, ok := known[name]; !ok {
			return nil, unknownModel(name, list)
		}
	}
	return known, nil
}

func unknownModel(name string, registered []string) error {
	if len(registered) == 0 {
		return cli.Usagef("model %s: no models are registered: is the planner running, with --models?", name)
	}
	return cli.Usagef("model %s is not registered: expected one of %s", name, strings.Join(registered, ", "))
}

// httpCatalog asks a frontend.
type httpCatalog struct{ url string }

// metadata is the v2 protocol's model metadata, with what gpulet adds.
type metadata struct {
	Inputs     []tensorMetadata `json:"inputs"`
	Outputs    []tensorMetadata `json:"outputs"`
	Parameters struct {
		SLOMs     float64 `json:"slo_ms"`
		TimeoutMs float64 `json:"timeout_ms"`
		MaxBatch  int     `json:"max_batch_size"`
		// Accepts are the types of inputs that may come in more than one.
		Accepts map[string][]tensor.DType `json:"accepts"`
	} `json:"parameters"`
}

type tensorMetadata struct {
	Name     string       `json:"name"`
	DataType tensor.DType `json:"datatype"`
	Shape    []int64      `json:"shape"` // the batch dimension included
}

func (t tensorMetadata) spec() tensor.Spec {
	return tensor.Spec{Name: t.Name, DType: t.DataType, Shape: t.Shape[min(1, len(t.Shape)):]}
}

// defaultTimeout is that of a model whose frontend names none.
const defaultTimeout = 30 * time.Second

func (c httpCatalog) lookup(ctx context.Context, names []string) (map[string]model.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	known := map[string]model.Config{}
	for _, name := range names {
		var md metadata
		status, err := c.get(ctx, "/v2/models/"+url.PathEscape(name), &md)
		if status == http.StatusNotFound {
			return nil, unknownModel(name, c.index(ctx))
		}
		if err != nil {
			return nil, err
		}
		known[name] = md.config(name)
	}
	return known, nil
}

// index lists the frontend's models; empty when it does not say.
func (c httpCatalog) index(ctx context.Context) []string {
	var entries []struct {
		Name string `json:"name"`
	}
	if _, err := c.get(ctx, "/v2/models", &entries); err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	return names
}

// get decodes the JSON answer of a GET into out.
func (c httpCatalog) get(ctx context.Context, path string, out any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.url, "/")+path, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("frontend: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("frontend: GET %s: HTTP status %s", req.URL, resp.Status)
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<20)).Decode(out); err != nil {
		return resp.StatusCode, fmt.Errorf("frontend: GET %s: %w", req.URL, err)
	}
	return resp.StatusCode, nil
}

func (md metadata) config(name string) model.Config {
	c := model.Config{
		Name:     name,
		SLO:      time.Duration(md.Parameters.SLOMs * float64(time.Millisecond)),
		Timeout:  time.Duration(md.Parameters.TimeoutMs * float64(time.Millisecond)),
		MaxBatch: md.Parameters.MaxBatch,
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	for _, in := range md.Inputs {
		c.Inputs = append(c.Inputs, in.spec())
	}
	for _, out := range md.Outputs {
		c.Outputs = append(c.Outputs, out.spec())
	}
	for name, types := range md.Parameters.Accepts {
		if c.Preprocess == nil {
			c.Preprocess = map[string]model.Preprocess{}
		}
		c.Preprocess[name] = model.Preprocess{Accept: types, Scale: 1}
	}
	return c
}
