"""A firmware image that takes SMIs in several modes and writes what it finds to the debug console (port 0x402).

    qemu-system-x86_64 -M pc -cpu qemu64 -nodefaults -display none -bios IMAGE -debugcon file:OUT \\
        -global isa-debugcon.iobase=0x402 -device isa-debug-exit -no-reboot

`python -m tests.machine.smm_probe IMAGE` writes it. Every SMI's handler writes a record: a letter for the stage, then
CR0, CR4, DR7, EFER, the selectors of CS, DS and SS, FLAGS' low byte, and the 512 bytes of the save map.
"""

import sys
from pathlib import Path

from tests.cpu.guests.asm import assemble

IMAGE_SIZE = 256 << 10
RECORD = 1 + 4 * 4 + 3 * 2 + 1 + 512
STAGES = b"RPLA"
END = b"end."

EMIT = "\n".join("out dx, al\nshr eax, 8" for _ in range(4))
HANDLER = f"""
h:  mov dx, 0x402
    mov bl, al
    lahf
    mov bh, ah
    mov al, [cs:0xFFF8]
    out dx, al
    mov eax, cr0
    {EMIT}
    mov eax, cr4
    {EMIT}
    mov eax, dr7
    {EMIT}
    mov ecx, 0xC0000080
    rdmsr
    mov dx, 0x402
    {EMIT}
    mov ax, cs
    out dx, al
    mov al, ah
    out dx, al
    mov ax, ds
    out dx, al
    mov al, ah
    out dx, al
    mov ax, ss
    out dx, al
    mov al, ah
    out dx, al
    mov al, bh
    out dx, al
    mov esi, 0xFE00
h1: mov al, [cs:esi]
    out dx, al
    inc esi
    cmp esi, 0x10000
    jne h1
    cmp byte [cs:0xFFF8], {STAGES[2]}
    jne h2
    mov dword [cs:0xFF00], 0xA0000
h2: rsm
h_end: nop
"""
COPY = """
    mov si, h
    mov di, 0x8000
    mov cx, h_end - h
{label}: mov al, [cs:si]
    mov [es:di], al
    inc si
    inc di
    dec cx
    jne {label}
"""
REGISTERS = "\n".join(
    f"mov {name}, {0x1010101 * n + 0x10203}"
    for n, name in enumerate(("ebx", "ecx", "edx", "esi", "edi", "ebp"), start=1)
)
REGISTERS_64 = "\n".join(f"mov r{n}, {0x0123_4567_89AB_CD00 + n}" for n in range(8, 16))


def smi(stage: int) -> str:
    """Raise one whose handler knows the stage. QEMU takes it behind the next branch, Pellucid behind the OUT."""
    return f"mov al, {stage}\nout 0xB2, al\njmp short s{stage}\ns{stage}: nop"


PROGRAM = f"""
bits 16
start: cli
    xor ax, ax
    mov ss, ax
    mov ds, ax
    mov sp, 0x7000
    mov ax, 0x3000
    mov es, ax
    {COPY.format(label="c1")}
    mov dx, 0xCF8
    mov eax, 0x80000B58
    out dx, eax
    mov dx, 0xCFC
    in eax, dx
    or eax, 0x2000000
    out dx, eax
    mov eax, 0
    {REGISTERS}
    {smi(STAGES[0])}
    # What RSM gave back.
    mov eax, ebx
    mov dx, 0x402
    {EMIT}
    lgdt [cs:gdt_at]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    db 0x66, 0xEA
    dd 0xF0000 + protected
    dw 8
bits 32
protected: mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov eax, 0xFFFF
    mov esp, 0x7000
    {REGISTERS}
    stc
    {smi(STAGES[1])}
    mov eax, ecx
    mov edx, 0x402
    {EMIT}
    mov edi, 0x20000
    mov ecx, 0x1000
    xor eax, eax
    cld
    rep stosd
    mov dword [0x20000], 0x21003
    mov dword [0x21000], 0x22003
    mov dword [0x22000], 0x83
    mov eax, 0x20000
    mov cr3, eax
    mov eax, 0x20
    mov cr4, eax
    mov ecx, 0xC0000080
    mov eax, 0x100
    xor edx, edx
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 24:0xF0000 + long_mode
bits 64
long_mode: mov eax, 0xFFFF
    {REGISTERS_64}
    mov ecx, 0xC0000100
    mov eax, 0x12345678
    mov edx, 0x7FFF
    wrmsr
    xor eax, eax
    {REGISTERS}
    {smi(STAGES[2])}
    mov rax, r15
    mov edx, 0x402
    {EMIT}
    # The next one goes to 0xA0000: put the handler there while SMRAM is open.
    mov edx, 0xCF8
    mov eax, 0x80000070
    out dx, eax
    mov edx, 0xCFE
    mov al, 0x4A
    out dx, al
    mov esi, 0x38000
    mov edi, 0xA8000
    mov ecx, h_end - h
    rep movsb
    mov al, 0x0A
    out dx, al
    xor eax, eax
    {REGISTERS}
    {smi(STAGES[3])}
    # Locked, it cannot be opened any more.
    mov edx, 0xCFE
    mov al, 0x1A
    out dx, al
    mov al, 0x4A
    out dx, al
    in al, dx
    mov edx, 0x402
    out dx, al
    mov al, 'e'
    out dx, al
    mov al, 'n'
    out dx, al
    mov al, 'd'
    out dx, al
    mov al, '.'
    out dx, al
    mov edx, 0x501
    out dx, al
stop: hlt
    jmp stop
bits 16
{HANDLER}
align 8
gdt: dq 0
    dq 0x00CF9B000000FFFF
    dq 0x00CF93000000FFFF
    dq 0x00AF9B000000FFFF
gdt_at: dw 31
    dd 0xF0000 + gdt
""".replace("'e'", str(END[0])).replace("'n'", str(END[1])).replace("'d'", str(END[2])).replace("'.'", str(END[3]))


def image() -> bytes:
    """256 KiB, entered at their end."""
    done = assemble(PROGRAM, 0, 16)
    top = bytearray(0x1_0000)
    top[: len(done.code)] = done.code
    top[0xFFF0:0xFFF5] = assemble(f"jmp 0xF000:{done.labels['start']}", 0xFFF0, 16).code
    return bytes(IMAGE_SIZE - 0x1_0000) + bytes(top)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(image())
