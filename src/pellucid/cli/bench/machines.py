"""The two machines that are compared: how each is started, as a user would."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pellucid.native.cache import folder

MEMORY = "256M"
TRANSLATIONS = "translations"
"""The kind of cached file that a boot with a cold cache lacks; the other kinds stay."""


@dataclass(frozen=True)
class Emulator:
    """A machine by its name and the words that start it.

    `silence`: seconds without a line at boot after which it counts as hung; `attempts`: how often it is then started.
    """

    name: str
    command: tuple[str, ...]
    silence: float
    attempts: int = 1
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def boots(self, kernel: Path, initrd: Path | None = None, append: str = "") -> list[str]:
        """The command line that boots a kernel on the serial console."""
        words = [*self.command, "-M", "microvm", "-accel", "tcg", "-m", MEMORY, "-nographic", "-no-reboot"]
        words += ["-kernel", str(kernel)]
        words += ["-initrd", str(initrd)] if initrd is not None else []
        return [*words, "-append", append] if append else words


def qemu(program: str) -> Emulator:
    """QEMU. On a busy host its guest can fail to calibrate its clock and stop at boot; it is then started again."""
    return Emulator("qemu", (program,), silence=15, attempts=8)


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
