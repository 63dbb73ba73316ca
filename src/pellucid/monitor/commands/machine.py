"""What machine this is, which program runs it, and which machines there could be."""

from typing import Literal

from pellucid.cpu.models import DEFAULT_MODEL
from pellucid.machine.board import BOARDS, DEFAULT_BOARD
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.monitor.command import command
from pellucid.monitor.commands.cpus import TYPE_SUFFIX
from pellucid.monitor.identity import QEMU_VERSION, package
from pellucid.monitor.qapi import named
from pellucid.monitor.session import Session
from pellucid.records import dataclass

ROM_BLOCK = "/rom@"


@dataclass(frozen=True)
class VersionTriple:
    """Of QEMU, whose commands are answered."""

    major: int
    minor: int
    micro: int


@dataclass(frozen=True)
class VersionInfo:
    """`package` says who really answers."""

    qemu: VersionTriple
    package: str


def _version_text(info: VersionInfo) -> str:
    return f"{info.qemu.major}.{info.qemu.minor}.{info.qemu.micro}{info.package}\n"


@command("query-version", info="version", help="show the version of QEMU", text=_version_text)
def query_version(session: Session) -> VersionInfo:
    """The version."""
    return VersionInfo(VersionTriple(*QEMU_VERSION), package())


@dataclass(frozen=True)
class NameInfo:
    """-name."""

    name: str | None = None


@command(
    "query-name",
    info="name",
    help="show the current VM name",
    text=lambda info: "" if info.name is None else info.name + "\n",
)
def query_name(session: Session) -> NameInfo:
    """The guest's name."""
    return NameInfo(session.machine.config.name or None)


@dataclass(frozen=True)
class UuidInfo:
    """-uuid; all zeros without."""

    uuid: str = named("UUID")


@command("query-uuid", info="uuid", help="show the current VM UUID", text=lambda info: info.uuid + "\n")
def query_uuid(session: Session) -> UuidInfo:
    """The guest's UUID."""
    return UuidInfo(session.machine.config.uuid)


@dataclass(frozen=True)
class KvmInfo:
    """`present`: this program could; `enabled`: it does."""

    enabled: bool
    present: bool


def _kvm_text(info: KvmInfo) -> str:
    state = "enabled" if info.enabled else "disabled" if info.present else "not compiled"
    return f"kvm support: {state}\n"


@command("query-kvm", info="kvm", help="show KVM information", text=_kvm_text)
def query_kvm(session: Session) -> KvmInfo:
    """Whether /dev/kvm executes the guest; that backend is not built yet."""
    return KvmInfo(session.machine.hypervisor.name == "kvm", False)


@dataclass(frozen=True)
class TargetInfo:
    """The guest's architecture."""

    arch: Literal["i386", "x86_64"]


@command("query-target")
def query_target(session: Session) -> TargetInfo:
    """Always x86_64."""
    return TargetInfo("x86_64")


@dataclass(frozen=True)
class MachineInfo:
    """A board."""

    name: str
    cpu_max: int
    hotpluggable_cpus: bool
    numa_mem_supported: bool
    deprecated: bool
    default_cpu_type: str | None = None
    default_ram_id: str | None = None
    is_default: bool | None = None


@command("query-machines")
def query_machines(session: Session) -> list[MachineInfo]:
    """Every board."""
    return [
        MachineInfo(
            board.name,
            cpu_max=board.max_cpus,
            hotpluggable_cpus=False,
            numa_mem_supported=False,
            deprecated=False,
            default_cpu_type=DEFAULT_MODEL + TYPE_SUFFIX,
            is_default=True if board.name == DEFAULT_BOARD else None,
        )
        for board in BOARDS.values()
    ]


@command(info="roms", help="show roms")
def roms(session: Session) -> str:
    """Images that firmware fetches, the firmware's own, and the blocks that hold what is made anew at each start."""
    machine = session.machine
    fetched = (
        f'fw={name} size=0x{len(content):06x} name="{name.rpartition("/")[2]}"\n'
        for device in machine.devices
        if isinstance(device, FwCfg)
        for name, content in device.files.items()
        if name.startswith("genroms/")
    )
    mapped = []
    if machine.firmware is not None:
        name, address, size = machine.firmware
        mapped = [f'addr={address:016x} size=0x{size:06x} mem=rom name="{name}"\n']
    made = (
        f'{block.name} size=0x{block.max_size:06x} name="{block.name.removeprefix(ROM_BLOCK)}"\n'
        for block in machine.ram.blocks
        if block.name.startswith(ROM_BLOCK)
    )
    return "".join((*fetched, *mapped, *made))


@dataclass(frozen=True)
class IoThreadInfo:
    """A thread that serves devices."""

    id: str
    thread_id: int


@command("query-iothreads")
def query_iothreads(session: Session) -> list[IoThreadInfo]:
    """The I/O threads: none yet."""
    return []
