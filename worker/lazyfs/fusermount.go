package lazyfs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// fusermount mounts for a daemon without privileges, by the program that may.
func fusermount(dir string) (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	defer ours.Close()
	options := fmt.Sprintf("ro,suid,dev,allow_other,default_permissions,max_read=%d,fsname=%s,subtype=%s", maxRead, fsName, fsName)
	cmd := exec.Command("fusermount3", "-o", options, "--", dir)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	said, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return nil, unavailableIfRefused(fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(said))))
	}
	return receiveFile(ours)
}

// receiveFile takes a file from a socket.
func receiveFile(socket *os.File) (*os.File, error) {
	conn, err := net.FileConn(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("fusermount3 has sent no file")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

func fuserunmount(dir string) error {
	if said, err := exec.Command("fusermount3", "-u", "-z", "--", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
}
