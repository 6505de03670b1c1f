package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/buildkitd-esgz/buildkitd-esgz/"

// A rule says what the packages below a path may import of ours, and what they
// may not import of others. Tests are free.
type rule struct {
	path    string
	imports []string
	never   []string
	reason  string
}

var (
	buildkit    = "github.com/moby/buildkit"
	containerd  = "github.com/containerd/containerd"
	fuse        = "github.com/hanwen/go-fuse"
	stockFormat = "github.com/containerd/stargz-snapshotter"
)

// Data flows one way, so most packages know little. The longest path that
// matches counts.
var rules = []rule{
	{path: "compression/estargz", never: []string{buildkit, containerd, stockFormat},
		reason: "the format is bytes alone: readers, writers and fuzzers use it without a daemon"},
	{path: "compression/profile",
		reason: "plain data between those who record reads and those who order files"},
	{path: "compression", imports: []string{"compression/estargz", "compression/profile"}, never: []string{stockFormat},
		reason: "BuildKit's compression type knows neither exporters nor workers"},
	{path: "worker/blob",
		reason: "ranged reads of a registry know nothing of what they read"},
	{path: "worker/store", imports: []string{"compression/estargz"}, never: []string{fuse},
		reason: "layers on disk must serve another way of mounting than FUSE"},
	{path: "worker/lazyfs", imports: []string{"worker/store"},
		reason: "a filesystem shows what the store has and fetches nothing by itself"},
	{path: "worker/lazyfs/watchdog", never: []string{buildkit, containerd, fuse},
		reason: "its process takes little memory, since it does not initialize what it does not import"},
	{path: "worker/snapshot", never: []string{fuse},
		reason: "the snapshotter knows a mounter, not FUSE"},
	{path: "worker/lazy", imports: []string{"compression/estargz", "worker/blob", "worker/store", "worker/lazyfs/...", "worker/snapshot"}, never: []string{fuse},
		reason: "it puts the parts together that do not know each other"},
	{path: "worker/record", imports: []string{"compression/profile"},
		reason: "recording reads needs no knowledge of layers"},
	{path: "worker", imports: []string{"worker/...", "compression/..."},
		reason: "worker, frontend and exporter meet in the daemon only"},
	{path: "frontend", imports: []string{"compression/profile"},
		reason: "worker, frontend and exporter meet in the daemon only"},
	{path: "exporter", imports: []string{"compression/..."},
		reason: "worker, frontend and exporter meet in the daemon only"},
	{path: "cmd/buildkitd-esgz", imports: []string{"compression/...", "worker/...", "frontend/...", "exporter/...", "cmd/buildkitd-esgz/..."},
		reason: "the daemon introduces everybody, except to the tests"},
	{path: "cmd/buildkitd-esgz/inspect", imports: []string{"compression/estargz", "worker/blob"}, never: []string{stockFormat},
		reason: "what is shown of an image comes from the format and the registry, and takes no daemon"},
	{path: "integration", imports: []string{"integration/..."},
		reason: "what judges the daemon shares no code with it"},
	{path: "hack", imports: []string{"integration/...", "internal/harness", "hack/..."},
		reason: "tools drive built binaries, as users do"},
	{path: "internal/harness",
		reason: "it starts built binaries, for tests that share no code with them"},
	{path: "internal/seed",
		reason: "it is for tests, which are free"},
}

func TestImports(t *testing.T) {
	for _, pkg := range packages(t) {
		name := strings.TrimPrefix(pkg.ImportPath, module)
		r := ruleFor(name)
		if r == nil {
			t.Errorf("%s stands in no rule: say in this file what it may import, and why", name)
			continue
		}
		for _, imported := range pkg.Imports {
			if ours, ok := strings.CutPrefix(imported, module); ok {
				if !slices.ContainsFunc(r.imports, func(p string) bool { return matches(p, ours) }) {
					t.Errorf("%s imports %s: %s", name, ours, r.reason)
				}
			}
			for _, other := range r.never {
				if below(other, imported) {
					t.Errorf("%s imports %s: %s", name, imported, r.reason)
				}
			}
		}
	}
}

func ruleFor(name string) *rule {
	var found *rule
	for i, r := range rules {
		if below(r.path, name) && (found == nil || len(r.path) > len(found.path)) {
			found = &rules[i]
		}
	}
	return found
}

// matches understands a pattern that ends in "/..." as the go command does.
func matches(pattern, name string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return below(dir, name)
	}
	return pattern == name
}

func below(dir, name string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", path.Join(module, "..."))
	out, err := cmd.Output()
	require.NoError(t, err)
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		all = append(all, p)
	}
	require.NotEmpty(t, all)
	return all
}
