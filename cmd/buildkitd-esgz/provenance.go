package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/util/appdefaults"
)

// loadProvenanceEnv merges all *.json files of a directory, in the order of
// their names. They go into the provenance of every build.
func loadProvenanceEnv(dir string) (map[string]any, error) {
	if dir == "" {
		dir = filepath.Join(appdefaults.ConfigDir, "provenance.d")
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("provenanceEnvDir: %w", err)
	}
	env := map[string]any{}
	for _, entry := range entries {
		if entry.IsDir() || filepath.Ext(entry.Name()) != ".json" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("provenanceEnvDir: %w", err)
		}
		if err := json.Unmarshal(content, &env); err != nil {
			return nil, fmt.Errorf("provenanceEnvDir: %s: %w", filepath.Join(dir, entry.Name()), err)
		}
	}
	return env, nil
}
