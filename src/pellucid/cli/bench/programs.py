"""The guest programs: one timed loop of each kind, in assembly.

A program is RUNTIME and a body. It takes its number of iterations as its only argument and prints two lines:

    start NAME
    bench NAME ITERATIONS NANOSECONDS RESULT

The nanoseconds are those of the guest's monotonic clock; whoever reads the console can time the two lines against a
clock of its own. RESULT is what the loop computed, the same on every correct processor. A system call that fails
where it may not makes it exit with status 1, without the second line.

A body is two routines. `setup` is not timed. `body` runs r15 iterations and returns its result in rax; both may use
every register but r15. The numbers of iterations make QEMU's TCG work for about a third of a second on one loop.
"""


from pellucid.cli.bench.asm import assemble
from pellucid.cli.bench.elf import DATA_ADDRESS, TEXT_ADDRESS, program
from pellucid.records import dataclass, field

BUFFER = 0x1000
"""Offset of the body's own memory in the data segment; the runtime's variables are below."""

SYMBOLS = {
    "count": DATA_ADDRESS, "begun": DATA_ADDRESS + 8, "elapsed": DATA_ADDRESS + 16, "result": DATA_ADDRESS + 24,
    "timespec": DATA_ADDRESS + 32, "scratch": DATA_ADDRESS + 64, "line": DATA_ADDRESS + 0x100,
    "buffer": DATA_ADDRESS + BUFFER, "buffer_end": DATA_ADDRESS + BUFFER + 0x1_0000,
    "SYS_read": 0, "SYS_write": 1, "SYS_close": 3, "SYS_pipe": 22, "SYS_madvise": 28, "SYS_fork": 57, "SYS_exit": 60,
    "SYS_wait4": 61, "SYS_getppid": 110, "SYS_clock_gettime": 228,
    "CLOCK_MONOTONIC": 1, "MADV_DONTNEED": 4, "MADV_NOHUGEPAGE": 15,
}  # fmt: skip

RUNTIME = """
_start: cmp qword [rsp], 2          ; argc
        jne fail
        mov rsi, [rsp+16]           ; argv[1]
        xor eax, eax
digit:  movzx ecx, byte [rsi]
        test ecx, ecx
        je parsed
        lea rax, [rax+rax*4]
        lea rax, [rcx+rax*2-48]
        inc rsi
        jmp digit
parsed: mov [count], rax
        mov r15, rax
        test rax, rax
        je fail
        call setup
        mov rsi, start_text
        call text
        call newline
        call now
        mov [begun], rax
        call body
        mov [result], rax
        call now
        sub rax, [begun]
        mov [elapsed], rax
        mov rsi, bench_text
        call text
        mov rax, [count]
        call number
        mov rax, [elapsed]
        call number
        mov rax, [result]
        call number
        call newline
        xor edi, edi
        mov eax, SYS_exit
        syscall
fail:   mov edi, 1
        mov eax, SYS_exit
        syscall

; rax: nanoseconds of the monotonic clock
now:    mov edi, CLOCK_MONOTONIC
        mov rsi, timespec
        mov eax, SYS_clock_gettime
        syscall
        imul rax, [timespec], 1000000000
        add rax, [timespec+8]
        ret

; Begin a line with the text at rsi, which ends in 0. From then on rdi is the line's end.
text:   mov rdi, line
letter: movzx eax, byte [rsi]
        test eax, eax
        je texted
        stosb
        inc rsi
        jmp letter
texted: ret

; Append a space and rax in decimal.
number: mov byte [rdi], 32
        lea rsi, [rdi+21]
        mov ecx, 10
figure: xor edx, edx
        div rcx
        add edx, 48
        dec rsi
        mov [rsi], dl
        test rax, rax
        jne figure
        lea rcx, [rdi+21]
        sub rcx, rsi
        inc rdi
        rep movsb
        ret

; End the line and write it to standard output.
newline: mov byte [rdi], 10
        lea rdx, [rdi+1]
        mov rsi, line
        sub rdx, rsi
        mov edi, 1
        mov eax, SYS_write
        syscall
        ret
"""

NO_SETUP = "setup: ret\n"


@dataclass(frozen=True)
class GuestProgram:
    """A loop by its name: what it exercises, and how often it runs.

    `data_size`: bytes of zeroed memory from BUFFER on. `floating`: it is to be faster than on QEMU.
    """

    name: str
    what: str
    iterations: int
    body: str = field(repr=False)
    data_size: int = 0x1_0000
    floating: bool = False

    def elf(self) -> bytes:
        """The executable file."""
        texts = f'start_text: .ascii "start {self.name}\\0"\nbench_text: .ascii "bench {self.name}\\0"\n'
        assembled = assemble(RUNTIME + self.body + texts, TEXT_ADDRESS, SYMBOLS)
        return program(assembled.code, assembled.labels["_start"], BUFFER + self.data_size)
