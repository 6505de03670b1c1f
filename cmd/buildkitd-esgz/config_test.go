package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// everyKey is testdata with all keys that BuildKit knows.
const everyKey = "testdata/every-key.toml"

// TestEveryKey fails for a key that BuildKit has and the test data has not, so
// that an upgrade tells about new ones.
func TestEveryKey(t *testing.T) {
	cfg, warnings, err := readConfig(everyKey)
	require.NoError(t, err)
	require.Empty(t, warnings)
	requireFilled(t, reflect.ValueOf(cfg.Config), "", map[string]bool{
		"grpc.securityDescriptor": true, // Windows
	})

	applied, err := given(t, "--config", everyKey)
	require.NoError(t, err)
	require.Equal(t, "debug", applied.Log.Level)
	applied.Log, cfg.Log = config.LogConfig{}, config.LogConfig{}
	require.Equal(t, cfg.Config, applied, "what the file says needs no default")
}

// requireFilled fails for fields that are zero, at any depth.
func requireFilled(t *testing.T, v reflect.Value, path string, except map[string]bool) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		require.False(t, v.IsNil(), "%s is not set", path)
		requireFilled(t, v.Elem(), path, except)
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			name := path
			if tag := field.Tag.Get("toml"); tag != "" {
				name = path + "." + tag
			}
			if except[name[min(1, len(name)):]] {
				continue
			}
			if field.Tag.Get("toml") == "" && !shared(field) {
				require.False(t, v.IsZero(), "%s is not set", path) // a value such as DiskSpace
				continue
			}
			requireFilled(t, v.Field(i), name, except)
		}
	case reflect.Map:
		require.NotZero(t, v.Len(), "%s is not set", path)
		for _, key := range v.MapKeys() {
			if v.Type().Elem().Kind() == reflect.Struct {
				requireFilled(t, v.MapIndex(key), path+"."+key.String(), except)
			}
		}
	case reflect.Slice:
		require.NotZero(t, v.Len(), "%s is not set", path)
		if v.Type().Elem().Kind() == reflect.Struct {
			requireFilled(t, v.Index(0), path, except)
		}
	case reflect.Bool: // false is a value
	default:
		require.False(t, v.IsZero(), "%s is not set", path)
	}
}

// shared says whether a field is a part of BuildKit's configuration that is
// embedded for being shared, and no value of another module.
func shared(field reflect.StructField) bool {
	return field.Anonymous && field.Type.Kind() == reflect.Struct && field.Type.Field(0).Tag.Get("toml") != ""
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "buildkitd.toml")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestFlagsWinOverTheFile(t *testing.T) {
	path := write(t, `
root = "/from/file"
insecure-entitlements = ["security.insecure"]
proxyNetwork = true
[log]
level = "warn"
[grpc]
address = ["tcp://file:1"]
gid = 5
[worker.oci]
enabled = false
snapshotter = "native"
labels = { kept = "file", changed = "file" }
max-parallelism = 2
reservedSpace = "10%"
maxUsedSpace = "90%"
`)
	cfg, err := given(t, "--config", path)
	require.NoError(t, err)
	require.Equal(t, "/from/file", cfg.Root)
	require.Equal(t, 5, *cfg.GRPC.GID)
	require.False(t, *cfg.Workers.OCI.Enabled)

	cfg, err = given(t, "--config", path, "--root=/from/flag", "--addr=tcp://flag:1", "--group=6",
		"--proxy-network=false", "--allow-insecure-entitlement=device", "--log-level=error", "--oci-worker=auto",
		"--oci-worker-snapshotter=overlayfs", "--oci-worker-labels=changed=flag", "--oci-worker-gc-keepstorage=7")
	require.NoError(t, err)
	require.Equal(t, "/from/flag", cfg.Root)
	require.Equal(t, []string{"tcp://flag:1"}, cfg.GRPC.Address)
	require.Equal(t, 6, *cfg.GRPC.GID)
	require.False(t, cfg.ProxyNetwork)
	require.Equal(t, []string{"device"}, cfg.Entitlements)
	require.Equal(t, "error", cfg.Log.Level)
	require.Nil(t, cfg.Workers.OCI.Enabled)
	require.Equal(t, "overlayfs", cfg.Workers.OCI.Snapshotter)
	require.Equal(t, map[string]string{"kept": "file", "changed": "flag"}, cfg.Workers.OCI.Labels)
	require.Equal(t, 2, cfg.Workers.OCI.MaxParallelism)
	require.Equal(t, config.DiskSpace{Bytes: 7e6}, cfg.Workers.OCI.GCReservedSpace)
	require.Zero(t, cfg.Workers.OCI.GCMaxUsedSpace, "the flag gives all three amounts")
}

