package worker

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	stargzfs "github.com/containerd/stargz-snapshotter/fs"
	stargzconfig "github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/layer"
	"github.com/containerd/stargz-snapshotter/fs/source"
	stargzsnapshot "github.com/containerd/stargz-snapshotter/snapshot"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/resolver"
	"github.com/sirupsen/logrus"
)

// stargz is the lazy snapshotter of the stargz-snapshotter module, reading
// layers with the credentials of the sessions that asked for them.
type stargz struct {
	config stargzconfig.Config
	host   Host
}

// newStargz reads the section worker.oci.stargzSnapshotter, which BuildKit's
// configuration leaves untyped so as not to depend on that module.
func newStargz(section map[string]any, host Host) (*stargz, error) {
	s := &stargz{host: host}
	if err := retype(section, &s.config); err != nil {
		return nil, fmt.Errorf("worker.oci.stargzSnapshotter: %w", err)
	}
	return s, nil
}

func (s *stargz) open(root string) (snapshots.Snapshotter, error) {
	filesystem, err := stargzfs.NewFilesystem(filepath.Join(root, "stargz"), s.config,
		stargzfs.WithGetSources(s.sources),
		stargzfs.WithMetricsLogLevel(logrus.DebugLevel),
		stargzfs.WithOverlayOpaqueType(opaqueType(root)),
	)
	if err != nil {
		return nil, err
	}
	return stargzsnapshot.NewSnapshotter(context.Background(),
		filepath.Join(root, "snapshotter"), filesystem,
		stargzsnapshot.AsynchronousRemove, stargzsnapshot.NoRestore)
}

// opaqueType returns how opaque directories must look to the overlay
// filesystem that is mounted on top of the layers below root.
func opaqueType(root string) layer.OverlayOpaqueType {
	user, err := overlayutils.NeedsUserXAttr(root)
	if err != nil {
		bklog.L.WithError(err).Warnf("does overlayfs need userxattr? assuming %v", user)
	}
	if user {
		return layer.OverlayOpaqueUser
	}
	return layer.OverlayOpaqueTrusted
}

// The labels by which BuildKit's cache tells a snapshotter where a layer is.
// Each is followed by a dot and an ID, as one layer may be in several places;
// sessionLabel by a dot and a number before that.
const (
	refLabel     = "containerd.io/snapshot/remote/stargz.reference"
	digestLabel  = "containerd.io/snapshot/remote/stargz.digest"
	layersLabel  = "containerd.io/snapshot/remote/stargz.layers"
	sessionLabel = "containerd.io/snapshot/remote/stargz.session"
)

// sources returns all places that the labels of a snapshot name for its layer.
// Places that cannot be understood are left out: another may do.
func (s *stargz) sources(labels map[string]string) ([]source.Source, error) {
	var found []source.Source
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		id, ok := strings.CutPrefix(key, refLabel+".")
		if !ok {
			continue
		}
		ref := labels[key]
		parse := source.FromDefaultLabels(s.hostsFor(ref, sessionIDs(labels, id)))
		sources, err := parse(map[string]string{
			refLabel:    ref,
			digestLabel: labels[digestLabel+"."+id],
			layersLabel: labels[layersLabel+"."+id],
		})
		if err != nil {
			bklog.L.WithError(err).Debugf("stargz: no source in the labels for %q", ref)
			continue
		}
		found = append(found, sources...)
	}
	return found, nil
}

// hostsFor resolves with the daemon's registry configuration and the
// credentials of the given sessions.
func (s *stargz) hostsFor(name string, sessions []string) source.RegistryHosts {
	return func(ref reference.Spec) ([]docker.RegistryHost, error) {
		return resolver.DefaultPool.
			GetResolver(s.host.Registries, name, resolver.ScopeType{}, s.host.Sessions, session.NewGroup(sessions...)).
			HostsFunc(ref.Hostname())
	}
}

func sessionIDs(labels map[string]string, id string) []string {
	var ids []string
	for i := 0; ; i++ {
		sid, ok := labels[sessionLabel+"."+strconv.Itoa(i)+"."+id]
		if !ok {
			return ids
		}
		ids = append(ids, sid)
	}
}
