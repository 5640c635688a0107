package model

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Archives are the file names a version folder may hold, best first.
var Archives = []string{"model.pt2", "model.pt"}

// ConfigFile is the name of a model's description in its folder.
const ConfigFile = "model.yaml"

// Load reads the model called name from the repository under root: its model.yaml, and the path
// and hash of the archive of the version that serves.
func Load(root, name string) (Model, error) {
	return (&Repository{Root: root}).load(name)
}

// Scan reads every model under root, sorted by name. A folder that does not hold a usable model
// gives an error and hides no other.
func Scan(root string) ([]Model, []error) {
	return (&Repository{Root: root}).Scan()
}

// Repository is a folder of models that is scanned again and again. It remembers the hash of an
// archive for as long as its path, size and modification time stay the same. Safe for concurrent
// use.
type Repository struct {
	Root string

	mu     sync.Mutex // guards hashes
	hashes map[string]fileHash
}

type fileHash struct {
	size    int64
	modTime time.Time
	sum     string
}

// Scan reads every model of the repository, sorted by name; see the function Scan.
func (r *Repository) Scan() (models []Model, problems []error) {
	entries, err := os.ReadDir(r.Root)
	if err != nil {
		return nil, []error{fmt.Errorf("model repository %s: %w", r.Root, plain(err))}
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !isDir(filepath.Join(r.Root, e.Name())) {
			continue
		}
		m, err := r.load(e.Name())
		if err != nil {
			problems = append(problems, err)
			continue
		}
		models = append(models, m)
	}
	sort.Slice(models, func(i, j int) bool { return models[i].Name < models[j].Name })
	return models, problems
}

func (r *Repository) load(name string) (Model, error) {
	if !ValidName(name) {
		return Model{}, fmt.Errorf("%s: found a folder %q: expected a name of [a-z0-9_-]{1,64}", r.Root, name)
	}
	dir := filepath.Join(r.Root, name)
	path := filepath.Join(dir, ConfigFile)
	data, err := readConfig(path)
	if err != nil {
		return Model{}, fmt.Errorf("%s: %w", path, plain(err))
	}
	cfg, err := ParseConfig(path, data)
	if err != nil {
		return Model{}, err
	}
	if cfg.Name != name {
		return Model{}, fmt.Errorf("%s: key %q: found %q: expected the folder's name, %q", path, "name", cfg.Name, name)
	}
	version, archive, err := pick(dir, cfg.Pin)
	if err != nil {
		return Model{}, err
	}
	sum, err := r.hash(archive)
	if err != nil {
		return Model{}, err
	}
	return Model{Config: cfg, Version: version, Path: archive, Hash: sum}, nil
}

// readConfig reads a file that somebody called model.yaml: no more of it than one can be, and nothing
// that would hold the scan up.
func readConfig(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("found a %s: expected a file", info.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		return nil, fmt.Errorf("found more than %d bytes: expected a description of a model", maxConfig)
	}
	return data, err
}

// pick finds the version that serves: pin, or the newest one that holds an archive.
func pick(dir string, pin int) (version int, archive string, err error) {
	if pin > 0 {
		if archive = find(filepath.Join(dir, strconv.Itoa(pin))); archive == "" {
			return 0, "", fmt.Errorf("%s: found no archive in version %d, which model.yaml pins: expected %s", dir, pin, strings.Join(Archives, " or "))
		}
		return pin, archive, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", dir, plain(err))
	}
	for _, e := range entries {
		v, err := strconv.Atoi(e.Name())
		if err != nil || v <= version || strconv.Itoa(v) != e.Name() {
			continue
		}
		if a := find(filepath.Join(dir, e.Name())); a != "" {
			version, archive = v, a
		}
	}
	if version == 0 {
		return 0, "", fmt.Errorf("%s: found no version with an archive: expected <version>/%s", dir, strings.Join(Archives, " or <version>/"))
	}
	return version, archive, nil
}

func find(dir string) string {
	for _, name := range Archives {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// hash returns the sha256 of a file, from memory when the file has not changed.
func (r *Repository) hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, plain(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, plain(err))
	}
	if info.Size() == 0 {
		return "", fmt.Errorf("%s: found an empty file: expected a model archive", path)
	}
	r.mu.Lock()
	known, ok := r.hashes[path]
	r.mu.Unlock()
	if ok && known.size == info.Size() && known.modTime.Equal(info.ModTime()) {
		return known.sum, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, plain(err))
	}
	sum := hex.EncodeToString(h.Sum(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hashes == nil {
		r.hashes = map[string]fileHash{}
	}
	r.hashes[path] = fileHash{info.Size(), info.ModTime(), sum}
	return sum, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// plain drops the path that an os error repeats; the caller has named it.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