func TestLogLevelPrecedence(t *testing.T) {
	for name, tc := range map[string]struct {
		file string
		args []string
		want string
	}{
		"nothing":          {"", nil, ""},
		"deprecated debug": {"debug = true", nil, "debug"},
		"deprecated trace": {"debug = true\ntrace = true", nil, "trace"},
		"section wins":     {"debug = true\n[log]\nlevel = \"warn\"", nil, "warn"},
		"debug flag":       {"[log]\nlevel = \"warn\"", []string{"--debug"}, "debug"},
		"debug=false":      {"[log]\nlevel = \"warn\"", []string{"--debug=false"}, "warn"},
		"level flag wins":  {"", []string{"--debug", "--trace", "--log-level=error"}, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := given(t, append([]string{"--config", write(t, tc.file)}, tc.args...)...)
			require.NoError(t, err)
			require.Equal(t, tc.want, cfg.Log.Level)
		})
	}
}

func TestConfigWarnings(t *testing.T) {
	path := write(t, "debug = true\n[worker.oci]\nsnapshoter = \"native\"\n[gc]\nenabled = true\n")
	_, warnings, err := givenWithWarnings(t, "--config", path, "--trace")
	require.NoError(t, err)
	require.Equal(t, []string{
		path + ":3: unknown key worker.oci.snapshoter is ignored",
		path + ":4: unknown key gc is ignored",
		`configuration key "debug" is deprecated: use level = "debug" in section [log]`,
		"--trace is deprecated: use --log-level=trace",
	}, warnings)

	_, warnings, err = givenWithWarnings(t, "--config", "/does/not/exist.toml")
	require.NoError(t, err)
	require.Equal(t, []string{"--config: /does/not/exist.toml does not exist, continuing with defaults"}, warnings)
}

func TestConfigErrorsNameThePlace(t *testing.T) {
	for content, want := range map[string]string{
		"root = 5": "buildkitd.toml:1:",
		"[worker.oci]\nmax-parallelism = \"some\"":    "buildkitd.toml:2:",
		"[worker.oci]\nreservedSpace = \"plenty\"":    "invalid disk space plenty",
		"[[worker.oci.gcpolicy]]\nkeepDuration=\"x\"": "invalid duration x",
		"[grpc\n": "buildkitd.toml:1:",
	} {
		t.Run(content, func(t *testing.T) {
			_, err := given(t, "--config", write(t, content))
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, err, "buildkitd.toml")
		})
	}
}

func TestOwnSection(t *testing.T) {
	path := write(t, `
[estargz]
profile = "run"
profile-period = "5s"
chunk-size = 1048576
compression-level = 1
`)
	cfg, warnings, err := givenWithWarnings(t, "--config", path)
	require.NoError(t, err)
	require.Empty(t, warnings)
	require.True(t, cfg.defaults.Profile.Run)
	require.False(t, cfg.defaults.Profile.Entrypoint)
	require.Equal(t, 5*time.Second, cfg.defaults.Profile.Period)

	for _, path := range []string{write(t, ""), "/does/not/exist.toml"} {
		cfg, _, err = givenWithWarnings(t, "--config", path)
		require.NoError(t, err)
		require.Equal(t, profile.Default(), cfg.defaults.Profile, path)
	}
}

