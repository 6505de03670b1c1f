package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// codecs refuse fields that the schemas do not have.
var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict)
}()

// decode takes YAML, JSON and protobuf.
func decode(data []byte) (runtime.Object, error) {
	object, _, err := codecs.UniversalDeserializer().Decode(data, nil, nil)
	return object, err
}

func encode(object runtime.Object) ([]byte, error) {
	return runtime.Encode(codecs.LegacyCodec(appsv1.SchemeGroupVersion, corev1.SchemeGroupVersion), object)
}

// decodeAll takes a file of YAML documents.
func decodeAll(text []byte) (objects []runtime.Object, err error) {
	for in := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(string(text)))); ; {
		document := make([]byte, len(text))
		n, err := in.Read(document)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		object, err := decode(document[:n])
		if err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
}

// A workload is what makes pods.
type workload struct {
	name     string
	selector *metav1.LabelSelector
	template *corev1.PodTemplateSpec
	claims   []corev1.PersistentVolumeClaim
}

func asWorkload(object runtime.Object) *workload {
	switch o := object.(type) {
	case *appsv1.Deployment:
		return &workload{o.Name, o.Spec.Selector, &o.Spec.Template, nil}
	case *appsv1.StatefulSet:
		return &workload{o.Name, o.Spec.Selector, &o.Spec.Template, o.Spec.VolumeClaimTemplates}
	}
	return nil
}

// agree checks what the schemas cannot: that what an object names is there.
func agree(objects []runtime.Object) error {
	pods := map[string]labels.Set{} // labels, by workload
	services := map[string]bool{}
	for _, object := range objects {
		if w := asWorkload(object); w != nil {
			pods[w.name] = w.template.Labels
			if err := w.agree(); err != nil {
				return err
			}
		}
		if s, ok := object.(*corev1.Service); ok {
			services[s.Name] = true
		}
	}
	for _, object := range objects {
		var name string
		var selector *metav1.LabelSelector
		switch o := object.(type) {
		case *corev1.Service:
			name, selector = o.Name, &metav1.LabelSelector{MatchLabels: o.Spec.Selector}
		case *policyv1.PodDisruptionBudget:
			name, selector = o.Name, o.Spec.Selector
		case *appsv1.StatefulSet:
			if !services[o.Spec.ServiceName] {
				return fmt.Errorf("%s: no service %q", o.Name, o.Spec.ServiceName)
			}
			continue
		default:
			continue
		}
		found := false
		for _, set := range pods {
			matches, err := matches(selector, set)
			if err != nil {
				return err
			}
			found = found || matches
		}
		if !found {
			return fmt.Errorf("%s selects no pods", name)
		}
	}
	return nil
}

func matches(selector *metav1.LabelSelector, set labels.Set) (bool, error) {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(set), err
}

func (w *workload) agree() error {
	if matches, err := matches(w.selector, w.template.Labels); err != nil || !matches {
		return fmt.Errorf("%s does not select its own pods: %w", w.name, err)
	}
	volumes := map[string]bool{}
	for _, v := range w.template.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, claim := range w.claims {
		volumes[claim.Name] = true
	}
	for _, container := range w.template.Spec.Containers {
		for _, m := range container.VolumeMounts {
			if !volumes[m.Name] {
				return fmt.Errorf("%s mounts %q, which is no volume", w.name, m.Name)
			}
		}
	}
	return nil
}
