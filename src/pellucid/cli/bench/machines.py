"""The two machines that are compared: how each is started, as a user would."""

import ctypes
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pellucid.cli.bench.asm import assemble
from pellucid.native.cache import folder
from pellucid.records import dataclass, field

MEMORY = "256M"
READ_TSC = assemble("rdtsc\nshl rdx, 32\nor rax, rdx\nret", 0).code
TRANSLATIONS = "translations"
"""The kind of cached file that a boot with a cold cache lacks; the other kinds stay."""


@dataclass(frozen=True)
class Emulator:
    """A machine by its name and the words that start it.

    `silence`: seconds without a line at boot after which it counts as hung; `attempts`: how often it is then started.
    `append`: words that its kernels' command lines begin with.
    """

    name: str
    command: tuple[str, ...]
    silence: float
    attempts: int = 1
    append: str = ""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def boots(self, kernel: Path, initrd: Path | None = None, append: str = "") -> list[str]:
        """The command line that boots a kernel on the serial console."""
        words = [*self.command, "-M", "microvm", "-accel", "tcg", "-m", MEMORY, "-nographic", "-no-reboot"]
        words += ["-kernel", str(kernel)]
        words += ["-initrd", str(initrd)] if initrd is not None else []
        line = " ".join(filter(None, (self.append, append)))
        return [*words, "-append", line] if line else words


def qemu(program: str) -> Emulator:
    """QEMU.

    Its microvm has no timer that Linux could do without the TSC, and on a busy host the guest often cannot find out the
    TSC's frequency, and stops at boot for ever. So the guest is told, and where that cannot be, started again.
    """
    frequency = host_tsc_khz()
    return Emulator("qemu", (program,), 15, attempts=8, append=f"tsc_early_khz={frequency}" if frequency else "")


def host_tsc_khz() -> int | None:
    """The frequency of this processor's time-stamp counter, which TCG's guests see; None where it cannot be had."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, len(READ_TSC), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # a host that forbids memory both writable and executable
    page.write(READ_TSC)
    # SAFETY: the page outlives the last call, and READ_TSC is a whole function without arguments.
    read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    first = _reading(read_tsc)
    time.sleep(0.05)
    last = _reading(read_tsc)
    return int((last[1] - first[1]) * 1_000_000 // (last[0] - first[0]))


def _reading(read_tsc: Callable[[], int]) -> tuple[int, int]:
    """(nanoseconds, counter) of one moment: of several tries, that with the least time between its two clock reads."""
    tries = []
    for _ in range(50):
        before = time.monotonic_ns()
        counter = read_tsc()
        after = time.monotonic_ns()
        tries.append((after - before, (before + after) // 2, counter))
    return min(tries)[1:]


def qemu_version(program: str) -> str:
    """The first line of -version; the program's name where it says nothing."""
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return said.partition("\n")[0] or program


def ours(cache: Path | None, silence: float) -> Emulator:
    """Pellucid, with this folder as its cache, or the user's own."""
    command = (sys.executable, "-m", "pellucid.cli", "run")
    # The packages that this process has found are found by the other, whatever it was started with.
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    # Python's own cache of compiled modules belongs to "caches warm"; without it a start compiles every file again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if cache is not None:
        environment["PELLUCID_CACHE"] = str(cache)
    return Emulator("pellucid", command, silence, environment=environment)


@contextmanager
def private_cache() -> Iterator[Path]:
    """A cache folder of our own with no translations, in which everything else is the user's."""
    with tempfile.TemporaryDirectory(prefix="pellucid-bench-") as name:
        own = Path(name)
        theirs = folder(TRANSLATIONS).parent
        for path in theirs.iterdir() if theirs.is_dir() else ():
            if path.name != TRANSLATIONS and path.is_dir():
                (own / path.name).symlink_to(path)
        yield own


def forget_translations(cache: Path) -> None:
    """Make the cache cold."""
    place = cache / TRANSLATIONS
    for path in place.iterdir() if place.is_dir() else ():
        path.unlink(missing_ok=True)
