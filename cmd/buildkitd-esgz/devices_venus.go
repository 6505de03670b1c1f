//go:build venus

package main

// Sets up virtio-gpu Venus on demand for builds that ask for its devices.
import _ "github.com/moby/buildkit/contrib/cdisetup/venus"
