"""Accesses to `intel-iommu` and `edu` that are made on QEMU and here, on q35."""

import random
from collections.abc import Iterator

from pellucid.machine.vtd import registers as reg
from tests.monitor.register_scripts import inp, out

UNIT, RING, ROOT, STATUS = 0xFED9_0000, 0x10_0000, 0x10_1000, 0x10_2000
EDU_BAR, EDU_DEVFN = 0xE000_0000, 0x08
OPTIONS = ("-M", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,eim=off", "-device", "edu,addr=1")
COMMAND_BITS = (reg.ENABLE_TRANSLATION, reg.SET_ROOT_TABLE, reg.ENABLE_REMAPPING, reg.SET_INTERRUPT_TABLE)
PLAIN = ((reg.ROOT_TABLE, 12, "q"), (reg.FAULT_DATA, 0, "l"), (reg.FAULT_ADDRESS, 0, "l"), (reg.DONE_DATA, 0, "l"),
         (reg.DONE_ADDRESS, 0, "l"), (reg.INTERRUPT_TABLE, 12, "q"), (reg.FAULT_UPPER_ADDRESS, 0, "l"),
         (reg.DONE_UPPER_ADDRESS, 0, "l"))  # fmt: skip
"""(offset, low bits that stay 0, width)."""


def write(offset: int, value: int, width: str = "l") -> str:
    return f"write{width} {UNIT + offset:#x} {value:#x}"


def everything() -> Iterator[str]:
    for offset in range(0, reg.SIZE, 4):
        yield f"readl {UNIT + offset:#x}"
    wide = (0, 8, 0x10, 0x20, 0x80, 0x88, 0x90, 0xB8, 0xF8, 0x220, 0x228)
    yield from (f"readq {UNIT + offset:#x}" for offset in wide)


def unit(rng: random.Random) -> Iterator[str]:
    """Registers, register-based and queued invalidation, wait descriptors, errors."""
    yield from everything()
    for _ in range(60):
        offset, zeros, width = rng.choice(PLAIN)
        yield write(offset, rng.getrandbits(39) >> zeros << zeros if width == "q" else rng.getrandbits(32), width)
    yield from everything()
    for kind in (1, 2, 3):
        yield write(reg.CONTEXT_COMMAND, 1 << 63 | kind << 61 | 0x0008_0007, "q")
        yield f"readq {UNIT + reg.CONTEXT_COMMAND:#x}"
        for order in (0, 18, 19):
            yield write(reg.INVALIDATE_ADDRESS, 0x12_3000 | order, "q")
            yield write(reg.IOTLB_COMMAND, 1 << 63 | kind << 60 | 7 << 32, "q")
            yield f"readq {UNIT + reg.IOTLB_COMMAND:#x}"
    status = 0
    for bit in COMMAND_BITS:
        status |= bit
        yield write(reg.GLOBAL_COMMAND, status)
        yield from (f"readl {UNIT + reg.GLOBAL_STATUS:#x}", f"readl {UNIT + reg.GLOBAL_COMMAND:#x}")
    yield write(reg.GLOBAL_COMMAND, 0)
    yield f"readl {UNIT + reg.GLOBAL_STATUS:#x}"
    yield from _queue()
    yield from everything()


def _queue() -> Iterator[str]:
    yield write(reg.QUEUE_ADDRESS, RING, "q")
    yield write(reg.GLOBAL_COMMAND, reg.ENABLE_QUEUE)
    yield f"readl {UNIT + reg.GLOBAL_STATUS:#x}"
    descriptors = (
        (1 | 1 << 4, 0), (1 | 3 << 4 | 0x0008 << 32, 0), (2 | 1 << 4, 0), (2 | 3 << 4 | 7 << 16, 0x12_3000), (4, 0),
        (5 | 1 << 5 | 0x1234_5678 << 32, STATUS), (5 | 1 << 4, 0), (5 | 1 << 4, 0), (0xB, 0),
    )  # fmt: skip
    for index, (low, high) in enumerate(descriptors):
        yield from (f"writeq {RING + 16 * index:#x} {low:#x}", f"writeq {RING + 16 * index + 8:#x} {high:#x}")
        yield write(reg.QUEUE_TAIL, 16 * index + 16)
        registers = (reg.QUEUE_HEAD, reg.QUEUE_TAIL, reg.FAULT_STATUS, reg.FAULT_CONTROL, reg.DONE_STATUS,
                     reg.DONE_CONTROL)  # fmt: skip
        yield from (f"readl {UNIT + register:#x}" for register in registers)
    yield f"readl {STATUS:#x}"
    yield f"writeq {RING + 16 * len(descriptors) - 16:#x} 4"
    yield write(reg.FAULT_STATUS, reg.QUEUE_ERROR)
    # Here the queue goes on at once, as software that has repaired it expects; QEMU's waits for the tail.
    yield write(reg.QUEUE_TAIL, 16 * len(descriptors))
    yield write(reg.DONE_STATUS, 1)


def edu(rng: random.Random) -> Iterator[str]:
    """Configuration space, registers, interrupts. QEMU's factorial comes from a thread of its own: it is not asked."""
    config = 0x8000_0000 | EDU_DEVFN << 8
    for offset in range(0, 256, 4):
        yield from (out(0xCF8, config | offset, "l"), inp(0xCFC, "l"))
    yield from (out(0xCF8, config | 0x10, "l"), out(0xCFC, EDU_BAR, "l"), inp(0xCFC, "l"))
    yield from (out(0xCF8, config | 4, "l"), out(0xCFC, 2, "w"))
    for _ in range(200):
        # Byte and word accesses are none of the device's; DMA never starts.
        offset = rng.choice((0, 4, 8, 0xC, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x98, 0x1000, 0xF_FFF8))
        width = rng.choice("lq" if offset >= 0x80 else "l")
        if rng.random() < 0.5 and offset not in (8, 0x98):
            yield f"write{width} {EDU_BAR + offset:#x} {rng.getrandbits(64 if width == 'q' else 32) & ~0x80:#x}"
        yield f"read{width} {EDU_BAR + offset:#x}"
        yield from (out(0xCF8, config | 4, "l"), inp(0xCFE, "w"))


SCRIPTS = {"unit": unit, "edu": edu}
ACTUAL_GRANULARITY = f"readq {UNIT + reg.CONTEXT_COMMAND:#x}", 3 << 59
"""How much a context invalidation took away: QEMU takes all where a domain's were asked for. (line, bits)."""
