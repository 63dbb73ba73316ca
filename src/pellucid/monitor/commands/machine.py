"""What machine this is, which program runs it, and which machines there could be."""

from dataclasses import dataclass
from typing import Literal

from pellucid.cpu.models import DEFAULT_MODEL
from pellucid.machine.board import BOARDS, DEFAULT_BOARD
from pellucid.machine.config import MAX_CPUS
from pellucid.monitor.command import command
from pellucid.monitor.commands.cpus import TYPE_SUFFIX
from pellucid.monitor.identity import QEMU_VERSION, package
from pellucid.monitor.qapi import named
from pellucid.monitor.session import Session

ROM_HEADER = 4096


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
            cpu_max=MAX_CPUS,
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
    """ROMs that hold something in the guest's address space, by address."""
    lines = []
    for found in session.machine.memory.view.ranges:
        region, block = found.region, found.region.block
        if block is not None and region.readonly and not found.offset and any(block.view[:ROM_HEADER]):
            size = found.end - found.start
            lines.append(f'addr={found.start:016x} size=0x{size:06x} mem=rom name="{region.name}"\n')
    return "".join(lines)


@dataclass(frozen=True)
class IoThreadInfo:
    """A thread that serves devices."""

    id: str
    thread_id: int


@command("query-iothreads")
def query_iothreads(session: Session) -> list[IoThreadInfo]:
    """The I/O threads: none yet."""
    return []
