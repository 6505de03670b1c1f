//go:build nvidia

package main

// Installs the NVIDIA driver on demand for builds that ask for its devices.
import _ "github.com/moby/buildkit/contrib/cdisetup/nvidia"
