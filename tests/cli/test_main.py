"""The entry points: dispatch, exit status, and errors as one line on standard error."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.cli import main as entry
from pellucid.errors import EXIT_INTERNAL, UserError
from pellucid.machine.config import MachineConfig
from pellucid.machine.log import LOG_ITEMS, configure_logging


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[MachineConfig]:
    """Stands in for the machine: the configurations that it was started with; each run ends with status 7."""
    started: list[MachineConfig] = []
    module = types.ModuleType("pellucid.machine.run")

    def run_machine(config: MachineConfig, *_: object, **__: object) -> int:
        started.append(config)
        return 7

    vars(module)["run_machine"] = run_machine
    monkeypatch.setitem(sys.modules, "pellucid.machine.run", module)
    return started


@pytest.fixture
def default_guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / "guest"
    file.write_bytes(b"x")
    monkeypatch.setattr("pellucid.cli.guest.default_kernel", lambda: file)
    monkeypatch.setattr("pellucid.cli.guest.default_initrd", lambda: file)
    return file


@pytest.mark.parametrize("start", [entry.system_main, lambda words: entry.main(["run", *words])])
def test_options_become_a_machine(
    machine: list[MachineConfig], tmp_path: Path, start: Callable[[list[str]], int]
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"x")
    assert start(["-kernel", str(kernel), "-m", "64"]) == 7
    assert machine == [MachineConfig(board="pc", kernel=kernel, memory_size=64 << 20)]


def test_run_without_a_kernel_takes_the_default_guest(machine: list[MachineConfig], default_guest: Path) -> None:
    assert entry.main(["run"]) == 7
    assert entry.main(["run", "-m", "1G", "-append", "quiet"]) == 7
    assert machine == [
        MachineConfig(kernel=default_guest, initrd=default_guest, append="console=ttyS0", memory_size=256 << 20),
        MachineConfig(kernel=default_guest, initrd=default_guest, append="console=ttyS0 quiet", memory_size=1 << 30),
    ]


def test_the_system_command_has_no_default_guest(
    machine: list[MachineConfig], default_guest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.system_main(["-M", "microvm"]) == 1
    assert capsys.readouterr().err.startswith("pellucid: nothing to boot: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rn"], "pellucid: rn: no such command: did you mean 'run'?\n"),
        (["run", "-kernl"], "pellucid: -kernl: unknown option: did you mean '-kernel'?\n"),
        (["run", "-M", "isapc"], "pellucid: -machine isapc: not built yet: use -machine microvm\n"),
    ],
)
def test_mistakes_are_one_line_and_status_1(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(words) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


@pytest.mark.parametrize("words", [[], ["--help"], ["run", "-help"], ["--version"], ["run", "-cpu", "help"]])
def test_help_goes_to_standard_output(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(words) == 0
    captured = capsys.readouterr()
    assert captured.out and not captured.err


def test_interrupting_is_no_crash(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("pellucid.cli.guest.default_kernel", interrupted)
    assert entry.main(["run"]) == 130
    assert capsys.readouterr().err == "pellucid: interrupted\n"


def test_a_failure_of_our_own_has_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> Path:
        raise ValueError("nobody has thought of this")

    monkeypatch.setattr("pellucid.cli.guest.default_kernel", fails)
    assert entry.main(["run"]) == EXIT_INTERNAL
    assert "nobody has thought of this" in capsys.readouterr().err


def test_log_items_open_their_loggers(tmp_path: Path) -> None:
    import logging

    file = tmp_path / "log"
    configure_logging(["unimp"], file)
    asked, other = (logging.getLogger(LOG_ITEMS[item].loggers[0]) for item in ("unimp", "guest_errors"))
    asked.debug("MSR %#x", 0x1B0)
    other.debug("not asked for")
    logging.getLogger("pellucid.machine").info("not asked for")
    logging.getLogger("pellucid.machine").warning("always said")
    assert file.read_text() == "MSR 0x1b0\nalways said\n"
    configure_logging([], None)
    asked.debug("not any more")
    assert file.read_text() == "MSR 0x1b0\nalways said\n"
    with pytest.raises(UserError, match="-D /nowhere/log"):
        configure_logging([], Path("/nowhere/log"))
