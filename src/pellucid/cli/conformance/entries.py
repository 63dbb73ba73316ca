"""The suite's own list of what to run: sections of `key = value` lines (kvm-unit-tests, x86/unittests.cfg)."""

import re
import shlex
import time
from pathlib import Path

from pellucid.errors import UserError
from pellucid.records import dataclass, replace

CONFIGURATION = "x86/unittests.cfg"
DEFAULT_TIMEOUT = 90.0
"""Seconds, where an entry names none (scripts/runtime.bash)."""
KEYS = ("file", "smp", "test_args", "groups", "arch", "machine", "check", "accel", "timeout", "disabled_if")
PARAMETER_KEYS = ("qemu_params", "extra_params")
BEYOND = {"+vmx": "VMX", "+svm": "SVM", "hv_": "Hyper-V"}
"""What an entry needs that has an issue of its own, by a part of its parameters or groups."""

HOST = {"asyncpf": "-mem-resident 512M"}
"""What an entry wants of the host, as options of ours: to give the guest less memory than it has."""


@dataclass(frozen=True)
class Entry:
    """One test: a kernel with its words, and the options that its machine is to have."""

    name: str
    file: str
    smp: str = "1"
    test_args: str = ""
    params: str = ""
    groups: str = ""
    arch: str = ""
    check: str = ""
    accel: str = ""
    timeout: float = DEFAULT_TIMEOUT

    @property
    def cpus(self) -> int:
        """How many CPUs its guest has."""
        count = re.match(r"\d+", self.smp)
        return int(count[0]) if count else 1

    @property
    def beyond(self) -> str:
        """Why the entry is not asked of this processor; empty when it is."""
        words = f"{self.params} {self.groups}"
        for part, what in BEYOND.items():
            if part in words or re.search(rf"\b{what.lower().replace('-', '')}\b", self.groups):
                return f"needs {what}"
        if self.check or self.accel:
            return "needs a parameter of the host's KVM"
        return "run by hand only" if "nodefault" in self.groups.split() else ""


def on_our_host(entry: Entry) -> Entry:
    """The entry as Pellucid itself is to run it."""
    return replace(entry, params=f"{entry.params} {HOST.get(entry.name, '')}".strip())


def read_entries(suite: Path) -> list[Entry]:
    """The entries in the suite's order. Raises UserError."""
    path = suite / CONFIGURATION
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give the folder of a built kvm-unit-tests") from None
    return [entry for name, body in sections(text) if (entry := _entry(name, body)) is not None]


def sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """(name, values by key); a value in triple quotes may go over lines."""
    found: list[tuple[str, dict[str, str]]] = []
    lines = iter(text.splitlines())
    for line in lines:
        head = re.fullmatch(r"\[(.+)\]", line.strip())
        if head:
            found.append((head[1], {}))
            continue
        pair = re.match(r"(\w+)\s*=\s*(.*)", line)
        if pair is None or not found:
            continue
        value = pair[2]
        if value.startswith('"""'):
            value = value[3:]
            while '"""' not in value:
                more = next(lines, None)
                if more is None:
                    break
                value += "\n" + more
            value = value.partition('"""')[0].replace("\\\n", " ")
        key = "params" if pair[1] in PARAMETER_KEYS else pair[1]
        if key in KEYS or key == "params":
            found[-1][1][key] = value.strip()
    return found


def architecture(suite: Path) -> str:
    """What the suite was built for (config.mak's ARCH). Raises UserError where it was not built."""
    try:
        found = re.search(r"^ARCH=(\w+)", (suite / "config.mak").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise UserError(f"{suite}: kvm-unit-tests is not built there: run ./configure && make in it")
    return found[1]


def words(text: str) -> list[str]:
    """As a shell would split them; `date +%s` is all that the suite lets a shell compute."""
    return shlex.split(text.replace("`date +%s`", str(int(time.time()))))


def _entry(name: str, body: dict[str, str]) -> Entry | None:
    if "file" not in body:
        return None
    seconds = re.fullmatch(r"(\d+)s?", body.get("timeout", ""))
    known = {key: value for key, value in body.items() if key in Entry.__dataclass_fields__ and key != "timeout"}
    return Entry(name, timeout=float(seconds[1]) if seconds else DEFAULT_TIMEOUT, **known)