func TestOwnSectionRefused(t *testing.T) {
	for line, want := range map[string]string{
		`profil = "none"`:           "[estargz] profil: no such key; there are chunk-size, compression-level",
		`profile-cmd = "ls"`:        "[estargz] profile-cmd: no such key",
		`profile = false`:           "[estargz] profile = false: give a string or a whole number",
		`profile = "off"`:           `[estargz] profile = "off": give none, entrypoint, run`,
		`profile = "stage"`:         "a stage is for a build to ask for",
		`profile-network = "host"`:  "give none or sandbox",
		`profile-period = 10`:       "give a time like 10s",
		`chunk-size = "many"`:       `[estargz] chunk-size = "many": give bytes or a size like 4MiB`,
		`compression-level = 10`:    "give a number from 0 (none) to 9",
		`compression-level = "low"`: "give a number from 0 (none) to 9",
	} {
		path := write(t, "[estargz]\n"+line)
		_, err := given(t, "--config", path)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, path)
	}
	_, err := given(t, "--config", write(t, "estargz = 5"))
	require.ErrorContains(t, err, "buildkitd.toml:1:")
}

func TestDefaults(t *testing.T) {
	cfg, err := given(t, "--config", write(t, ""))
	require.NoError(t, err)
	if rootlessPaths() {
		t.Skip("running rootless")
	}
	require.Equal(t, "/var/lib/buildkit", cfg.Root)
	require.Equal(t, []string{"unix:///run/buildkit/buildkitd.sock"}, cfg.GRPC.Address)
	require.Equal(t, "/run/buildkit/otel-grpc.sock", cfg.OTEL.SocketPath)
	require.Equal(t, "auto", cfg.Workers.OCI.Snapshotter)
	require.Equal(t, "auto", cfg.Workers.OCI.Mode)
	require.Equal(t, "/etc/buildkit/cni.json", cfg.Workers.OCI.CNIConfigPath)
	require.Nil(t, cfg.Workers.OCI.Platforms)
	require.Equal(t, "/run/containerd/containerd.sock", cfg.Workers.Containerd.Address)
	require.Equal(t, "buildkit", cfg.Workers.Containerd.Namespace)
	require.Equal(t, "io.containerd.runc.v2", cfg.Workers.Containerd.Runtime.Name)
	require.Equal(t, []string{"device"}, allowedEntitlements(cfg))

	cfg, err = given(t, "--config", write(t, ""), "--root=relative")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(cfg.Root), cfg.Root)
	require.Equal(t, filepath.Join(cfg.Root, "otel-grpc.sock"), cfg.OTEL.SocketPath)

	cfg, err = given(t, "--config", write(t, ""), "--root=/var/lib/../lib/buildkit/")
	require.NoError(t, err)
	require.Equal(t, "/run/buildkit/otel-grpc.sock", cfg.OTEL.SocketPath)
}

func TestLogging(t *testing.T) {
	level, formatter := logrus.GetLevel(), logrus.StandardLogger().Formatter
	t.Cleanup(func() {
		logrus.SetLevel(level)
		logrus.SetFormatter(formatter)
	})
	require.NoError(t, setUpLogging(config.LogConfig{Format: "json", Level: "error"}))
	require.Equal(t, logrus.ErrorLevel, logrus.GetLevel())
	require.IsType(t, &logrus.JSONFormatter{}, logrus.StandardLogger().Formatter)

	err := setUpLogging(config.LogConfig{Format: "xml"})
	require.EqualError(t, err, `log.format (--log-format) "xml": want text or json`)
	err = setUpLogging(config.LogConfig{Level: "loud"})
	require.ErrorContains(t, err, `log.level (--log-level, BUILDKITD_LOG_LEVEL) "loud": want one of [panic fatal error`)
}

func TestSystem(t *testing.T) {
	zero := 0
	err := setUpSystem(&config.SystemConfig{MaxRegistryConcurrency: &zero})
	require.EqualError(t, err, "system.maxRegistryConcurrency 0: want a number greater than zero")
	require.NoError(t, setUpSystem(nil))
}

func TestProvenanceEnv(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"a.json": `{"x": 1, "y": 1}`, "b.json": `{"y": 2}`, "c.txt": "no"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	env, err := loadProvenanceEnv(dir)
	require.NoError(t, err)
	require.Equal(t, map[string]any{"x": 1.0, "y": 2.0}, env)

	env, err = loadProvenanceEnv(filepath.Join(dir, "none"))
	require.NoError(t, err)
	require.Nil(t, env)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "d.json"), []byte("{"), 0o600))
	_, err = loadProvenanceEnv(dir)
	require.ErrorContains(t, err, "provenanceEnvDir: "+filepath.Join(dir, "d.json"))
}
