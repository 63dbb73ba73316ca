"""System-management mode on the board `pc`: the save map against QEMU's, SMRAM's register, and a guest between."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pellucid.engine.processor import Engine
from pellucid.errors import UserError
from pellucid.kvm.api import Hypervisor
from pellucid.machine import board
from pellucid.machine.boards.pc import build_pc
from pellucid.machine.chardev import Chardev
from pellucid.machine.config import MachineConfig
from pellucid.machine.devices.i440fx import I440fx
from pellucid.machine.devices.piix4_pm import Piix4Pm
from pellucid.machine.machine import Machine
from pellucid.machine.run import run_machine
from pellucid.machine.smm import has_smm
from pellucid.memory import AccessSizes, MemoryRegion
from pellucid.runtime import ShutdownCause
from tests.cpu.guests.asm import assemble
from tests.machine.fake_hypervisor import FakeHypervisor, FakeVm
from tests.machine.pc_machine import device, outl_config, pc_machine
from tests.machine.smm_probe import END, RECORD, STAGES, image

GOLDEN = Path(__file__).parent / "golden" / "smm-probe.txt"
SMRAM_REGISTER, HOST = 0x72, 0
RIP = 0x178
"""In the 512 bytes of the save map."""


def run_image(folder: Path, firmware: bytes, prepare: Callable[[Machine], None]) -> None:
    """Run the `pc` board with this firmware until something asks the machine to go down, a minute at most."""
    path = folder / "firmware"
    path.write_bytes(firmware)
    machines: list[Machine] = []
    ended = threading.Event()

    def build(machine: Machine, serials: list[Chardev | None]) -> None:
        build_pc(machine, serials)
        prepare(machine)
        machines.append(machine)

    def watch() -> None:
        if not ended.wait(60):
            machines[0].system.requests.shutdown(ShutdownCause.HOST_UI)

    board.BOARDS["pc-in-test"] = board.Board("pc-in-test", "the PC, watched", build)
    Engine.get()  # which may have to be compiled, before the minute begins
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run_machine(MachineConfig(board="pc-in-test", board_options={"firmware": str(path)}, serials=()))
    finally:
        ended.set()
        watcher.join()
        del board.BOARDS["pc-in-test"]


class Ports:
    """A few ports of a test: what is read from them, and what is written to them."""

    def __init__(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        self.read, self.write = read, write

    def put(self, machine: Machine, at: int, size: int) -> None:
        region = MemoryRegion.new_io("test", size, self, valid=AccessSizes(1, 4))  # type: ignore[arg-type]
        machine.system_io.add_subregion_overlap(at, region, 10)


def records(output: bytes) -> Iterator[tuple[bytes, bytearray, bytes]]:
    """(stage and registers on entry, save map, what the guest printed behind RSM) of each SMI."""
    at = 0
    for stage in STAGES:
        behind = 4 if stage != STAGES[-1] else 0
        head = RECORD - 512
        yield (
            output[at : at + head],
            bytearray(output[at + head : at + RECORD]),
            output[at + RECORD : at + RECORD + behind],
        )
        at += RECORD + behind


def test_the_save_map_is_qemu_s_in_every_mode(tmp_path: Path) -> None:
    output = bytearray()

    def prepare(machine: Machine) -> None:
        def write(offset: int, size: int, value: int) -> None:
            output.append(value)
            if output.endswith(END):
                machine.request_shutdown()

        Ports(lambda offset, size: 0, write).put(machine, 0x402, 1)

    run_image(tmp_path, image(), prepare)
    golden = bytes.fromhex("".join(GOLDEN.read_text().splitlines()[1:]))
    assert len(output) == len(golden)
    for (ours, our_map, our_end), (theirs, their_map, their_end) in zip(records(output), records(golden), strict=True):
        # QEMU takes the SMI behind the two-byte jump that follows the OUT.
        rip = int.from_bytes(their_map[RIP : RIP + 8], "little") - 2
        their_map[RIP : RIP + 8] = rip.to_bytes(8, "little")
        assert (ours, our_map, our_end) == (theirs, their_map, their_end)
    # QEMU's 440FX does not implement the lock.
    assert golden[-5] == 0x4A and output[-5] == 0x1A


# --- SMRAM's register and execution ----------------------------------------------------------------------

END_OP, WRITE_REGISTER, CALL, SMI, STORE, SMI_STORE = range(6)
PLAY = """
start: cli
    xor ax, ax
    mov ss, ax
    mov ds, ax
    mov sp, 0x7000
    mov ax, 0x3000
    mov es, ax
    mov si, h
    mov di, 0x8000
    mov cx, h_end - h
