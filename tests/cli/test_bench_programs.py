"""The benchmark's guest programs: the assembler against iced-x86's decoder, the ELF files, the loops run here."""

import io
import platform
import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from iced_x86 import Decoder, Formatter, FormatterSyntax

from pellucid.cli.bench import elf, workload
from pellucid.cli.bench.asm import AssemblyError, assemble
from pellucid.cli.bench.loops import BY_NAME, PROGRAMS
from pellucid.cli.bench.programs import SYMBOLS, GuestProgram
from tests.cli.bench_results import EXPECTED, ITERATIONS

ORIGIN = 0x40_0000


def disassembled(code: bytes, bits: int = 64) -> list[str]:
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.space_after_operand_separator = True
    formatter.hex_prefix, formatter.hex_suffix, formatter.uppercase_hex = "0x", "", False
    formatter.show_branch_size = False
    formatter.branch_leading_zeros = False
    return [formatter.format(instruction) for instruction in Decoder(bits, code, ip=ORIGIN)]


@pytest.mark.parametrize(
    "text",
    """
    mov rax, 5
    mov rax, 0x123456789abcdef0
    mov edi, [rsp+0x10]
    mov byte [rcx], 3
    mov [rdi+rcx*8-8], r12l
    add rax, 1
    add qword [r13+rbx*2+0x1000], 0x1234
    imul rdx, rax, 0x5851f42d
    imul rax, [rsi], 0x3b9aca00
    movzx ecx, byte [rsi]
    movsx rdx, word [rsi+0x1e]
    lea rax, [rcx+rax*2-0x30]
    shl rdx, 0xd
    rol rbx, 1
    shl rax, cl
    div rcx
    inc byte [rax+rax]
    test eax, 0x10000
    movsd xmm0, [rbx]
    cvtsi2sd xmm6, ecx
    cvttsd2si edx, xmm6
    shufps xmm15, xmm15, 0x39
    movq rax, xmm7
    fld qword [rax]
    fstp tword [rax]
    fsqrt
    push rax
    jmp rax
    call rdx
    syscall
    ret
    """.strip().splitlines(),
)
def test_what_is_written_is_what_is_decoded(text: str) -> None:
    text = text.strip()
    code = assemble(text, ORIGIN).code
    (back,) = disassembled(code)
    back = back.replace("rel ", "")
    assert assemble(back.replace("r12b", "r12l"), ORIGIN).code == code
    assert text.split()[0] == back.split()[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nop", "90"),
        ("add eax, 1", "83c001"),
        ("add rax, -129", "48057fffffff"),
        ("mov eax, 60", "b83c000000"),
        ("xor r9d, r9d", "4531c9"),
        ("mov rdi, [0x1000]", "488b3c2500100000"),
        ("mov [rbp], al", "884500"),
        ("jmp [table+rdx*8]", "ff24d578563412"),
        ("fxch st0, st1", "d9c9"),
        ("fmulp st1, st0", "dec9"),
        ("rep movsq", "f348a5"),
        ("repne scasb", "f2ae"),
        ("stosb", "aa"),
        (".quad 1, table", "01000000000000007856341200000000"),
        (".double 1.0", "000000000000f03f"),
        ('.ascii "a\\n\\0" ; text', "610a00"),
    ],
)
def test_encodings(text: str, code: str) -> None:
    assert assemble(text, ORIGIN, {"table": 0x1234_5678}).code.hex() == code


def test_jumps_and_labels() -> None:
    source = "back: nop\n je back\n jne ahead\n jmp back\n.align 16\nahead: call back\n.quad ahead\n lea rax, [ahead]"
    assembled = assemble(source, ORIGIN)
    assert assembled.labels == {"back": ORIGIN, "ahead": ORIGIN + 16}
    lines = disassembled(assembled.code[:12]) + disassembled(assembled.code[16:21])
    assert lines[:4] == ["nop", "je 0x400000", "jne 0x400010", "jmp 0x400000"]
    assert assembled.code[21:29] == (ORIGIN + 16).to_bytes(8, "little")
    assert assembled.code[29:].hex() == "488d042510004000"


@given(st.integers(0, 300), st.integers(0, 300))
def test_jumps_over_any_distance(before: int, after: int) -> None:
    source = "nop\n" * before + "back:\n" + "nop\n" * after + "jmp back\nje ahead\n" + "nop\n" * before + "ahead: ret"
    assembled = assemble(source, ORIGIN)
    jump, branch = (text for text in disassembled(assembled.code) if text[0] == "j")
    assert jump == f"jmp {ORIGIN + before:#x}" and assembled.labels["back"] == ORIGIN + before
    assert branch == f"je {assembled.labels['ahead']:#x}" and assembled.code[assembled.labels["ahead"] - ORIGIN] == 0xC3


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nop\n  frob rax", "line 2: frob rax: no such instruction"),
        ("mov rax, rbx, rcx", "line 1: .*: no form of the instruction takes these operands"),
        ("mov al, 256", "no form of the instruction"),
        ("movsd xmm0, dword [rax]", "no form of the instruction"),
        ("jmp nowhere", "nothing is called nowhere"),
        ("mov eax, 0x", "line 1"),
        (".quad x, 1", "nothing is called x"),
        ("lock nop nop: x", "line 1"),
    ],
)
def test_what_does_not_assemble(source: str, complaint: str) -> None:
    with pytest.raises(AssemblyError, match=complaint):
        assemble(source, ORIGIN)


