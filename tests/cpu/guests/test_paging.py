"""Page walks against a model written from the manual (SDM vol. 3, 4.3 to 4.9): permissions, errors, A and D bits."""

from __future__ import annotations

import random

import pytest
from pellucid.cpu.state import (
    CR0_WP,
    CR4_PKE,
    CR4_PKS,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CS,
    EFER_NXE,
    FEATURE_PDPE1GB,
    FEATURES_SYSTEM,
    RFLAGS_AC,
    SS,
)
from pellucid.records import dataclass, field

from .machine import CODE32, CODE64, DATA, DATA0, DEVICE, STACK0, STACK3, USER32, USER64, USER_DATA, Machine
from .tables import NX, PS, A, D, G, P, U, W

READ, WRITE, FETCH = "read", "write", "fetch"
DONE = 0x50
SUPERVISOR_CODE, USER_CODE, TARGET = 0x11000, 0x12000, 0x1F_0000
LINEAR = {2: 0x401F_0000, 3: 0xC01F_0000, 4: 0xFFFF_8140_401F_0000, 5: 0x00AB_8140_401F_0000}
PHYSICAL_WIDTH = 40
ADDRESS = 0xF_FFFF_FFFF_F000


@dataclass
class Space:
    """What an access meets: the paging-structure entries top first, and the controls that it depends on."""

    levels: int
    shift: int  # of the leaf
    entries: list[int] = field(default_factory=list)
    wp: bool = True
    nxe: bool = True
    smep: bool = False
    smap: bool = False
    ac: bool = False
    pse: bool = True
    pkru: int | None = None
    pkrs: int | None = None

    def shifts(self) -> list[int]:
        every = {2: [22, 12], 3: [30, 21, 12], 4: [39, 30, 21, 12], 5: [48, 39, 30, 21, 12]}[self.levels]
        return every[: every.index(self.shift) + 1]

    def is_leaf(self, shift: int, entry: int) -> bool:
        if self.levels == 2:
            return shift == 12 or bool(entry & PS) and self.pse
        return shift == 12 or bool(entry & PS) and shift in (21, 30) and not (self.levels == 3 and shift == 30)

    def reserved(self, shift: int, entry: int) -> bool:
        """Table 4-4 and what each mode's figures mark as reserved; PAE's pointers were checked when loaded."""
        if self.levels == 2:
            return shift == 22 and bool(entry & PS) and self.pse and bool(entry & 1 << 21)
        if self.levels == 3 and shift == 30:
            return False
        mask = (1 << 52) - (1 << PHYSICAL_WIDTH)
        if not self.nxe:
            mask |= NX
        if self.levels == 3:
            mask |= 0x7FF << 52
        if entry & PS and shift > 12:
            if shift >= 39:
                return True
            mask |= (1 << shift) - (1 << 13)
        return bool(entry & mask)

    def access(self, kind: str, user: bool) -> int | None:
        """The #PF error code, or None where the access is allowed."""
        code = (2 if kind == WRITE else 0) | (4 if user else 0)
        if kind == FETCH and (self.nxe and self.levels > 2 or self.smep):
            code |= 0x10
        rights, no_execute = W | U, False
        for shift, entry in zip(self.shifts(), self.entries):
            if not entry & P:
                return code
            if self.reserved(shift, entry):
                return code | 9
            if self.levels == 3 and shift == 30:
                continue
            rights &= entry
            no_execute |= bool(entry & NX) and self.levels > 2
            if self.is_leaf(shift, entry):
                break
        return self._rights(kind, user, code | 1, rights, no_execute, entry)

    def _rights(self, kind: str, user: bool, code: int, rights: int, no_execute: bool, leaf: int) -> int | None:
        user_page, writable = bool(rights & U), bool(rights & W)
        allowed = not (user and not user_page)
        if kind == WRITE:
            allowed &= writable or not user and not self.wp
        if kind == FETCH:
            allowed &= not no_execute and not (not user and user_page and self.smep)
        elif not user and user_page and self.smap and not self.ac:
            allowed = False
        rights_of_keys = self.pkru if user_page else self.pkrs
        if rights_of_keys is not None and self.levels >= 4 and kind != FETCH:
            key = rights_of_keys >> (leaf >> 59 & 15) * 2
            if key & 1 or key & 2 and kind == WRITE and (user or self.wp):
                return code | 0x20
        return None if allowed else code


