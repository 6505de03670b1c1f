package frontend

import (
	"fmt"
	"maps"
	"slices"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// A graph is a definition taken apart: operations by the digests of their
// encoding, by which they name one another.
type graph struct {
	ops   map[digest.Digest]operation
	order []digest.Digest // inputs before those who use them
	infos []*pb.SourceInfo
	head  *pb.Input // what the definition is for
}

type operation struct {
	*pb.Op
	encoded   []byte
	metadata  *pb.OpMetadata
	locations *pb.Locations
}

func parse(def *pb.Definition) (*graph, error) {
	g := &graph{ops: map[digest.Digest]operation{}, infos: def.GetSource().GetInfos()}
	for i, encoded := range def.GetDef() {
		op := new(pb.Op)
		if err := op.Unmarshal(encoded); err != nil {
			return nil, fmt.Errorf("operation %d: %w", i, err)
		}
		if i == len(def.Def)-1 {
			// BuildKit takes the first as well, if a client sends others.
			if len(op.Inputs) == 0 {
				return nil, fmt.Errorf("definition without a result")
			}
			g.head = op.Inputs[0]
			return g, nil
		}
		d := digest.FromBytes(encoded)
		g.add(d, operation{op, encoded, def.Metadata[string(d)], def.GetSource().GetLocations()[string(d)]})
	}
	return nil, fmt.Errorf("empty definition")
}

func (g *graph) add(d digest.Digest, op operation) {
	if _, known := g.ops[d]; known {
		return
	}
	if op.metadata == nil {
		op.metadata = &pb.OpMetadata{} // llb knows operations by their metadata
	}
	g.ops[d] = op
	g.order = append(g.order, d)
}

func (g *graph) clone() *graph {
	c := *g
	c.ops, c.order = maps.Clone(g.ops), slices.Clone(g.order)
	return &c
}

// definition returns what builds an output of an operation.
func (g *graph) definition(of *pb.Input) (*pb.Definition, error) {
	def := &pb.Definition{
		Metadata: map[string]*pb.OpMetadata{},
		Source:   &pb.Source{Infos: g.infos, Locations: map[string]*pb.Locations{}},
	}
	for _, d := range g.order {
		op := g.ops[d]
		def.Def = append(def.Def, op.encoded)
		def.Metadata[string(d)] = op.metadata
		if op.locations != nil {
			def.Source.Locations[string(d)] = op.locations
		}
	}
	last, err := (&pb.Op{Inputs: []*pb.Input{of}}).Marshal()
	if err != nil {
		return nil, err
	}
	def.Def = append(def.Def, last)
	def.Metadata[string(digest.FromBytes(last))] = &pb.OpMetadata{}
	return def, nil
}

// ignoresCache says whether the client asked to build any of it anew, in which
// case what follows from it has to be as well.
func (g *graph) ignoresCache() bool {
	for _, op := range g.ops {
		if op.metadata.IgnoreCache {
			return true
		}
	}
	return false
}

// steps returns the commands that made the root filesystem, the first one
// first. Those of stages that files were copied from are not among them.
func (g *graph) steps() []digest.Digest {
	w := &walk{graph: g, seen: map[string]bool{}}
	w.output(g.head)
	return w.steps
}

type walk struct {
	*graph
	seen    map[string]bool
	steps   []digest.Digest
	sources []digest.Digest
}

func (w *walk) output(out *pb.Input) {
	id := fmt.Sprint(out.Digest, out.Index)
	if w.seen[id] {
		return
	}
	w.seen[id] = true
	d := digest.Digest(out.Digest)
	op, known := w.ops[d]
	if !known {
		return
	}
	for _, in := range op.below(out.Index) {
		w.output(in)
	}
	if op.makesRoot(out.Index) {
		w.steps = append(w.steps, d)
	}
	if op.GetSource() != nil {
		w.sources = append(w.sources, d)
	}
}

// makesRoot says whether the output is the root filesystem that a command
// leaves behind.
func (op operation) makesRoot(output int64) bool {
	if op.GetExec().GetMeta() == nil {
		return false
	}
	for _, m := range op.GetExec().GetMounts() {
		if m.Output == output && m.Dest == pb.RootMount {
			return true
		}
	}
	return false
}

// below returns what an output consists of, but for what is new or copied.
func (op operation) below(output int64) []*pb.Input {
	switch o := op.Op.Op.(type) {
	case *pb.Op_Exec:
		for _, m := range o.Exec.GetMounts() {
			if m.Output == output {
				return op.input(m.Input)
			}
		}
	case *pb.Op_File:
		return op.belowFiles(o.File.GetActions(), output)
	case *pb.Op_Merge:
		return op.Inputs
	case *pb.Op_Diff:
		return op.input(o.Diff.GetUpper().GetInput())
	case *pb.Op_Passthrough:
		if outputs := o.Passthrough.GetOutputs(); output >= 0 && output < int64(len(outputs)) {
			return op.input(outputs[output])
		}
	}
	return nil
}

// belowFiles follows a chain of actions, in which the first len(op.Inputs)
// indexes mean inputs and the others the actions before.
func (op operation) belowFiles(actions []*pb.FileAction, output int64) []*pb.Input {
	at := slices.IndexFunc(actions, func(a *pb.FileAction) bool { return a.Output == output })
	for at >= 0 && at < len(actions) {
		in := actions[at].Input
		before := int(in) - len(op.Inputs)
		if before < 0 || before >= at {
			return op.input(in)
		}
		at = before
	}
	return nil
}

func (op operation) input(i int64) []*pb.Input {
	if i < 0 || i >= int64(len(op.Inputs)) {
		return nil
	}
	return op.Inputs[i : i+1]
}
