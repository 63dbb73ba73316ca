"""Random accesses and random remapping from a guest's side: nothing raises, RAM holds what was written."""

import random

from pellucid.memory import AccessSizes, AddressSpace, Endianness, MemoryRegion, MemoryTransaction, RamBlock
from tests.memory.helpers import ByteDevice

STEPS = 4000
SPAN = 0x8000


def busy_board(rng: random.Random) -> tuple[AddressSpace, list[MemoryRegion], list[RamBlock]]:
    root = MemoryRegion.new_container("system")
    ram = RamBlock("ram", 0x4000)
    flash = RamBlock("flash", 0x1000)
    regions = [
        MemoryRegion.new_ram("ram", ram),
        MemoryRegion.new_rom("rom", flash),
        MemoryRegion.new_rom_device("romd", flash, ByteDevice(0x1000)),
        MemoryRegion.new_ram_device("ramd", flash),
        MemoryRegion.new_reservation("reserved", 0x400),
    ]
    for number in range(12):
        valid = sorted(rng.choices((1, 2, 4, 8), k=2))
        impl = sorted(rng.choices((1, 2, 4, 8), k=2))
        size = rng.choice((1, 2, 3, 8, 0x10, 0x400))
        device = MemoryRegion.new_io(
            f"dev{number}",
            size,
            ByteDevice(size, "big" if number % 3 == 0 else "little"),
            valid=AccessSizes(valid[0], valid[1], unaligned=rng.random() < 0.3),
            impl=AccessSizes(impl[0], impl[1], unaligned=rng.random() < 0.3),
            endianness=Endianness.BIG if number % 3 == 0 else Endianness.NATIVE,
        )
        regions.append(device)
    for region in regions:
        root.add_subregion_overlap(rng.randrange(SPAN), region, rng.randrange(-1, 3))
    return AddressSpace("memory", root), regions, [ram, flash]


def test_random_accesses_and_remapping() -> None:
    rng = random.Random(20240229)
    space, regions, blocks = busy_board(rng)
    for _ in range(STEPS):
        addr = rng.choice((rng.randrange(SPAN + 0x1000), rng.randrange(1 << 64), (1 << 64) - rng.randrange(1, 9)))
        size = rng.choice((1, 2, 3, 4, 5, 6, 7, 8))
        value = rng.getrandbits(64)
        what = rng.random()
        if what < 0.45:
            assert 0 <= space.read(addr, size) < 1 << 8 * size
        elif what < 0.9:
            space.write(addr, size, value)
            found = space.find(addr)
            if found and found.region.name == "ram" and not found.readonly and found.size >= size:
                assert space.read(addr, size) == value & ((1 << 8 * size) - 1)
        elif what < 0.95:
            length = rng.randrange(0x200)
            assert len(space.read_bytes(addr, length)) == length
            space.write_bytes(addr, rng.randbytes(length))
        else:
            with MemoryTransaction():
                region = rng.choice(regions)
                region.set_address(rng.randrange(SPAN))
                rng.choice(regions).set_enabled(rng.random() < 0.8)
                rng.choice(regions).set_readonly(rng.random() < 0.2)
    for block in blocks:
        block.close()
