package frontend

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/util/entitlements"
	"google.golang.org/grpc"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// Requests knows what the exporters of the builds under way want. It is safe
// for concurrent use.
//
// A build is known by its ref, which the client makes up for one call of
// Control.Solve. The session would not do: clients may run several builds in
// one, and the frontend of a build that is solved by a client-side gateway, as
// buildx does it, is called by another request on the same session. That
// request names the ref.
type Requests struct {
	compression string
	operator    profile.Request

	mu    sync.Mutex
	byRef map[string]*wish
}

// A wish is what the exporters of a build want.
type wish struct {
	// requests are those that want a profile, each once.
	requests []*profile.Request
	// source is the image to convert, "" to build what the frontend builds.
	source string
	// exportsCache says that the profile has to be part of the build cache
	// that goes elsewhere.
	exportsCache bool
}

// NewRequests returns the requests of exporters that use the compression of
// that name, by the operator's defaults. To others a profile is of no use.
func NewRequests(compression string, operator profile.Request) *Requests {
	return &Requests{compression: compression, operator: operator, byRef: map[string]*wish{}}
}

// UnaryServerInterceptor looks at the calls of Control.Solve, and refuses those
// whose exporters ask for what cannot work.
func (r *Requests) UnaryServerInterceptor(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	solve, ok := req.(*controlapi.SolveRequest)
	if !ok || info.FullMethod != controlapi.Control_Solve_FullMethodName {
		return handler(ctx, req)
	}
	ctx, end, err := r.begin(ctx, solve)
	if err != nil {
		return nil, err
	}
	defer end()
	return handler(ctx, req)
}

// begin remembers what a build wants until end. The returned context is for
// frontends that run within the call itself.
func (r *Requests) begin(ctx context.Context, req *controlapi.SolveRequest) (_ context.Context, end func(), err error) {
	w, err := r.parse(req)
	if err != nil {
		return nil, nil, err
	}
	if len(w.requests) == 0 && w.source == "" {
		return ctx, func() {}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.byRef[req.Ref]; known {
		return ctx, func() {}, nil // BuildKit refuses a ref that is in use
	}
	r.byRef[req.Ref] = w
	return context.WithValue(ctx, wishKey{}, w), func() { r.forget(req.Ref) }, nil
}

func (r *Requests) forget(ref string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byRef, ref)
}

type wishKey struct{}

// of returns what the build wants that ctx belongs to, nil for nothing.
func (r *Requests) of(ctx context.Context) *wish {
	if w, ok := ctx.Value(wishKey{}).(*wish); ok {
		return w
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byRef[buildid.FromIncomingContext(ctx)]
}

// parse returns what the exporters want. Those that a session adds are not among
// them: BuildKit asks for them when the build is over, so that their layers stay
// in the order of their tars.
func (r *Requests) parse(req *controlapi.SolveRequest) (*wish, error) {
	w := &wish{exportsCache: exportsCache(req.Cache)}
	for _, e := range exporters(req) {
		if e.attrs["compression"] != r.compression || !writesLayers(e.kind) {
			continue
		}
		one, _, err := profile.ParseRequest(e.attrs, r.operator)
		if err != nil {
			return nil, err
		}
		if err := possible(one, e.attrs, req); err != nil {
			return nil, err
		}
		if err := w.convert(e.attrs, req); err != nil {
			return nil, err
		}
		same := func(other *profile.Request) bool { return reflect.DeepEqual(one, other) }
		if usesFrontend(req) && records(one, req) && !slices.ContainsFunc(w.requests, same) {
			w.requests = append(w.requests, one)
		}
	}
	return w, nil
}

// convert takes the image to convert, which is one for all exporters of a build.
func (w *wish) convert(attrs map[string]string, req *controlapi.SolveRequest) error {
	value, given := attrs[attrConvert]
	if !given {
		return nil
	}
	if !usesFrontend(req) {
		return fmt.Errorf("%s: a build that is given as LLB is of something else; give a frontend, which is not called", attrConvert)
	}
	source, err := parseSource(value)
	if err != nil {
		return err
	}
	if w.source != "" && w.source != source {
		return fmt.Errorf("%s: a build converts one image, not both %s and %s", attrConvert, w.source, source)
	}
	w.source = source
	return nil
}

// writesLayers tells whether an exporter has any use for a profile. Those that
// write files ignore a compression.
func writesLayers(kind string) bool {
	return kind != client.ExporterLocal && kind != client.ExporterTar
}

func possible(r *profile.Request, attrs map[string]string, req *controlapi.SolveRequest) error {
	switch {
	case r.None():
		return nil
	case !usesFrontend(req) && profile.Asked(attrs):
		return fmt.Errorf("estargz-profile: a build that is given as LLB has no image to run; build with a frontend, or leave the attribute out")
	case converts(req) && profile.Asked(attrs) && (r.Run || r.Stage):
		return fmt.Errorf("estargz-profile: an image that is converted has no RUN steps and no stages; give entrypoint or none")
	case r.Network == profile.HostNetwork && !slices.Contains(req.Entitlements, string(entitlements.EntitlementNetworkHost)):
		return fmt.Errorf("estargz-profile-network=%s: needs --allow %s", r.Network, entitlements.EntitlementNetworkHost)
	}
	return nil
}

// records says whether there is anything to record. The operator's default may be
// the RUN steps, which an image that is converted has none of.
func records(r *profile.Request, req *controlapi.SolveRequest) bool {
	return !r.None() && (r.Entrypoint || !converts(req))
}

// converts says whether an exporter names an image to convert, which all of them
// export then.
func converts(req *controlapi.SolveRequest) bool {
	return slices.ContainsFunc(exporters(req), func(e exporter) bool {
		_, given := e.attrs[attrConvert]
		return given
	})
}

// usesFrontend is true of clients that call the frontend later, too.
func usesFrontend(req *controlapi.SolveRequest) bool { return len(req.GetDefinition().GetDef()) == 0 }

type exporter struct {
	kind  string
	attrs map[string]string
}

// exporters returns what a build exports. Clients before BuildKit 0.13 can name
// one exporter only.
func exporters(req *controlapi.SolveRequest) []exporter {
	if len(req.Exporters) == 0 && req.ExporterDeprecated != "" {
		return []exporter{{req.ExporterDeprecated, req.ExporterAttrsDeprecated}}
	}
	var all []exporter
	for _, e := range req.Exporters {
		all = append(all, exporter{e.GetType(), e.GetAttrs()})
	}
	return all
}

// exportsCache says whether anything leaves the builder that can hold profiles.
// An inline cache is the image's layers and nothing else.
func exportsCache(c *controlapi.CacheOptions) bool {
	return c.GetExportRefDeprecated() != "" || slices.ContainsFunc(c.GetExports(), func(e *controlapi.CacheOptionsEntry) bool {
		return e.GetType() != "inline"
	})
}
