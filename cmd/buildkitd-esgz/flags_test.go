package main

import (
	"bytes"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/userns"
	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
)

// flagFacts is what can be told about a flag from its source as well as from
// its value.
type flagFacts struct {
	kind   string // the type's name in the command line package
	env    []string
	hidden bool
}

// TestFlagsLikeBuildKit compares our flags, hidden ones too, with those in the
// source of the BuildKit that we are built with. After an upgrade of BuildKit
// it tells which ones are missing.
func TestFlagsLikeBuildKit(t *testing.T) {
	module := buildkitDir(t)
	theirs := map[string]flagFacts{}
	for _, dir := range []string{"cmd/buildkitd", "util/profiler"} {
		readFlags(t, filepath.Join(module, dir), theirs)
	}
	require.Greater(t, len(theirs), 50, "the source of the flags looks different from what this test reads")

	ours := map[string]flagFacts{}
	for _, f := range newCommand().Flags {
		ours[f.Names()[0]] = flagFacts{
			kind:   reflect.TypeOf(f).Elem().Name(),
			env:    f.(cli.DocGenerationFlag).GetEnvVars(),
			hidden: !f.(cli.VisibleFlag).IsVisible(),
		}
	}
	for name, want := range theirs {
		got, ok := ours[name]
		if !ok {
			t.Errorf("--%s of buildkitd is missing", name)
			continue
		}
		// The type's name has the parameters of generic types.
		require.Equal(t, want.kind, kindOf(got.kind), "--%s", name)
		require.ElementsMatch(t, want.env, got.env, "environment of --%s", name)
		require.Equal(t, want.hidden, got.hidden, "--%s is hidden", name)
	}
	for name := range ours {
		if _, ok := theirs[name]; !ok {
			t.Errorf("--%s is not a flag of buildkitd", name)
		}
	}
}

// kindOf names flags by what they hold.
func kindOf(typeName string) string {
	switch {
	case strings.HasPrefix(typeName, "FlagBase[string,"):
		return "StringFlag"
	case strings.HasPrefix(typeName, "FlagBase[bool,"):
		return "BoolFlag"
	case strings.HasPrefix(typeName, "FlagBase[[]string,"):
		return "StringSliceFlag"
	case strings.HasPrefix(typeName, "FlagBase[int,"):
		return "IntFlag"
	}
	return typeName
}

func buildkitDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", buildkitModule).Output()
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		t.Skipf("source of BuildKit not found by the go command: %v", err)
	}
	return string(bytes.TrimSpace(out))
}

// readFlags adds all flags that the Linux files of a directory define.
func readFlags(t *testing.T, dir string, flags map[string]flagFacts) {
	t.Helper()
	ctx := build.Default
	ctx.GOOS = "linux"
	pkg, err := ctx.ImportDir(dir, 0)
	require.NoError(t, err)
	for _, name := range pkg.GoFiles {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, 0)
		require.NoError(t, err)
		names := stringVariables(file)
		ast.Inspect(file, func(n ast.Node) bool {
			literal, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			kind, ok := literal.Type.(*ast.SelectorExpr)
			if !ok || !strings.HasSuffix(kind.Sel.Name, "Flag") {
				return true
			}
			flag, facts := readFlag(literal, names)
			require.NotEmpty(t, flag, "a flag in %s has a name that this test cannot read", name)
			facts.kind = kind.Sel.Name
			flags[flag] = facts
			return true
		})
	}
}

func readFlag(literal *ast.CompositeLit, names map[string]string) (name string, facts flagFacts) {
	for _, element := range literal.Elts {
		field := element.(*ast.KeyValueExpr)
		switch field.Key.(*ast.Ident).Name {
		case "Name":
			name = stringValue(field.Value, names)
		case "Hidden":
			value, ok := field.Value.(*ast.Ident)
			facts.hidden = ok && value.Name == "true"
		case "Sources":
			for _, arg := range field.Value.(*ast.CallExpr).Args {
				facts.env = append(facts.env, stringValue(arg, names))
			}
		}
	}
	return name, facts
}

// stringVariables returns the variables of a file that are set to a constant.
func stringVariables(file *ast.File) map[string]string {
	found := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		assign, ok := n.(*ast.AssignStmt)
		if !ok || len(assign.Lhs) != 1 || len(assign.Rhs) != 1 {
			return true
		}
		if variable, ok := assign.Lhs[0].(*ast.Ident); ok {
			if value := stringValue(assign.Rhs[0], nil); value != "" {
				found[variable.Name] = value
			}
		}
		return true
	})
	return found
}

