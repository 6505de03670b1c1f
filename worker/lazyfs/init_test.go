package lazyfs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What is agreed upon with kernels that cannot be had.
func TestInit(t *testing.T) {
	const old = fuse.CAP_ASYNC_READ | fuse.CAP_READDIRPLUS | fuse.CAP_EXPLICIT_INVAL_DATA
	for name, c := range map[string]struct {
		in          fuse.InitIn
		passthrough bool
		errno       unix.Errno
	}{
		"Linux 5.0":                  {fuse.InitIn{Major: 7, Minor: 28, Flags: old}, false, unix.EPROTO},
		"Linux 5.1":                  {fuse.InitIn{Major: 7, Minor: 29, Flags: old}, false, 0},
		"Linux 5.2":                  {fuse.InitIn{Major: 7, Minor: 30, Flags: old}, false, 0},
		"Linux 5.4":                  {fuse.InitIn{Major: 7, Minor: 31, Flags: old}, false, 0},
		"Linux 5.10":                 {fuse.InitIn{Major: 7, Minor: 32, Flags: old}, false, 0},
		"a message that ends before": {fuse.InitIn{Major: 7, Minor: 32, Flags: old, Flags2: fuse.CAP_PASSTHROUGH >> 32}, false, 0},
		"Linux 6.1":                  {fuse.InitIn{Major: 7, Minor: 37, Flags: old | fuse.CAP_INIT_EXT}, false, 0},
		"Linux 6.9":                  {fuse.InitIn{Major: 7, Minor: 40, Flags: old | fuse.CAP_INIT_EXT, Flags2: fuse.CAP_PASSTHROUGH >> 32}, true, 0},
		"Linux 6.9, without it":      {fuse.InitIn{Major: 7, Minor: 40, Flags: old | fuse.CAP_INIT_EXT}, false, 0},
		"a later one":                {fuse.InitIn{Major: 7, Minor: 99, Flags: old | fuse.CAP_INIT_EXT, Flags2: fuse.CAP_PASSTHROUGH >> 32}, true, 0},
		"the next version":           {fuse.InitIn{Major: 8, Minor: 0}, false, unix.EPROTO},
	} {
		t.Run(name, func(t *testing.T) {
			f := &filesystem{layer: layerOf(), opens: opens{wanted: true}}
			var out fuse.InitOut
			require.Equal(t, c.errno, f.init(&c.in, &out))
			if c.errno != 0 {
				return
			}
			require.Equal(t, c.passthrough, f.opens.wanted, "passthrough")
			require.LessOrEqual(t, out.Minor, min(c.in.Minor, minor))
			offered := uint64(c.in.Flags)
			if offered&fuse.CAP_INIT_EXT != 0 {
				offered = c.in.Flags64()
			}
			agreed := uint64(out.Flags) | uint64(out.Flags2)<<32
			require.Zero(t, agreed&^offered, "what the kernel does not have")
		})
	}
}
