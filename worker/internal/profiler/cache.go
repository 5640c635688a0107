package profiler

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// ErrNotCached: the model has not been measured on this device.
var ErrNotCached = errors.New("not measured yet")

// Path is where the profile of a model on a device type is kept under dir.
func Path(dir, gpuType, mdl string) string { return filepath.Join(dir, gpuType, mdl+".json") }

// Cached returns the profile that was measured of this very archive of m. The error is ErrNotCached
// where there is none; any other error says why the one that is there cannot be used.
func Cached(dir, gpuType string, m model.Model) (*profile.Profile, error) {
	path := Path(dir, gpuType, m.Name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotCached
	}
	if err != nil {
		return nil, err
	}
	p, err := profile.Parse(path, data)
	switch {
	case err != nil:
		return nil, err
	case p.Model != m.Name || p.GPUType != gpuType:
		return nil, fmt.Errorf("%s: found a profile of %s on %s: expected %s on %s", path, p.Model, p.GPUType, m.Name, gpuType)
	case p.ModelHash != m.Hash:
		return nil, fmt.Errorf("%s: found a profile of the archive %.12s: expected %.12s, version %d of %s", path, p.ModelHash, m.Hash, m.Version, m.Name)
	}
	return p, nil
}
