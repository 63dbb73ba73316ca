"""HMP commands as lines in, text out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.monitor.hmp import COMMANDS, INFO_COMMANDS, Monitor
from tests.monitor.fake_machine import FakeMachine


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine(
        physical={0xFFFF0: bytes.fromhex("e98dff66") + bytes(60)},
        virtual={0: bytes(256), 0xFFFFFFF0: bytes.fromhex("e98dff") + bytes(13)},
    )


@pytest.fixture
def monitor(machine: FakeMachine) -> Monitor:
    return Monitor(machine)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("", ""),
        ("# a remark", ""),
        ("foo", "unknown command: 'foo'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        ("x/4xw 0", "0000000000000000: 0x00000000 0x00000000 0x00000000 0x00000000\n"),
        ("x /2xb 0x10", "0000000000000010: 0x00 0x00\n"),
        ("xp/xw 0xffff0", "00000000000ffff0: 0x66ff8de9\n"),
        ("xp/xw 0xffff0 + 4*2", "00000000000ffff8: 0x00000000\n"),
        ("xp/xw 0x5000", "0000000000005000: Cannot access memory\n"),
        ("x/i $pc", "0xfffffff0:  e9 8d ff                 jmp      0xff80\n"),
        ("p/x $eip", "0xfff0\n"),
        ("print 1+1", "0x2\n"),
        ("x", 'unexpected end of expression\nTry "help x" for more information\n'),
        ("x/zz 0", "invalid char in format: 'z'\nTry \"help x\" for more information\n"),
        ("p 1)", 'print|p: extraneous characters at the end of line\nTry "help p" for more information\n'),
        ("stop 3", 'stop|s: extraneous characters at the end of line\nTry "help stop" for more information\n'),
        ("info status", "VM status: running\n"),
        ("info mtree", "flat=False dispatch=False owner=False disabled=False\n"),
        ("info mtree -f -o", "flat=True dispatch=False owner=True disabled=False\n"),
        ("info mtree -fdD", "flat=True dispatch=True owner=False disabled=True\n"),
        ("info mtree -q", 'unsupported option -q\nTry "help info mtree" for more information\n'),
        ("info registers 1", "CPU#1 not available\n"),
        ("info registers foo", "invalid char 'f' in expression\nTry \"help info registers\" for more information\n"),
        ("help x", "x /fmt addr -- virtual memory dump starting at 'addr'\n"),
        ("help c", "cont|c  -- resume emulation\n"),
        ("help foo", "unknown command: 'foo'\n"),
        ("help info status", "info status  -- show the current VM status (running|paused)\n"),
        ("cpu 0", ""),
        ("cpu 1", 'invalid CPU index\nTry "help cpu" for more information\n'),
    ],
)
def test_answers(monitor: Monitor, line: str, answer: str) -> None:
    assert monitor.execute(line) == answer


@pytest.mark.parametrize(
    ("line", "call"),
    [("stop", "stop"), ("cont", "cont"), ("c", "cont"), (" system_reset ", "system_reset"), ("q", "quit"),
     ("system_powerdown", "system_powerdown"), ("system_wakeup", "system_wakeup")],
)
def test_steering(machine: FakeMachine, monitor: Monitor, line: str, call: str) -> None:
    assert monitor.execute(line) == ""
    assert machine.calls == [call]


def test_a_refusal_is_answered(machine: FakeMachine, monitor: Monitor) -> None:
    machine.refuse_cont = True
    assert monitor.execute("cont") == "Error: a machine that is 'shutdown' must be reset before it can run\n"


def test_format_and_size_carry_over(monitor: Monitor) -> None:
    assert monitor.execute("xp/2ub 0xffff0") == "00000000000ffff0: 233 141\n"
    assert monitor.execute("xp 0xffff1") == "00000000000ffff1: 141\n"
    assert monitor.execute("p -1") == "18446744073709551615\n"


def test_registers_of_every_cpu(machine: FakeMachine, monitor: Monitor) -> None:
    machine.cpus *= 2
    assert monitor.execute("info registers -a").count("CPU#") == 2
    assert monitor.execute("info registers 1").startswith("\nCPU#1\n")
    monitor.execute("cpu 1")
    assert monitor.execute("info registers").startswith("\nCPU#1\n")


def test_help_lists_every_command(monitor: Monitor) -> None:
    for text, rows in ((monitor.execute("help"), COMMANDS), (monitor.execute("info"), INFO_COMMANDS)):
        assert all(row.help_line() in text for row in rows.values())
        assert text.count("\n") == len(set(rows.values()))
    assert monitor.execute("help info") == monitor.execute("info") == monitor.execute("info ")


WORDS = st.sampled_from(
    [
        *COMMANDS,
        *INFO_COMMANDS,
        "/4xw",
        "/i",
        "/",
        "/9999999999x",
        "$pc",
        "$rip",
        "0",
        "-f",
        "-a",
        "(",
        "0xfffffffffffffff8",
    ]
)


@given(st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=5), st.sampled_from(["", " "]))
def test_no_line_breaks_the_monitor(words: list[str], separator: str) -> None:
    answer = Monitor(FakeMachine()).execute(separator.join(words))
    assert answer == "" or answer.endswith("\n")
