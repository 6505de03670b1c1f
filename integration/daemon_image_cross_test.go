package integration

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// compileCross has TestDaemonImageCross compile the programs for both platforms,
// which takes minutes. Without it their place is empty, and TestCrossTypes checks
// that they would compile.
var compileCross = os.Getenv("BUILDKITD_ESGZ_CROSS") != ""

// goPrograms are those that are compiled for the image.
var goPrograms = []string{"buildkitd-esgz", "buildctl", "buildkit-cni-bridge", "buildkit-cni-loopback",
	"buildkit-cni-host-local", "buildkit-cni-firewall"}

// TestDaemonImageCross builds the image for two platforms on this one. They have
// the same files, each for its own platform, and those of the other one run by the
// image's emulators.
func TestDaemonImageCross(t *testing.T) {
	needs(t)
	require.Equal(t, "amd64", runtime.GOARCH, "arm64 has to be another platform")
	dir, emulators := tempDir(t), tempDir(t)
	d := startDaemonEnv(t, ours, []string{"PATH=" + emulators + ":" + os.Getenv("PATH")})
	flags := []string{"--file=docker-bake.hcl", "--set=*.args.BINFMT=debian-emulators",
		"--set=image*.platform=linux/amd64", "--set=image*.platform=linux/arm64",
		"--set=*.attest=type=provenance,disabled=true", "--set=*.attest=type=sbom,disabled=true"}
	targets := []string{"image"}
	if compileCross {
		flags = append(flags, "--set=*.args.GOLANG="+golang(t), "--set=*.args.GOPROXY="+strings.TrimSpace(run(t, "go", "env", "GOPROXY")))
		targets = append(targets, "image-rootless")
	} else {
		flags = append(flags, "--set=*.contexts.build="+writeFiles(t, map[string]string{
			"out/bin/buildctl-daemonless.sh": "", "out/rootless/rootlesskit": ""}))
	}
	for _, target := range targets {
		out := filepath.Join(dir, target)
		d.bake(t, repository(t), target, append(flags, "--set="+target+".output=type=local,dest="+out)...)
		requireSameFiles(t, filepath.Join(out, "linux_amd64"), filepath.Join(out, "linux_arm64"))
	}
	amd64, arm64 := filepath.Join(dir, "image", "linux_amd64"), filepath.Join(dir, "image", "linux_arm64")

	t.Run("emulated", func(t *testing.T) {
		// The daemon finds the emulator from here on. One that the kernel does not
		// know emulates the step's own program only, by its path.
		run(t, "cp", filepath.Join(amd64, "usr/bin/buildkit-qemu-aarch64"), emulators)
		file := writeFiles(t, map[string]string{"run.hcl": `
target "run" {
  contexts          = { image = "target:image" }
  dockerfile-inline = <<EOT
FROM image
RUN ["/usr/bin/uname", "--machine"]
RUN ["/usr/bin/dash", "-c", "echo \"$0\"", "of dash"]
RUN ["/usr/bin/git", "--version"]
RUN ["/usr/sbin/runc", "--version"]
EOT
  platforms         = ["linux/arm64"]
  output            = ["type=cacheonly"]
}
`})
		out := d.bake(t, repository(t), "run", append(flags, "--file="+filepath.Join(file, "run.hcl"))...)
		for _, said := range []string{" aarch64\n", " of dash\n", " git version ", " runc version "} {
			require.Contains(t, out, said)
		}
	})
	t.Run("registered", func(t *testing.T) { testRegistered(t, amd64, arm64) })
}

// testRegistered starts the daemon by the image's entrypoint in a user namespace,
// which has a table of emulators of its own.
func testRegistered(t *testing.T, amd64, arm64 string) {
	needsTableOfEmulators(t)
	bin := filepath.Join(amd64, "usr/bin")
	// The daemon has the image's scripts and emulators, and what else it starts
	// from this machine.
	path := writeFiles(t, map[string]string{
		"buildkitd":        "#!/bin/sh\nexec " + ours + " \"$@\"\n",
		"buildkitd-binfmt": "#!/bin/sh\nexec " + bin + "/buildkitd-binfmt \"$@\"\n",
		"entrypoint":       "#!/bin/sh\nPATH=${0%/*}:$PATH exec " + bin + "/buildkitd-entrypoint \"$@\"\n",
	})
	// Others than root may read them.
	run(t, "chmod", "-R", "a+rx", path)
	for dir := amd64; dir != os.TempDir(); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	d := startInUserNamespace(t, filepath.Join(path, "entrypoint"), syscall.SysProcIDMap{HostID: 100_000, Size: 65_536})
	require.NotContains(t, d.buildctl(t, "debug", "workers"), "arm64")
	require.NoError(t, d.Stop())
	d.Env = append(d.Env, "BUILDKITD_BINFMT=1")
	d.start(t)
	require.Contains(t, d.buildctl(t, "debug", "workers"), "arm64")

	file := filepath.Join(writeFiles(t, map[string]string{"Dockerfile": `
FROM scratch
COPY usr/bin/dash /bin/sh
COPY usr/bin/uname /bin/
COPY usr/lib/ld-linux-aarch64.so.1 usr/lib/aarch64-linux-gnu/libc.so.6 /lib/
RUN echo "$(uname -m) is started by a shell"
`}), "Dockerfile")
	p := d.build(t, arm64, "--file", file, "--platform=linux/arm64")
	require.Contains(t, p.logs.String(), "aarch64 is started by a shell")
	// The machine's own table is another one.
	require.NoFileExists(t, "/proc/sys/fs/binfmt_misc/qemu-aarch64")
}

