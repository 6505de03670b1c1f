package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

// A pod is one container.
type pod struct {
	corev1.Pod
	cluster *cluster
}

// start refuses fields that it does not know how to honour.
func (c *cluster) start(w *workload) (*pod, error) {
	p := &pod{cluster: c}
	p.Name, p.Namespace, p.Labels, p.Annotations = w.name+"-0", "default", w.template.Labels, w.template.Annotations
	p.Spec, p.Status.Phase = w.template.Spec, corev1.PodRunning

	rest := p.Spec
	rest.Containers, rest.Volumes, rest.TerminationGracePeriodSeconds, rest.AutomountServiceAccountToken = nil, nil, nil, nil
	if !reflect.DeepEqual(rest, corev1.PodSpec{}) || len(p.Spec.Containers) != 1 {
		return nil, fmt.Errorf("a pod with unknown fields: %v", rest)
	}
	args, err := p.args(w.claims)
	if err != nil {
		return nil, err
	}
	if out, err := c.command(context.Background(), args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return p, nil
}

// args are those of podman.
func (p *pod) args(claims []corev1.PersistentVolumeClaim) ([]string, error) {
	container := p.Spec.Containers[0]
	rest := container
	args := []string{"run", "--detach", "--name", p.Name, "--network", "host", "--quiet", "--tls-verify=false",
		// As much as a machine gives that gives little.
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	more, err := security(container.SecurityContext)
	if err != nil {
		return nil, err
	}
	args = append(args, more...)
	for _, env := range container.Env {
		args = append(args, "--env", env.Name+"="+env.Value)
	}
	for _, m := range container.VolumeMounts {
		dir, err := p.volume(m.Name, claims)
		if err != nil {
			return nil, err
		}
		option := ""
		if m.ReadOnly {
			option = ":ro"
		}
		args = append(args, "--volume", dir+":"+m.MountPath+option)
	}
	rest.Name, rest.Image, rest.Args, rest.Env, rest.VolumeMounts, rest.SecurityContext = "", "", nil, nil, nil, nil
	rest.Ports, rest.Resources, rest.StartupProbe, rest.ReadinessProbe, rest.LivenessProbe = nil, corev1.ResourceRequirements{}, nil, nil, nil
	if !reflect.DeepEqual(rest, corev1.Container{}) {
		return nil, fmt.Errorf("a container with unknown fields: %v", rest)
	}
	return append(append(args, container.Image), container.Args...), nil
}

func security(s *corev1.SecurityContext) (args []string, err error) {
	if s == nil {
		return nil, nil
	}
	rest := *s
	if s.Privileged != nil && *s.Privileged {
		args = append(args, "--privileged")
	}
	if s.SeccompProfile != nil && s.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined {
		args = append(args, "--security-opt", "seccomp=unconfined")
		rest.SeccompProfile = nil
	}
	if s.AppArmorProfile != nil && s.AppArmorProfile.Type == corev1.AppArmorProfileTypeUnconfined {
		args = append(args, "--security-opt", "apparmor=unconfined")
		rest.AppArmorProfile = nil
	}
	if s.RunAsUser != nil && s.RunAsGroup != nil {
		args = append(args, "--user", fmt.Sprintf("%d:%d", *s.RunAsUser, *s.RunAsGroup))
		rest.RunAsUser, rest.RunAsGroup, rest.RunAsNonRoot = nil, nil, nil
	}
	rest.Privileged = nil
	if !reflect.DeepEqual(rest, corev1.SecurityContext{}) {
		return nil, fmt.Errorf("a security context with unknown fields: %v", rest)
	}
	return args, nil
}

// volume makes the directory that is mounted for a volume.
func (p *pod) volume(name string, claims []corev1.PersistentVolumeClaim) (dir string, err error) {
	dir = filepath.Join(p.cluster.dir, p.Name, name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return "", err
	}
	for _, claim := range claims {
		if claim.Name == name {
			return dir, nil
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.Name != name {
			continue
		}
		files := map[string][]byte{}
		switch {
		case v.EmptyDir != nil:
		case v.ConfigMap != nil:
			if config, ok := p.cluster.objects["configmaps/"+v.ConfigMap.Name].(*corev1.ConfigMap); ok {
				for name, text := range config.Data {
					files[name] = []byte(text)
				}
			}
		case v.Secret != nil:
			if secret, ok := p.cluster.objects["secrets/"+v.Secret.SecretName].(*corev1.Secret); ok {
				files = secret.Data
			}
		default:
			return "", fmt.Errorf("volume %s is of an unknown kind", name)
		}
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				return "", err
			}
		}
		return dir, nil
	}
	return "", fmt.Errorf("no volume %s", name)
}

// ready runs what asks the container whether it is ready, and alive.
func (p *pod) ready() bool {
	container := p.Spec.Containers[0]
	for _, probe := range []*corev1.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		if probe == nil {
			continue
		}
		if probe.Exec == nil {
			return false
		}
		if p.cluster.command(context.Background(), append([]string{"exec", p.Name}, probe.Exec.Command...)...).Run() != nil {
			return false
		}
	}
	return true
}

func (p *pod) end() error {
	out, err := p.cluster.command(context.Background(), "rm", "--force", "--volumes", "--time", "20", p.Name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove %s: %w\n%s", p.Name, err, out)
	}
	return nil
}