class Prober:
    """A machine that makes one access in a given space."""

    def __init__(self, levels: int) -> None:
        self.levels, self.long = levels, levels >= 4
        self.m = m = Machine(maxphyaddr=PHYSICAL_WIDTH)
        if self.long:
            m.long(levels=levels)
        else:
            m.protected(paging=levels)
        assert m.pages is not None
        # What the prober itself needs is the supervisor's, but for the user's code.
        for page in range(0, 2 << 20, 4096):
            m.pages.map(page, page, P | W)
        m.pages.map(USER_CODE, USER_CODE, P | U)
        where = "rbx" if self.long else "ebx"
        bits = 64 if self.long else 32
        for base in (SUPERVISOR_CODE, USER_CODE):
            for at, source in ((0, f"mov al, [{where}]"), (0x40, f"mov byte [{where}], 0xCD"), (0x80, f"jmp {where}")):
                m.load(f"{source}\nint {DONE}", base + at, bits)
        m.load(f"int {DONE}", TARGET, bits)
        self.gpr = LINEAR[levels]
        self.where: list[int] = []

    def install(self, space: Space) -> list[int]:
        """Write the entries; their addresses."""
        m, s = self.m, self.m.state
        assert m.pages is not None
        if not self.where:
            self.where = m.pages.entries(self.gpr, space.shift)
        for address, value in zip(self.where, space.entries):
            m.write(address, value, m.pages.entry_size)
        s.cr0 = s.cr0 & ~CR0_WP | CR0_WP * space.wp
        s.cr4 = s.cr4 & ~(CR4_SMEP | CR4_SMAP | CR4_PSE | CR4_PKE | CR4_PKS) | (
            CR4_SMEP * space.smep | CR4_SMAP * space.smap | CR4_PSE * space.pse
            | CR4_PKE * (space.pkru is not None) | CR4_PKS * (space.pkrs is not None)
        )
        s.efer = s.efer & ~EFER_NXE | EFER_NXE * space.nxe
        s.pkru, s.pkrs = space.pkru or 0, space.pkrs or 0
        if self.levels == 3:
            m.load_pdptrs()
        m.processor.flush_tlb()
        return self.where

    def access(self, kind: str, user: bool, ac: bool) -> int | None:
        """Make the access; the error code of its page fault, or None."""
        m, s = self.m, self.m.state
        code, data = (
            ((USER64, USER_DATA) if user else (CODE64, DATA0))
            if self.long
            else ((USER32, USER_DATA) if user else (CODE32, DATA0))
        )
        m.set_segment(CS, code)
        m.set_segment(SS, data)
        s.cpl, s.rip = 3 * user, (USER_CODE if user else SUPERVISOR_CODE) + {READ: 0, WRITE: 0x40, FETCH: 0x80}[kind]
        s.gpr[3], s.gpr[4], s.cr2 = self.gpr, STACK3 if user else STACK0, 0
        m.rflags = 2 | RFLAGS_AC * ac
        vector = m.catch()
        if vector == DONE:
            return None
        assert vector == 14, m.history()
        assert s.cr2 == self.gpr
        return m.stack(1, 8 if self.long else 4)[0]


def addresses_of(prober: Prober, shift: int) -> list[int]:
    """The address part of each level's entry, top first: the next table, or the page."""
    m = prober.m
    assert m.pages is not None
    entries = m.pages.entries(prober.gpr, shift)
    below = [m.read(a, m.pages.entry_size) & ADDRESS for a in entries[:-1]]
    return [*below, TARGET if shift == 12 else 0]


SHAPES = [(2, 12), (2, 22), (3, 12), (3, 21), (4, 12), (4, 21), (4, 30), (5, 12), (5, 21), (5, 30)]


