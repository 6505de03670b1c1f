package main

import (
	"cmp"
	"runtime/debug"

	"github.com/moby/buildkit/client"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/version"
)

const (
	programName = "buildkitd-esgz"
	packageName = "github.com/buildkitd-esgz/buildkitd-esgz"

	buildkitModule = "github.com/moby/buildkit"
	// unsetVersion is BuildKit's value when the linker was told nothing.
	unsetVersion = "v0.0.0+unknown"
)

// identify fills BuildKit's version variables, from which --version, clients
// and provenance are answered. The version is that of the BuildKit inside:
// clients such as buildx decide by it which features they may use, and so it
// has to be one that they can compare. Which build of ours this is shows in
// the revision. What the linker set (-X github.com/moby/buildkit/version...)
// stays.
func identify() {
	if version.Package == buildkitModule {
		version.Package = packageName
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if version.Version == unsetVersion {
		version.Version = cmp.Or(moduleVersion(info, buildkitModule), unsetVersion)
	}
	version.Revision = cmp.Or(version.Revision, revision(info), "unknown")
}

// moduleVersion returns the version of a dependency, empty if it has none.
func moduleVersion(info *debug.BuildInfo, path string) string {
	for _, module := range info.Deps {
		if module.Path != path {
			continue
		}
		if module.Replace != nil && module.Replace.Version != "" {
			return module.Replace.Version
		}
		return module.Version
	}
	return ""
}

// revision returns the commit that this program was built from, or the version
// of our module if it was built outside a repository.
func revision(info *debug.BuildInfo) string {
	var commit, suffix string
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			commit = setting.Value
		case "vcs.modified":
			if setting.Value == "true" {
				suffix = ".m"
			}
		}
	}
	if commit != "" {
		return commit + suffix
	}
	if info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return ""
}

// clientVersion is what clients are told.
func clientVersion() client.BuildkitVersion {
	return client.BuildkitVersion{
		Package:           version.Package,
		Version:           version.Version,
		Revision:          version.Revision,
		DockerfileVersion: dockerfile.Version(),
	}
}
