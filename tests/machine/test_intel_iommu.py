"""`-device intel-iommu` on the board: options, the memory tree, the DMAR table, and a disk's DMA through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pellucid.cli.draft import Draft
from pellucid.cli.option_values import device
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.catalog import class_help, find_class
from pellucid.machine.firmware.dmar import dmar_body
from pellucid.machine.machine import Machine
from pellucid.machine.plug import DevicePlugger
from pellucid.machine.qdev import qtree_text
from pellucid.machine.vtd import registers as reg
from pellucid.memory import info_mtree
from tests.machine.mtree_blocks import blocks
from tests.machine.pc_machine import pc_machine

UNIT = 0xFED9_0000
REMAPPING = "intel-iommu,intremap=on,eim=off"
HELP = """\
intel-iommu options:
  aw-bits=<uint8>        -  (default: 39)
  caching-mode=<bool>    -  (default: false)
  device-iotlb=<bool>    -  (default: false)
  dma-drain=<bool>       -  (default: true)
  dma-translation=<bool> -  (default: true)
  eim=<OnOffAuto>        - on/off/auto (default: "auto")
  intremap=<OnOffAuto>   - on/off/auto (default: "auto")
  pt=<bool>              -  (default: true)
  snoop-control=<bool>   -  (default: false)
  version=<uint32>       -  (default: 0)
  x-buggy-eim=<bool>     -  (default: false)
  x-pasid-mode=<bool>    -  (default: false)
  x-scalable-mode=<bool> -  (default: false)"""
NODE = """\
  dev: intel-iommu, id ""
    version = 0 (0x0)
    eim = "off"
    x-buggy-eim = false
    aw-bits = 39 (0x27)
    caching-mode = false
    x-scalable-mode = false
    snoop-control = false
    x-pasid-mode = false
    dma-drain = true
    dma-translation = true
    intremap = "on"
    device-iotlb = false
    pt = true
    mmio 00000000fed90000/0000000000000230
