"""`-device` and `-global`: QEMU's words, places on buses, help; and the devices of the catalog as a guest sees them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.cli.draft import Draft
from pellucid.cli.option_values import HelpRequested, device, global_
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.catalog import CATALOG, catalog_help, class_help, find_class
from pellucid.machine.chardev.base import MemoryChardev
from pellucid.machine.config import GlobalOption
from pellucid.machine.device import Device
from pellucid.machine.devices.pci_testdev import PciTestdev
from pellucid.machine.machine import Machine
from pellucid.machine.pci import PcieRootPort, PciFunction
from pellucid.machine.pci.details import info_pci
from pellucid.machine.plug import DevicePlugger
from pellucid.machine.properties import size_text
from pellucid.machine.qdev import qtree_text
from tests.machine.fake_hypervisor import FakeVm
from tests.machine.pc_machine import inl_config, outl_config, pc_machine

ROOT_PORT_HELP = """\
  power_controller_present=<bool> - on/off (default: true)
  pref32-reserve=<size>  -  (default: 18446744073709551615)
  pref64-reserve=<size>  -  (default: 18446744073709551615)
  rombar=<uint32>        -  (default: 1)
  romfile=<str>
  romsize=<uint32>       -  (default: 4294967295)
  slot=<uint16>          -  (default: 0)
  x-migrate-msix=<bool>  -  (default: true)
  x-native-hotplug=<bool> -  (default: true)
  x-pcie-extcap-init=<bool> - on/off (default: true)
  x-pcie-lnksta-dllla=<bool> - on/off (default: true)
  x-speed=<PCIELinkSpeed> - 2_5/5/8/16 (default: "16")
  x-width=<PCIELinkWidth> - 1/2/4/8/12/16/32 (default: "32")"""


@pytest.fixture(params=["pc", "q35"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with pc_machine(tmp_path, board=request.param) as built:
        yield built


@pytest.fixture
def q35(tmp_path: Path) -> Iterator[Machine]:
    with pc_machine(tmp_path, board="q35") as built:
        yield built


def plug(machine: Machine, *texts: str, globals: tuple[GlobalOption, ...] = ()) -> list[Device]:
    draft = Draft()
    for text in texts:
        device(draft, text)
    plugger = DevicePlugger(machine, globals, {"here": MemoryChardev()}.get)
    return [plugger.plug(option) for option in draft.devices]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["nosuch"], "-device nosuch: 'nosuch' is not a valid device model name"),
        ([""], "-device : Parameter 'driver' is missing"),
        (["port92"], "Parameter 'driver' expects a pluggable device type"),
        (["pci-testdev,foo=1"], "Property 'pci-testdev.foo' not found"),
        (["pci-testdev,addr=40"], "Property 'pci-testdev.addr' doesn't take value '40'"),
        (["pci-testdev,addr=5.9"], "Property 'pci-testdev.addr' doesn't take value '5.9'"),
        (["pci-testdev,bus=nobus"], "Bus 'nobus' not found"),
        (["pci-testdev,bus=isa.0"], "Device 'pci-testdev' can't go on ISA bus"),
        (["pci-testdev,addr=0"], "PCI: slot 0 function 0 not available for pci-testdev, in use by"),
        (["isa-debug-exit,iobase=zz"], "Parameter 'iobase' expects integer"),
        (["isa-debug-exit,iobase=0x1ffffffff"], "Parameter 'iobase' expects uint32_t"),
        (["isa-debug-exit,iobase=0xffff"], "beyond the last"),
        (["isa-debug-exit,addr=3"], "Property 'isa-debug-exit.addr' not found"),
        (["pci-testdev,multifunction=maybe"], "Parameter 'multifunction' expects 'on' or 'off'"),
        (["pci-testdev,membar=nah"], "Parameter 'membar' expects size"),
        (["pci-testdev,membar=5"], "power of two"),
        (["pci-testdev,id=1x"], "Parameter 'id' expects an identifier"),
        (["pci-testdev,id=a", "pci-testdev,id=a"], "Duplicate ID 'a' for device"),
        (["isa-debugcon"], "Can't create debugcon device, empty char device"),
        (["isa-debugcon,chardev=x"], "Property 'isa-debugcon.chardev' can't find value 'x'"),
        (["pci-testdev,addr=5.1", "pci-testdev,addr=5.0"], "5.0 indicates single function, but 5.1 is already"),
        (["pci-testdev,addr=5", "pci-testdev,addr=5.1"], "single function device can't be populated in function 5.1"),
        (["pci-bridge"], "Bridge chassis not specified"),
        (["pci-bridge,chassis_nr=1,msi=maybe"], "Parameter 'msi' does not accept value 'maybe'"),
        (["pvpanic", "pvpanic"], "duplicate fw_cfg file name: etc/pvpanic-port"),
        (["pci-testdev,romfile=x"], "not built yet"),
    ],
)
def test_what_does_not_fit(machine: Machine, texts: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plug(machine, *texts)
    assert message in str(caught.value) and str(caught.value).startswith(f"-device {texts[-1]}: ")


def test_root_ports_need_chassis_and_slot_of_their_own(q35: Machine) -> None:
    with pytest.raises(UserError, match="Can't add chassis slot, error -16"):
        plug(q35, "pcie-root-port,id=a", "pcie-root-port,id=b")


def test_no_bus_for_it(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        machine.qdev.nodes.clear()
        with pytest.raises(UserError, match="No 'PCI' bus found for device 'pci-testdev'"):
            plug(machine, "pci-testdev")
    with pc_machine(tmp_path) as machine, pytest.raises(UserError, match="needs a PCI Express bus"):
        plug(machine, "pcie-root-port")


def test_help() -> None:
    assert class_help(find_class("pcie-root-port")).endswith(ROOT_PORT_HELP)  # type: ignore[arg-type]
    assert class_help(find_class("pc-testdev")) == "There are no options for pc-testdev."  # type: ignore[arg-type]
    assert catalog_help().startswith("Controller/Bridge/Hub devices:\nname \"ioh3420\", bus PCI, desc \"Intel IOH")
    for text in ("help", "pvpanic,help"):
        with pytest.raises(HelpRequested):
            device(Draft(), text)
    with pytest.raises(UserError, match="Device 'nosuch' not found"):
        device(Draft(), "nosuch,help")


def test_globals(q35: Machine) -> None:
    draft = Draft()
    global_(draft, "isa-debug-exit.iobase=0xf4")
    global_(draft, "driver=ICH9-LPC,property=noreboot,value=off")
    global_(draft, "foo.bar=1")
    plugger = DevicePlugger(q35, draft.globals, {}.get)
    assert plugger.set_board_globals() == ["warning: global foo.bar has invalid class name"]
    plug(q35, "isa-debug-exit", globals=tuple(draft.globals))
    q35.ports.write(0xF4, 1, 0x10)
    assert q35.exit_status == 0x21
    assert "noreboot = false" in qtree_text(q35.qdev)
    with pytest.raises(UserError, match="can't apply global isa-debug-exit.nope=1: Property"):
        plug(q35, "isa-debug-exit", globals=(GlobalOption("isa-debug-exit", "nope", "1"),))
    with pytest.raises(UserError, match="cannot be set yet"):
        DevicePlugger(q35, (GlobalOption("mch", "addr", "3"),), {}.get).set_board_globals()


def pit_global(machine: Machine, text: str) -> list[str]:
    draft = Draft()
    global_(draft, text)
    return DevicePlugger(machine, draft.globals, {}.get).set_board_globals()


def test_lost_tick_policy(machine: Machine) -> None:
    assert pit_global(machine, "kvm-pit.lost_tick_policy=discard") == []
    assert pit_global(machine, "kvm-pit.lost_tick_policy=delay") == []
    assert isinstance(machine.vm, FakeVm)
    assert machine.vm.chips[-2:] == ["pit reinject False", "pit reinject True"]
    for text, words in (
        ("lost_tick_policy=slew", "Lost tick policy not supported."),
        ("lost_tick_policy=x", "Parameter 'lost_tick_policy' does not accept value 'x'"),
        ("nope=1", "Property 'kvm-pit.nope' not found"),
        ("iobase=0x48", "not built yet"),
    ):
        with pytest.raises((UserError, NotBuiltError), match=words):
            pit_global(machine, f"kvm-pit.{text}")


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_without_a_pit(board: str, tmp_path: Path) -> None:
    with pc_machine(tmp_path, board=board, board_options={"pit": "off"}) as machine:
        assert isinstance(machine.vm, FakeVm) and machine.vm.chips == ["irqchip"]
        text = qtree_text(machine.qdev)
        assert "isa-pit" not in text and "isa-pcspk" not in text and "mc146818rtc" in text
        assert pit_global(machine, "kvm-pit.lost_tick_policy=discard") == []


def test_places_and_trees(q35: Machine) -> None:
    plug(q35, "pcie-root-port,id=rp,slot=1", "pci-testdev,bus=rp,membar=1M", "pcie-root-port,slot=2")
    plug(q35, "pci-testdev,id=t,multifunction=on", "pci-testdev,addr=3.1")
    plug(q35, "pcie-pci-bridge,addr=9", "pci-testdev,bus=pci.0")
    text = qtree_text(q35.qdev)
    for line in ('dev: pcie-root-port, id "rp"', "bus: rp", "bus: pcie.0", "bus: pci.0", "addr = 03.1",
                 "slot = 1 (0x1)", "membar = 1048576 (1 MiB)",
                 "class Class 00ff, addr 00:00.0, pci id 1b36:0005"):  # fmt: skip
        assert line in text
    assert q35.pci is not None and "    Class 0255: PCI device 1b36:0005\n" in info_pci(q35.pci)
    assert inl_config(q35, 0x18, 0x0E, 1) == 0x80 and inl_config(q35, 0x19, 0x0E, 1) == 0


def test_configuration_space_of_the_root_port_is_qemu_s(q35: Machine) -> None:
    (port,) = plug(q35, "pcie-root-port,slot=3")
    assert isinstance(port, PcieRootPort)
    expected = {
        0x000: "361b0c00000010000000040600000100",
        0x010: "000000000000000000000000f0000000",
        0x020: "f0ff0000f1ff01000000000000000000",
        0x030: "00000000540000000000000000010000",
        0x040: "0d000000361b00001140000000000000",
        0x050: "00080000104842010080000000000000",
        0x060: "04063000000004027b001a00c0070000",
        0x070: "00000000000000002000300000000000",
        0x080: "1e000000040000000000000000000000",
        0x100: "01008214000000000000000030204600",
        0x110: "0000000000e00000a002000000000000",
        0x140: "00000000000000000d0001005f000000",
    }
    port.reset()
    for at, row in expected.items():
        assert port.config[at : at + 16].hex() == row, hex(at)


def test_a_card_leaves_its_slot_when_power_goes_off(q35: Machine) -> None:
    port, card = plug(q35, "pcie-root-port,id=rp", "pci-testdev,bus=rp")
    assert isinstance(port, PcieRootPort) and isinstance(card, PciFunction)
    port.reset()
    status, control = 0x54 + 0x1A, 0x54 + 0x18
    assert port.config_read(status, 2) == 0x40 and port.config_read(control, 2) == 0x01C0
    port.config_write(control, 2, 0x07E0)
    assert card.bus is None and port.secondary() is not None and not port.secondary().functions  # type: ignore[union-attr]
    assert port.config_read(status, 2) & 0x59 == 0x18 and port.intx_level
    port.config_write(status, 2, 0xFFFF)
    port.config_write(control, 2, 0x07C0)
    assert not port.intx_level


def test_pci_testdev_counts_writes(machine: Machine) -> None:
    (card,) = plug(machine, "pci-testdev,addr=6")
    assert isinstance(card, PciTestdev)
    outl_config(machine, 0x30, 0x10, 0xE000_0000)
    outl_config(machine, 0x30, 0x14, 0xD000)
    outl_config(machine, 0x30, 4, 3, 2)
    memory, ports = machine.memory, machine.ports
    memory.write(0xE000_0000, 1, 0)
    assert memory.read_bytes(0xE000_0000, 31) == bytes.fromhex("0001000000080000fa00000000000000") + b"mmio-no-eventfd"
    memory.write(0xE000_0800, 1, 0xFA)
    memory.write(0xE000_0800, 1, 0x11)
    assert memory.read(0xE000_000C, 4) == 1
    ports.write(0xD000, 1, 1)
    assert ports.read(0xD001, 1) == 1 and ports.read(0xD004, 4) == 0x84 and ports.read(0xD008, 1) == 0xCE
    ports.write(0xD084, 1, 0)
    assert ports.read(0xD00C, 1) == 1 and memory.read(0xE000_0000, 4) == 0
    ports.write(0xD000, 1, 3)
    assert ports.read(0xD000, 4) == 0


def test_the_other_devices(machine: Machine) -> None:
    events: list[str] = []
    machine.system.on_event.append(lambda name, data: events.append(name))
    plug(machine, "pc-testdev", "pvpanic", "isa-debugcon,chardev=here,iobase=0x402,readback=0x55", "pvpanic-pci,addr=8")
    ports = machine.ports
    ports.write(0xE0, 4, 0x1234_5678)
    assert ports.read(0xE2, 2) == 0x1234 and ports.read(0xE8, 1) == 0x78
    ports.write(0x2005, 1, 1)
    assert machine.vm.lines[-1] == (5, True)  # type: ignore[attr-defined]
    machine.memory.write(0xFF00_1000, 4, 77)
    assert machine.memory.read(0xFF00_1000, 4) == 77
    assert ports.read(0x402, 1) == 0x55 and ports.read(0x505, 1) == 3
    ports.write(0x505, 1, 2)
    assert events == ["GUEST_CRASHLOADED"]
    outl_config(machine, 0x40, 0x10, 0xE000_0002)
    outl_config(machine, 0x40, 4, 2, 2)
    assert inl_config(machine, 0x40, 0x10) == 0xE000_0002 and machine.memory.read(0xE000_0003, 1) == 3


def test_sizes_as_people_read_them() -> None:
    sizes = (0, 1, 1023, 1024, 1536, 1 << 20, 34359738368, (1 << 64) - 1)
    expected = ["0 B", "1 B", "1.02e+03 B", "1 KiB", "1.5 KiB", "1 MiB", "32 GiB", "16 EiB"]
    assert [size_text(size) for size in sizes] == expected


steps = st.lists(
    st.tuples(
        st.sampled_from(["config", "bar", "memory", "port", "slot", "pin"]),
        st.integers(0, 9),
        st.integers(0, 0xFFF),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 0xFFFF_FFFF) | st.sampled_from([0, 0x10_0000, 0xE000_0000, 0xFFFF_FFFF, 0xFEE0_0000, 0x07E0, 7]),
    ),
    max_size=40,
)


@settings(max_examples=25)
@given(steps)
def test_random_bridges_bars_and_slots(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int, int]]
) -> None:
    """BARs over RAM, over each other and over the chips; windows upside down; cards that leave."""
    with pc_machine(tmp_path_factory.mktemp("plug"), board="q35") as machine:
        plugged = plug(machine, "pcie-root-port,id=rp", "pci-testdev,bus=rp,membar=64K", "ioh3420,slot=2,id=ioh",
                       "pci-testdev,bus=ioh", "pcie-pci-bridge,id=ppb", "pci-bridge,bus=ppb,chassis_nr=1,id=pb,addr=1",
                       "pci-testdev,bus=pb,addr=2", "pci-testdev,membar=1M", "pvpanic-pci", "pc-testdev")  # fmt: skip
        functions = [found for found in plugged if isinstance(found, PciFunction)]
        for kind, which, at, size, value in steps:
            function = functions[which % len(functions)]
            if kind == "config":
                at = at % function.config_size & -size
                function.config_write(at, size, value)
                assert 0 <= function.config_read(at, size) < 1 << 8 * size
            elif kind == "bar":
                function.config_write(4, 2, 7)
                function.config_write(0x10 + (at & 0x14), 4, value)
            elif kind == "memory":
                machine.memory.write(value & 0xFFFF_FFF0, size, at)
                machine.memory.read(value & 0xFFFF_FFF0, size)
            elif kind == "port":
                machine.ports.write(value & 0xFFFF, size, at)
                machine.ports.read(value & 0xFFFF, size)
            elif kind == "slot":
                functions[0].config_write(0x54 + 0x18, 2, value & 0xFFFF)
            elif function.bus is not None:
                function.set_intx(bool(value & 1))
        assert machine.pci is not None
        assert info_pci(machine.pci) and qtree_text(machine.qdev)
        for function in functions:
            saved = function.save()
            function.load(saved)
            assert function.save() == saved
            function.reset()
        assert machine.memory.read(0xFFFF_FFF0, 4) == 0x3FFF


def test_every_class_says_what_it_is() -> None:
    for entry in CATALOG:
        assert entry.device.kind == entry.name and class_help(entry)
