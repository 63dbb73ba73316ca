"""Clock registers in the tree: listeners hear where they are seen, as the tree changes."""

from pellucid.kvm.clock import ClockValue
from pellucid.memory import AddressSpace, ClockRegister, ClockRegisters, MemoryListener, MemoryRegion
from tests.memory.helpers import ByteDevice

TICKS, OTHER = ClockValue(1000, 0xFFFF), ClockValue(1000, 0xFFFF, base=5)


class Heard(MemoryListener):
    def __init__(self) -> None:
        self.there: dict[int, ClockRegister] = {}
        self.changes = 0

    def clock_register_add(self, addr: int, register: ClockRegister) -> None:
        assert addr not in self.there
        self.there[addr] = register
        self.changes += 1

    def clock_register_del(self, addr: int, register: ClockRegister) -> None:
        assert self.there.pop(addr) == register
        self.changes += 1


def io(name: str, size: int) -> MemoryRegion:
    return MemoryRegion.new_io(name, size, ByteDevice(size))


def test_listeners_hear_of_every_change() -> None:
    root = MemoryRegion.new_container("root", 0x1000)
    space = AddressSpace("as", root)
    heard = Heard()
    space.add_listener(heard)
    device = io("device", 0x10)
    register = ClockRegister(8, 4, TICKS)
    device.set_clock_registers((register,))
    assert not heard.there
    root.add_subregion_overlap(0x100, device, 0)
    assert heard.there == {0x108: register}
    device.set_address(0x200)
    assert heard.there == {0x208: register}
    device.set_clock_registers((ClockRegister(8, 4, OTHER),))
    assert heard.there == {0x208: ClockRegister(8, 4, OTHER)}
    device.set_enabled(False)
    assert not heard.there
    device.set_enabled(True)
    late = Heard()
    space.add_listener(late)
    assert late.there == heard.there == {0x208: ClockRegister(8, 4, OTHER)}
    changes = heard.changes
    device.set_clock_registers((ClockRegister(8, 4, OTHER),))
    assert heard.changes == changes
    space.remove_listener(heard)
    assert not heard.there and late.there


def test_a_register_that_is_covered_in_part_is_not_there() -> None:
    root = MemoryRegion.new_container("root", 0x1000)
    space = AddressSpace("as", root)
    heard = Heard()
    space.add_listener(heard)
    device, cover = io("device", 0x10), io("cover", 1)
    device.set_clock_registers((ClockRegister(8, 4, TICKS), ClockRegister(12, 4, TICKS)))
    root.add_subregion_overlap(0, device, 0)
    root.add_subregion_overlap(0xB, cover, 1)
    assert set(heard.there) == {12}
    cover.set_enabled(False)
    assert set(heard.there) == {8, 12}


def test_the_vm_is_told() -> None:
    told: list[tuple[object, ...]] = []

    class Vm:
        def clock_register(
            self, address: int, size: int, value: ClockValue, *, pio: bool = False, assign: bool = True
        ) -> None:
            told.append((address, size, value, pio, assign))

    root = MemoryRegion.new_container("root", 0x1000)
    space = AddressSpace("as", root)
    space.add_listener(ClockRegisters(Vm(), pio=True))
    device = io("device", 0x10)
    device.set_clock_registers((ClockRegister(8, 4, TICKS),))
    root.add_subregion(0x100, device)
    root.del_subregion(device)
    assert told == [(0x108, 4, TICKS, True, True), (0x108, 4, TICKS, True, False)]