"""
PLAIN = """\
  0000000000000000-ffffffffffffffff (prio 0, i/o): vtd-01.0
    0000000000000000-ffffffffffffffff (prio 0, i/o): alias vtd-nodmar @vtd-nodmar 0000000000000000-ffffffffffffffff
      00000000fee00000-00000000feefffff (prio 1, i/o): alias vtd-ir @vtd-ir 0000000000000000-00000000000fffff"""
TRANSLATED = """\
  0000000000000000-ffffffffffffffff (prio 0, i/o): vtd-01.0
    0000000000000000-ffffffffffffffff (prio 0, i/o): vtd-01.0-dmar
      00000000fee00000-00000000feefffff (prio 1, i/o): alias vtd-ir @vtd-ir 0000000000000000-00000000000fffff"""
FLAT = """\
 Root memory region: vtd-01.0-dmar
  0000000000000000-00000000fedfffff (prio 0, i/o): vtd-01.0-dmar
  00000000fee00000-00000000feefffff (prio 1, i/o): vtd-ir
  00000000fef00000-ffffffffffffffff (prio 0, i/o): vtd-01.0-dmar @00000000fef00000"""
UNIT_AND_SCOPES = (
    "00004000000000000000d9fe000000000308000000ff00000108000000000000"
    "010800000000010001080000"
    "00001f000108000000001f020108000000001f03"
)
DMAR = "2601" + "00" * 10 + UNIT_AND_SCOPES
DMAR_48 = "2f01" + "00" * 10 + UNIT_AND_SCOPES + "0200080001000000"


def plug(machine: Machine, *texts: str) -> None:
    draft = Draft()
    for text in texts:
        device(draft, text)
    plugger = DevicePlugger(machine, (), {}.get)
    for option in draft.devices:
        plugger.plug(option)


@contextmanager
def board(folder: Path, *texts: str, kind: str = "q35", irqchip: str = "split") -> Iterator[Machine]:
    with pc_machine(folder, board=kind, kernel_irqchip=irqchip, default_drives=False) as machine:
        plug(machine, *texts)
        yield machine


def translate(machine: Machine) -> None:
    machine.memory.write(UNIT + reg.GLOBAL_COMMAND, 4, reg.ENABLE_TRANSLATION)


def test_help_is_qemus() -> None:
    entry = find_class("intel-iommu")
    assert entry is not None and class_help(entry) == HELP
    assert entry.help_line == 'name "intel-iommu", bus System, desc "Intel IOMMU (VT-d) DMA Remapping device"'


@pytest.mark.parametrize(
    ("text", "kind", "irqchip", "error", "message"),
    [
        ("intel-iommu,intremap=on", "q35", "on", UserError,
         "Intel Interrupt Remapping cannot work with kernel-irqchip=on, please use 'split|off'."),
        ("intel-iommu,eim=on,intremap=off", "q35", "split", UserError,
         "eim=on cannot be selected without intremap=on"),
        ("intel-iommu,aw-bits=40", "q35", "split", UserError, "Supported values for aw-bits are: 39, 48"),
        ("intel-iommu,x-scalable-mode=on", "q35", "split", NotBuiltError, "x-scalable-mode=on is not built yet"),
        ("intel-iommu,x-pasid-mode=on", "q35", "split", NotBuiltError, "x-pasid-mode=on is not built yet"),
        ("intel-iommu", "pc", "split", NotBuiltError, "intel-iommu on -machine pc is not built yet"),
    ],
)  # fmt: skip
def test_what_does_not_go(
    tmp_path: Path, text: str, kind: str, irqchip: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.split("'")[0].replace("(", r"\(")), board(
        tmp_path, text, kind=kind, irqchip=irqchip
    ):
        pass


def test_one_unit_only(tmp_path: Path) -> None:
    with board(tmp_path, REMAPPING) as machine, pytest.raises(UserError, match="multiple vIOMMUs"):
        plug(machine, REMAPPING)


@pytest.mark.parametrize(("irqchip", "remaps"), [("on", False), ("split", True)])
def test_remapping_follows_the_irqchip(tmp_path: Path, irqchip: str, remaps: bool) -> None:
    with board(tmp_path, "intel-iommu", irqchip=irqchip) as machine:
        assert machine.iommu is not None and machine.iommu.features.remapping is remaps


def test_the_tree_is_qemus(tmp_path: Path) -> None:
    with board(tmp_path, REMAPPING, "edu") as machine:
        text = info_mtree(machine.address_spaces)
        assert text.count("address-space: vtd-root") == 5 and PLAIN in text
        assert "memory-region: vtd-ir\n  00000000fee00000-00000000feefffff (prio 1, i/o): vtd-ir\n" in text
        assert "(prio 0, i/o): alias vtd-sys-alias @system" in text
        flat = blocks(info_mtree(machine.address_spaces, flat=True))
        plain = next(lines for heads, lines in flat.items() if "vtd-root" in heads)
        assert plain[0] == " Root memory region: vtd-nodmar"
        assert "  00000000fed90000-00000000fed9022f (prio 0, i/o): intel_iommu" in plain
        assert NODE in qtree_text(machine.qdev)
        translate(machine)
        assert TRANSLATED in info_mtree(machine.address_spaces)
        assert FLAT in info_mtree(machine.address_spaces, flat=True)
        machine.memory.write(UNIT + reg.GLOBAL_COMMAND, 4, 0)
        assert info_mtree(machine.address_spaces) == text


@pytest.mark.parametrize(
    ("text", "expected"), [(REMAPPING, DMAR), ("intel-iommu,intremap=off", DMAR.replace("2601", "2600", 1)),
                           (REMAPPING + ",aw-bits=48,device-iotlb=on", DMAR_48)],
)  # fmt: skip
def test_the_dmar_table_is_qemus(tmp_path: Path, text: str, expected: str) -> None:
    with board(tmp_path, text, "edu") as machine:
        assert machine.iommu is not None and machine.pci is not None
        assert dmar_body(machine.iommu.features, machine.pci).hex() == expected


def test_a_function_that_comes_before_or_after_the_unit_is_behind_it(tmp_path: Path) -> None:
    with board(tmp_path, "edu,addr=3", REMAPPING, "edu,addr=4") as machine:
        assert machine.pci is not None
        translate(machine)
        for devfn in (0x18, 0x20):
            function = machine.pci.functions[devfn]
            function.config_write(4, 2, 4)
            assert function.dma.read_bytes(0, 4) == bytes(4)  # type: ignore[attr-defined]
            high = machine.memory.read(UNIT + reg.FAULT_RECORD + 8, 8)
            assert high & 0xFFFF == devfn, "no root table is there: its fault is recorded"
            machine.memory.write(UNIT + reg.FAULT_RECORD + 8, 8, reg.RECORD_FAULT)
