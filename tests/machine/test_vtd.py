"""VT-d: registers, translation, its caches and their invalidation, faults, interrupt remapping; hostile guests."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.machine.devices.intel_iommu import IntelIommu
from pellucid.machine.dma import ScatterList
from pellucid.machine.vtd import registers as reg
from pellucid.machine.vtd.faults import Reason
from pellucid.machine.vtd.registers import Features
from pellucid.machine.vtd.tables import MOST_CACHED, Page
from pellucid.memory import MemTxResult
from tests.machine.vtd_bench import (
    CONTEXTS,  # fmt: skip
    DOMAIN,
    INTERRUPTS,
    QUEUE,
    RAM_SIZE,
    READ,
    ROOT,
    SOURCE,
    STATUS,
    TABLES,
    WRITE,
    Bench,
)


@pytest.mark.parametrize(
    ("features", "capability", "extended"),
    [
        (Features(), 0xD2_008C_2226_0206, 0xF0_0F4A),
        (Features(remapping=False), 0xD2_008C_2226_0206, 0xF42),
        (Features(48, caching_mode=True, device_iotlb=True), 0xD2_008C_222F_0686, 0xF0_0F4E),
        (Features(48, remapping=False, translation=False), 0xD2_008C_222F_0006, 0xF42),
        (Features(remapping=False, pass_through=False, snoop_control=True, drain=False), 0x12_008C_2226_0206, 0xF82),
        (Features(extended=True), 0xD2_008C_2226_0206, 0xF0_0F5A),
    ],
)
def test_capabilities_are_qemus(features: Features, capability: int, extended: int) -> None:
    bench = Bench(features)
    assert bench.read(reg.VERSION) == 0x10
    assert (bench.read(reg.CAPABILITY, 8), bench.read(reg.EXTENDED_CAPABILITY, 8)) == (capability, extended)


def test_without_translation_dma_reaches_memory_as_it_is() -> None:
    bench = Bench()
    bench.edu.dma.write_bytes(0x5000, b"there")
    assert bytes(bench.ram.view[0x5000:0x5005]) == b"there"


def test_pages_of_every_size() -> None:
    bench = Bench()
    bench.map(0x1000, 0x6000)
    bench.map(0x20_0000, 0, level=2)
    bench.map(0x4000_0000, 0, level=3)
    bench.translate()
    bench.ram.view[0x6004:0x6008] = b"four"
    assert bench.edu.dma.read_bytes(0x1004, 4) == b"four"
    assert bench.edu.dma.read_bytes(0x20_6004, 4) == b"four"
    assert bench.edu.dma.read_bytes(0x4000_6004, 4) == b"four"
    assert bench.fault() is None


def test_four_levels() -> None:
    bench = Bench(Features(48))
    bench.map(0x8000_0000_1000, 0x6000, levels=4)
    bench.translate(width=2)
    bench.edu.dma.write_bytes(0x8000_0000_1000, b"far")
    assert bytes(bench.ram.view[0x6000:0x6003]) == b"far"


def test_a_transfer_over_pages_that_lie_apart() -> None:
    bench = Bench()
    bench.map(0x1000, 0x9000)
    bench.map(0x2000, 0x7000)
    bench.translate()
    bench.edu.dma.write_bytes(0x1FFE, b"abcd")
    assert bytes(bench.ram.view[0x9FFE:0xA000]) == b"ab" and bytes(bench.ram.view[0x7000:0x7002]) == b"cd"
    pieces = ScatterList(bench.edu.dma, [(0x1FFE, 4)], 4, to_memory=False)
    assert [bytes(view) for view in pieces.views] == [b"ab", b"cd"], "RAM itself, page by page"
    assert bench.edu.dma.read(0x1FFE, 4) == int.from_bytes(b"abcd", "little")


def test_scatter_lists_join_pages_that_follow_each_other() -> None:
    bench = Bench()
    for page in range(4):
        bench.map(0x1_0000 + page * 0x1000, 0x8_0000 + page * 0x1000)
    bench.translate()
    pieces = ScatterList(bench.edu.dma, [(0x1_0000, 0x4000)], 0x4000, to_memory=True)
    assert len(pieces.views) == 1 and pieces.size == 0x4000


def test_pass_through() -> None:
    bench = Bench()
    bench.translate(TABLES | 2 << 2 | 1)
    bench.edu.dma.write_bytes(0x5FFE, b"over")
    assert bytes(bench.ram.view[0x5FFE:0x6002]) == b"over" and bench.fault() is None


FAULTS = [
    ("root not present", lambda b: b.poke(ROOT, 0, 0), Reason.ROOT_NOT_PRESENT),
    ("root reserved", lambda b: b.poke(ROOT, CONTEXTS | 3, 0), Reason.ROOT_RESERVED),
    ("contexts outside RAM", lambda b: b.poke(ROOT, 0x40_0000_0001, 0), Reason.CONTEXT_ACCESS),
    ("context not present", lambda b: b.context(0, 0), Reason.CONTEXT_NOT_PRESENT),
    ("context reserved", lambda b: b.context(TABLES | 1, DOMAIN << 8 | 1 | 1 << 40), Reason.CONTEXT_RESERVED),
    ("width that the unit has not", lambda b: b.context(TABLES | 1, DOMAIN << 8 | 2), Reason.CONTEXT_INVALID),
    ("type that the unit has not", lambda b: b.context(TABLES | 1 << 2 | 1, DOMAIN << 8 | 1), Reason.CONTEXT_INVALID),
    ("not mapped", lambda b: b.map(0x1000, 0, 0), Reason.NO_READ),
    ("write only", lambda b: b.map(0x1000, 0x6000, WRITE), Reason.NO_READ),
    ("reserved in a page", lambda b: b.map(0x1000, 0x6000 | 1 << 45), Reason.TABLE_RESERVED),
    ("unaligned super-page", lambda b: b.map(0, 0x6000, level=2), Reason.TABLE_RESERVED),
    ("table outside RAM", lambda b: b.context(0x40_0000_0001, DOMAIN << 8 | 1), Reason.TABLE_ACCESS),
    ("table in the unit's own registers", lambda b: b.context(0xFED9_0001, DOMAIN << 8 | 1), Reason.TABLE_ACCESS),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_read_that_faults(spoil, reason: Reason) -> None:  # type: ignore[no-untyped-def]
    bench = Bench()
    bench.map(0x1000, 0x6000)
    bench.translate()
    spoil(bench)
    bench.ram.view[0x6000:0x6004] = b"data"
    content, result = bench.edu.dma.try_read_bytes(0x1234, 4)
    assert (bytes(content), result) == (bytes(4), MemTxResult.ACCESS_ERROR)
    assert bench.fault() == (reason, SOURCE, 0x1000, True)
    assert bench.read(reg.FAULT_STATUS) == 0, "taken with its record"


def test_an_address_beyond_the_width() -> None:
    bench = Bench()
    bench.translate()
    assert bench.edu.dma.write_bytes(1 << 39, b"x") is MemTxResult.ACCESS_ERROR
    assert bench.fault() == (Reason.ADDRESS_BEYOND, SOURCE, 1 << 39, False)


def test_a_write_to_what_is_read_only_leaves_it() -> None:
    bench = Bench()
    bench.map(0x1000, 0x6000, READ)
    bench.translate()
    assert bench.edu.dma.read_bytes(0x1000, 1) == b"\0", "which is cached from now on"
    bench.edu.dma.write_bytes(0x1000, b"x")
    assert bench.ram.view[0x6000] == 0 and bench.fault() == (Reason.NO_WRITE, SOURCE, 0x1000, False)


def test_a_context_that_wants_no_records() -> None:
    bench = Bench()
    bench.translate(TABLES | 2 | 1)
    bench.edu.dma.read_bytes(0x1000, 4)
    assert bench.fault() is None
    bench.poke(ROOT, 0, 0)
    bench.write(reg.CONTEXT_COMMAND, 1 << 63 | 1 << 61, 8)
    bench.edu.dma.read_bytes(0x1000, 4)
    assert bench.fault() == (Reason.ROOT_NOT_PRESENT, SOURCE, 0x1000, True), "not qualified"


def test_one_record_and_overflow() -> None:
    bench = Bench()
    bench.translate()
    bench.edu.dma.read_bytes(0x1000, 1)
    bench.edu.dma.read_bytes(0x2000, 1)
    assert bench.read(reg.FAULT_STATUS) == reg.FAULT_PENDING, "of the same source: collapsed"
    bench.card.dma.read_bytes(0x3000, 1)
    assert bench.read(reg.FAULT_STATUS) == reg.FAULT_PENDING | reg.FAULT_OVERFLOW
    bench.write(reg.FAULT_STATUS, reg.FAULT_OVERFLOW)
    assert bench.fault() == (Reason.NO_READ, SOURCE, 0x1000, True)
    bench.card.dma.read_bytes(0x3000, 1)
    fault = bench.fault()
    assert fault is not None and fault[1] == 0x10, "the conventional bridge speaks for what is behind it"


def test_fault_event() -> None:
    bench = Bench()
    bench.translate()
    bench.write(reg.FAULT_DATA, 0x55)
    bench.write(reg.FAULT_ADDRESS, 0xFEE0_3000)
    bench.edu.dma.read_bytes(0x1000, 1)
    assert bench.messages == [] and bench.read(reg.FAULT_CONTROL) == reg.EVENT_MASKED | reg.EVENT_PENDING
    bench.write(reg.FAULT_CONTROL, 0)
    assert bench.messages == [(0xFEE0_3000, 0x55)] and bench.read(reg.FAULT_CONTROL) == 0
    bench.card.dma.read_bytes(0x1000, 1)
    assert len(bench.messages) == 1, "the first has not been served"
    bench.write(reg.FAULT_STATUS, reg.FAULT_OVERFLOW)
    bench.fault()
    bench.edu.dma.read_bytes(0x1000, 1)
    assert len(bench.messages) == 2


def remapped(bench: Bench, address: int) -> bytes:
    return bench.edu.dma.read_bytes(address, 1)


@pytest.mark.parametrize("queued", [False, True], ids=["registers", "queue"])
def test_translations_stay_until_they_are_invalidated(queued: bool) -> None:
    bench = Bench()
    first, second = bench.map(0x1000, 0x6000), bench.map(0x9000, 0x6000)
    bench.translate()
    if queued:
        bench.queue()
    bench.ram.view[0x6000], bench.ram.view[0x7000] = 0x66, 0x77

    def invalidate(kind: int, address: int = 0, domain: int = DOMAIN) -> None:
        if queued:
            bench.descriptor(2 | kind << 4 | domain << 16, address)
        else:
            bench.write(reg.INVALIDATE_ADDRESS, address, 8)
            bench.write(reg.IOTLB_COMMAND, 1 << 63 | kind << 60 | domain << 32, 8)
            assert bench.read(reg.IOTLB_COMMAND, 8) >> 57 & 3 == kind and not bench.read(reg.IOTLB_COMMAND, 8) >> 63

    def seen() -> str:
        return (remapped(bench, 0x1000) + remapped(bench, 0x9000)).hex()

    assert seen() == "6666"
    bench.poke(first, 0x7003)
    bench.poke(second, 0x7003)
    assert seen() == "6666"
    invalidate(2, domain=DOMAIN + 1)
    invalidate(3, address=0x3000)
    assert seen() == "6666", "another domain's, another page's"
    invalidate(3, address=0x1000)
    assert seen() == "7766"
    invalidate(3, address=0x8000 | 3)
    assert seen() == "7777", "eight pages"
    bench.poke(first, 0x6003)
    invalidate(2)
    assert seen() == "6677"
    bench.poke(first, 0x7003)
    invalidate(1)
    assert seen() == "7777"
    assert bench.read(reg.FAULT_STATUS) == 0


@pytest.mark.parametrize("queued", [False, True], ids=["registers", "queue"])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_contexts_stay_until_they_are_invalidated(queued: bool, kind: int) -> None:
    bench = Bench()
    bench.map(0x1000, 0x6000)
    bench.translate()
    if queued:
        bench.queue()
    remapped(bench, 0x1000)
    bench.context(0, 0)
    remapped(bench, 0x1000)
    assert bench.fault() is None
    if queued:
        bench.descriptor(1 | kind << 4 | DOMAIN << 16 | SOURCE << 32)
    else:
        bench.write(reg.CONTEXT_COMMAND, 1 << 63 | kind << 61 | SOURCE << 16 | DOMAIN, 8)
        assert bench.read(reg.CONTEXT_COMMAND, 8) == kind << 61 | kind << 59 | DOMAIN
    remapped(bench, 0x1000)
    fault = bench.fault()
    assert fault is not None and fault[0] == Reason.CONTEXT_NOT_PRESENT


@pytest.mark.parametrize(("mask", "gone"), [(0, [0x0F]), (1, [0x0B, 0x0F]), (2, [0x09, 0x0B, 0x0D, 0x0F]), (3, "all")])
def test_function_masks_of_a_context_invalidation(mask: int, gone: list[int] | str) -> None:
    translator = Bench().unit._translator
    context = translator._check_context(TABLES | 1 | (DOMAIN << 8 | 1) << 64)
    translator.contexts.update(dict.fromkeys(range(8, 18), context))
    before = set(translator.contexts)
    translator.forget_contexts(source=(0x0F, mask))
    assert before - set(translator.contexts) == (set(range(0x08, 0x10)) if gone == "all" else set(gone))


@pytest.mark.parametrize("others", [0, 40], ids=["few are cached", "many are cached"])
def test_a_page_selective_invalidation_takes_super_pages_along(others: int) -> None:
    translator = Bench().unit._translator
    inside = [(DOMAIN, 12, 0x201), (DOMAIN, 21, 1), (DOMAIN, 30, 0)]
    outside = [(DOMAIN, 12, 0x200), (DOMAIN, 12, 0x202), (DOMAIN, 21, 2), (DOMAIN, 30, 1), (DOMAIN + 1, 12, 0x201)]
    outside += [(DOMAIN, 12, 0x1000 + number) for number in range(others)]
    for key in (*inside, *outside):
        translator.pages[key] = Page(0, key[1], READ)
    translator.forget_pages(DOMAIN, 0x20_1000, 0)
    assert set(translator.pages) == set(outside)
    translator.forget_pages(DOMAIN, 0x20_0000, 3)
    assert set(translator.pages) == set(outside[2:])


def test_wait_descriptors() -> None:
    bench = Bench()
    bench.queue()
    assert bench.read(reg.QUEUE_HEAD) == 0
    bench.descriptor(5 | 1 << 5 | 0xCAFE_F00D << 32, STATUS)
    assert bench.peek(STATUS, 4) == 0xCAFE_F00D and bench.read(reg.QUEUE_HEAD) == 16
    bench.write(reg.DONE_DATA, 0x66)
    bench.write(reg.DONE_ADDRESS, 0xFEE0_1000)
    bench.write(reg.DONE_CONTROL, 0)
    bench.descriptor(5 | 1 << 4)
    assert bench.messages == [(0xFEE0_1000, 0x66)] and bench.read(reg.DONE_STATUS) == 1
    bench.descriptor(5 | 1 << 4)
    assert len(bench.messages) == 1, "the first has not been served"
    bench.write(reg.DONE_STATUS, 1)
    bench.descriptor(5 | 1 << 4)
    assert len(bench.messages) == 2


def test_a_status_write_into_the_units_own_registers_is_dropped() -> None:
    bench = Bench()
    bench.queue()
    bench.descriptor(5 | 1 << 5 | 0x20 << 32, 0xFED9_0000 | reg.QUEUE_TAIL)
    assert bench.read(reg.QUEUE_HEAD) == 16 and bench.read(reg.FAULT_STATUS) == 0


@pytest.mark.parametrize("low", [0, 6, 0xF, 5 | 1 << 8, 1, 2 | 3 << 4 | 1 << 8], ids=hex)
def test_a_descriptor_that_is_none_stops_the_queue(low: int) -> None:
    bench = Bench()
    bench.queue()
    bench.descriptor(low)
    assert bench.read(reg.FAULT_STATUS) == reg.QUEUE_ERROR and bench.read(reg.QUEUE_HEAD) == 0
    bench.descriptor(5 | 1 << 5 | 1 << 32, STATUS)
    assert bench.peek(STATUS, 4) == 0
    bench.poke(QUEUE, 4)
    bench.write(reg.FAULT_STATUS, reg.QUEUE_ERROR)
    assert bench.peek(STATUS, 4) == 1 and bench.read(reg.QUEUE_HEAD) == 32, "it goes on where it stood"


def test_the_caches_are_bounded() -> None:
    bench = Bench()
    for gigabyte in range(2):
        for entry in range(512):
            bench.map(gigabyte << 30 | entry << 21, 0, level=2)
            bench.map(gigabyte << 30 | entry << 21, 0, level=2)
    bench.map(3 << 30, 0, level=3)
    bench.translate()
    for address in range(0, 2 << 30, 1 << 21):
        remapped(bench, address)
    remapped(bench, 3 << 30)
    assert 0 < len(bench.unit._translator.pages) <= MOST_CACHED


PRESENT = 1
REMAPPABLE = 0xFEE0_0010


def message(index: int) -> int:
    return REMAPPABLE | (index & 0x7FFF) << 5 | index >> 15 << 2


def test_messages_pass_while_remapping_is_off() -> None:
    bench = Bench()
    bench.edu.signal_msi(0xFEE0_1004, 0x4041)
    assert bench.messages == [(0xFEE0_1004, 0x4041)]


def test_a_remapped_message() -> None:
    bench = Bench()
    bench.remap()
    vector, lowest, level, logical, hint = 0x61 << 16, 1 << 5, 1 << 4, 1 << 2, 1 << 3
    bench.entry(5, PRESENT | vector | lowest | level | logical | hint | 0x02_00 << 32)
    bench.edu.signal_msi(message(5), 0)
    assert bench.messages == [(0xFEE0_200C, 0xC161)]
    bench.edu.signal_msi(message(3) | 1 << 3, 2)
    assert bench.messages == [(0xFEE0_200C, 0xC161)] * 2, "handle and subhandle"


def test_wide_apic_ids() -> None:
    bench = Bench(Features(extended=True))
    bench.remap(mode=reg.EXTENDED_MODE)
    bench.entry(1, PRESENT | 0x33 << 16 | 0x1_0203 << 32)
    bench.edu.signal_msi(message(1), 0)
    assert bench.messages == [(0x0001_0200_0000_0000 | 0xFEE0_3000, 0x4033)]


@pytest.mark.parametrize(
    ("low", "high", "address", "data", "reason"),
    [
        (0, 0, message(2), 0, Reason.ENTRY_NOT_PRESENT),
        (PRESENT, 0, message(16), 0, Reason.INDEX_BEYOND),
        (PRESENT, 0, message(2) | 1 << 3, 1 << 16, Reason.REQUEST_RESERVED),
        (PRESENT | 1 << 15, 0, message(2), 0, Reason.ENTRY_RESERVED),
        (PRESENT | 1 << 24, 0, message(2), 0, Reason.ENTRY_RESERVED),
        (PRESENT, 1 << 20, message(2), 0, Reason.ENTRY_RESERVED),
        (PRESENT, 1 << 18 | SOURCE + 1, message(2), 0, Reason.SOURCE_REFUSED),
        (PRESENT, 2 << 18 | 0x0102, message(2), 0, Reason.SOURCE_REFUSED),
        (PRESENT, 0, 0xFEE0_1000, 0x41, Reason.COMPATIBILITY_BLOCKED),
    ],
)
def test_a_message_that_is_blocked(low: int, high: int, address: int, data: int, reason: Reason) -> None:
    bench = Bench()
    bench.remap()
    bench.entry(2, low, high)
    bench.edu.signal_msi(address, data)
    assert bench.messages == []
    index = {Reason.COMPATIBILITY_BLOCKED: 0, Reason.REQUEST_RESERVED: 0, Reason.INDEX_BEYOND: 16}.get(reason, 2)
    assert bench.fault() == (reason, SOURCE, index << 48, False)


@pytest.mark.parametrize("high", [0, 1 << 18 | SOURCE, 1 << 18 | 3 << 16 | SOURCE + 5, 2 << 18 | 0x0001])
def test_sources_that_an_entry_lets_through(high: int) -> None:
    bench = Bench()
    bench.remap()
    bench.entry(2, PRESENT | 0x44 << 16, high)
    bench.edu.signal_msi(message(2), 0)
    assert bench.messages == [(0xFEE0_0000, 0x4044)] and bench.fault() is None


def test_an_entry_that_wants_no_records() -> None:
    bench = Bench()
    bench.remap()
    bench.entry(2, 2)
    bench.edu.signal_msi(message(2), 0)
    assert bench.messages == [] and bench.fault() is None


def test_compatibility_format_where_the_guest_enables_it() -> None:
    bench = Bench()
    bench.remap()
    bench.command(reg.COMPATIBILITY)
    bench.edu.signal_msi(0xFEE0_1000, 0x41)
    assert bench.messages == [(0xFEE0_1000, 0x41)]
    bench.remap(mode=reg.EXTENDED_MODE)
    assert not bench.unit.interrupt_table & reg.EXTENDED_MODE, "which this unit has not"


def test_the_ioapics_messages_are_not_verified() -> None:
    bench = Bench()
    bench.remap()
    bench.entry(4, PRESENT | 0x45 << 16, 1 << 18 | SOURCE)
    assert bench.unit.signal_ioapic_msi(message(4), 0x4045) == 1
    assert bench.messages == [(0xFEE0_0000, 0x4045)]
    bench.unit.signal_ioapic_msi(message(6), 0)
    fault = bench.fault()
    assert fault is not None and fault[:2] == (Reason.ENTRY_NOT_PRESENT, 0xFF00)


def test_a_reset_and_a_round_trip() -> None:
    bench = Bench()
    bench.map(0x1000, 0x6000)
    bench.translate()
    bench.queue()
    bench.remap()
    saved = bench.unit.save()
    bench.unit.reset()
    assert bench.read(reg.GLOBAL_STATUS) == 0
    bench.edu.dma.write_bytes(0x1000, b"1")
    assert bench.ram.view[0x1000] == ord("1")
    bench.unit.load(saved)
    bench.edu.dma.write_bytes(0x1000, b"6")
    assert bench.ram.view[0x6000] == ord("6") and bench.unit.save() == saved
    assert isinstance(bench.unit, IntelIommu)


numbers = st.one_of(st.integers(0, 0xFFF), st.integers(0, (1 << 64) - 1), st.sampled_from(
    [ROOT, CONTEXTS | 1, TABLES | 1, TABLES | 9, QUEUE, QUEUE | 7, INTERRUPTS | 0xF, 0xFED9_0000, 1 << 63, 1 << 31,
     0xC600_0000, 0xFF80_0000, 0x8000_0000, 0x0400_0000, 0x7_FFF0, 5 | 3 << 4, 3 | TABLES]))  # fmt: skip
steps = st.lists(
    st.tuples(
        st.sampled_from("ppwwwwrdDmi"), st.integers(0, reg.SIZE // 4 - 1), numbers, st.sampled_from([4, 8]),
        st.sampled_from([ROOT, CONTEXTS, CONTEXTS + 0x80, TABLES, QUEUE, INTERRUPTS]),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.booleans(), steps, st.randoms(use_true_random=False))
def test_hostile_guests(set_up: bool, what: list[tuple[str, int, int, int, int]], random) -> None:  # type: ignore[no-untyped-def]
    bench = Bench(Features(48, device_iotlb=True, extended=True))
    for _ in range(40):
        at = random.choice((ROOT, CONTEXTS, CONTEXTS + 0x80, TABLES, QUEUE, INTERRUPTS)) + 8 * random.randrange(64)
        bench.poke(at, random.getrandbits(random.choice((8, 20, 64))) | random.choice((0, 1, 3)))
    if set_up:
        bench.translate()
        bench.queue()
        bench.remap(0xF)
    for kind, place, value, size, table in what:
        if kind == "w":
            bench.write(place * 4, value & (1 << 8 * size) - 1, size)
        elif kind == "r":
            assert 0 <= bench.read(place * 4, size) < 1 << 8 * size
        elif kind == "p":
            bench.poke(table + place * 8, value)
        elif kind == "d":
            assert len(bench.edu.dma.read_bytes(value, 0x2000)) == 0x2000
        elif kind == "D":
            bench.card.dma.write_bytes(value, bytes(0x1100))
        elif kind == "m":
            bench.edu.signal_msi(value, place)
        else:
            bench.unit.signal_ioapic_msi(value & 0xFFFF_FFFF, place)
    assert len(bench.unit._translator.pages) <= MOST_CACHED and len(bench.unit._translator.contexts) <= MOST_CACHED
    saved = bench.unit.save()
    bench.unit.load(saved)
    bench.unit.reset()
    assert len(bench.ram.view) == RAM_SIZE
