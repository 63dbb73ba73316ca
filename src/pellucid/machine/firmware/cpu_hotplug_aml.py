"""AML for QEMU's processor hot-plug controller (its docs/specs/acpi_cpu_hotplug): a selector and registers behind it.

Field names: CSEL selects a processor, CPEN says that it is enabled, CINS and CRMV that it comes or is asked to go, CEJ0
removes it; CCMD and CDAT are a command and its data (0: the next processor with an event, 1 and 2: _OST's arguments).
"""

from collections.abc import Sequence

from pellucid.machine.firmware import aml
from pellucid.machine.firmware.madt import processor_entry

CPU_HOTPLUG_SIZE = 12
REGISTERS = "\\_SB.PCI0.PRES"
NOTIFY_CHECK, NOTIFY_EJECT = 1, 3
MOST_IN_A_PACKAGE = 0xFF
NEXT_WITH_EVENT, OST_EVENT, OST_STATUS = 0, 1, 2


def _register(field: str) -> str:
    return f"{REGISTERS}.{field}"


CSEL, CPEN, CINS, CRMV, CEJ0, CCMD, CDAT, CPLK = map(
    _register, ("CSEL", "CPEN", "CINS", "CRMV", "CEJ0", "CCMD", "CDAT", "CPLK")
)


def hotplug_processors(apic_ids: Sequence[int], base: int) -> bytes:
    """The controller, the processors' container, and the event that says that something has changed."""
    objects = b"".join(_processor(uid, apic_id) for uid, apic_id in enumerate(apic_ids))
    container = (
        aml.name("_HID", aml.string("ACPI0010"))
        + aml.name("_CID", aml.eisa_id("PNP0A05"))
        + _notify(len(apic_ids))
        + _status()
        + _eject()
        + _scan(len(apic_ids))
        + _ost()
        + objects
    )
    devices = aml.device(REGISTERS, _controller(base)) + aml.device("\\_SB.CPUS", container)
    return aml.scope("_SB", devices) + aml.method("\\_GPE._E02", 0, aml.call("\\_SB.CPUS.CSCN"))


def _controller(base: int) -> bytes:
    flags = [("", 32), ("CPEN", 1), ("CINS", 1), ("CRMV", 1), ("CEJ0", 1), ("CEJF", 1), ("", 3), ("CCMD", 8)]
    return (
        aml.name("_HID", aml.eisa_id("PNP0A06"))
        + aml.name("_UID", aml.string("CPU Hotplug resources"))
        + aml.mutex("CPLK")
        + aml.name("_CRS", aml.resource_template(aml.io_ports(base, CPU_HOTPLUG_SIZE, alignment=1)))
        + aml.operation_region("PRST", aml.SYSTEM_IO, base, CPU_HOTPLUG_SIZE)
        + aml.field("PRST", aml.BYTE_ACCESS, flags, aml.WRITE_AS_ZEROS)
        + aml.field("PRST", aml.DWORD_ACCESS, [("CSEL", 32), ("", 32), ("CDAT", 32)], aml.PRESERVE)
        + aml.method("_INI", 0, aml.store(0, "CSEL"), serialized=True)
    )


def _notify(count: int) -> bytes:
    """CTFY(processor, event)."""
    tests = (aml.if_(aml.equal(aml.arg(0), uid), aml.notify(_name(uid), aml.arg(1))) for uid in range(count))
    return aml.method("CTFY", 2, b"".join(tests))


def _locked(terms: bytes) -> bytes:
    return aml.acquire(CPLK) + terms + aml.release(CPLK)


def _status() -> bytes:
    """CSTA(processor)."""
    result = aml.local(0)
    body = aml.store(aml.arg(0), CSEL) + aml.store(0, result) + aml.if_(aml.equal(CPEN, 1), aml.store(0x0F, result))
    return aml.method("CSTA", 1, _locked(body) + aml.return_(result), serialized=True)


def _eject() -> bytes:
    """CEJ0(processor)."""
    return aml.method("CEJ0", 1, _locked(aml.store(aml.arg(0), CSEL) + aml.store(1, CEJ0)), serialized=True)


def _scan(count: int) -> bytes:
    """CSCN: tell of every processor with an event. New ones are gathered first, as many as a package holds at a time.

    Removals are told at once; a new processor's notification may be worked on while the next is told, and its driver
    asks for the controller's lock.
    """
    more, found, at, cpu, again = (aml.local(number) for number in range(5))
    gather = (
        aml.store(cpu, aml.index("CNEW", found))
        + aml.increment(found)
        + aml.store(1, more)
    )  # fmt: skip
    remove = aml.call("CTFY", cpu, NOTIFY_EJECT) + aml.store(1, CRMV) + aml.store(1, more)
    step = (
        aml.store(0, more)
        + aml.store(cpu, CSEL)
        + aml.store(NEXT_WITH_EVENT, CCMD)
        + aml.if_(aml.less(CDAT, cpu), aml.BREAK)
        + aml.if_(aml.equal(found, MOST_IN_A_PACKAGE), aml.store(1, again) + aml.BREAK)
        + aml.store(CDAT, cpu)
        + aml.if_(aml.equal(CINS, 1), gather)
        + aml.else_(aml.if_(aml.equal(CRMV, 1), remove))
        + aml.increment(cpu)
    )
    tell = (
        aml.store(aml.deref_of(aml.index("CNEW", at)), cpu)
        + aml.call("CTFY", cpu, NOTIFY_CHECK)
        + aml.store(cpu, aml.DEBUG)
        + aml.store(cpu, CSEL)
        + aml.store(1, CINS)
        + aml.increment(at)
    )
    turn = (
        aml.store(0, again)
        + aml.store(1, more)
        + aml.store(0, found)
        + aml.while_(aml.both(aml.equal(more, 1), aml.less(cpu, count)), step)
        + aml.store(0, at)
        + aml.while_(aml.less(at, found), tell)
    )
    body = (
        aml.name("CNEW", aml.package([], MOST_IN_A_PACKAGE))
        + aml.store(0, cpu)
        + aml.store(1, again)
        + aml.while_(aml.equal(again, 1), turn)
    )
    return aml.method("CSCN", 0, _locked(body), serialized=True)


def _ost() -> bytes:
    """COST(processor, event, status, -): what became of a notification."""
    body = (
        aml.store(aml.arg(0), CSEL)
        + aml.store(OST_EVENT, CCMD)
        + aml.store(aml.arg(1), CDAT)
        + aml.store(OST_STATUS, CCMD)
        + aml.store(aml.arg(2), CDAT)
    )
    return aml.method("COST", 4, _locked(body), serialized=True)


def _name(uid: int) -> str:
    return f"C{uid:03X}"


def _processor(uid: int, apic_id: int) -> bytes:
    entry = processor_entry(uid, apic_id)
    terms = aml.method("_STA", 0, aml.return_(aml.call("CSTA", uid)), serialized=True)
    terms += aml.name("_MAT", aml.buffer(entry))
    if uid:  # The boot processor cannot leave.
        terms += aml.method("_EJ0", 1, aml.call("CEJ0", uid))
    arguments = (aml.arg(number) for number in range(3))
    terms += aml.method("_OST", 3, aml.call("COST", uid, *arguments), serialized=True)
    if apic_id > 0xFE:
        return aml.device(_name(uid), aml.name("_HID", aml.string("ACPI0007")) + aml.name("_UID", uid) + terms)
    return aml.processor(_name(uid), uid, terms)
