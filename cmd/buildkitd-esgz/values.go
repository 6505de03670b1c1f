package main

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/disk"
)

// Values of flags that need more than storing.

func setGroup(cfg *config.Config, group string) error {
	if group == "" {
		return nil
	}
	gid, err := groupID(group)
	if err != nil {
		return err
	}
	cfg.GRPC.GID = &gid
	return nil
}

func groupID(group string) (int, error) {
	gid, err := strconv.Atoi(group)
	if err == nil || !errors.Is(err, strconv.ErrSyntax) {
		return gid, err
	}
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("%w: want the name of an existing group, or a number", err)
	}
	return strconv.Atoi(found.Gid)
}

// megabyte is the unit of the keepstorage flags.
const megabyte = 1_000_000

// parseKeepStorage reads "Reserved[,Free[,Maximum]]" into the amounts of gc.
func parseKeepStorage(s string, gc *config.GCConfig) error {
	fields := []*config.DiskSpace{&gc.GCReservedSpace, &gc.GCMinFreeSpace, &gc.GCMaxUsedSpace}
	for _, field := range fields {
		*field = config.DiskSpace{}
	}
	if s == "" {
		return nil
	}
	parts := strings.Split(s, ",")
	if len(parts) > len(fields) {
		return fmt.Errorf("%q: want up to three numbers of megabytes, Reserved[,Free[,Maximum]]", s)
	}
	for i, part := range parts {
		amount, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			return fmt.Errorf("%q: want numbers of megabytes, Reserved[,Free[,Maximum]]: %w", s, err)
		}
		fields[i].Bytes = amount * megabyte
	}
	return nil
}

// formatKeepStorage is the reverse, with the amounts that a configuration
// without any would get on the disk of root.
//
// buildkitd 0.33 shows 2000 for a reserved percentage, as it asks how much
// that is of a disk without size.
func formatKeepStorage(gc config.GCConfig, root string) string {
	size, _ := disk.GetDiskStat(root) // not there yet: the fallback of AsBytes
	if gc.IsUnset() {
		gc.GCReservedSpace = gc.GCKeepStorage //nolint:staticcheck
	}
	if gc.IsUnset() {
		gc = config.DetectDefaultGCCap(size)
	}
	megabytes := func(space config.DiskSpace) int64 { return space.AsBytes(size) / megabyte }
	reserved, free, most := megabytes(gc.GCReservedSpace), megabytes(gc.GCMinFreeSpace), megabytes(gc.GCMaxUsedSpace)
	switch {
	case most != 0:
		return fmt.Sprintf("%d,%d,%d", reserved, free, most)
	case free != 0:
		return fmt.Sprintf("%d,%d", reserved, free)
	default:
		return strconv.FormatInt(reserved, 10)
	}
}
