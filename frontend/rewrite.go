package frontend

import (
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// A rewriter copies operations from a graph into another. Those that change
// get another digest, and so does everything that uses them; the others stay
// as they are to the byte, which BuildKit needs to know them again.
type rewriter struct {
	from, to *graph
	edit     func(d digest.Digest, op *pb.Op) (changed bool)
	// became says which operation stands in to for one of from. What it says
	// beforehand is not copied.
	became map[digest.Digest]digest.Digest
}

func (r *rewriter) operation(d digest.Digest) (digest.Digest, error) {
	if now, done := r.became[d]; done {
		return now, nil
	}
	op, known := r.from.ops[d]
	if !known {
		return "", fmt.Errorf("definition without its input %s", d)
	}
	copied := op.CloneVT()
	changed := r.edit(d, copied)
	for _, in := range copied.Inputs {
		now, err := r.operation(digest.Digest(in.Digest))
		if err != nil {
			return "", err
		}
		changed = changed || string(now) != in.Digest
		in.Digest = string(now)
	}
	if changed {
		encoded, err := copied.Marshal()
		if err != nil {
			return "", err
		}
		op.Op, op.encoded = copied, encoded
	}
	now := digest.FromBytes(op.encoded)
	r.became[d] = now
	r.to.add(now, op)
	return now, nil
}

// head copies all that from is for, and makes it what to is for.
func (r *rewriter) head() error {
	now, err := r.operation(digest.Digest(r.from.head.Digest))
	if err != nil {
		return err
	}
	r.to.head = &pb.Input{Digest: string(now), Index: r.from.head.Index}
	return nil
}

// output returns what becomes the profile of a step of from, nil if it could not
// be marked.
func (r *rewriter) output(m Marker, step digest.Digest) *pb.Input {
	now := r.became[step]
	out := m.Output(r.to.ops[now].GetExec())
	if out == nil {
		return nil
	}
	return &pb.Input{Digest: string(now), Index: out.Output}
}

// profiles returns what builds the profiles of steps, which stand in from and
// were marked on the way.
func (r *rewriter) profiles(m Marker, steps []digest.Digest) ([]*pb.Definition, error) {
	var defs []*pb.Definition
	for _, d := range steps {
		def, err := r.to.definition(r.output(m, d))
		if err != nil {
			return nil, err
		}
		defs = append(defs, def)
	}
	return defs, nil
}

// A mark is how a Marker marks commands.
type mark struct {
	Marker
	recording Recording
}

// onto marks a command, unless it has this mark: a build may begin with the
// result of another one that was profiled, as linked targets of bake do. It
// leaves one alone that cannot be marked.
func (m mark) onto(exec *pb.ExecOp) (changed bool) {
	before := exec.CloneVT()
	return m.Mark(exec, m.recording) == nil && !exec.EqualVT(before)
}

// these returns an edit that marks steps.
func (m mark) these(steps []digest.Digest) func(digest.Digest, *pb.Op) bool {
	marked := map[digest.Digest]bool{}
	for _, d := range steps {
		marked[d] = true
	}
	return func(d digest.Digest, op *pb.Op) bool {
		return marked[d] && m.onto(op.GetExec())
	}
}

// steps returns g with steps marked, and where their profiles are.
func (m mark) steps(g *graph, steps []digest.Digest) (*rewriter, error) {
	r := &rewriter{
		from: g, to: &graph{ops: map[digest.Digest]operation{}, infos: g.infos},
		edit: m.these(steps), became: map[digest.Digest]digest.Digest{},
	}
	return r, r.head()
}

// continued returns what stage adds to the target as steps on top of it, of
// which the commands are marked.
func (m mark) continued(stage *graph, target *rewriter) (r *rewriter, own []digest.Digest, err error) {
	inherited := stage.inherits(target.from)
	for _, d := range stage.steps() {
		if _, known := inherited[d]; !known {
			own = append(own, d)
		}
	}
	r, err = target.below(stage, inherited, m.these(own))
	return r, own, err
}

// below puts g on top of what r built: operations that it inherits are those
// that are built already. A definition that includes the target brings all of
// it along, but not to the byte: the build context has another ID in each, and
// is one source for all that a solve needs of it. Built as it is, it would
// build the target a second time.
func (r *rewriter) below(g *graph, inherited map[digest.Digest]digest.Digest, edit func(digest.Digest, *pb.Op) bool) (*rewriter, error) {
	on := &rewriter{from: g, edit: edit, became: map[digest.Digest]digest.Digest{}}
	for d, known := range inherited {
		now, err := r.operation(known)
		if err != nil {
			return nil, err
		}
		on.became[d] = now
	}
	on.to = r.to.clone()
	on.to.forgetLocations(g.infos)
	return on, on.head()
}

// forgetLocations makes room for the operations of a graph with other sources.
func (g *graph) forgetLocations(infos []*pb.SourceInfo) {
	for d, op := range g.ops {
		op.locations = nil
		g.ops[d] = op
	}
	g.infos = infos
}

// inherits maps the operations of g that the target has as well to the
// target's. Sources are not among them: the target's build context may lack
// what g copies.
func (g *graph) inherits(target *graph) map[digest.Digest]digest.Digest {
	known := map[digest.Digest]digest.Digest{}
	for d, meaning := range target.meanings() {
		known[meaning] = d
	}
	inherited := map[digest.Digest]digest.Digest{}
	for d, meaning := range g.meanings() {
		if twin, ok := known[meaning]; ok && g.ops[d].GetSource() == nil {
			inherited[d] = twin
		}
	}
	return inherited
}

// meanings returns a digest for each operation that depends neither on how
// much of the build context a definition asks for, nor on the ID that the
// context has in it.
func (g *graph) meanings() map[digest.Digest]digest.Digest {
	r := &rewriter{from: g, to: &graph{ops: map[digest.Digest]operation{}}, became: map[digest.Digest]digest.Digest{}}
	r.edit = func(_ digest.Digest, op *pb.Op) bool {
		attrs := op.GetSource().GetAttrs()
		before := len(attrs)
		delete(attrs, pb.AttrFollowPaths)
		delete(attrs, pb.AttrLocalUniqueID)
		return len(attrs) != before
	}
	for d := range g.ops {
		if _, err := r.operation(d); err != nil {
			continue // BuildKit will say so, if it matters
		}
	}
	return r.became
}

// unchanged is an edit.
func unchanged(digest.Digest, *pb.Op) bool { return false }
