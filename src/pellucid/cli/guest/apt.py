"""Getting Debian packages through the machine's own apt configuration, without root.

`apt-get download` checks the package against the signed lists. Where the machine's lists do not know the package or
name a version that the archive no longer has (a fresh container has no lists at all), the lists are fetched into our
own cache folder and used from there; the machine's own state is never written.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import IO, TypeVar

from pellucid.cli.guest.cache import guest_cache
from pellucid.errors import UserError
from pellucid.records import dataclass, field

Progress = Callable[[str, float], None]
"""Called with (what is being done, percent done 0..100)."""

T = TypeVar("T")

HOW_TO_BRING_ONE = "pass your own kernel with -kernel FILE (and -initrd FILE)"


class AptError(UserError):
    """apt-get could not bring a package."""


@dataclass(frozen=True)
class Apt:
    """The apt commands with one set of package lists."""

    options: tuple[str, ...] = field(default_factory=tuple)

    def dependency(self, package: str, pattern: str) -> str:
        """The name of the first package that `package` depends on and that matches `pattern`; AptError if none."""
        listing = self._run(["apt-cache", *self.options, "depends", package])
        for line in listing.splitlines():
            found = re.fullmatch(r"\s*\|?Depends:\s*(\S+)", line)
            if found and re.fullmatch(pattern, found[1]):
                return found[1]
        raise AptError(f"apt knows no package {package}: {HOW_TO_BRING_ONE}")

    def download(self, package: str, folder: Path, progress: Progress) -> Path:
        """The .deb of `package`, downloaded into `folder`."""
        self._run(["apt-get", *self.options, "download", package], folder, f"fetching {package}", progress)
        packages = sorted(folder.glob(f"{package}_*.deb"))
        if not packages:
            raise AptError(f"apt-get download {package} brought no file: {HOW_TO_BRING_ONE}")
        return packages[0]

    def update(self, progress: Progress) -> None:
        """Fetches the package lists. One broken source among good ones is no reason to stop: the download decides."""
        try:
            self._run(["apt-get", *self.options, "update"], None, "fetching package lists", progress)
        except AptError:
            if not any((guest_cache() / "apt" / "lists").glob("*Packages*")):
                raise

    def _run(
        self, command: list[str], folder: Path | None = None, label: str = "", progress: Progress | None = None
    ) -> str:
        read_end, write_end = os.pipe()
        settings = [f"APT::Status-Fd={write_end}"] if progress is not None else []
        if os.geteuid() == 0:
            # apt's unprivileged user cannot write into our cache folder; apt would say so and do the same.
            settings.append("APT::Sandbox::User=root")
        command[1:1] = [word for setting in settings for word in ("-o", setting)]
        # Files, not pipes, take the output: only the status pipe is read while apt runs.
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            with subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                pass_fds=(write_end,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            ) as process:
                os.close(write_end)
                with open(read_end, encoding="utf-8", errors="replace") as status:
                    for line in status:
                        _report(line, label, progress)
            if process.returncode != 0:
                raise AptError(f"{command[0]} failed: {_reason(_text(errors))}: {HOW_TO_BRING_ONE}")
            return _text(output)


def machine_apt() -> Apt:
    """apt with the machine's own lists. Raises AptError where there is no apt."""
    if which("apt-get") is None or which("apt-cache") is None:
        raise AptError(f"no apt-get on this machine, so the default guest cannot be fetched: {HOW_TO_BRING_ONE}")
    return Apt()


def private_apt() -> Apt:
    """apt with lists of our own, kept in the cache folder."""
    machine_apt()
    state = guest_cache() / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    # The machine's dpkg status stays the reference for what is installed; apt insists that the file exists.
    settings = (
        f"Dir::State={state}",
        f"Dir::State::Lists={state / 'lists'}",
        f"Dir::Cache={state}",
        "Dir::State::Status=/var/lib/dpkg/status",
    )
    return Apt(tuple(word for setting in settings for word in ("-o", setting)))


def with_fresh_lists_if_needed(fetch: Callable[[Apt], T], progress: Progress) -> T:
    """fetch(apt) with the machine's lists and, when these do not serve, with freshly fetched private ones."""
    try:
        return fetch(machine_apt())
    except AptError:
        if which("apt-get") is None:
            raise
    apt = private_apt()
    apt.update(progress)
    return fetch(apt)


def _report(line: str, label: str, progress: Progress | None) -> None:
    # apt's status lines: "dlstatus:<item>:<percent>:<text>"
    parts = line.split(":", 3)
    if progress is not None and len(parts) == 4 and parts[0] == "dlstatus":
        progress(label, float(parts[2]))


def _reason(errors: str) -> str:
    lines = [line.removeprefix("E: ") for line in errors.splitlines() if line.startswith("E: ")]
    others = errors.split("\n") if not lines else []
    return next((line.strip() for line in (*lines, *reversed(others)) if line.strip()), "no reason given")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
