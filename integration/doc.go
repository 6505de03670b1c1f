// Package integration drives the built binaries from outside, as users do, and
// imports nothing of theirs: the daemon under real buildx and buildctl, images
// read back from a real registry, and run by others' runtimes. Its tests need
// root and what hack/tools installs; hack/test runs them all.
package integration