copy: mov al, [cs:si]
    mov [es:di], al
    inc si
    inc di
    dec cx
    jne copy
    mov dx, 0xCF8
    mov eax, 0x80000B58
    out dx, eax
    mov dx, 0xCFC
    mov eax, 0x2000000
    out dx, eax
    mov ax, 0xA000
    mov ds, ax
next: mov dx, 0x600
    in ax, dx
    mov bx, ax
    cmp bl, 1
    jne n2
    mov dx, 0xCF8
    mov eax, 0x80000070
    out dx, eax
    mov dx, 0xCFE
    mov al, bh
    out dx, al
    jmp next
n2: cmp bl, 2
    jne n3
    call 0xA000:0
    mov dx, 0x602
    out dx, al
    jmp next
n3: cmp bl, 4
    jne n4
    mov [1], bh
    jmp next
n4: out 0xB2, al
    jmp next
h:  mov ax, 0xA000
    mov ds, ax
    cmp bl, 5
    jne h1
    mov [1], bh
h1: call 0xA000:0
    mov dx, 0x602
    out dx, al
    rsm
h_end: nop
"""


class Player:
    """Gives the guest random orders, and knows what each must find: `ram` and `bus` are the code's numbers."""

    def __init__(self, orders: int) -> None:
        self.rng = random.Random(int(os.environ.get("PELLUCID_SEED", "3")))
        self.left = orders
        self.register, self.ram, self.bus = 0x02, 1, 2
        self.expected: list[int] = []
        self.found: list[int] = []
        self.machine: Machine | None = None

    def prepare(self, machine: Machine) -> None:
        self.machine = machine
        host = device(machine, I440fx)
        pci = host.smram_region.alias_target
        assert pci is not None
        display = machine.ram.new("display", 0x2_0000)
        pci.add_subregion(0xA_0000, MemoryRegion.new_ram("display", display))
        display.view[:3] = bytes((0xB0, self.bus, 0xCB))
        machine.ram.blocks[0].view[0xA_0000:0xA_0003] = bytes((0xB0, self.ram, 0xCB))
        Ports(self.order, lambda offset, size, value: self.found.append(value)).put(machine, 0x600, 3)

    def order(self, offset: int, size: int) -> int:
        assert self.machine is not None
        if not self.left or self.found != self.expected:
            self.machine.request_shutdown()
            return END_OP
        self.left -= 1
        op = self.rng.choice((WRITE_REGISTER, CALL, CALL, SMI, SMI, STORE, SMI_STORE))
        value = self.rng.randrange(256)
        if op == WRITE_REGISTER:
            value = value & ~0x10 if self.left > 20 else value
            self.write_register(value)
        inside = op in (SMI, SMI_STORE)
        shows_ram = bool(self.register & (0x48 if inside else 0x40))
        if op in (STORE, SMI_STORE):
            self.ram, self.bus = (value, self.bus) if shows_ram else (self.ram, value)
        if op in (CALL, SMI, SMI_STORE):
            self.expected.append(self.ram if shows_ram else self.bus)
        return op | value << 8

    def write_register(self, value: int) -> None:
        if self.register & 0x10:
            value = value & ~0x58 | self.register & 0x58
        if value & 0x10:
            value &= ~0x40
        self.register = value


