"""The board `q35`: PCIEXBAR and ECAM, TSEG, interrupts, power management, the watchdog, SMBus; hostile guests."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.machine.boards import q35
from pellucid.machine.devices.acpi_pm import AcpiPm
from pellucid.machine.devices.ich9_lpc import Ich9Lpc
from pellucid.machine.devices.ich9_smbus import Ich9Smbus
from pellucid.machine.devices.ich9_tco import TICK_NS, Ich9Tco
from pellucid.machine.devices.mch import Mch
from pellucid.machine.machine import Machine
from pellucid.machine.pci.details import info_pci
from tests.machine.helpers import Counter, HandClock
from tests.machine.pc_machine import device, inl_config, outl_config, pc_machine

MiB = 1 << 20
GOLDEN = Path(__file__).parent / "golden"
HOST, LPC, SATA, SMBUS = 0x00, 0xF8, 0xFA, 0xFB
SMRAM, ESMRAMC = 0x9D, 0x9E


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with pc_machine(tmp_path, board="q35") as built:
        yield built


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (128, None, (128, 0)),
        (2815, None, (2815, 0)),
        (2816, None, (2048, 768)),
        (8192, None, (2048, 6144)),
        (4096, 1024, (1024, 3072)),
        (4096, 3072, (2048, 2048)),
    ],
)
def test_ram_split(size: int, limit: int | None, expected: tuple[int, int]) -> None:
    split = q35.split_ram(size * MiB, None if limit is None else limit * MiB)
    assert split == (expected[0] * MiB, expected[1] * MiB)


def test_configuration_space_is_qemu_s_at_reset(machine: Machine) -> None:
    golden = (GOLDEN / "q35-config-space.txt").read_text()
    for found in re.finditer(r"^([0-9a-f]+)\.(\d)\n((?:[0-9a-f]{2}: [0-9a-f]{32}\n)+)", golden, re.MULTILINE):
        devfn = int(found[1], 16) << 3 | int(found[2])
        if devfn == SATA:
            continue  # AHCI
        expected = bytes.fromhex("".join(line.split()[1] for line in found[3].splitlines()))
        ours = b"".join(inl_config(machine, devfn, at).to_bytes(4, "little") for at in range(0, 256, 4))
        assert ours.hex(" ", 16) == expected.hex(" ", 16), f"{devfn >> 3:x}.{devfn & 7}"


def test_the_window_on_configuration_space(machine: Machine) -> None:
    memory, base = machine.memory, 0xB000_0000
    assert memory.read(base, 4) != 0x29C0_8086
    outl_config(machine, HOST, 0x60, base | 1)
    assert memory.read(base, 4) == 0x29C0_8086 and memory.read(base + (LPC << 12), 4) == 0x2918_8086
    assert memory.read(base + 0x100, 4) == 0xFFFF_FFFF  # a conventional function has 256 bytes
    assert memory.read(base + 0xFFF_FFFC, 4) == 0xFFFF_FFFF
    outl_config(machine, HOST, 0x60, 0xE000_0000 | 0x3)  # 128 buses, elsewhere
    assert memory.read(0xE000_0000, 4) == 0x29C0_8086 and memory.find(base) is None
    assert device(machine, Mch).mmconfig_window() == (0xE000_0000, 128)
    outl_config(machine, HOST, 0x60, 0xE000_0000 | 0x7)  # a reserved length
    assert memory.find(0xE000_0000) is None
    device(machine, Mch).reset()
    assert inl_config(machine, HOST, 0x60) == 0xB000_0000 and memory.find(base) is None


def test_tseg_is_seen_in_smm_only(machine: Machine) -> None:
    memory, top = machine.memory, 128 * MiB
    smm = next(space for space in machine.address_spaces if space.name == "cpu-smm-0")
    memory.write(top - 4, 4, 0x1234_5678)
    outl_config(machine, HOST, ESMRAMC, 0x03, 1)
    assert memory.read(top - 4, 4) == 0x1234_5678  # not before SMRAM is enabled
    outl_config(machine, HOST, SMRAM, 0x0A, 1)
    assert memory.read(top - 4, 4) == 0xFFFF_FFFF and smm.read(top - 4, 4) == 0x1234_5678
    assert memory.read(top - 2 * MiB, 4) == 0xFFFF_FFFF and memory.read(top - 2 * MiB - 4, 4) == 0
    outl_config(machine, HOST, ESMRAMC, 0x07, 1)  # the third size: QEMU's register
    assert device(machine, Mch).tseg_size() == 16 * MiB
    outl_config(machine, HOST, SMRAM, 0x1A, 1)
    outl_config(machine, HOST, ESMRAMC, 0x00, 1)  # locked
    assert memory.read(top - 4, 4) == 0xFFFF_FFFF and inl_config(machine, HOST, ESMRAMC, 1) == 0x3F
    device(machine, Mch).reset()
    assert memory.read(top - 4, 4) == 0x1234_5678


def test_high_smram_and_the_smbase_lock(machine: Machine) -> None:
    memory = machine.memory
    outl_config(machine, HOST, ESMRAMC, 0x80, 1)
    outl_config(machine, HOST, SMRAM, 0x4A, 1)
    memory.write(0xFEDA_0000, 4, 0x55AA)
    assert memory.read(0xFEDA_0000, 4) == 0x55AA
    answers = []
    for value in (1, 2, 0xFF, 5, 0, 0xFF, 0, 1):
        outl_config(machine, HOST, 0x9C, value, 1)
        answers.append(inl_config(machine, HOST, 0x9C, 1))
    assert answers == [0, 0, 1, 1, 1, 2, 2, 2]
    assert memory.read(0x3_0000, 4) == 0xFFFF_FFFF


def lines(machine: Machine) -> list[tuple[int, bool]]:
    return machine.vm.lines  # type: ignore[attr-defined, no-any-return]


def test_interrupt_routing(machine: Machine) -> None:
    lpc = device(machine, Ich9Lpc)
    assert [lpc.pirq_of(slot, 0) for slot in (1, 2, 24, 25, 30, 31)] == [5, 6, 4, 0, 4, 0]
    outl_config(machine, LPC, 0x68, 0x8080_0A80)  # PIRQF to interrupt 10
    lpc.route(1, 0, True)
    assert set(lines(machine)) >= {(21, True), (10, True)} and (9, True) not in lines(machine)
    lpc.route(5, 0, True)  # the same line
    lpc.route(1, 0, False)
    assert (21, False) not in lines(machine)
    lines(machine).clear()
    outl_config(machine, LPC, 0x68, 0x8080_0B80)
    assert lines(machine) == [(10, False), (11, True)]
    lpc.route(5, 0, False)
    assert lines(machine)[-2:] in ([(11, False), (21, False)], [(21, False), (11, False)])


def test_a_route_that_changes_while_its_pin_is_high(machine: Machine) -> None:
    lpc = device(machine, Ich9Lpc)
    outl_config(machine, LPC, 0xF0, 0xFED1_C001)
    lpc.route(31, 0, True)
    machine.memory.write(0xFED1_C000 + 0x3140, 2, 0x3217)  # D31IR: INTA# to PIRQH
    assert lines(machine)[-2:] == [(16, False), (23, True)]
    lpc.route(31, 0, False)
    assert lines(machine)[-1] == (23, False)


def test_power_management_block(machine: Machine) -> None:
    ports = machine.ports
    outl_config(machine, LPC, 0x40, 0x600)
    outl_config(machine, LPC, 0x44, 0x80, 1)
    assert inl_config(machine, LPC, 0x40) == 0x601
    ports.write(0xB2, 1, 0x02)
    assert ports.read(0x604, 2) == 1
    assert ports.read(0x630, 4) == 0
    ports.write(0x602, 2, 0x100)
    for action in machine.system.on_powerdown:
        action()
    assert ports.read(0x600, 2) & 0x100 and lines(machine)[-1] == (9, True)
    outl_config(machine, LPC, 0x44, 0x81, 1)  # the SCI is interrupt 10 now
    assert lines(machine)[-2:] == [(9, False), (10, True)]
    ports.write(0x600, 2, 0x100)
    assert lines(machine)[-1] == (10, False)
    ports.write(0x628, 1, 0x02)
    device(machine, Ich9Lpc).raise_gpe(1)
    assert ports.read(0x620, 1) == 2 and lines(machine)[-1] == (10, True)
    ports.write(0x620, 1, 0x02)
    assert lines(machine)[-1] == (10, False)


def test_without_smm_apmc_en_is_set_and_stays(tmp_path: Path) -> None:
    with pc_machine(tmp_path, board="q35", board_options={"smm": "off"}) as machine:
        outl_config(machine, LPC, 0x40, 0x600)
        outl_config(machine, LPC, 0x44, 0x80, 1)
        machine.ports.write(0x630, 4, 0)
        assert machine.ports.read(0x630, 4) == 0x20


@pytest.mark.parametrize(("board", "devfn", "enable"), [("pc", 1 << 3 | 3, (0x80, 1)), ("q35", LPC, (0x44, 0x80))])
@pytest.mark.parametrize("smm", ["on", "off"])
def test_without_smm_acpi_is_always_on(
    tmp_path: Path, board: str, devfn: int, enable: tuple[int, int], smm: str
) -> None:
    with pc_machine(tmp_path, board=board, board_options={"smm": smm}) as machine:
        power = device(machine, AcpiPm)  # type: ignore[type-abstract]
        power.reset()
        outl_config(machine, devfn, 0x40, 0x600)
        outl_config(machine, devfn, *enable, 1)
        always = int(smm == "off")
        assert power.switches == ((0, 0) if always else (power.acpi_enable, power.acpi_disable))
        assert machine.ports.read(0x604, 2) == always
        machine.ports.write(0x604, 2, 0)
        machine.ports.write(0xB2, 1, power.acpi_disable)
        assert machine.ports.read(0x604, 2) == always


def test_smi_and_its_lock() -> None:
    from pellucid.machine.irq import SharedLine
    from pellucid.memory import MemoryRegion
    from tests.machine.helpers import Wire

    clock, raised = HandClock(), Counter()
    tco = Ich9Tco(clock, Counter(), lambda: True, Counter())
    lpc = Ich9Lpc([SharedLine(Wire()) for _ in range(24)], clock, MemoryRegion.new_container("system"),
                  MemoryRegion.new_container("io", 0x1_0000), Ich9Tco.regions[0].memory_region(tco.ops()),
                  Counter(), Counter(), raised)  # fmt: skip
    apm, smi = lpc.ops(5), lpc.ops(4)
    apm.write(0, 1, 0x10)
    assert raised.calls == [] and smi.read(4, 4) == 0x20
    smi.write(0, 4, 0x21)
    apm.write(0, 1, 0x10)
    assert len(raised.calls) == 1
    smi.write(4, 4, 0x20)
    assert smi.read(4, 4) == 0
    lpc.config_write(0xA0, 2, 0x10)
    lpc.config_write(0xA0, 2, 0)
    smi.write(0, 4, 0)
    assert smi.read(0, 4) == 1


@pytest.mark.parametrize("may_reboot", [True, False])
def test_the_watchdog_bites_the_second_time(may_reboot: bool) -> None:
    clock, smi, reboot = HandClock(), Counter(), Counter()
    tco = Ich9Tco(clock, smi, lambda: may_reboot, reboot)
    tco.write(0x12, 2, 10)
    tco.write(0x00, 2, 1)
    clock.advance(4 * TICK_NS)
    assert tco.read(0, 2) == 6
    clock.advance(6 * TICK_NS)
    assert tco.read(0x04, 2) == 0x08 and len(smi.calls) == 1 and reboot.calls == []
    fresh = Ich9Tco(HandClock(clock.now), smi, lambda: may_reboot, reboot)
    fresh.load(tco.save())
    assert fresh.save() == tco.save()
    clock.advance(10 * TICK_NS)
    assert tco.read(0x06, 2) == 0x06 and len(reboot.calls) == may_reboot


def test_an_acknowledged_watchdog_bites_all_the_same() -> None:
    clock, smi, reboot = HandClock(), Counter(), Counter()
    tco = Ich9Tco(clock, smi, lambda: False, reboot)
    tco.write(0x12, 2, 6)
    tco.write(0x00, 2, 1)
    for times in (1, 2, 3):
        clock.advance(6 * TICK_NS)
        assert tco.read(0x04, 2) == 0x08 and len(smi.calls) == times
        assert tco.read(0x06, 2) == (0x06 if times > 1 else 0)
        tco.write(0x04, 2, 0x08)
    assert reboot.calls == []


def test_a_fed_or_halted_watchdog_does_not_bite() -> None:
    clock, reboot = HandClock(), Counter()
    tco = Ich9Tco(clock, Counter(), lambda: True, reboot)
    tco.write(0x00, 2, 1)
    for _ in range(20):
        clock.advance(TICK_NS)
        tco.write(0x00, 2, 1)
    tco.write(0x08, 2, 0x0800)
    clock.advance(100 * TICK_NS)
    assert reboot.calls == [] and tco.read(0x04, 2) == 0


def test_no_reboot_is_strapped(machine: Machine) -> None:
    lpc = device(machine, Ich9Lpc)
    outl_config(machine, LPC, 0xF0, 0xFED1_C001)
    machine.memory.write(0xFED1_F410, 4, 0)
    assert not lpc.may_reboot
    lpc.set_properties({"noreboot": False})
    machine.memory.write(0xFED1_F410, 4, 0)
    assert lpc.may_reboot


def test_smbus_reads_an_eeprom(machine: Machine) -> None:
    ports = machine.ports
    outl_config(machine, SMBUS, 0x20, 0x700)
    outl_config(machine, SMBUS, 0x04, 1, 2)
    outl_config(machine, SMBUS, 0x40, 1, 1)

    def transact(address: int, protocol: int, command: int, data: int = 0) -> tuple[int, int]:
        ports.write(0x704, 1, address)
        ports.write(0x703, 1, command)
        ports.write(0x705, 1, data)
        ports.write(0x702, 1, 0x41 | protocol << 2)
        status = ports.read(0x700, 1)
        ports.write(0x700, 1, 0xFF)
        return status, ports.read(0x705, 1)

    assert transact(0xA0, 2, 7, 0x5A)[0] == 0x02
    assert transact(0xA1, 2, 7) == (0x02, 0x5A)
    assert transact(0x20, 2, 0)[0] == 0x04  # nobody has this address
    assert transact(0xA0, 0, 0)[0] == 0x02
    assert device(machine, Ich9Smbus).intx_level is False


def test_info_pci_at_reset(machine: Machine) -> None:
    assert machine.pci is not None
    text = info_pci(machine.pci)
    assert text.startswith("  Bus  0, device   0, function 0:\n    Host bridge: PCI device 8086:29c0\n")
    assert "      BAR4: I/O at 0xffffffffffffffff [0x003e].\n" in text


accesses = st.lists(
    st.tuples(
        st.sampled_from(["config", "ecam", "pm", "tco", "rcrb", "smbus", "port", "memory", "hotplug"]),
        st.sampled_from([HOST, LPC, SMBUS]),
        st.integers(0, 0xFF) | st.sampled_from([4, 0x20, 0x40, 0x44, 0x60, 0x9C, 0x9D, 0x9E, 0xA0, 0xF0]),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 0xFFFF_FFFF) | st.sampled_from([0xB000_0001, 0xFED1_C001, 0x0000_0001, 0xFFFF_FFFF]),
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(accesses)
def test_a_hostile_guest(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int, int]]) -> None:
    with pc_machine(tmp_path_factory.mktemp("q35"), board="q35") as machine:
        ports, memory = machine.ports, machine.memory
        outl_config(machine, LPC, 0x40, 0x600)
        outl_config(machine, LPC, 0x44, 0x80, 1)
        outl_config(machine, HOST, 0x60, 0xB000_0001)
        for kind, devfn, offset, size, value in steps:
            if kind == "config":
                outl_config(machine, devfn, offset & -size, value, size)
            elif kind == "ecam":
                memory.write(0xB000_0000 + (devfn << 12) + offset, size, value)
                memory.read(0xB000_0000 + (value & 0xFFF_FFFC), size)
            elif kind in ("pm", "tco", "smbus", "hotplug"):
                base = {"pm": 0x600, "tco": 0x660, "smbus": 0x700, "hotplug": 0xCC0}[kind]
                ports.write(base + (offset & 0x3F), size, value)
                ports.read(base + (offset & 0x3F), size)
            elif kind == "rcrb":
                memory.write(0xFED1_C000 + (value & 0x3FFC), size, value)
                device(machine, Ich9Lpc).route(offset & 31, value & 3, bool(value & 4))
                device(machine, Ich9Lpc).route(offset & 31, value & 3, not value & 4)
            elif kind == "port":
                ports.write(value & 0xFFFF, size, value >> 16)
                ports.read(value & 0xFFFF, size)
            else:
                memory.write(0xA_0000 + (value & 0x6_FFFF), size, value)
                memory.read(0xFED0_0000 + (value & 0x3F_FFFF), size)
        for found in machine.devices:
            found.load(found.save())
            found.reset()
        assert memory.read(0xFFFF_FFF0, 4) == 0x3FFF and inl_config(machine, HOST, 0) == 0x29C0_8086
