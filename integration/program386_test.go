package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a program386 does in the end.
var (
	exits   = []byte{0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80} // xor ebx, ebx; mov eax, 1; int 0x80
	crashes = []byte{0xa1, 0, 0, 0, 0}                         // mov eax, [0]
)

// program386 is a program for linux/386, which every amd64 kernel runs, that
// opens its first argument. A compiler for that platform would take longer than
// the test.
func program386(t *testing.T, end []byte) string {
	t.Helper()
	code := append([]byte{
		0x58, 0x5b, 0x5b, // pop eax, ebx, ebx: their number, the name, the first argument
		0x31, 0xc9, // xor ecx, ecx
		0xb8, 5, 0, 0, 0, // mov eax, 5: open
		0xcd, 0x80, // int 0x80
	}, end...)
	const address, headers = 0x08048000, 52 + 32
	size := uint32(headers + len(code))
	header := elf.Header32{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_386), Version: uint32(elf.EV_CURRENT),
		Entry: address + headers, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1,
	}
	load := elf.Prog32{
		Type: uint32(elf.PT_LOAD), Vaddr: address, Filesz: size, Memsz: size,
		Flags: uint32(elf.PF_R | elf.PF_X), Align: 4096,
	}
	var program bytes.Buffer
	for _, part := range []any{header, load, code} {
		require.NoError(t, binary.Write(&program, binary.LittleEndian, part))
	}
	return program.String()
}
