"""Self-modifying code and code that changes from outside; instructions across pages; code in odd places."""

import pytest
from pellucid.cpu.code_cache import MAX_TEMPLATE_OPS, MAX_TEMPLATES, TRIE_EDGES
from pellucid.cpu.state import EXIT_HLT, EXIT_SHUTDOWN

from . import tables
from .machine import CODE, DATA, DEVICE, Machine


def long(source: str, **symbols: int) -> Machine:
    m = Machine()
    m.labels |= {"DATA": DATA, "CODE": CODE, "DEVICE": DEVICE, **symbols}
    m.long(source)
    return m


def done(m: Machine) -> None:
    stop = m.run()
    assert stop.reason == EXIT_HLT and stop.vector is None, m.explain(stop)


def test_next_instruction() -> None:
    """The very next instruction changes (the processor of the manual sees that at once in its own block)."""
    m = long("mov byte [rel patch + 1], 7\npatch: mov al, 1\nhlt")
    for _ in range(2):
        m.state.rip = CODE
        done(m)
        assert m.state.gpr[0] & 0xFF == 7


def test_within_a_loop() -> None:
    """An immediate counts itself up while its loop runs."""
    m = long("xor ebx, ebx\nmov ecx, 50\na: patch: add ebx, 0x01\ninc byte [rel patch + 2]\ndec ecx\njnz a\nhlt")
    done(m)
    assert m.state.gpr[3] == sum(range(1, 51))


def test_an_instruction_that_overwrites_itself() -> None:
    m = long("mov eax, 0xF4909090\nmov edi, a\na: stosd\nb: ud2")
    done(m)
    m = long("mov rdi, a\nmov al, 0x90\nmov ecx, 2\na: rep stosb\nb: hlt")
    done(m)
    assert m.read_bytes(m.labels["a"], 2) == b"\x90\x90"
    m = long("mov rax, 0xF4F4F4F4F4F4F4F4\na: mov [rel a], rax\nnop\nnop\nnop\nnop\nhlt")
    done(m)
    assert m.state.rip == m.labels["a"] + 8, "what it wrote there comes next"


def test_backwards_and_forwards_in_other_blocks() -> None:
    """A block that was executed changes while another runs; the chain between them leads to the new code."""
    m = long(
        "mov ecx, 20\nxor ebx, ebx\na: call f\nmov byte [rel f + 2], cl\ndec ecx\n"
        "jnz a\nhlt\nalign 64\nf: add ebx, 0x01\nret"
    )
    done(m)
    assert m.state.gpr[3] == 1 + sum(range(2, 21))


def test_through_another_mapping() -> None:
    """The store goes to another linear page of the same memory."""
    m = long("a: mov al, 1\nmov byte [rbx], 9\ncmp al, 9\njne a\nhlt")
    assert m.pages is not None
    m.pages.map(0x4000_0000, CODE)
    m.state.gpr[3] = 0x4000_0001
    done(m)
    assert m.state.gpr[0] & 0xFF == 9


def test_stack_pushes_over_code() -> None:
    m = long(
        "mov rsp, f + 16\nmov rax, 0xC3FFC1FF05C38348\ncall f\npush rax\npush rax\n"
        "call f\nhlt\nalign 64\nf: add ebx, 1\nret\ntimes 32 nop"
    )
    m.state.gpr[3] = 0
    m.load("f: add ebx, 1\nret", CODE + 0x40)
    stop = m.run()
    assert stop.reason in (EXIT_HLT, EXIT_SHUTDOWN) and m.state.count_smc >= 1


def test_device_writes() -> None:
    """Memory that a device wrote, with the processor told."""
    m = long("a: mov al, 1\nout 0x10, al\njmp a")
    values = iter((5, 9))

    def device(port: bool) -> None:
        m.trace.append(("out", 0x10, 1, m.state.io_data))
        value = next(values, None)
        m.processor.complete(0)
        if value is None:
            m.write_bytes(CODE, b"\xf4")
        else:
            m.write_bytes(CODE + 1, bytes([value]))

    m._device = device  # type: ignore[method-assign]
    done(m)
    assert [entry[3] for entry in m.trace] == [1, 5, 9]