def random_space(rng: random.Random, levels: int, shift: int, places: list[int]) -> Space:
    space = Space(levels, shift)
    space.wp, space.nxe, space.smep, space.smap, space.ac = (rng.random() < p for p in (0.6, 0.8, 0.4, 0.4, 0.5))
    space.pse = levels != 2 or shift == 22 or rng.random() < 0.7
    if levels >= 4 and rng.random() < 0.5:
        space.pkru = rng.getrandbits(32)
    if levels >= 4 and rng.random() < 0.3:
        space.pkrs = rng.getrandbits(32) & ~3  # key 0 is that of the prober's own pages
    for at, place in zip(space.shifts(), places):
        entry = place | P
        for bit, chance in ((W, 0.75), (U, 0.75), (A, 0.4), (D, 0.4), (G, 0.3), (NX, 0.2 * (levels > 2))):
            entry |= bit * (rng.random() < chance)
        if levels >= 4:
            entry |= rng.getrandbits(4) << 59 | rng.getrandbits(7) << 52
        entry |= rng.getrandbits(3) << 9
        if at == shift and shift > 12:
            entry |= PS
        elif levels != 2 or at == 12:
            entry &= ~PS
        if levels == 3 and at == 30:
            entry = place | P
        space.entries.append(entry)
    spoil = rng.random()
    if spoil < 0.1:
        space.entries[rng.randrange(len(places))] &= ~P
    elif spoil < 0.25:
        number = rng.randrange(levels == 3, len(places))
        space.entries[number] |= 1 << rng.choice((7, 13, 20, 21, 39, 40, 51, 52, 62, 63) if levels > 2 else (7, 21))
    return space


@pytest.mark.parametrize(("levels", "shift"), SHAPES)
def test_permission_matrix(levels: int, shift: int) -> None:
    """Random entries at every level and all controls; three accesses each, with what the TLB keeps between them."""
    rng = random.Random(levels * 100 + shift)
    prober = Prober(levels)
    places = addresses_of(prober, shift)
    outcomes: set[int | None] = set()
    for _ in range(1500):
        space = random_space(rng, levels, shift, places)
        if levels == 3 and not space.entries[0] & P:
            continue
        if not backed(space, places):
            continue
        where = prober.install(space)
        for _ in range(3):
            kind, user, ac = rng.choice((READ, WRITE, FETCH)), rng.random() < 0.5, rng.random() < 0.5
            space.ac = ac
            expected = space.access(kind, user)
            got = prober.access(kind, user, ac)
            outcomes.add(got)
            assert got == expected, (kind, user, ac, space, [hex(e) for e in space.entries])
            check_marks(prober, space, where, kind, expected)
    assert None in outcomes and len(outcomes) > 12


def backed(space: Space, places: list[int]) -> bool:
    """Whether entries still lead where the tables and the page are (a spoilt address that is allowed need not)."""
    for shift, entry, place in zip(space.shifts(), space.entries, places):
        if space.reserved(shift, entry) or not entry & P:
            return True
        address = entry & ADDRESS & (~0x1000 if space.is_leaf(shift, entry) and shift > 12 else -1)
        if address & ((1 << 32) - 1 if space.levels == 2 else -1) != place:
            return False
        if space.levels == 2 and space.is_leaf(shift, entry) and shift > 12 and entry & 0x3F_F000:
            return False
        if space.is_leaf(shift, entry) and shift != space.shift:
            return False
        if space.levels == 2 and shift == 22 == space.shift and not space.is_leaf(shift, entry):
            return False
    return True


