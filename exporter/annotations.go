package exporter

import "github.com/moby/buildkit/exporter/containerimage/exptypes"

// dropAnnotations removes from the metadata of a result the annotations that attrs
// set too. BuildKit prefers those of the result, which is right for what a frontend
// says, but not for what a converted image had before.
func dropAnnotations(metadata map[string][]byte, attrs map[string]string) {
	set := map[string]bool{}
	for k := range attrs {
		if a, ok, err := exptypes.ParseAnnotationKey(k); ok && err == nil {
			set[a.String()] = true
		}
	}
	for k := range metadata {
		a, ok, err := exptypes.ParseAnnotationKey(k)
		if !ok || err != nil {
			continue
		}
		ofAll := exptypes.AnnotationKey{Type: a.Type, Key: a.Key}
		if set[a.String()] || set[ofAll.String()] {
			delete(metadata, k)
		}
	}
}
