package estargz

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// A part is one file of a tar: its headers, contents and padding.
type part struct {
	name       string   // clean
	entry      *Entry   // what the headers say; nil for a global header
	chunks     []*Entry // beyond the first
	start, end int64    // in the tar
	contents   int64    // where they start in the tar; end when there are none
	replaced   bool     // by a later entry with its name, or a landmark
	taken      bool
}

// linkName returns the clean name of the file that a hard link shares, "" of others.
func (f *part) linkName() string {
	if f.entry.Type != TypeHardlink {
		return ""
	}
	return CleanName(f.entry.LinkName)
}

type parts struct {
	all    []*part
	byName map[string]*part
}

// maxGlobals bounds the headers that are those of no file. Writers make one.
const maxGlobals = 1 << 12

// scanTar finds the parts of a tar. Of several files with one name the last
// counts; a TOC and landmarks of an earlier order are left out. A tar that would
// unpack to something else in another order is refused, and so is one with files
// that are not listed, unless nil lists them. What the files take is taken from the
// room.
func scanTar(r io.Reader, listed map[string]*Entry, took *work, room *room) (*parts, error) {
	c := &counter{r: r}
	t := tar.NewReader(c)
	p := &parts{byName: map[string]*part{}}
	var toc tocBuilder
	defer func() { took.entries, took.lookups = took.entries+toc.count, took.lookups+toc.lookups }()
	var start int64
	globals := 0
	for {
		c.limit = start + maxHeaders
		h, err := t.Next()
		c.limit = 0
		if err == io.EOF {
			return p, errors.Join(toc.check(), p.check())
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, fmt.Errorf("tar at %d: %w", start, err)
		}
		e, err := newEntry(h)
		if err == nil && e != nil && listed != nil {
			err = checkListed(e, listed)
		}
		if err == nil && e != nil && !room.take(memoryOfPart(e)) {
			err = fmt.Errorf("tar entry %.100q: %w", e.Name, room.full)
		}
		if err == nil && e != nil {
			e.Name = CleanName(e.Name)
			implied := toc.implied
			_, err = toc.add(e)
			if err == nil && !room.take(int64(toc.implied-implied)*impliedPartSize) {
				err = fmt.Errorf("tar entry %.100q: with the directories above it: %w", e.Name, room.full)
			}
		}
		if err != nil {
			return nil, err
		}
		if e == nil {
			globals++
		}
		if globals > maxGlobals {
			return nil, fmt.Errorf("tar at %d: more than %d global headers", start, maxGlobals)
		}
		contents := c.n
		if e != nil && e.HasContents() {
			if _, err := io.Copy(io.Discard, t); err != nil {
				return nil, fmt.Errorf("tar entry %q: %w", h.Name, noEOF(err))
			}
		}
		end := (c.n + blockSize - 1) &^ (blockSize - 1)
		if contents == c.n { // of a global header the padding is not read yet
			contents = end
		}
		p.add(&part{entry: e, start: start, contents: contents, end: end})
		start = end
	}
}

func checkListed(e *Entry, listed map[string]*Entry) error {
	if name := CleanName(e.Name); listed[name] == nil && !isReserved(name) {
		return fmt.Errorf("the tar has %q, the TOC has not", name)
	}
	return nil
}

// compare checks that a TOC lists the files of the tar.
func (p *parts) compare(listed map[string]*Entry) error {
	for name := range listed {
		if p.byName[name] == nil {
			return fmt.Errorf("the TOC has %q, the tar has not", name)
		}
	}
	for _, f := range p.all {
		if f.entry == nil || f.replaced {
			continue
		}
		if in := listed[f.name]; in.Type != f.entry.Type || in.Size != f.entry.Size {
			return fmt.Errorf("%q is a %s of %d bytes in the tar, a %s of %d in the TOC", f.name, f.entry.Type, f.entry.Size, in.Type, in.Size)
		}
	}
	return nil
}

func (p *parts) add(f *part) {
	p.all = append(p.all, f)
	if f.entry == nil {
		return
	}
	f.name = f.entry.Name
	if old := p.byName[f.name]; old != nil {
		old.replaced = true
	}
	p.byName[f.name] = f
	if isReserved(f.name) {
		f.replaced = true
	}
}

// isReserved says whether a clean name is that of a file which another order
// brings along.
func isReserved(name string) bool {
	return name == TOCName || name == PrefetchLandmark || name == NoPrefetchLandmark
}