@given(st.text("abcdefr x[]+*,:;.0189\n", max_size=40))
def test_any_text_assembles_or_is_refused(source: str) -> None:
    try:
        assemble(source, ORIGIN)
    except AssemblyError:
        pass


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_elf_files(program: GuestProgram) -> None:
    file = ELFFile(io.BytesIO(program.elf()))
    text, data = file.iter_segments()
    assert (file["e_type"], file["e_machine"]) == ("ET_EXEC", "EM_X86_64")
    assert text["p_vaddr"] <= file["e_entry"] < text["p_vaddr"] + text["p_filesz"]
    assert text["p_offset"] % 4096 == text["p_vaddr"] % 4096 == 0
    assert (text["p_flags"], data["p_flags"]) == (elf.PF_R | elf.PF_X, elf.PF_R | elf.PF_W)
    assert (data["p_vaddr"], data["p_filesz"]) == (elf.DATA_ADDRESS, 0)
    assert data["p_memsz"] == 0x1000 + program.data_size


def test_the_probe_is_a_pvh_kernel() -> None:
    file = ELFFile(io.BytesIO(workload.probe_kernel()))
    (note,) = (note for segment in file.iter_segments("PT_NOTE") for note in segment.iter_notes())
    assert (note["n_name"], note["n_descdata"]) == ("Xen", elf.KERNEL_ADDRESS.to_bytes(4, "little"))
    load = next(file.iter_segments("PT_LOAD"))
    assert disassembled(load.data(), 32)[:3] == ["mov dx, 0x3f8", "mov al, 0x21", "out dx, al"]


native = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the programs are for Linux on x86-64"
)


def run(folder: Path, program: GuestProgram, *arguments: str) -> "subprocess.CompletedProcess[str]":
    file = folder / program.name
    file.write_bytes(program.elf())
    file.chmod(0o755)
    return subprocess.run([file, *arguments], capture_output=True, text=True, timeout=120, check=False)


@native
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_programs_run_on_this_processor(tmp_path: Path, program: GuestProgram) -> None:
    done = run(tmp_path, program, str(ITERATIONS))
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert workload.started(first) == program.name
    result = workload.finished(second)
    assert result is not None
    assert (result.name, result.iterations) == (program.name, ITERATIONS)
    assert result.nanoseconds > 0
    assert result.result == EXPECTED[program.name]


@native
@pytest.mark.parametrize("arguments", [(), ("0",), ("1", "2"), ("",)])
def test_programs_refuse_bad_arguments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, BY_NAME["integer"], *arguments)
    assert (done.returncode, done.stdout) == (1, "")


def test_command_line() -> None:
    assert workload.command_line([]) == "console=ttyS0"
    loops = [BY_NAME["fork"], BY_NAME["strings"]]
    text = workload.command_line(loops, 0.5)
    assert text == f"console=ttyS0 bench=fork:{loops[0].iterations // 2},strings:{loops[1].iterations // 2}"
    assert workload.command_line(loops, 1e-9).endswith("bench=fork:1,strings:1")
    # The kernel takes a line of 2047 bytes, and stores /init's environment variables whole.
    assert len(workload.command_line(PROGRAMS)) < 500


def test_the_script_runs_each_loop_that_the_environment_names(tmp_path: Path) -> None:
    script = workload.INIT.replace("/bench/", f"{tmp_path}/").replace("/bin/busybox", f"{tmp_path}/busybox")
    for name, text in (("a", 'echo "ran a $1"'), ("b", "exit 1"), ("busybox", 'echo "busybox $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"bench": "a:12,b:3", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh"], input=script, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "Pellucid: userspace reached"
    assert lines[2:] == ["ran a 12", "bench failed b", "bench done", "busybox poweroff -f"]


def test_symbols_are_apart() -> None:
    """The runtime's variables, of which the largest but the line has 64 bytes, do not overlap a body's memory."""
    assert SYMBOLS["line"] + 256 <= SYMBOLS["buffer"]
    assert re.fullmatch(r"[a-z0-9-]+(,[a-z0-9-]+)*", ",".join(BY_NAME)), "names are words of the kernel's command line"
