// Lacking runs a command for which system calls fail, as if the kernel did not
// have them (ENOSYS), did not know their arguments (EINVAL), could not do it for the
// filesystem (ENODEV), or did not allow them (EPERM). It is used by the tests.
//
//	lacking ENOSYS fanotify_init,openat2 command args...
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	errnos = map[string]unix.Errno{"ENOSYS": unix.ENOSYS, "EINVAL": unix.EINVAL, "ENODEV": unix.ENODEV, "EPERM": unix.EPERM}
	calls  = map[string]uint32{
		"fanotify_init":   unix.SYS_FANOTIFY_INIT,
		"fanotify_mark":   unix.SYS_FANOTIFY_MARK,
		"fsopen":          unix.SYS_FSOPEN,
		"openat2":         unix.SYS_OPENAT2,
		"perf_event_open": unix.SYS_PERF_EVENT_OPEN,
	}
	arches = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lacking:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: lacking error calls command [args...]")
	}
	command, err := exec.LookPath(args[2])
	if err != nil {
		return err
	}
	program, err := program(args[0], strings.Split(args[1], ","))
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is that of the thread that executes the command
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&filter))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return unix.Exec(command, args[2:], os.Environ())
}

// program lets all calls through but the named ones. The numbers are those of
// the processor's own programs; 32-bit ones are let alone.
func program(name string, denied []string) ([]unix.SockFilter, error) {
	errno, ok := errnos[name]
	if !ok {
		return nil, fmt.Errorf("unknown error %q", name)
	}
	// Offsets in struct seccomp_data.
	const number, arch = 0, 4
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	p := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arches[runtime.GOARCH], Jt: 1},
		allow,
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
	}
	for _, call := range denied {
		n, ok := calls[call]
		if !ok {
			return nil, fmt.Errorf("unknown system call %q", call)
		}
		p = append(p,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: n, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	}
	return append(p, allow), nil
}