def test_remapped_code() -> None:
    """The same linear address, another page: no translation of the old one is used."""
    m = long("mov ecx, 3\na: call 0x40000000\nout 0x10, al\ndec ecx\njnz a\nhlt")
    assert m.pages is not None
    for n, page in enumerate((DATA, DATA + 0x1000, DATA + 0x2000)):
        m.load(f"mov al, {n + 1}\nret", page)
    m.pages.map(0x4000_0000, DATA)
    pages = m.pages

    def device(port: bool) -> None:
        m.trace.append(("out", 0, 1, m.state.io_data & 0xFF))
        m.processor.complete(0)
        pages.map(0x4000_0000, DATA + 0x1000 * len(m.trace))
        m.processor.flush_tlb()

    m._device = device  # type: ignore[method-assign]
    done(m)
    assert [entry[3] for entry in m.trace] == [1, 2, 3]


# --- across pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", range(1, 10))
def test_instruction_across_pages(split: int) -> None:
    m = long("hlt")
    at = DATA + 0x1000 - split
    m.load("mov rax, 0x1122334455667788\nhlt", at)
    for _ in range(2):
        m.state.rip, m.state.gpr[0] = at, 0
        done(m)
        assert m.state.gpr[0] == 0x1122334455667788


def test_second_page_of_an_instruction_changes() -> None:
    m = long("mov byte [rbx], 0x99\njmp rdx")
    at = DATA + 0x1000 - 4
    m.load("mov eax, 0x11223344\nhlt", at)
    s = m.state
    s.rip = at
    done(m)
    s.rip, s.gpr[3], s.gpr[2] = CODE, DATA + 0x1000, at
    done(m)
    assert s.gpr[0] == 0x99223344


def test_second_page_of_an_instruction_is_remapped() -> None:
    m = long("hlt")
    assert m.pages is not None
    at = 0x4000_1000 - 4
    m.pages.map(0x4000_0000, DATA)
    m.pages.map(0x4000_1000, DATA + 0x1000)
    m.load("mov eax, 0x11223344\nhlt", DATA + 0x1000 - 4)
    m.write_bytes(DATA + 0x3000, bytes.fromhex("99f4"))
    m.state.rip = at
    done(m)
    m.pages.map(0x4000_1000, DATA + 0x3000)
    m.processor.flush_tlb()
    m.state.rip = at
    done(m)
    assert m.state.gpr[0] == 0x99223344


@pytest.mark.parametrize(("flags", "error"), [(0, 0x10), (tables.P | tables.NX, 0x11)])
def test_second_page_faults(flags: int, error: int) -> None:
    """CR2 is the second page; RIP the instruction."""
    m = long("hlt")
    assert m.pages is not None
    at = 0x4000_1000 - 3
    m.pages.map(0x4000_0000, DATA)
    m.pages.map(0x4000_1000, DATA + 0x1000, flags)
    m.load("nop\nnop\nmov eax, 0x11223344", DATA + 0x1000 - 5)
    m.state.rip = at - 2
    assert m.catch() == 14 and m.state.cr2 == 0x4000_1000 and m.stack(2, 8) == [error, at]


def test_no_look_ahead() -> None:
    """An instruction that ends its page needs nothing of the next; a branch as the last bytes neither."""
    for source, size in (("inc ebx\nhlt", 3), (f"jmp short {DATA + 0xFF0}", 2)):
        m = long("hlt")
        assert m.pages is not None
        m.pages.map(0x4000_0000, DATA)
        at = 0x1000 - size
        m.load("hlt", DATA + 0xFF0)
        m.load(source, DATA + at)
        m.state.rip = 0x4000_0000 + at
        done(m)


def test_self_modification_across_pages() -> None:
    """A loop with an instruction across two pages that counts up its own last byte."""
    m = long("hlt")
    start = DATA + 0x1000 - 7
    m.load("mov ecx, 10\na: add ebx, 0x00000001\ninc byte [rel a + 2]\ndec ecx\njnz a\nhlt", start)
    m.load("mov ecx, 10\na: db 0x81, 0xC3\ndd 1\ninc byte [rel a + 2]\ndec ecx\njnz a\nhlt", start)
    m.state.rip, m.state.gpr[3] = start, 0
    done(m)
    assert m.state.gpr[3] == sum(range(1, 11))


# --- what is no instruction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_fifteen_bytes(bits: int) -> None:
    """Fifteen bytes are an instruction; more are #GP(0), with whatever opcode behind; so across pages, too."""
    for at in (CODE, DATA + 0x1000 - 9):
        for prefixes, tail, vector in (
            (14, "90", 0x30),
            (15, "90", 13),
            (15, "0fff", 13),
            (20, "90", 13),
            (11, "0f04", 6),
            (12, "0f0b", 6),
            (12, "89c8", 0x30),
            (13, "89c8", 0x30),
            (14, "89c8", 13),
        ):
            m = Machine()
            if bits == 64:
                m.long()
            elif bits == 32:
                m.protected()
            else:
                m.real()
                at = at & 0xFFFF | 0xD000 if at & 0xFFF else 0xD000
            m.write_bytes(at, b"\x2e" * prefixes + bytes.fromhex(tail) + b"\xcd\x30")
            m.state.rip = at
            assert m.catch() == vector, (bits, hex(at), prefixes, tail)
            if vector != 0x30:
                size = {16: 2, 32: 4, 64: 8}[bits]
                assert m.stack(2, size)[int(vector == 13 and bits != 16)] == at


