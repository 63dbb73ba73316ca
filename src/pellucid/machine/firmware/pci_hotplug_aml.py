"""AML for QEMU's PCI hot-plug controller (its docs/specs/acpi_pci_hotplug): which slots came, which are to go.

PCIU and PCID are bit masks of slots that something was plugged into and that are asked to give it up; B0EJ ejects;
BNUM selects a bus, and PIDX tells a slot's index for the device labels (_DSM of the PCI firmware specification, 4.6).
"""

from collections.abc import Sequence

from pellucid.machine.firmware import aml
from pellucid.machine.firmware.pc_dsdt import SLOTS, Slot, slot_name

DEVICE_LABELS = "e5c937d0-3553-4d7a-9117-ea4d19c3434d"
INDEX_NONE = 0xFFFF_FFFF
NOTIFY_CHECK, NOTIFY_EJECT = 1, 3


def controller(base: int) -> bytes:
    """The registers at `base`, and the methods around them."""

    def registers(region: str, offset: int, names: list[str]) -> bytes:
        fields = [(name, 32) for name in names]
        return aml.operation_region(region, aml.SYSTEM_IO, base + offset, 4 * len(names)) + aml.field(
            region, aml.DWORD_ACCESS, fields, aml.WRITE_AS_ZEROS
        )

    bit = aml.shift_left(1, aml.arg(1))
    eject = aml.store(aml.arg(0), "BNUM") + aml.store(bit, "B0EJ")
    result = aml.local(0)
    ask = aml.store(aml.arg(0), "BNUM") + aml.store(bit, "PIDX") + aml.store("PIDX", result)

    def locked(terms: bytes) -> bytes:
        return aml.acquire("BLCK") + terms + aml.release("BLCK")

    return aml.scope(
        "_SB.PCI0",
        registers("PCST", 0x00, ["PCIU", "PCID"])
        + registers("SEJ", 0x08, ["B0EJ"])
        + registers("BNMR", 0x10, ["BNUM", "PIDX"])
        + aml.mutex("BLCK")
        + aml.method("PCEJ", 2, locked(eject) + aml.return_(0))
        + aml.method("AIDX", 2, locked(ask) + aml.return_(result))
        + _labels(),
    )


def _labels() -> bytes:
    """PDSM(uuid, revision, function, arguments, (bus, slot)): the common body of every slot's _DSM."""
    answer, functions, label = aml.local(0), aml.local(1), aml.local(2)

    def place(number: int) -> bytes:
        return aml.deref_of(aml.index(aml.arg(4), number))

    look_up = aml.store(aml.call("AIDX", place(0), place(1)), label)
    supported = (
        aml.store(aml.buffer(b"\0"), answer)
        + aml.store(0, functions)
        + aml.if_(aml.not_(aml.equal(aml.arg(0), aml.uuid(DEVICE_LABELS))), aml.return_(answer))
        + aml.if_(aml.less(aml.arg(1), 2), aml.return_(answer))
        + look_up
        + aml.if_(
            aml.not_(aml.or_(aml.equal(label, 0), aml.equal(label, INDEX_NONE))),
            aml.or_(functions, 1, functions) + aml.or_(functions, aml.shift_left(1, 7), functions),
        )
        + aml.store(functions, aml.index(answer, 0))
        + aml.return_(answer)
    )
    name_of = (
        look_up
        + aml.store(aml.package([], 2), answer)
        + aml.if_(
            aml.not_(aml.either(aml.equal(label, 0), aml.equal(label, INDEX_NONE))),
            aml.store(label, aml.index(answer, 0)) + aml.store(aml.string(""), aml.index(answer, 1)),
        )
        + aml.return_(answer)
    )
    function = aml.arg(2)
    body = aml.if_(aml.equal(function, 0), supported) + aml.if_(aml.equal(function, 7), name_of)
    return aml.method("PDSM", 5, body, serialized=True)


def slots(used: Sequence[Slot]) -> bytes:
    """Every slot of bus 0, which things can be plugged into, and what tells of changes."""
    by_slot = {slot.devfn: slot for slot in used}
    devfns = sorted({slot.devfn for slot in used} | {number << 3 for number in range(SLOTS)})
    every = [by_slot.get(devfn, Slot(devfn)) for devfn in devfns]
    devices = b"".join(_slot(slot) for slot in every)
    tests = (
        aml.if_(aml.and_(aml.arg(0), 1 << (slot.devfn >> 3)), aml.notify(slot_name(slot.devfn), aml.arg(1)))
        for slot in every
        if slot.hotpluggable
    )
    changed = aml.store(0, "BNUM") + aml.call("DVNT", "PCIU", NOTIFY_CHECK) + aml.call("DVNT", "PCID", NOTIFY_EJECT)
    return (
        aml.name("BSEL", 0)
        + devices
        + aml.method("DVNT", 2, b"".join(tests))
        + aml.method("PCNT", 0, changed)
    )  # fmt: skip


def _slot(slot: Slot) -> bytes:
    number = slot.devfn >> 3
    place = aml.store(aml.package(["BSEL", "ASUN"]), aml.local(0))
    arguments = (aml.arg(index) for index in range(4))
    labels = place + aml.return_(aml.call("PDSM", *arguments, aml.local(0)))
    terms = aml.name("_ADR", number << 16 | slot.devfn & 7)
    terms += aml.name("ASUN", number) + aml.method("_DSM", 4, labels, serialized=True)
    terms += slot.content
    if slot.is_vga:
        terms += b"".join(aml.method(f"_S{state}D", 0, aml.return_(0)) for state in (1, 2, 3))
    if slot.hotpluggable:
        terms += aml.name("_SUN", number) + aml.method("_EJ0", 1, aml.call("PCEJ", "BSEL", "_SUN"))
    return aml.device(slot_name(slot.devfn), terms)


def event() -> bytes:
    """The general-purpose event of the controller."""
    lock = "\\_SB.PCI0.BLCK"
    return aml.scope(
        "_GPE", aml.method("_E01", 0, aml.acquire(lock) + aml.call("\\_SB.PCI0.PCNT") + aml.release(lock))
    )
