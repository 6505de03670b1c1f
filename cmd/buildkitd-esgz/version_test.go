package main

import (
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/semver"
)

// buildx takes the third of exactly four fields for BuildKit's version, and
// the kind of builder it can drive depends on it.
func TestVersionHasFourFields(t *testing.T) {
	out, err := as(t, "daemon", "--version").Output()
	require.NoError(t, err)
	fields := strings.Fields(string(out))
	require.Len(t, fields, 4, "%s", out)
	require.Equal(t, programName, fields[0])
	require.Equal(t, packageName, fields[1])
	require.True(t, semver.IsValid(fields[2]), fields[2])
	require.NotEqual(t, unsetVersion, fields[2])
	require.Empty(t, semver.Build(fields[2]), "BuildKit calls itself a development version then")
}

func TestModuleVersion(t *testing.T) {
	info := &debug.BuildInfo{Deps: []*debug.Module{
		{Path: "example.com/other", Version: "v9.9.9"},
		{Path: buildkitModule, Version: "v0.33.1"},
	}}
	require.Equal(t, "v0.33.1", moduleVersion(info, buildkitModule))
	info.Deps[1].Replace = &debug.Module{Path: "example.com/fork", Version: "v0.33.2"}
	require.Equal(t, "v0.33.2", moduleVersion(info, buildkitModule))
	info.Deps[1].Replace.Version = "" // a directory
	require.Equal(t, "v0.33.1", moduleVersion(info, buildkitModule))
	require.Empty(t, moduleVersion(&debug.BuildInfo{}, buildkitModule))
}

func TestRevision(t *testing.T) {
	setting := func(key, value string) debug.BuildSetting { return debug.BuildSetting{Key: key, Value: value} }
	for name, tc := range map[string]struct {
		info debug.BuildInfo
		want string
	}{
		"commit":   {debug.BuildInfo{Settings: []debug.BuildSetting{setting("vcs.revision", "abc"), setting("vcs.modified", "false")}}, "abc"},
		"modified": {debug.BuildInfo{Settings: []debug.BuildSetting{setting("vcs.revision", "abc"), setting("vcs.modified", "true")}}, "abc.m"},
		"module":   {debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3"},
		"nothing":  {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, revision(&tc.info))
		})
	}
}
