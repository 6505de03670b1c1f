package estargz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// referenceTOC is decodeTOC by encoding/json alone.
func referenceTOC(r io.Reader, each func(*Entry) error) error {
	d := json.NewDecoder(r)
	if err := expect(d, json.Delim('{')); err != nil {
		return err
	}
	seen := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		switch key {
		case "version":
			err = referenceVersion(d)
		case "entries":
			if seen {
				return errors.New("entries stand twice")
			}
			seen = true
			err = referenceEntries(d, each)
		default:
			var ignored json.RawMessage
			err = d.Decode(&ignored)
		}
		if err != nil {
			return err
		}
	}
	return expect(d, json.Delim('}'))
}

func referenceVersion(d *json.Decoder) error {
	var version int
	if err := d.Decode(&version); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	if version != tocVersion {
		return fmt.Errorf("version %d is unknown, want %d", version, tocVersion)
	}
	return nil
}

func referenceEntries(d *json.Decoder, each func(*Entry) error) error {
	t, err := d.Token()
	if err != nil || t == nil { // null is how Go writes an empty list
		return err
	}
	if t != json.Delim('[') {
		return fmt.Errorf("entries: found %v, want a list", t)
	}
	names := newOwnerNames()
	for n := 0; d.More(); n++ {
		if n == maxTOCEntries {
			return fmt.Errorf("more than %d entries", maxTOCEntries)
		}
		e := &Entry{}
		j := jsonEntry{Entry: e}
		if err := d.Decode(&j); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if j.ModTime != "" {
			if e.ModTime, err = time.Parse(time.RFC3339, j.ModTime); err != nil {
				return fmt.Errorf("entry %d (%q): %w", n, e.Name, err)
			}
		}
		if e.Type != TypeChunk {
			names.fill(e)
		}
		if err := each(e); err != nil {
			return fmt.Errorf("entry %d (%q): %w", n, e.Name, err)
		}
	}
	return expect(d, json.Delim(']'))
}

func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if t != want {
		return fmt.Errorf("found %v, want %v", t, want)
	}
	return nil
}

// awkward are entries that a fast decoder may take for something else.
var awkward = []string{
	`{"name":"a","type":"reg","size":5,"modtime":"2024-02-29T12:00:00Z","mode":420,"uid":1,"gid":2,"userName":"u","groupName":"g","offset":100,"chunkDigest":"sha256:00","digest":"sha256:00"}`,
	"{\n\t\"name\" : \"a\" ,\r\n \"type\":\"dir\"\n}", `{}`, `{ }`, `null`, `5`, `"x"`, `[]`, `[{}]`, `true`, `{"name"}`, `{"name":}`, `{"name":"a",}`, `{,}`, `{"name":"a" "type":"reg"}`,
	`{"name":"\u00e4\n\ud83d\ude00","type":"reg"}`, `{"name":"\ud83d","type":"reg"}`, "{\"name\":\"\xff\",\"type\":\"reg\"}", "{\"name\":\"ä日本\",\"type\":\"reg\"}", "{\"name\":\"\x01\"}", `{"name":"a\"b\\"}`, `{"name":"\x"}`,
	`{"NAME":"a"}`, `{"Name":"a","name":"b"}`, `{"name":"b","NAME":"a"}`, `{"name":"a","name":"b"}`, `{"\u006eame":"a"}`, `{"ſize":5}`, `{"size":1,"size":2}`, `{"name":"a","name":null}`,
	`{"size":null}`, `{"size":-5}`, `{"size":-0}`, `{"size":-}`, `{"size":00}`, `{"size":01}`, `{"size":1.0}`, `{"size":1e3}`, `{"size":1E3}`, `{"size":"1"}`, `{"size":9223372036854775807}`, `{"size":9223372036854775808}`, `{"size":-9223372036854775808}`, `{"size":999999999999999}`, `{"size":1000000000000000}`, `{"size":9999999999999999}`, `{"size":+1}`, `{"size":1 }`, `{"size": 1,"mode":2}`, `{"size":true}`, `{"size":{}}`,
	`{"uid":2147483647}`, `{"uid":2147483648}`, `{"uid":-2147483648}`, `{"uid":4294967295}`,
	`{"modtime":""}`, `{"modtime":null}`, `{"modtime":"noon"}`, `{"modtime":"2024-02-30T12:00:00Z"}`, `{"modtime":"2024-02-29T12:00:00.123456789+02:00"}`, `{"modtime":"2024-02-29T12:00:00,5Z"}`, `{"modtime":"0001-01-01T00:00:00Z"}`, `{"ModTime":"2024-02-29T12:00:00Z"}`,
	`{"type":"door"}`, `{"type":""}`, `{"digest":"x","chunkDigest":"x"}`, `{"chunkDigest":"x","digest":""}`,
	`{"xattrs":{"user.a":"AAEC","user.b":"","user.c":null}}`, `{"xattrs":{"a":"AA=="},"xattrs":{"b":"AA=="}}`, `{"xattrs":null}`, `{"xattrs":{"a":"?"}}`, `{"xattrs":{"a":[1,2]}}`,
	`{"unknown":{"a":[1,"]}",{"b":"\""}]},"name":"a"}`, `{"unknown":[}]}`, `{"unknown":nul}`, `{"entries":[]}`, `{"memberEnd":5}`, `{"Entry":{"name":"x"}}`,
}