// check finds what another order cannot have.
func (p *parts) check() error {
	const fix = "rename it, or use compression=gzip"
	for _, f := range p.all {
		switch {
		case f.entry == nil || f.entry.Type == TypeReg && isReserved(f.name):
		case isReserved(f.name), isReserved(rootOf(f.name)):
			return fmt.Errorf("tar entry %q has a name that eStargz needs for a file of its own; %s", f.entry.Name, fix)
		case isReserved(f.linkName()):
			return fmt.Errorf("tar entry %q is a hard link to %q, a file that eStargz needs for itself; %s", f.entry.Name, f.linkName(), fix)
		}
		dir, base := path.Split(f.name)
		if removed, ok := strings.CutPrefix(base, whiteoutPrefix); ok && p.byName[dir+removed] != nil {
			return fmt.Errorf("tar entry %q takes away a file that the layer has itself", f.entry.Name)
		}
	}
	return nil
}

// whiteoutPrefix begins the name of a file that takes away another one in the
// layers below.
const whiteoutPrefix = ".wh."

// inOrder returns the parts with the named files first, a landmark behind them
// and the rest as it was.
func (p *parts) inOrder(order []string) (first []*part, landmark string, rest []*part) {
	for _, name := range order {
		first = p.take(first, CleanName(name))
	}
	landmark = PrefetchLandmark
	if len(first) == 0 {
		landmark = NoPrefetchLandmark
	}
	for _, f := range p.all {
		if !f.taken && !f.replaced {
			rest = append(rest, f)
		}
	}
	return first, landmark, rest
}

// orderedTar returns the tar in that order. It does not hold on to the parts.
func orderedTar(tar io.ReaderAt, first []*part, landmark string, rest []*part) io.Reader {
	readers := []io.Reader{}
	add := func(parts []*part) {
		for len(parts) > 0 {
			n, start, end := 0, parts[0].start, parts[0].start
			for ; n < len(parts) && parts[n].start == end; n++ {
				end = parts[n].end
			}
			readers, parts = append(readers, io.NewSectionReader(tar, start, end-start)), parts[n:]
		}
	}
	add(first)
	readers = append(readers, bytes.NewReader(landmarkTar(landmark)))
	add(rest)
	return io.MultiReader(append(readers, bytes.NewReader(endOfTar[:]))...)
}

// endOfTar is what ends an archive.
var endOfTar [2 * blockSize]byte

// take appends a file behind what it needs: the directories above it, and the
// file that a hard link shares.
func (p *parts) take(to []*part, name string) []*part {
	f := p.byName[name]
	if f == nil || f.taken || f.replaced {
		return to
	}
	f.taken = true
	if name != "" {
		to = p.takeParents(to, name)
	}
	if target := f.linkName(); target != "" {
		to = p.take(to, target)
	}
	return append(to, f)
}

func (p *parts) takeParents(to []*part, name string) []*part {
	var above []*part
	for name != "" {
		name = parentName(name)
		if dir := p.byName[name]; dir != nil && !dir.taken {
			dir.taken = true
			above = append(above, dir)
		}
	}
	for i := len(above) - 1; i >= 0; i-- {
		to = append(to, above[i])
	}
	return to
}

// rootOf returns the first element of a clean name.
func rootOf(name string) string {
	root, _, _ := strings.Cut(name, "/")
	return root
}

func isLandmark(name string) bool {
	name = CleanName(name)
	return name == PrefetchLandmark || name == NoPrefetchLandmark
}

const landmarkMode = 0o444

func landmarkTar(name string) []byte {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: landmarkMode, Size: 1})
	if err == nil {
		_, err = t.Write([]byte{landmarkContents})
	}
	if err = errors.Join(err, t.Flush()); err != nil {
		panic(err) // the header is known to be good, the buffer takes all
	}
	return b.Bytes()
}

// A counter counts what was read. It returns an error where that passes the
// limit, unless the limit is zero.
type counter struct {
	r     io.Reader
	n     int64
	limit int64
}

func (c *counter) Read(p []byte) (int, error) {
	if c.limit > 0 && c.n >= c.limit {
		return 0, errManyHeaders
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// A stoppable reads until stopped returns an error.
type stoppable struct {
	r       io.Reader
	stopped func() error
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.stopped(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}
