"""What firmware is told of processors and of places for more, against QEMU 7.2's fw_cfg at reset, byte for byte.

golden/smp-tables.json: SHA-256 of files and items. `python -m tests.machine.test_smp_tables` asks QEMU anew. The
SMBIOS structures are compared in length alone: they name the CPU model.
"""

import hashlib
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.cli.smp import parse_smp, topology
from pellucid.machine.board import BOARDS
from pellucid.machine.devices.acpi_cpu_hotplug import AcpiCpuHotplug
from pellucid.machine.devices.fw_cfg import FwCfg
from tests.machine.pc_machine import device, pc_machine

GOLDEN = Path(__file__).parent / "golden" / "smp-tables.json"
FORMS = ("3", "2,maxcpus=4", "3,sockets=1,cores=3,dies=3,maxcpus=9", "sockets=2,cores=3,threads=1", "16,maxcpus=255")
FILES = ("etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader")
NB_CPUS, NUMA, MAX_CPUS, DIRECTORY = 0x05, 0x0D, 0x0F, 0x19
Item = Callable[[int, int], bytes]
"""`item(selector, size)`: what fw_cfg holds."""


def summary(item: Item) -> dict[str, str]:
    count = int.from_bytes(item(DIRECTORY, 4), "big")
    files: dict[str, tuple[int, int]] = {}
    for entry in struct.iter_unpack(">IHH56s", item(DIRECTORY, 4 + 64 * count)[4:]):
        files[entry[3].rstrip(b"\0").decode()] = entry[0], entry[1]
    found = {name: hashlib.sha256(item(files[name][1], files[name][0])).hexdigest() for name in FILES}
    found["items"] = " ".join(item(selector, 2).hex() for selector in (NB_CPUS, MAX_CPUS, NUMA))
    return found | {"SMBIOS": str(files["etc/smbios/smbios-tables"][0])}


@pytest.mark.parametrize("board", ["pc", "q35"])
@pytest.mark.parametrize("form", FORMS)
def test_firmware_is_told_what_qemu_tells(tmp_path: Path, board: str, form: str) -> None:
    config, _ = topology(parse_smp(form), BOARDS[board])
    with pc_machine(tmp_path, board=board, topology=config, default_drives=False) as machine:
        device(machine, FwCfg)

        def item(selector: int, size: int) -> bytes:
            machine.ports.write(0x510, 2, selector)
            return bytes(machine.ports.read(0x511, 1) for _ in range(size))

        assert summary(item) == json.loads(GOLDEN.read_text())[f"{board} {form}"]


def test_the_controller_knows_empty_places() -> None:
    config, _ = topology(parse_smp("3,dies=3,cores=3,maxcpus=9"), BOARDS["pc"])
    controller = AcpiCpuHotplug(config, lambda bit: None)
    assert [controller.region_read(0, offset, 1) for offset in range(3)] == [0b0000_0111, 0, 0]
    controller.region_write(0, 0, 1, 0)
    status = []
    for place in range(10):
        for byte in range(4):
            controller.region_write(0, byte, 1, place >> 8 * byte & 0xFF)
        status.append(controller.region_read(0, 4, 1))
    assert status == [1, 1, 1] + [0] * 7
    controller.region_write(0, 5, 1, 3)
    controller.region_write(0, 0, 1, 8)
    assert controller.region_read(0, 8, 1) == 0b10_10, "the APIC id of an empty place"


class Qtest:
    """QEMU, which does not run, and its ports."""

    def __init__(self, *words: str) -> None:
        line = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-m", "128M", "-qtest", "stdio",
                "-qtest-log", "/dev/null", *words]  # fmt: skip
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def command(self, line: str) -> list[str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        assert answer[0] == "OK", answer
        return answer[1:]

    def item(self, selector: int, size: int) -> bytes:
        self.command(f"outw 0x510 {selector:#x}")
        return bytes(int(self.command("inb 0x511")[0], 16) for _ in range(size))


if __name__ == "__main__":
    golden = {}
    for name in BOARDS.keys() & {"pc", "q35"}:
        for text in FORMS:
            qemu = Qtest("-M", name, "-smp", text)
            golden[f"{name} {text}"] = summary(qemu.item)
            qemu.process.kill()
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
