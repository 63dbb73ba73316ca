"""Instructions that meet devices: every access reaches the device once and in order, and the result is that of RAM."""

import random

import pytest
from pellucid.cpu.state import CR4_OSXSAVE, EXIT_HLT, RFLAGS_TF

from .machine import DATA, DEVICE, STACK0, Machine

# Instructions on memory at RBX (and for some RSI, RDI, RSP): their accesses as (read/write, offset, size).
R, W = "read", "write"
CASES: list[tuple[str, list[tuple[str, int, int]]]] = [
    ("mov al, [rbx]", [(R, 0, 1)]),
    ("mov ax, [rbx]", [(R, 0, 2)]),
    ("mov eax, [rbx]", [(R, 0, 4)]),
    ("mov rax, [rbx]", [(R, 0, 8)]),
    ("mov [rbx], cl", [(W, 0, 1)]),
    ("mov [rbx], rcx", [(W, 0, 8)]),
    ("mov dword [rbx], 0x12345678", [(W, 0, 4)]),
    ("add [rbx], ecx", [(R, 0, 4), (W, 0, 4)]),
    ("adc [rbx], rcx", [(R, 0, 8), (W, 0, 8)]),
    ("cmp [rbx], ecx", [(R, 0, 4)]),
    ("test [rbx], ecx", [(R, 0, 4)]),
    ("inc word [rbx]", [(R, 0, 2), (W, 0, 2)]),
    ("not qword [rbx]", [(R, 0, 8), (W, 0, 8)]),
    ("lock xadd [rbx], ecx", [(R, 0, 4), (W, 0, 4)]),
    ("xchg [rbx], rcx", [(R, 0, 8), (W, 0, 8)]),
    ("shl dword [rbx], cl", [(R, 0, 4), (W, 0, 4)]),
    ("bts dword [rbx], 5", [(R, 0, 4), (W, 0, 4)]),
    ("push qword [rbx]", [(R, 0, 8)]),
    ("pop qword [rbx]", [(W, 0, 8)]),
    ("movsx eax, byte [rbx]", [(R, 0, 1)]),
    ("imul eax, [rbx]", [(R, 0, 4)]),
    ("setc byte [rbx]", [(W, 0, 1)]),
    ("call qword [rbx]", [(R, 0, 8)]),
    ("movups xmm0, [rbx]", [(R, 0, 8), (R, 8, 8)]),
    ("movups [rbx], xmm1", [(W, 0, 8), (W, 8, 8)]),
    ("movd xmm0, dword [rbx]", [(R, 0, 4)]),
    ("lodsd", [(R, 0, 4)]),
    ("stosq", [(W, 0, 8)]),
    ("movsd", [(R, 0, 4), (W, 0, 4)]),
    ("scasb", [(R, 0, 1)]),
    ("cmpsw", [(R, 0, 2), (R, 0, 2)]),
    ("rep movsb", [(R, 0, 1), (W, 0, 1), (R, 1, 1), (W, 1, 1), (R, 2, 1), (W, 2, 1)]),
    ("rep stosd", [(W, 0, 4), (W, 4, 4), (W, 8, 4)]),
    ("insd", [("in", 0, 4), (W, 0, 4)]),
    ("outsb", [(R, 0, 1), ("out", 0, 1)]),
    ("mov rax, [rbx - 3]", []),
]