def test_invalid_bytes_that_become_valid() -> None:
    m = long("hlt")
    for at in (CODE, DATA + 0x1000 - 1):
        m.write_bytes(at, bytes.fromhex("0fff c0"))
        m.write_bytes(at, bytes.fromhex("0f04"))
        m.state.rip = at
        assert m.catch() == 6
        m.write_bytes(at, bytes.fromhex("b00590f4") if at == CODE else bytes.fromhex("b005f4"))
        m.state.rip = at
        done(m)
        assert m.state.gpr[0] & 0xFF == 5


def test_stale_verdict_on_bytes() -> None:
    """Python found bytes to be no instruction; before the translator uses that, they change."""
    m = long("hlt")
    m.write_bytes(CODE, bytes.fromhex("0f04"))
    m.state.rip = CODE
    code = m.processor.code
    code.invalid_at, code.invalid_count = m.ram.address + CODE, 15
    code.invalid_bytes[:15] = m.read_bytes(CODE, 15)
    m.write_bytes(CODE, bytes.fromhex("b007f4"))
    done(m)
    assert m.state.gpr[0] & 0xFF == 7


def test_lock_is_refused() -> None:
    for source in ("db 0xF0, 0x90", "db 0xF0, 0x89, 0x03", "db 0xF0, 0x01, 0xC3", "db 0xF0, 0xF4"):
        m = long(source)
        assert m.catch() == 6, source


# --- odd places ----------------------------------------------------------------------------------------------------


def test_code_in_a_read_only_slot() -> None:
    """ROM executes; a store into it goes to the device behind it and changes nothing."""
    m = long("hlt")
    rom = m.ram.address + DATA
    m.memory.set_slot(0, 0, DATA, m.ram.address)
    m.memory.set_slot(1, DATA, 0x1000, rom, readonly=True)
    m.memory.set_slot(2, DATA + 0x1000, (2 << 20) - DATA - 0x1000, rom + 0x1000)
    m.processor.flush_code()
    m.state.rip = DATA
    m.ram.map[DATA : DATA + 20] = bytes.fromhex("c605f9ffffff77 b011 f4").ljust(20, b"\xf4")
    done(m)
    assert m.trace == [("write", DATA, 1, 0x77)] and m.state.gpr[0] & 0xFF == 0x11
    assert m.read(DATA, 1) == 0xC6


def test_code_on_a_device() -> None:
    """Instructions are fetched from a device byte by byte, and then executed; what they access comes behind."""
    m = long("hlt")
    assert m.pages is not None
    for page in (0, 0x1000):
        m.pages.map(DEVICE + page, DEVICE + page)
    code = (
        bytes.fromhex("bb")
        + DATA.to_bytes(4, "little")
        + bytes.fromhex("8b03 ffc0 8903 a10000d1fe 00000000 f4".replace(" ", ""))
    )
    code = assemble_at(DEVICE, "mov ebx, DATA\nmov ecx, 3\na: inc dword [rbx]\nmov eax, [rdx]\ndec ecx\njnz a\nhlt")
    m.device = lambda address, size: (
        int.from_bytes(code.ljust(0x1000, b"\xf4")[address - DEVICE : address - DEVICE + size], "little")
        if address < DEVICE + 0x1000
        else 0x1234
    )
    m.state.rip, m.state.gpr[2] = DEVICE, DEVICE + 0x1000
    done(m)
    assert m.read(DATA, 4) == 3 and m.state.gpr[0] == 0x1234 and m.state.count_mmio_fetch > 0
    assert [e for e in m.trace if e[1] == DEVICE + 0x1000] == [("read", DEVICE + 0x1000, 4, 0x1234)] * 3


def assemble_at(at: int, source: str) -> bytes:
    from .asm import assemble

    return assemble(source, at, 64, {"DATA": DATA}).code


