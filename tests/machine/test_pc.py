"""The board `pc` whole: RAM, PAM and SMRAM, configuration space, errors, SeaBIOS itself."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import FerrExit
from pellucid.machine.boards import pc
from pellucid.machine.boards.pc_options import parse_pc_options
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.i440fx import I440fx
from pellucid.machine.devices.pam import pam_segments
from pellucid.machine.devices.piix4_pm import Piix4Pm
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.firmware.image import find_firmware, read_firmware
from pellucid.machine.machine import Machine
from pellucid.memory import MemoryRegion, UnassignedIoOps
from pellucid.runtime import Outcome, ShutdownCause
from tests.machine.fake_hypervisor import FakeVm
from tests.machine.pc_machine import device, inl_config, outl_config, pc_machine

GOLDEN = Path(__file__).parent / "golden"
MiB = 1 << 20
HOST, PM = 0x00, 0x0B
PAM0, SMRAM = 0x59, 0x72

@pytest.fixture
def machine(tmp_path: Path):  # type: ignore[no-untyped-def]
    with pc_machine(tmp_path) as built:
        yield built


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (128, None, (128, 0)),
        (3583, None, (3583, 0)),
        (3584, None, (3072, 512)),
        (8192, None, (3072, 5120)),
        (8192, 2048, (2048, 6144)),
        (1024, 2048, (1024, 0)),
        (4096, 3584, (3072, 1024)),
    ],
)
def test_ram_split(size: int, limit: int | None, expected: tuple[int, int]) -> None:
    split = pc.split_ram(size * MiB, None if limit is None else limit * MiB)
    assert split == (expected[0] * MiB, expected[1] * MiB)


def test_the_firmware_is_at_the_reset_vector_and_below_1_mib(machine: Machine) -> None:
    memory = machine.memory
    assert memory.read(0xFFFF_FFF0, 4) == 0x3FFF and memory.read(0xFFFC_0000, 4) == 0
    assert memory.read(0xF_FFF0, 4) == 0x3FFF and memory.read(0xE_0000, 4) == 0x2000
    memory.write(0xF_FFF0, 4, 0)
    memory.write(0xFFFF_FFF0, 4, 0)
    assert memory.read(0xF_FFF0, 4) == memory.read(0xFFFF_FFF0, 4) == 0x3FFF


@pytest.mark.parametrize(("index", "segment"), list(enumerate(pam_segments())))
def test_the_four_states_of_a_pam_segment(machine: Machine, index: int, segment: tuple[int, int]) -> None:
    start, size = segment
    register, shift = PAM0 + (index + 1) // 2, 0 if index % 2 else 4
    memory, last = machine.memory, start + size - 4
    from_pci = memory.read(last, 4)
    outl_config(machine, HOST, register, 3 << shift, 1)
    assert memory.read(last, 4) == 0
    memory.write(last, 4, 0xDEAD_BEEF)
    assert memory.read(last, 4) == 0xDEAD_BEEF
    outl_config(machine, HOST, register, 1 << shift, 1)
    memory.write(last, 4, 1)
    assert memory.read(last, 4) == 0xDEAD_BEEF
    outl_config(machine, HOST, register, 2 << shift, 1)
    assert memory.read(last, 4) == 0xDEAD_BEEF
    outl_config(machine, HOST, register, 3 << shift, 1)
    assert memory.read(last, 4) == 0xDEAD_BEEF
    outl_config(machine, HOST, register, 0, 1)
    assert memory.read(last, 4) == from_pci
    assert memory.read(start - 4, 4) != 0xDEAD_BEEF


def test_shadow_ram_as_firmware_makes_it(machine: Machine) -> None:
    memory = machine.memory
    rom = memory.read_bytes(0xFFFE_0000, 0x2_0000)
    outl_config(machine, HOST, PAM0, 0x30, 1)
    outl_config(machine, HOST, PAM0 + 5, 0x33, 1)
    outl_config(machine, HOST, PAM0 + 6, 0x33, 1)
    assert memory.read_bytes(0xE_0000, 16) == bytes(16)
    memory.write_bytes(0xE_0000, rom)
    outl_config(machine, HOST, PAM0, 0x10, 1)
    memory.write(0xF_0000, 4, 0)
    assert memory.read_bytes(0xE_0000, 0x2_0000) == rom
    host = device(machine, I440fx)
    host.reset()
    assert memory.read_bytes(0xE_0000, 0x2_0000) == rom, "QEMU keeps the map at a reset, and so does S3 find its way"


def test_smram_open_closed_locked(machine: Machine) -> None:
    memory, host = machine.memory, device(machine, I440fx)
    pci = host.smram_region.alias_target
    assert pci is not None
    # Without anything of the bus's at these addresses, RAM is seen beneath it.
    pci.add_subregion(0xA_0000, MemoryRegion.new_io("vga-lowmem", 0x2_0000, UnassignedIoOps()))
    memory.write(0xA_0000, 4, 0x1234)
    assert memory.read(0xA_0000, 4) == 0xFFFF_FFFF
    outl_config(machine, HOST, SMRAM, 0x4A, 1)
    memory.write(0xA_0000, 4, 0x1234)
    assert memory.read(0xA_0000, 4) == 0x1234
    outl_config(machine, HOST, SMRAM, 0x0A, 1)
    assert memory.read(0xA_0000, 4) == 0xFFFF_FFFF and host.smram.enabled
    smm = next(space for space in machine.address_spaces if space.name == "cpu-smm-0")
    assert smm.read(0xA_0000, 4) == 0x1234 and smm.read(0xFFFF_FFF0, 4) == 0x3FFF
    outl_config(machine, HOST, SMRAM, 0x5A, 1)  # locking closes
    assert inl_config(machine, HOST, SMRAM, 1) == 0x1A
    outl_config(machine, HOST, SMRAM, 0x42, 1)
    assert inl_config(machine, HOST, SMRAM, 1) == 0x1A and memory.read(0xA_0000, 4) == 0xFFFF_FFFF
    host.reset()
    assert inl_config(machine, HOST, SMRAM, 1) == 0x02 and not host.smram.enabled


def test_configuration_space_is_qemu_s_at_reset(machine: Machine) -> None:
    golden = (GOLDEN / "pc-config-space.txt").read_text()
    for found in re.finditer(r"^(\d)\.(\d)\n((?:[0-9a-f]{2}: [0-9a-f]{32}\n)+)", golden, re.MULTILINE):
        devfn = int(found[1]) << 3 | int(found[2])
        expected = bytearray.fromhex("".join(line.split()[1] for line in found[3].splitlines()))
        ours = b"".join(inl_config(machine, devfn, at).to_bytes(4, "little") for at in range(0, 256, 4))
        assert ours.hex(" ", 16) == expected.hex(" ", 16), f"{devfn >> 3}.{devfn & 7}"


def test_port_cf9_resets_and_the_address_port_takes_doublewords(machine: Machine) -> None:
    ports = machine.ports
    ports.write(0xCF8, 4, 0x8000_0600)
    assert machine.system.requests.take().reset is None and ports.read(0xCF8, 4) == 0x8000_0600
    ports.write(0xCF9, 1, 0x02)
    assert ports.read(0xCF9, 1) == 0x02 and ports.read(0xCF8, 4) == 0x8000_0600
    # Its priority lets it lie over the middle of the other; a word at 0xCF8 is the other's whole and too narrow for it.
    ports.write(0xCF8, 2, 0x0600)
    assert machine.system.requests.take().reset is None and ports.read(0xCF8, 4) == 0x8000_0600
    ports.write(0xCF9, 1, 0x06)
    assert machine.system.requests.take().reset is ShutdownCause.GUEST_RESET


def test_what_firmware_finds(tmp_path: Path) -> None:
    with pc_machine(tmp_path, 4096 * MiB) as machine:
        assert device(machine, FwCfg) is not None
        ports, rtc = machine.ports, device(machine, Rtc)

        def item(key: int, size: int) -> bytes:
            ports.write(0x510, 2, key)
            return bytes(ports.read(0x511, 1) for _ in range(size))

        assert item(0, 4) == b"QEMU" and item(3, 8) == (4096 * MiB).to_bytes(8, "little")
        directory = item(0x19, 4 + 64 * 16)
        names = [directory[at + 8 : at + 64].rstrip(b"\0") for at in range(4, len(directory), 64)]
        assert {b"etc/e820", b"etc/system-states", b"bootorder"} <= set(names)
        assert rtc.cmos[0x34:0x36] == ((3072 - 16) * 16).to_bytes(2, "little")
        assert rtc.cmos[0x5B:0x5E] == (1024 * 16).to_bytes(3, "little")


def test_power_button_goes_to_the_power_management_function(machine: Machine) -> None:
    device(machine, Piix4Pm).pm1_enable = 0x100
    for action in machine.system.on_powerdown:
        action()
    assert device(machine, Piix4Pm).pm1_status & 0x100


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"acpy": "on"}, UserError, "unknown option 'acpy'"),
        ({"hpet": "maybe"}, UserError, "on, off or auto"),
        ({"x-oem-id": "SEVENCH"}, UserError, "at most 6"),
        ({"smbios-entry-point-type": "16"}, UserError, "32 or 64"),
        ({"smm": "maybe"}, UserError, "on, off or auto"),
        ({"i8042": "off"}, NotBuiltError, "i8042=off"),
        ({"max-ram-below-4g": "12X"}, UserError, "3G"),
        ({"max-ram-below-4g": "5G"}, UserError, "1 MiB to 4 GiB"),
    ],
)
def test_bad_options(options: dict[str, str], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        parse_pc_options("pc", options)


def test_bad_firmware(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the path"):
        find_firmware("no-such-firmware.bin")
    (tmp_path / "short").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="is the file whole"):
        read_firmware(find_firmware(str(tmp_path / "short")))
    with pytest.raises(UserError, match="No such file"):
        read_firmware(tmp_path / "absent")


accesses = st.lists(
    st.tuples(
        st.sampled_from(["config", "port", "memory"]),
        st.sampled_from([0x00, 0x08, 0x09, 0x0B]),
        st.integers(0, 0xFF) | st.sampled_from([4, 0x40, 0x59, 0x60, 0x72, 0x80]),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 0xFFFF_FFFF),
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(accesses)
def test_a_hostile_guest(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int, int]]) -> None:
    with pc_machine(tmp_path_factory.mktemp("pc")) as machine:
        for kind, devfn, offset, size, value in steps:
            if kind == "config":
                outl_config(machine, devfn, offset & -size, value, size)
            elif kind == "port":
                machine.ports.write(value & 0xFFFF, size, value >> 16)
                machine.ports.read(value & 0xFFFF, size)
            else:
                machine.memory.write(0xA_0000 + (value & 0x6_FFFF), size, value)
                machine.memory.read(0xFEC0_0000 + (value & 0x3F_FFFF), size)
        for found in machine.devices:
            found.load(found.save())
            found.reset()
        assert machine.memory.read(0xFFFF_FFF0, 4) == 0x3FFF


def test_accesses_across_the_edges_of_every_region(machine: Machine) -> None:
    """A device gets accesses whole, also those that begin at its last byte and run past it."""
    for space in (machine.ports, machine.memory):
        for found in list(space.view.ranges):
            for addr in {found.start, *range(max(found.end - 4, found.start), found.end)}:
                for size in (1, 2, 4, 8):
                    value = space.read(addr, size)
                    assert 0 <= value < 1 << 8 * size, f"{found!r} at {addr:#x}"
                    space.write(addr, size, value ^ 0x5A5A)


def test_seabios_boots_through_shadow_ram(tmp_path: Path) -> None:
    """Debian's SeaBIOS, unmodified, on Pellucid's own processor: from the reset vector to its boot attempts."""
    if not Path("/usr/share/seabios/bios-256k.bin").is_file():
        pytest.skip("needs Debian's package seabios")
    from tests.machine.firmware_run import run_firmware

    output = run_firmware(tmp_path, until=b"No bootable device", seconds=120)
    assert b"SeaBIOS (version" in output and b"Booting from Hard Disk" in output


def test_ferr_raises_irq_13_until_port_f0_is_written(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        machine.create_vcpus([0], lambda apic_id: [])
        vm = machine.vm
        assert isinstance(vm, FakeVm)
        machine._vcpu_event(machine.vcpus.threads[0], Outcome.COPROCESSOR_ERROR, FerrExit())
        assert vm.lines[-1] == (13, True) and vm.vcpus[0].ignored_errors == 0
        machine.ports.write(0xF0, 1, 0)
        assert vm.lines[-1] == (13, False) and vm.vcpus[0].ignored_errors == 1
