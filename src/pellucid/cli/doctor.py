"""`pellucid doctor [--json]`: what this computer offers Pellucid, what is cached, and what is missing.

Nothing here changes anything, and nothing found is an error: the exit status is 0.
"""

import errno
import fcntl
import json
import os
import platform
from collections.abc import Sequence, Set
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which

from rich.console import Console
from rich.table import Table

from pellucid.cli.arguments import ArgumentParser
from pellucid.cli.guest.cache import folder_size, guest_cache
from pellucid.records import asdict, dataclass

KVM_DEVICE = Path("/dev/kvm")
KVM_GET_API_VERSION = 0xAE00  # _IO(KVMIO, 0x00)
KVM_API_VERSION = 12
"""The one stable version of the KVM API; anything else must be refused (Documentation/virt/kvm/api.rst, 4.1)."""

LIBRARIES = ("llvmlite", "iced-x86", "rich", "pyelftools", "zstandard")
PROGRAMS = {
    "apt-get": "brings the default guest",
    "qemu-system-x86_64": "what `pellucid bench` compares with",
}

VIRTUALIZATION = frozenset({"vmx", "svm"})
V2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS = {"x86-64-v4": V4, "x86-64-v3": V3, "x86-64-v2": V2}
"""The psABI's micro-architecture levels, by the flag names of /proc/cpuinfo."""


@dataclass(frozen=True)
class Cpu:
    """The host's processor: `level` is the highest psABI level whose features are all there."""

    model: str
    machine: str
    level: str
    cores: int
    features: list[str]


@dataclass(frozen=True)
class Kvm:
    """Whether /dev/kvm can be used by this user, and why or why not."""

    usable: bool
    reason: str


@dataclass(frozen=True)
class Cache:
    """One kind of cached things."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Report:
    """Everything that doctor says; sizes in bytes. `handler_image`: the processor's handlers are compiled."""

    cpu: Cpu
    memory_bytes: int
    kvm: Kvm
    caches: dict[str, Cache]
    handler_image: bool
    versions: dict[str, str | None]
    programs: dict[str, str | None]


def doctor(arguments: Sequence[str]) -> int:
    """The subcommand."""
    parser = ArgumentParser(prog="pellucid doctor", description="Show what this computer offers Pellucid.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args(list(arguments)).json
    report = examine()
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        Console().print(_table(report))
    return 0


def examine() -> Report:
    """Look at this computer."""
    cpu = read_cpu(Path("/proc/cpuinfo"))
    return Report(
        cpu=cpu,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kvm=probe_kvm(KVM_DEVICE, set(cpu.features)),
        caches=caches(guest_cache().parent),
        handler_image=handler_image(),
        versions={"python": platform.python_version(), **{name: _library_version(name) for name in LIBRARIES}},
        programs={name: which(name) for name in PROGRAMS},
    )


def read_cpu(cpuinfo: Path) -> Cpu:
    """The processor as Linux describes it; unknown parts are empty."""
    fields: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    features = sorted(set(fields.get("flags", "").split()))
    fallback = "x86-64" if "lm" in features else "not x86-64"
    level = next((name for name, needed in LEVELS.items() if needed <= set(features)), fallback)
    return Cpu(fields.get("model name", ""), platform.machine(), level, len(os.sched_getaffinity(0)), features)


def probe_kvm(device: Path, features: Set[str]) -> Kvm:
    """Open the KVM device and ask for the API's version, as a hypervisor does first; `features` are the CPU's."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Kvm(False, _why_not(device, error))
    try:
        found = fcntl.ioctl(fd, KVM_GET_API_VERSION)
    except OSError as error:
        return Kvm(False, f"{device} is no KVM device: {error.strerror}")
    finally:
        os.close(fd)
    if found != KVM_API_VERSION:
        return Kvm(False, f"KVM API version {found}, and only {KVM_API_VERSION} is known")
    if not VIRTUALIZATION & features:
        return Kvm(False, f"{device} answers, but this processor shows neither VMX nor SVM: what stands behind it is "
                          "no hardware virtualization, and runs only kernels made for it")
    return Kvm(True, f"KVM API version {found}")


def _why_not(device: Path, error: OSError) -> str:
    reasons = {
        errno.ENOENT: "is not there: no virtualization in this processor or environment, or module kvm not loaded",
        errno.EACCES: "may not be opened by this user: add the user to the group that owns it (kvm)",
        errno.EPERM: "may not be opened here: the container or sandbox forbids the device",
        errno.ENODEV: "has no driver behind it: this kernel offers no KVM",
        errno.ENXIO: "has no driver behind it: this kernel offers no KVM",
        errno.EBUSY: "is taken by another hypervisor",
    }
    return f"{device} {reasons.get(error.errno or 0, error.strerror)}"


def caches(root: Path) -> dict[str, Cache]:
    """Each folder of Pellucid's cache with its size."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        folders = []
    return {path.name: Cache(str(path), folder_size(path)) for path in folders}


def handler_image() -> bool:
    """Whether the processor's handlers are compiled and cached, so that a machine starts at once."""
    from pellucid.engine import image
    from pellucid.native.image import is_built

    return is_built("handlers", image.PACKAGES)


def _library_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def _table(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    cpu = report.cpu
    table.add_row("processor", f"{cpu.model or 'unknown'}, {cpu.level}, {cpu.cores} cores")
    table.add_row("memory", _size(report.memory_bytes))
    table.add_row("/dev/kvm", f"{'usable' if report.kvm.usable else 'not usable'}: {report.kvm.reason}")
    table.add_row("handler image", "compiled" if report.handler_image else "not compiled yet: the first run does it")
    for name, cache in report.caches.items():
        table.add_row(f"cache {name}", f"{_size(cache.bytes)} in {cache.path}")
    if not report.caches:
        table.add_row("cache", "empty")
    for name, found in report.versions.items():
        table.add_row(name, found or "missing")
    for name, path in report.programs.items():
        table.add_row(name, path or f"not installed ({PROGRAMS[name]})")
    return table