def test_random_smram_settings_with_execution_between(tmp_path: Path) -> None:
    """Code at one address, in RAM and on the bus, called and changed from inside and outside as SMRAM is switched."""
    done = assemble(PLAY, 0, 16)
    firmware = bytearray(256 << 10)
    firmware[0x3_0000 : 0x3_0000 + len(done.code)] = done.code
    firmware[0x3_FFF0:0x3_FFF5] = assemble("jmp 0xF000:0", 0xFFF0, 16).code
    player = Player(200)
    run_image(tmp_path, bytes(firmware), player.prepare)
    assert player.found == player.expected and not player.left and len(player.found) > 100


# --- wiring ----------------------------------------------------------------------------------------------


def test_the_apm_port_raises_smi_at_the_first_processor(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        machine.create_vcpus([0, 1], lambda apic_id: [])
        assert isinstance(machine.vm, FakeVm)
        vcpus = machine.vm.vcpus
        machine.ports.write(0xB2, 1, 0x55)
        assert [vcpu.smis for vcpu in vcpus] == [0, 0], "APMC_EN is clear"
        outl_config(machine, 0x0B, 0x58, 0x0200_0000)
        machine.ports.write(0xB2, 1, 0x55)
        assert [vcpu.smis for vcpu in vcpus] == [1, 0] and machine.ports.read(0xB2, 1) == 0x55
        machine.ports.write(0xB2, 1, 0xF1)
        assert vcpus[0].smis == 1 and device(machine, Piix4Pm).pm1_control & 1, "ACPI is switched on without"
        assert machine.smm is not None
        machine.smm.raise_all()
        machine.smm.raise_current()
        assert [vcpu.smis for vcpu in vcpus] == [3, 1]


def test_without_smm(tmp_path: Path) -> None:
    with pc_machine(tmp_path, board_options={"smm": "off"}) as machine:
        assert machine.smm is None and device(machine, Piix4Pm).count_b == 0x0200_0000
        device(machine, Piix4Pm).reset()
        machine.ports.write(0xB2, 1, 0x55)
        assert device(machine, Piix4Pm).count_b == 0x0200_0000
        assert not any(space.name.startswith("cpu-smm") for space in machine.address_spaces)


def test_what_the_hypervisor_must_be_able_to() -> None:
    able: Hypervisor = FakeHypervisor([])
    unable: Hypervisor = SimpleNamespace(capabilities=dict)  # type: ignore[assignment]
    assert has_smm(able, None) and has_smm(able, True) and not has_smm(able, False)
    assert not has_smm(unable, None)
    with pytest.raises(UserError, match=r"^System Management Mode not supported by this hypervisor\.$"):
        has_smm(unable, True)


def test_slots_of_the_second_address_space(tmp_path: Path) -> None:
    with pc_machine(tmp_path) as machine:
        assert isinstance(machine.vm, FakeVm)
        outl_config(machine, HOST, SMRAM_REGISTER, 0x0A, 1)
        spaces = [{slot for number, slot in machine.vm.slots.items() if number >> 16 == n} for n in (0, 1)]
        assert spaces[0] and spaces[1]
        assert any(gpa <= 0xA_8000 < gpa + size for gpa, size in spaces[1])


def test_seabios_relocates_smbase_and_closes_smram(tmp_path: Path) -> None:
    """The image as Debian ships it; what it says on its debug port, and where SMBASE and SMRAM are then."""
    firmware = Path("/usr/share/seabios/bios-256k.bin")
    if not firmware.exists():
        pytest.skip("the package seabios is not installed")
    output, seen = bytearray(), {}

    def prepare(machine: Machine) -> None:
        def write(offset: int, size: int, value: int) -> None:
            output.append(value)
            if output.endswith(b"No bootable device."):
                vcpu = machine.vcpus.threads[0].vcpu
                seen.update(vcpu.get_msrs((0x34, 0x9E)))
                seen["register"] = device(machine, I440fx).smram_control
                machine.request_shutdown()

        Ports(lambda offset, size: 0xE9, write).put(machine, 0x402, 1)

    run_image(tmp_path, firmware.read_bytes(), prepare)
    assert seen == {0x34: 1, 0x9E: 0xA_0000, "register": 0x0A}, output[-400:].decode("latin1")
