"""What Debian's QEMU says of its memory: run `python -m tests.machine.qemu_mtree` to write the golden files anew.

One file for each board, size and state. `reset` is a machine that has not run (-S); in `booted`, SeaBIOS has looked for
something to boot and found nothing, which its serial console says.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pellucid.records import dataclass

GOLDEN = Path(__file__).parent / "golden" / "mtree"
QEMU = "qemu-system-x86_64"
VERSION = "version 7.2."
"""The goldens' and the only one that is compared with."""
BOOT_ENDS = b"No bootable device"
TREE = "info mtree -o -D"
"""All that there is of the tree: what the flat views are rendered from, less what is not built."""
BASIC = ("info mtree", "info mtree -f", "info ramblock", TREE)
EVERY = (*BASIC, "info mtree -D", "info mtree -o", "info mtree -f -o", "info mtree -f -d")
PROMPT = "(qemu) "


@dataclass(frozen=True)
class Case:
    """A machine, its state and what is asked of it."""

    board: str
    size: str
    cpus: int = 1
    booted: bool = False
    commands: tuple[str, ...] = BASIC

    @property
    def name(self) -> str:
        return f"{self.board}-{self.size}-{'booted' if self.booted else 'reset'}"

    @property
    def bytes(self) -> int:
        return int(self.size[:-1]) << {"M": 20, "G": 30}[self.size[-1]]


CASES = [
    case
    for board in ("pc", "q35")
    for case in (
        Case(board, "128M", commands=EVERY),
        Case(board, "2G", cpus=2, commands=("info mtree", "info mtree -f", TREE)),
        Case(board, "4G"),
        Case(board, "8G"),
        Case(board, "128M", booted=True),
        Case(board, "8G", booted=True),
    )
]


def has_qemu() -> bool:
    """Whether the QEMU that the goldens are of is on this computer."""
    if shutil.which(QEMU) is None:
        return False
    answer = subprocess.run([QEMU, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return VERSION in answer.stdout


def ask_qemu(case: Case) -> dict[str, str]:
    """The answers of QEMU itself, by command."""
    with tempfile.TemporaryDirectory() as folder:
        serial = Path(folder) / "serial"
        words = [QEMU, "-M", case.board, "-nodefaults", "-nographic", "-m", case.size, "-smp", str(case.cpus)]
        words += ["-qmp", "stdio", *(["-serial", f"file:{serial}"] if case.booted else ["-S"])]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if case.booted:
                _wait_for(serial, BOOT_ENDS)
            requests: list[dict[str, object]] = [{"execute": "qmp_capabilities"}]
            for line in case.commands:
                requests.append({"execute": "human-monitor-command", "arguments": {"command-line": line}})
            requests.append({"execute": "quit"})
            text = "\n".join(json.dumps(request) for request in requests)
            output, _ = process.communicate(text, timeout=60)
        finally:
            process.kill()
            process.wait()
    replies = [json.loads(line) for line in output.splitlines()]
    answers = [reply["return"] for reply in replies if isinstance(reply.get("return"), str)]
    return {line: text.replace("\r\n", "\n") for line, text in zip(case.commands, answers, strict=True)}


def _wait_for(file: Path, what: bytes) -> None:
    end = time.monotonic() + 60
    while not file.exists() or what not in file.read_bytes():
        if time.monotonic() > end:
            raise TimeoutError(f"{what!r} did not appear in {file}")
        time.sleep(0.05)


def read_golden(case: Case) -> dict[str, str]:
    """The answers in the golden file, by command."""
    text = (GOLDEN / f"{case.name}.txt").read_text()
    parts = (part.split("\n", 1) for part in text.split(PROMPT)[1:])
    return {line: answer for line, answer in parts if answer}


def write_golden(case: Case) -> None:
    """Ask QEMU and write the file."""
    answers = ask_qemu(case)
    (GOLDEN / f"{case.name}.txt").write_text("".join(f"{PROMPT}{line}\n{text}" for line, text in answers.items()))


def main() -> int:
    """Write every golden file."""
    if not has_qemu():
        print(f"{QEMU} {VERSION}x is not here: apt-get install qemu-system-x86", file=sys.stderr)
        return 1
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        write_golden(case)
        print(case.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