// needsTableOfEmulators skips the test where user namespaces have no table of
// emulators of their own.
func needsTableOfEmulators(t *testing.T) {
	t.Helper()
	_, err := output(t, exec.Command("unshare", "--user", "--map-root-user", "--mount",
		"mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc"))
	if err != nil {
		require.False(t, required, "needs Linux 6.7: %s", err)
		t.Skip("needs Linux 6.7: ", err)
	}
}

// golang is a base image with this machine's Go.
func golang(t *testing.T) string {
	t.Helper()
	from := debian(t)
	return base(t, "golang", func(d *daemon, name string) {
		file := filepath.Join(writeFiles(t, map[string]string{"Dockerfile": "FROM " + from + "\nCOPY . /usr/local/go\n" +
			"ENV PATH=/usr/local/go/bin:/usr/bin:/bin GOPATH=/go GOTOOLCHAIN=local\n"}), "Dockerfile")
		d.build(t, strings.TrimSpace(run(t, "go", "env", "GOROOT")), "--file", file, "--output", "type=image,push=true,name="+name)
	})
}

// ofOnePlatform are the loader, the emulators of the other platform, and what
// Debian's packages have for amd64 only.
var ofOnePlatform = regexp.MustCompile(`^/usr/(` +
	`lib64/ld-linux-x86-64\.so\.2|lib/ld-linux-aarch64\.so\.1|` +
	`bin/buildkit-qemu-(aarch64|i386|x86_64)|lib/binfmt\.d/qemu-(aarch64|arm|i386|x86_64)\.conf|` +
	`bin/(i386|x86_64)|lib/x86_64-linux-gnu/libmvec\.so\.1)$`)

// requireSameFiles compares the files of two platforms, whose names may differ by
// that of the platform only, and looks at what programs and libraries are for.
func requireSameFiles(t *testing.T, amd64, arm64 string) {
	t.Helper()
	names := strings.NewReplacer("x86_64-linux-gnu", "ARCH", "aarch64-linux-gnu", "ARCH",
		"ld-linux-x86-64.so.2", "LOADER", "ld-linux-aarch64.so.1", "LOADER")
	list := func(root string, machine elf.Machine) string {
		var all strings.Builder
		programs := 0
		require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			file := strings.TrimPrefix(path, root)
			if !ofOnePlatform.MatchString(file) {
				fmt.Fprintln(&all, info.Mode(), names.Replace(file))
			}
			if info.Mode().IsRegular() && machineOf(t, path) != elf.EM_NONE {
				programs++
				require.Equal(t, machine, machineOf(t, path), path)
			}
			return nil
		}))
		require.Greater(t, programs, 100)
		if compileCross {
			for _, name := range goPrograms {
				require.Equal(t, machine, machineOf(t, filepath.Join(root, "usr/bin", name)), name)
			}
		}
		return all.String()
	}
	requireSame(t, list(amd64, elf.EM_X86_64), list(arm64, elf.EM_AARCH64))
}

// machineOf is EM_NONE for what is no program.
func machineOf(t *testing.T, path string) elf.Machine {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := io.ReadFull(f, magic); err != nil || !bytes.Equal(magic, []byte(elf.ELFMAG)) {
		return elf.EM_NONE
	}
	program, err := elf.NewFile(f)
	require.NoError(t, err, path)
	return program.Machine
}

// TestCrossTypes checks the types of all programs in the image as the compiler
// does for arm64: kernel structures have other fields there, and some files of a
// package are for one platform only. It takes seconds where compiling takes
// minutes.
func TestCrossTypes(t *testing.T) {
	checkTypes(t, "..", "./cmd/buildkitd-esgz", "github.com/moby/buildkit/cmd/buildctl")
	checkTypes(t, "../hack/daemon", "tool")
}

func checkTypes(t *testing.T, dir string, patterns ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Module"}, patterns...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	out, err := output(t, cmd)
	require.NoError(t, err)

	files, checked := token.NewFileSet(), map[string]*types.Package{"unsafe": types.Unsafe}
	// What a package imports stands before it.
	for list := json.NewDecoder(strings.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir string
			GoFiles         []string
			ImportMap       map[string]string
			Module          *struct{ Main bool }
		}
		err := list.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if p.ImportPath == "unsafe" {
			continue
		}
		var parsed []*ast.File
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			parsed = append(parsed, file)
		}
		config := types.Config{
			Sizes: types.SizesFor("gc", "arm64"),
			// Functions of others have been compiled for arm64 by others.
			IgnoreFuncBodies: p.Module == nil || !p.Module.Main,
			Importer: importer(func(path string) (*types.Package, error) {
				if mapped := p.ImportMap[path]; mapped != "" {
					path = mapped
				}
				if checked[path] == nil {
					return nil, fmt.Errorf("%s has not been checked", path)
				}
				return checked[path], nil
			}),
		}
		checked[p.ImportPath], err = config.Check(p.ImportPath, files, parsed, nil)
		require.NoError(t, err)
	}
	require.Greater(t, len(checked), 100)
}

type importer func(path string) (*types.Package, error)

func (i importer) Import(path string) (*types.Package, error) { return i(path) }
