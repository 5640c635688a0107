package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/profile"
)

// about says where and how a figure came to be. It is part of every file.
type about struct {
	Date    string `json:"date"` // UTC
	Command string `json:"command"`
	Device  string `json:"device"` // as on the command line
	// Sim marks figures of a simulated GPU or of a CPU: they show that the experiment works and say
	// nothing of a GPU.
	Sim     bool   `json:"sim,omitempty"`
	GPU     string `json:"gpu,omitempty"` // product name
	Driver  string `json:"driver,omitempty"`
	Cores   int    `json:"cores"`
	Version string `json:"version,omitempty"` // of the programs
}

func (c *config) about(ctx context.Context) about {
	a := about{
		Date: time.Now().UTC().Format("2006-01-02"), Command: strings.Join(append([]string{"evaluate"}, os.Args[1:]...), " "),
		Device: c.Device, Sim: !c.onGPU(), Cores: runtime.NumCPU(),
	}
	if out, err := exec.CommandContext(ctx, c.program("worker"), "--version").Output(); err == nil {
		a.Version = strings.TrimSpace(strings.TrimPrefix(string(out), "gpulet worker "))
	}
	if c.onGPU() {
		out, err := exec.CommandContext(ctx, "nvidia-smi", "-i", c.index(), "--query-gpu=name,driver_version", "--format=csv,noheader").Output()
		if name, driver, ok := strings.Cut(strings.TrimSpace(string(out)), ", "); err == nil && ok {
			a.GPU, a.Driver = name, driver
		}
	}
	return a
}

// index is the GPU's, as nvidia-smi takes it.
func (c *config) index() string {
	if _, index, ok := strings.Cut(c.Device, ":"); ok {
		return index
	}
	return "0"
}

// write writes v to a file of the output folder, whole or not at all.
func (c *config) write(name string, v any) error {
	return profile.WriteJSON(filepath.Join(c.Out, name), v)
}

// read reads a file of the output folder into v and reports whether there is one.
func (c *config) read(name string, v any) (bool, error) {
	path := filepath.Join(c.Out, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}

// once runs a part whose result is one file, unless that is there.
func once[T any](ctx context.Context, c *config, name string, measure func(ctx context.Context, result *T) error) error {
	var found T
	if there, err := c.read(name, &found); err != nil || there {
		if there {
			say("%s is there", name)
		}
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, c.deadline)
	defer cancel()
	var result T
	if err := measure(ctx, &result); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(name, ".json"), err)
	}
	say("%s is written", name)
	return c.write(name, result)
}