def fill(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def prepare(source: str, device: bool) -> tuple[Machine, bytearray]:
    """A machine with RBX, RSI and RDI at DEVICE + 0x100 (or RAM with the same bytes), and the device's bytes."""
    m = Machine()
    m.long(source + "\nhlt")
    assert m.pages is not None
    s = m.state
    memory = bytearray(fill(0x1000))
    memory[0x100:0x108] = (0x12000).to_bytes(8, "little")
    m.load("hlt", 0x12000)
    at = DEVICE + 0x100
    if device:
        m.pages.map(DEVICE, DEVICE)

        def access(port: bool) -> None:
            address, size = s.io_address, s.io_size
            offset = address - DEVICE if not port else 0
            if s.io_write:
                value = s.io_data & (1 << size * 8) - 1
                m.trace.append(("out" if port else W, offset - 0x100 * (not port), size, value))
                if not port:
                    memory[offset : offset + size] = value.to_bytes(size, "little")
                m.processor.complete(0)
            else:
                value = int.from_bytes(memory[offset : offset + size], "little") if not port else 0x5A5A5A5A
                m.trace.append(("in" if port else R, offset - 0x100 * (not port), size, value))
                m.processor.complete(value & (1 << size * 8) - 1)

        m._device = access  # type: ignore[method-assign]
    else:
        m.pages.map(DEVICE, DATA)
        m.write_bytes(DATA, bytes(memory))
        m.device = lambda address, size: 0x5A5A5A5A
    for n, value in ((3, at), (6, at), (7, at), (0, 0x1111), (1, 3), (2, 0)):
        s.gpr[n] = value
    s.gpr[4] = STACK0
    m.write(STACK0, 0x7777, 8)
    return m, memory


def result(m: Machine) -> tuple[object, ...]:
    s = m.state
    xmm = [int.from_bytes(bytes(s.xmm[64 * i : 64 * i + 16]), "little") for i in range(2)]
    return list(s.gpr), m.rflags, s.rip, xmm


@pytest.mark.parametrize(("source", "accesses"), CASES)
def test_same_as_ram(source: str, accesses: list[tuple[str, int, int]]) -> None:
    on_device, memory = prepare(source, True)
    in_ram, _ = prepare(source, False)
    assert on_device.run().reason == in_ram.run().reason == EXIT_HLT
    assert result(on_device) == result(in_ram)
    assert bytes(memory) == in_ram.read_bytes(DATA, 0x1000)
    if accesses:
        assert [(how, offset, size) for how, offset, size, _ in on_device.trace] == accesses


@pytest.mark.parametrize(("source", "accesses"), CASES)
def test_same_when_stepped(source: str, accesses: list[tuple[str, int, int]]) -> None:
    """With TF set, too: each access once, and one trap."""
    m, _ = prepare(source, True)
    m.state.trap_exceptions = 1
    m.rflags = RFLAGS_TF | 2
    plain, _ = prepare(source, True)
    m.run()
    assert m.state.exc_vector == 1
    if accesses and not source.startswith("rep"):
        assert [(how, offset, size) for how, offset, size, _ in m.trace] == accesses


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_across_ram_and_device(size: int) -> None:
    """An access with one foot in RAM goes by bytes."""
    register = {2: "ax", 4: "eax", 8: "rax", 16: "xmm0"}[size]
    move = "movups" if size == 16 else "mov"
    for ram_first in (True, False):
        m = Machine()
        m.long(f"{move} {register}, [rbx]\n{move} [rbx], {register}\nhlt")
        assert m.pages is not None
        base = 0x4000_0000
        m.pages.map(base, DATA if ram_first else DEVICE)
        m.pages.map(base + 0x1000, DEVICE if ram_first else DATA)
        m.device = lambda address, width: address & 0xFF
        m.write_bytes(DATA, bytes(range(256)) * 16)
        m.state.gpr[3] = base + 0x1000 - size // 2
        assert m.run().reason == EXIT_HLT
        expected = bytes((0x100 - size // 2 + i) & 0xFF for i in range(size))
        got = bytes(m.state.xmm[:16]) if size == 16 else (m.state.gpr[0] & (1 << size * 8) - 1).to_bytes(size, "little")
        assert got == expected and m.read_bytes(DATA, 0x1000) == bytes(range(256)) * 16
        assert [entry[2] for entry in m.trace] == [1] * size


def test_faults_between_accesses() -> None:
    """A device is read, then the instruction faults: the handler sees the state before it, and the read is repeated."""
    m = Machine()
    m.long("push qword [rbx]\nhlt")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    m.pages.unmap(0x1F_0000)
    m.processor.flush_tlb()
    m.state.gpr[3], m.state.gpr[4] = DEVICE, 0x1F_0008
    m.gate(14, ist=1)
    assert m.catch() == 14 and m.state.cr2 == 0x1F_0000 and m.state.replay_count == 0
    assert len(m.trace) == 1
    m.pages.map(0x1F_0000, 0x1F_0000)
    m.state.rip, m.state.gpr[4] = 0x10000, 0x1F_0008
    m.set_segment(2, 0x10)
    assert m.run().vector is None and len(m.trace) == 2


def test_many_accesses() -> None:
    """FXSAVE, FXRSTOR and XSAVE to and from a device, also across its pages."""
    for source in ("fxsave [rbx]\nfxrstor [rbx]", "mov eax, 7\nxor edx, edx\nxsave [rbx]\nxrstor [rbx]"):
        for offset in (0, 0xE00):
            m = Machine()
            m.long(source + "\nhlt", cr4=CR4_OSXSAVE)
            assert m.pages is not None
            memory = bytearray(0x3000)
            for page in range(3):
                m.pages.map(DEVICE + page * 0x1000, DEVICE + page * 0x1000)

            def access(port: bool, m: Machine = m, memory: bytearray = memory) -> None:
                s = m.state
                at, size = s.io_address - DEVICE, s.io_size
                if s.io_write:
                    memory[at : at + size] = (s.io_data & (1 << size * 8) - 1).to_bytes(size, "little")
                    m.processor.complete(0)
                else:
                    m.processor.complete(int.from_bytes(memory[at : at + size], "little"))

            m._device = access  # type: ignore[method-assign]
            s = m.state
            s.gpr[3], s.xcr0 = DEVICE + offset, 7
            m.refresh()
            for i in range(16):
                s.xmm[64 * i] = i + 1
            before = bytes(s.xmm[:1024])
            assert m.run().vector is None, m.history()
            assert bytes(s.xmm[:1024]) == before
            assert bytes(memory[offset + 160 + 16 : offset + 160 + 17]) == b"\x02"


def test_enter_and_pusha_on_a_device() -> None:
    m = Machine()
    m.protected("pushad\npopad\nmov ebp, esp\nenter 0x10, 4\nleave\nhlt")
    memory = bytearray(0x1000)

    def access(port: bool) -> None:
        s = m.state
        at, size = s.io_address - DEVICE, s.io_size
        if s.io_write:
            memory[at : at + size] = (s.io_data & (1 << size * 8) - 1).to_bytes(size, "little")
            m.trace.append((W, at, size, 0))
            m.processor.complete(0)
        else:
            m.trace.append((R, at, size, 0))
            m.processor.complete(int.from_bytes(memory[at : at + size], "little"))

    m._device = access  # type: ignore[method-assign]
    m.state.gpr[4] = DEVICE + 0x800
    before = [*range(1, 4), DEVICE + 0x800, *range(5, 8)]
    m.state.gpr[0:8] = [9, 1, 2, 3, DEVICE + 0x800, 5, 6, 7]
    assert m.run().vector is None
    assert m.trace[:8] == [(W, 0x800 - 4 * (i + 1), 4, 0) for i in range(8)]
    assert m.state.gpr[4] == DEVICE + 0x800 and m.state.gpr[0] == 9 and before


def test_interrupt_waits_for_a_half_done_instruction() -> None:
    """A kick between an access and the end of its instruction does not lose or repeat it."""
    m = Machine()
    m.long("add dword [rbx], 1\nhlt")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    m.state.gpr[3] = DEVICE

    def device(port: bool) -> None:
        s = m.state
        m.trace.append((W if s.io_write else R, 0, s.io_size, s.io_data if s.io_write else 10))
        m.processor.complete(10)
        m.processor.kick()

    m._device = device  # type: ignore[method-assign]
    stop = m.run()
    assert stop.reason != EXIT_HLT and m.state.replay_count == 0
    m.state.pending = 0
    assert m.run().reason == EXIT_HLT and m.trace == [(R, 0, 4, 10), (W, 0, 4, 11)]


def test_msr_fault_is_its_own() -> None:
    """An MSR that the hypervisor refuses raises #GP by that instruction, and by no other."""
    m = Machine()
    m.long("mov ecx, 0x999\nfault: rdmsr\nmov ecx, 0x998\nrdmsr\nhlt")
    m.msrs[0x998] = 0x1_0000_0002
    assert m.catch() == 13 and m.stack(2, 8) == [0, m.labels["fault"]]
    m.state.rip = m.labels["fault"] + 2
    assert m.run().vector is None and m.state.gpr[0] == 2 and m.state.gpr[2] == 1


@pytest.mark.parametrize("code", [b"\x90", b"\x0f\xae\xf8", b"\x0f\x06"], ids=["nop", "sfence", "clts"])
def test_code_that_ends_at_the_last_byte(code: bytes) -> None:
    """Of 4 GiB, in a flat segment: EIP goes on at 0."""
    m = Machine()
    m.protected()
    m.load("hlt", 0, 32)
    m.device = lambda address, size: (bytes(256 - len(code)) + code)[address & 0xFF]
    m.state.rip = (1 << 32) - len(code)
    assert m.run().reason == EXIT_HLT and m.state.rip == 1