@pytest.mark.parametrize("first_is_device", [True, False])
def test_instruction_half_on_a_device(first_is_device: bool) -> None:
    m = long("hlt")
    assert m.pages is not None
    code = bytes.fromhex("48b88877665544332211f4")
    base = 0x4000_0000
    m.pages.map(base, DEVICE if first_is_device else DATA)
    m.pages.map(base + 0x1000, DATA if first_is_device else DEVICE)
    if first_is_device:
        m.write_bytes(DATA, code[4:])
        m.device = lambda address, size: code[address - DEVICE - 0xFFC]
    else:
        m.write_bytes(DATA + 0xFFC, code[:4])
        m.device = lambda address, size: code[4 + address - DEVICE] if address - DEVICE < 7 else 0x90
    m.state.rip = base + 0xFFC
    done(m)
    assert m.state.gpr[0] == 0x1122334455667788


def test_jump_into_nothing() -> None:
    """Where nothing answers, all ones are read: #UD, as on a machine."""
    m = long("mov eax, DEVICE\njmp rax")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    m.device = lambda address, size: ~0 & (1 << 64) - 1
    assert m.catch() == 6 and m.stack(1, 8) == [DEVICE]


def test_arena_flush() -> None:
    """A full arena is emptied, and the guest goes on."""
    m = long("mov ecx, 300\na: inc byte [rel b + 1]\nb: mov al, 0\ndec ecx\njnz a\nhlt")
    code = m.processor.code
    code.arena_size = 64 << 10
    done(m)
    assert m.state.gpr[0] & 0xFF == 300 & 0xFF
    assert code.arena_used < 64 << 10


def test_full_tries_start_over() -> None:
    """Templates or trie full: everything is forgotten, and learned again; blocks that stand go on."""
    for name, value in (
        ("templates", MAX_TEMPLATES - 3),
        ("ops", MAX_TEMPLATE_OPS - 10),
        ("edges", TRIE_EDGES // 2 - 3),
    ):
        m = long("mov ecx, 1000\na: inc ebx\ndec ecx\njnz a\nmov edx, 5\nxor esi, esi\nhlt")
        learner = m.processor.learner
        setattr(learner, name, value)
        done(m)
        assert m.state.gpr[3] == 1000
        assert getattr(learner, name) < value


def test_blocks_that_share_a_set_of_the_block_cache() -> None:
    """Two live side by side in it, a third drives one out, and each that changes is seen to."""
    window, first = 0x8000, 0x140000 + 0x400
    m = Machine()
    places = []
    for n in range(3):  # whose host addresses have the same set: their bits 14:0 xor those above
        high = (m.ram.address + first) >> 15
        places.append(first + n * window & ~0x7FFF | (first ^ high ^ (high + n)) & 0x7FFF)
    assert len({((m.ram.address + place) ^ ((m.ram.address + place) >> 15)) & 0x7FFF for place in places}) == 1
    m.labels |= {f"f{n}": place for n, place in enumerate(places)}
    calls = "".join(f"mov edx, f{n}\ncall rdx\n" for n in range(3))
    changes = "".join(f"mov edx, f{n}\nmov byte [rdx + 2], cl\n" for n in range(3))
    m.long(f"xor ebx, ebx\nmov ecx, 10\na: {calls}{calls}{changes}dec ecx\njnz a\nhlt")
    for place in places:
        m.load("add ebx, 0x01\nret", place)
    done(m)
    assert m.state.gpr[3] == 2 * 3 * (1 + sum(range(2, 11)))


# --- stores that change nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "kept"), [(0x05, True), (0x06, False)])
def test_the_bytes_that_stand_there_keep_translations(value: int, kept: bool) -> None:
    """Storing what code is already: it stays translated. Anything else is seen at once."""
    m = long(f"mov ecx, 10\na: call f\nmov byte [rel f + 2], {value}\ndec ecx\njnz a\nhlt\n"
             "align 64\nf: add ebx, 5\nret")  # fmt: skip
    m.state.gpr[3] = 0
    done(m)
    assert m.state.gpr[3] == (50 if kept else 5 + 9 * 6)
    assert (m.state.count_smc == 0) == kept


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_byte_of_a_store_counts(size: int) -> None:
    """A store differs from what stands there in its last byte alone."""
    m = long(f"call f\nmov rsi, f + {8 - size}\n"
             f"mov rax, 0xF490909090909090\nshr rax, {64 - 8 * size}\n"
             f"mov [rsi], {('al', 'ax', 'eax', 'rax')[(1, 2, 4, 8).index(size)]}\ncall f\nhlt\n"
             "align 64\nf: times 7 nop\nret")  # fmt: skip
    done(m)
    assert m.state.rip == m.labels["f"] + 8, "the RET became HLT"
    assert m.state.count_smc == 1