func stringValue(expr ast.Expr, names map[string]string) string {
	switch e := expr.(type) {
	case *ast.BasicLit:
		value, _ := strconv.Unquote(e.Value)
		return value
	case *ast.Ident:
		return names[e.Name]
	}
	return ""
}

// TestHelpLikeBuildKit compares what users see with what the real buildkitd
// shows on the same machine: names, texts, defaults and variables.
func TestHelpLikeBuildKit(t *testing.T) {
	if testing.Short() {
		t.Skip("builds buildkitd")
	}
	stock := filepath.Join(t.TempDir(), "buildkitd")
	out, err := exec.Command("go", "build", "-o", stock, buildkitModule+"/cmd/buildkitd").CombinedOutput()
	require.NoError(t, err, "%s", out)
	theirs, err := exec.Command(stock, "--help").Output()
	require.NoError(t, err)

	var ours bytes.Buffer
	command := newCommand()
	command.Writer = &ours
	require.NoError(t, command.Run(t.Context(), []string{programName, "--help"}))
	require.Equal(t, helpLines(string(theirs)), helpLines(ours.String()))
}

// helpLines returns the flags in the order of their names. The columns move
// with the longest of them.
func helpLines(help string) []string {
	_, flags, _ := strings.Cut(help, "OPTIONS:\n")
	var lines []string
	for line := range strings.Lines(flags) {
		line = strings.Join(strings.Fields(line), " ")
		// On small disks buildkitd shows a wrong amount.
		if i := strings.Index(line, "(MB) (default:"); i >= 0 {
			line = line[:i]
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

func TestFlagsChangeTheConfiguration(t *testing.T) {
	cfg, err := given(t,
		"--root=/r", "--addr=tcp://:1", "--addr=tcp://:2", "--group=7", "--debugaddr=:6", "--log-format=json",
		"--tlscert=c", "--tlskey=k", "--tlscacert=a", "--proxy-network", "--otel-socket-path=/o",
		"--cdi-disabled", "--cdi-spec-dir=/c1", "--cdi-spec-dir=/c2",
		"--allow-insecure-entitlement=network.host", "--allow-insecure-entitlement=device",
		"--oci-worker=false", "--oci-worker-labels=a=b=c", "--oci-worker-labels=d=e,f", "--oci-worker-snapshotter=native",
		"--oci-worker-proxy-snapshotter-path=/p", "--oci-worker-platform=linux/arm64", "--oci-worker-net=host",
		"--oci-cni-config-path=/cni", "--oci-cni-binary-dir=/bin", "--oci-cni-pool-size=3", "--oci-worker-binary=crun",
		"--oci-worker-apparmor-profile=ap", "--oci-worker-selinux", "--oci-max-parallelism=4",
		"--oci-worker-no-process-sandbox", "--oci-worker-gc=false", "--oci-worker-gc-keepstorage=1,2,3",
		"--containerd-worker=true", "--containerd-worker-addr=/s", "--containerd-worker-labels=x=y",
		"--containerd-worker-platform=linux/386", "--containerd-worker-namespace=ns", "--containerd-worker-runtime=rt",
		"--containerd-worker-net=cni", "--containerd-cni-config-path=/cni2", "--containerd-cni-binary-dir=/bin2",
		"--containerd-cni-pool-size=5", "--containerd-worker-snapshotter=zfs", "--containerd-worker-apparmor-profile=ap2",
		"--containerd-worker-selinux", "--containerd-max-parallelism=6", "--containerd-worker-gc-keepstorage=4",
	)
	require.NoError(t, err)
	require.Equal(t, "/r", cfg.Root)
	require.Equal(t, []string{"tcp://:1", "tcp://:2"}, cfg.GRPC.Address)
	require.Equal(t, 7, *cfg.GRPC.GID)
	require.Equal(t, ":6", cfg.GRPC.DebugAddress)
	require.Equal(t, "json", cfg.Log.Format)
	require.Equal(t, []string{"c", "k", "a"}, []string{cfg.GRPC.TLS.Cert, cfg.GRPC.TLS.Key, cfg.GRPC.TLS.CA})
	require.True(t, cfg.ProxyNetwork)
	require.Equal(t, "/o", cfg.OTEL.SocketPath)
	require.True(t, *cfg.CDI.Disabled)
	require.Equal(t, []string{"/c1", "/c2"}, cfg.CDI.SpecDirs)
	require.Equal(t, []string{"network.host", "device"}, cfg.Entitlements)

	oci := cfg.Workers.OCI
	require.False(t, *oci.Enabled)
	require.Equal(t, map[string]string{"a": "b=c", "d": "e,f"}, oci.Labels)
	require.Equal(t, []string{"native", "/p", "host", "/cni", "/bin", "crun", "ap"}, []string{
		oci.Snapshotter, oci.ProxySnapshotterPath, oci.Mode, oci.CNIConfigPath, oci.CNIBinaryPath, oci.Binary, oci.ApparmorProfile})
	require.Equal(t, []string{"linux/arm64"}, oci.Platforms)
	require.Equal(t, []int{3, 4}, []int{oci.CNIPoolSize, oci.MaxParallelism})
	require.True(t, oci.SELinux)
	require.True(t, oci.NoProcessSandbox)
	require.False(t, *oci.GC)
	require.Equal(t, []int64{1e6, 2e6, 3e6}, []int64{oci.GCReservedSpace.Bytes, oci.GCMinFreeSpace.Bytes, oci.GCMaxUsedSpace.Bytes})

	ctd := cfg.Workers.Containerd
	require.True(t, *ctd.Enabled)
	require.Equal(t, map[string]string{"x": "y"}, ctd.Labels)
	require.Equal(t, []string{"/s", "ns", "rt", "cni", "/cni2", "/bin2", "zfs", "ap2"}, []string{
		ctd.Address, ctd.Namespace, ctd.Runtime.Name, ctd.Mode, ctd.CNIConfigPath, ctd.CNIBinaryPath, ctd.Snapshotter, ctd.ApparmorProfile})
	require.Equal(t, []string{"linux/386"}, ctd.Platforms)
	require.Equal(t, []int{5, 6}, []int{ctd.CNIPoolSize, ctd.MaxParallelism})
	require.True(t, ctd.SELinux)
	require.Equal(t, int64(4e6), ctd.GCReservedSpace.Bytes)
	require.Zero(t, ctd.GCMaxUsedSpace)
}

func TestFlagErrorsNameTheFlagAndTheFix(t *testing.T) {
	for args, want := range map[string]string{
		"--oci-worker=perhaps":                "--oci-worker: \"perhaps\": want true, false or auto",
		"--containerd-worker=2":               "--containerd-worker: \"2\": want true, false or auto",
		"--oci-worker-labels=novalue":         "--oci-worker-labels: \"novalue\": want key=value",
		"--oci-worker-gc-keepstorage=10GB":    "--oci-worker-gc-keepstorage: \"10GB\": want numbers of megabytes",
		"--oci-worker-gc-keepstorage=1,2,3,4": "want up to three numbers",
		"--allow-insecure-entitlement=root":   "--allow-insecure-entitlement: \"root\": want network.host, security.insecure, device",
		"--group=no-such-group":               "--group: group: unknown group no-such-group: want the name of an existing group, or a number",
		"--oci-cni-pool-size=many":            "oci-cni-pool-size",
	} {
		t.Run(args, func(t *testing.T) {
			_, err := given(t, args)
			require.ErrorContains(t, err, want)
		})
	}
}

func TestWorkerRootlessNeedsUserNamespace(t *testing.T) {
	if userns.RunningInUserNS() {
		t.Skip("running in a user namespace")
	}
	_, err := given(t, "--oci-worker-rootless")
	require.ErrorContains(t, err, "--oci-worker-rootless: must run as the mapped root of a user namespace")

	cfg, err := given(t, "--rootless")
	require.NoError(t, err)
	require.True(t, cfg.Workers.OCI.Rootless)
	require.True(t, cfg.Workers.Containerd.Rootless)
}

func TestEnvironment(t *testing.T) {
	t.Setenv("BUILDKITD_LOG_LEVEL", "error")
	t.Setenv("BUILDKITD_DEBUGADDR", "127.0.0.1:1")
	cfg, err := given(t)
	require.NoError(t, err)
	require.Equal(t, "error", cfg.Log.Level)
	require.Equal(t, "127.0.0.1:1", cfg.GRPC.DebugAddress)

	cfg, err = given(t, "--log-level=warn")
	require.NoError(t, err)
	require.Equal(t, "warn", cfg.Log.Level)
}