// agree checks that both decoders take a TOC for the same. Only ours bounds the
// size of an entry.
func agree(t testing.TB, toc string) {
	decode := func(decode func(io.Reader, func(*Entry) error) error) (list []Entry, err error) {
		err = decode(strings.NewReader(toc), func(e *Entry) error {
			list = append(list, *e)
			return nil
		})
		return list, err
	}
	want, wantErr := decode(referenceTOC)
	got, err := decode(func(r io.Reader, each func(*Entry) error) error {
		return decodeTOC(r, &allowance{payload: 1 << 40}, each)
	})
	if errors.Is(err, errEntrySize) {
		return
	}
	require.Equal(t, wantErr == nil, err == nil, "%.200q: %v, want %v", toc, err, wantErr)
	if err == nil {
		require.Equal(t, want, got, "%.200q", toc)
	}
}

func TestDecodeTOCAgrees(t *testing.T) {
	for _, e := range awkward {
		agree(t, `{"version":1,"entries":[`+e+`]}`)
		agree(t, `{"version":1,"entries":[{"name":"before","type":"reg","userName":"u"}, `+e+" ,\n"+e+`,{"name":"behind","type":"dir"}]}`)
		agree(t, `{"version":1,"entries":[`+e+`,]}`)
		agree(t, `{"version":1,"entries":[`+e+` `+e+`]}`)
		agree(t, `{"version":1,"entries":[`+e)
		agree(t, `{"ignored":`+e+`,"entries":[],"version":1}`)
		agree(t, `{"version":`+e+`}`)
		agree(t, `{`+e+`:1}`)
		for cut := range len(e) {
			agree(t, `{"entries":[`+e[:cut])
			agree(t, `{"entries":[`+e[:cut]+`]}`)
		}
	}
	for _, toc := range []string{``, ` `, `{}`, `{"entries":null}`, `{"entries":nil}`, `{"entries":{}}`, `{"entries":5}`, `{"entries":[]}x`, `[]`, `null`, `{"version":1,}`, `{"version":1 "entries":[]}`, `{"Entries":[{}]}`, `{"entr\u0069es":[{"name":"a"}]}`} {
		agree(t, toc)
	}
}

// TestDecodeTOCAcrossBuffers has entries of all lengths at the ends of the
// decoder's buffer.
func TestDecodeTOCAcrossBuffers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for shift := range 300 {
		var b strings.Builder
		fmt.Fprintf(&b, `{"entries":[{"name":"%s","type":"dir"}`, strings.Repeat("x", scanSize-200-shift))
		for i := range 20 {
			fmt.Fprintf(&b, ",\n"+`{"name":"file%d","type":"reg","size":%d,"digest":"%s"}`, i, i, strings.Repeat("d", shift))
		}
		agree(t, b.String()+"]}")
	}
	agree(t, `{"entries":[{"name":"`+strings.Repeat("x", 3*scanSize)+`","type":"dir"},{"name":"b\n`+strings.Repeat("y", 5*scanSize)+`"}]}`)
}

func FuzzDecodeTOC(f *testing.F) {
	for _, e := range awkward {
		f.Add(`{"version":1,"entries":[` + e + `]}`)
	}
	f.Fuzz(func(t *testing.T, toc string) { agree(t, toc) })
}