def check_marks(prober: Prober, space: Space, where: list[int], kind: str, error: int | None) -> None:
    """A is set along a walk that succeeds, D in its leaf by writes; a refused access marks at most upper levels as
    accessed.
    """
    m = prober.m
    assert m.pages is not None
    for number, (shift, address) in enumerate(zip(space.shifts(), where)):
        before, after = space.entries[number], m.read(address, m.pages.entry_size)
        is_leaf = number == len(where) - 1
        if space.levels == 3 and shift == 30:
            assert after == before
        elif error is None:
            assert after == before | A | (D if is_leaf and kind == WRITE else 0)
        else:
            assert after in ((before,) if is_leaf else (before, before | A))
        space.entries[number] = after


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_every_leaf(levels: int) -> None:
    """All combinations of the leaf's W, U and NX with WP, for each access and privilege."""
    prober = Prober(levels)
    places = addresses_of(prober, 12)
    for bits in range(32):
        leaf = P | W * (bits & 1) | U * (bits >> 1 & 1) | NX * (bits >> 2 & 1) * (levels > 2)
        space = Space(
            levels, 12, [place | P | (0 if levels == 3 and i == 0 else W | U) for i, place in enumerate(places)]
        )
        space.entries[-1] = places[-1] | leaf
        space.wp, space.smep = bool(bits >> 3 & 1), bool(bits >> 4 & 1)
        prober.install(space)
        for kind in (READ, WRITE, FETCH):
            for user in (False, True):
                assert prober.access(kind, user, False) == space.access(kind, user), (kind, user, space)


def test_gigabyte_pages_are_a_feature() -> None:
    prober = Prober(4)
    places = addresses_of(prober, 30)
    space = Space(4, 30, [places[0] | P | W | U, P | W | U | PS])
    prober.install(space)
    assert prober.access(READ, True, False) is None
    prober.m.state.features[FEATURES_SYSTEM] &= ~FEATURE_PDPE1GB
    prober.m.processor.flush_tlb()
    assert prober.access(READ, True, False) == 0xD


@pytest.mark.parametrize(
    ("width", "bits", "error"),
    [(40, 1 << 13, None), (36, 1 << 16, None), (36, 1 << 17, 9), (40, 1 << 20, None), (36, 1 << 20, 9)],
)
def test_wide_addresses_of_4_mib_pages(width: int, bits: int, error: int | None) -> None:
    """PSE-36: bits 20:13 are address bits 39:32, as many as the processor has; the rest are reserved."""
    m = Machine(maxphyaddr=width)
    m.protected("mov al, [ebx]\nhlt", paging=2)
    assert m.pages is not None
    m.write(m.pages.entries(0x4000_0000, 22)[-1], P | W | PS | bits, 4)
    m.state.gpr[3] = 0x4000_1234
    m.processor.flush_tlb()
    stop = m.run()
    if error is None:
        assert m.trace == [("read", (bits >> 13 << 32) + 0x1234, 1, 0)]
    else:
        assert stop.vector == 14 and m.stack(1, 4) == [error]


def test_tables_on_nothing_are_not_present() -> None:
    """Paging structures outside RAM read as not present (as KVM has it); the processor reads no device for them."""
    for levels in (2, 3, 4):
        prober = Prober(levels)
        m = prober.m
        assert m.pages is not None
        at = m.pages.entries(prober.gpr)[-2]
        m.write(at, DEVICE & ~0xFFF | P | W | U, m.pages.entry_size)
        m.processor.flush_tlb()
        assert prober.access(READ, False, False) == 0 and m.trace == []


def test_tables_in_rom_keep_their_bits() -> None:
    """Paging structures in a read-only slot work; accessed and dirty bits are not set in them."""
    m = Machine()
    m.long("mov byte [rbx], 5\nmov al, [rbx]\nhlt")
    assert m.pages is not None
    leaf = m.pages.map(0x4000_0000, DATA, P | W | U)
    table = leaf & ~0xFFF
    m.pages.entries(0x4000_0000)
    content = m.read_bytes(table, 4096)
    rom = m.ram.address + table
    m.memory.set_slot(0, 0, table, m.ram.address)
    m.memory.set_slot(1, table, 4096, rom, readonly=True)
    m.memory.set_slot(2, table + 4096, (2 << 20) - table - 4096, rom + 4096)
    m.processor.flush_code()
    m.state.gpr[3] = 0x4000_0000
    assert m.run().vector is None and m.state.gpr[0] & 0xFF == 5
    assert m.read_bytes(table, 4096) == content
