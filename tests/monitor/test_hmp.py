"""HMP commands as lines in, text out; the texts are QEMU 7.2's."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.machine.config import CharBackend, CharBackendKind
from pellucid.monitor.command import HMP_COMMANDS, INFO_COMMANDS
from pellucid.monitor.control import Control
from pellucid.monitor.hmp import INFO_NOT_BUILT, NOT_BUILT, execute
from pellucid.monitor.session import Session
from pellucid.runtime import RunState
from tests.monitor.controlled import controlled_pc, hmp, ringbuf, turn


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("", ""),
        ("# a remark", ""),
        ("foo", "unknown command: 'foo'\n"),
        ("info foo bar", "unknown command: 'info foo'\n"),
        ("infox", "unknown command: 'infox'\n"),
        ("xp/4xw 0", "0000000000000000: 0x00000000 0x00000000 0x00000000 0x00000000\n"),
        ("xp /2xb 0x10", "0000000000000010: 0x00 0x00\n"),
        ("xp/2xw 0xfffc0010", "00000000fffc0010: 0x00000001 0x00000001\n"),
        ("xp/xw 0xfffc0010 + 4*4", "00000000fffc0020: 0x00000002\n"),
        ("xp/xw 0xf0000000", "00000000f0000000: Cannot access memory\n"),
        ("x/xg 8", "0000000000000008: 0x0000000000000000\n"),
        ("x", 'unexpected end of expression\nTry "help x" for more information\n'),
        ("x/i", 'unexpected end of expression\nTry "help x" for more information\n'),
        ("x/zz 0", "invalid char in format: 'z'\nTry \"help x\" for more information\n"),
        ("x/-1x 0", "invalid char in format: '-'\nTry \"help x\" for more information\n"),
        ("p/x $eip", "0xfff0\n"),
        ("print 1+1", "0x2\n"),
        ("print/c 65", "'A'\n"),
        ("print $foo", 'unknown register\nTry "help print" for more information\n'),
        ("print 1 2", 'print|p: extraneous characters at the end of line\nTry "help print" for more information\n'),
        ("stop 3", 'stop|s: extraneous characters at the end of line\nTry "help stop" for more information\n'),
        ("info status", "VM status: paused (prelaunch)\n"),
        ("info status x",
         'status: extraneous characters at the end of line\nTry "help info status" for more information\n'),
        ("info mtree -q", 'mtree: unsupported option -q\nTry "help info mtree" for more information\n'),
        ("info registers 2", "CPU#2 not available\n"),
        ("info registers foo", "invalid char 'f' in expression\nTry \"help info registers\" for more information\n"),
        ("info registers -b", 'registers: unsupported option -b\nTry "help info registers" for more information\n'),
        ("info name", ""),
        ("info uuid", "00000000-0000-0000-0000-000000000000\n"),
        ("info mem", "PG disabled\n"),
        ("info tlb", "PG disabled\n"),
        ("info blockstats", "info blockstats: not built yet\n"),
        ("device_add x", "device_add: not built yet\n"),
        ("gva2gpa 0x1000", "gpa: 0x1000\n"),
        ("gpa2hva 0xf0000000", "No memory is mapped at address 0xf0000000\n"),
        ("gpa2hva 0xfed00000", "Memory at address 0xfed00000 is not RAM\n"),
        ("sum 0 4096", "00000\n"),
        ("sum 0xfffc0010 16", "08738\n"),
        ("i/w 0xcf8", "portl[0x0cf8] = 0x00000000\n"),
        ("i /b 0x21", "portb[0x0021] = 0x00\n"),
        ("i", 'unexpected end of expression\nTry "help i" for more information\n'),
        ("o/b 0x80", 'unexpected end of expression\nTry "help o" for more information\n'),
        ("o /b 0x80 3", ""),
        ("cpu 1", ""),
        ("cpu 2", 'invalid CPU index\nTry "help cpu" for more information\n'),
        ("cpu", 'unexpected end of expression\nTry "help cpu" for more information\n'),
        ("nmi", ""),
        ("mce 0 1 0xbd00000000000000 5 0 0", "MCE injection not supported\n"),
        ("mce 7 1 0xbd00000000000000 5 0 0", ""),
        ("mce -b 0 1 0xbd00000000000000 5 0 0", "Guest CPU does not support MCA broadcast\n"),
        ("system_wakeup", "Error: Unable to wake up: guest is not in suspended state\n"),
        ("memsave 0 16", 'memsave: string expected\nTry "help memsave" for more information\n'),
        ("memsave 0 16 /tmp", "invalid char 't' in expression\nTry \"help memsave\" for more information\n"),
        ('memsave 0 16 "/x',
         'unterminated string\nmemsave: string expected\nTry "help memsave" for more information\n'),
        ('pmemsave 0 16 "/nonexistent/x"', "Error: Could not open '/nonexistent/x': No such file or directory\n"),
        ('pmemsave 0 (-1) "/x"', "Error: size -1 is negative: give the number of bytes\n"),
        ("logfile", 'logfile: filename expected\nTry "help logfile" for more information\n'),
        ("logfile /nonexistent/f", "Error opening logfile /nonexistent/f: No such file or directory\n"),
        ("log", 'log: string expected\nTry "help log" for more information\n'),
        ("log int,in_asm", ""),
        ("log none", ""),
        ("log out_asm", "Error: log item out_asm: not built yet\n"),
        ("sendkey foo", "invalid parameter: foo\n"),
        ("sendkey a-b-", "invalid parameter: \n"),
        ("qom-get /machine type", '"pc-machine"\n'),
        ("qom-list /nope", "Error: Device '/nope' not found\n"),
        ("ringbuf_read nope 3", "Error: Device 'nope' not found\n"),
        ("help q", "quit|q  -- quit the emulator\n"),
        ("help x y", "x /fmt addr -- virtual memory dump starting at 'addr'\n"),
        ("help foo", "unknown command: 'foo'\n"),
        ("help info foo", "unknown command: 'info foo'\n"),
        ("help info status", "info status  -- show the current VM status (running|paused)\n"),
        ("help info mtree", "info mtree [-f][-d][-o][-D] -- show memory tree (-f: dump flat view for address spaces;"
         "-d: dump dispatch tree, valid with -f only);-o: dump region owners/parents;-D: dump disabled regions\n"),
        ("help memsave", "memsave addr size file -- save to disk virtual memory dump starting at 'addr' of size 'size'"
         "\n"),
    ],
)  # fmt: skip
def test_answers(control: Control, line: str, answer: str) -> None:
    assert hmp(control, line) == answer


def test_stop_and_go(control: Control) -> None:
    state = control.machine.system.run_state
    assert hmp(control, "cont", "info status") == "VM status: running\n"
    assert hmp(control, "stop", "info status") == "VM status: paused\n"
    assert state.state is RunState.PAUSED
    hmp(control, "system_reset")
    assert not turn(control.machine)
    assert hmp(control, "info status") == "VM status: paused (prelaunch)\n"
    hmp(control, "q")
    assert turn(control.machine)


def test_format_and_size_carry_over(control: Control) -> None:
    session = Session(control)
    assert execute(session, "xp/2ub 0xfffc0010") == "00000000fffc0010:   1   0\n"
    assert execute(session, "xp 0xfffc0020") == "00000000fffc0020:   2\n"
    assert execute(session, "p -1") == "18446744073709551615\n"


def test_registers_of_every_cpu(control: Control) -> None:
    session = Session(control)
    assert execute(session, "info registers -a").count("CPU#") == 2
    assert execute(session, "info registers 1").startswith("\nCPU#1\n")
    execute(session, "cpu 1")
    assert execute(session, "info registers").startswith("\nCPU#1\n")
    assert re.fullmatch(r"  CPU #0: thread_id=\d+\n\* CPU #1: thread_id=\d+\n", execute(session, "info cpus"))


def test_disassembly_at_the_reset_vector(control: Control) -> None:
    assert hmp(control, "x/i $pc").startswith("0xfffffff0:  ff ")


def test_help_lists_every_command(control: Control) -> None:
    for text, rows in ((hmp(control, "help"), HMP_COMMANDS), (hmp(control, "info"), INFO_COMMANDS)):
        assert all(row.help_line() in text for row in rows.values())
        assert text.count("\n") == len({id(row) for row in rows.values()})
    assert hmp(control, "help info") == hmp(control, "info") == hmp(control, "info ")


def test_what_is_not_built_is_not_declared() -> None:
    assert not NOT_BUILT & set(HMP_COMMANDS) and not INFO_NOT_BUILT & set(INFO_COMMANDS)


def test_memory_goes_into_files(control: Control, tmp_path: Path) -> None:
    control.machine.memory.write_bytes(0x1FFE, b"abcd")
    assert hmp(control, f'pmemsave 0x1ffd 6 "{tmp_path}/p"') == ""
    assert hmp(control, f'memsave 0x1ffe 4 "{tmp_path}/v"') == ""
    assert (tmp_path / "p").read_bytes() == b"\0abcd\0"
    assert (tmp_path / "v").read_bytes() == b"abcd"
    answer = hmp(control, f'memsave 0xf0000000 4 "{tmp_path}/none"')
    assert answer == "Error: Invalid addr 0x00000000f0000000/size 4 specified\n"


def test_ports_reach_devices_and_chips(control: Control) -> None:
    hmp(control, "o/w 0xcf8 0x80000000")
    assert hmp(control, "i/w 0xcfc") == "portl[0x0cfc] = 0x12378086\n"
    hmp(control, "o/b 0x21 0xfb")
    assert hmp(control, "i/b 0x21") == "portb[0x0021] = 0xfb\n"
    assert "pic0: irr=00 imr=fb isr=00 hprio=0 irq_base=00 rr_sel=0 elcr=00 fnm=0\n" in hmp(control, "info pic")


def test_interrupt_chips(control: Control) -> None:
    vm = control.machine.vm
    control.machine.memory_write(0xFEC0_0000, 4, 0x10 + 2 * 9)
    control.machine.memory_write(0xFEC0_0010, 4, 0x8821)
    control.machine.memory_write(0xFEC0_0000, 4, 0x11 + 2 * 9)
    control.machine.memory_write(0xFEC0_0010, 4, 0x0100_0000)
    text = hmp(control, "info pic")
    assert "  pin 9  0x0100000000008821 dest=1 vec=33  active-hi level        fixed  logical\n" in text
    assert "  pin 8  0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical\n" in text
    vm.irq_line(4, True)
    vm.irq_line(4, False)
    vm.irq_line(4, True)
    assert "IRR      4\n" in hmp(control, "info pic")
    assert hmp(control, "info irq") == (
        "IRQ statistics for ioapic:\n 4: 2\nIRQ statistics for isa-i8259:\n 4: 2\n"
    )


def test_roms_and_blocks(control: Control) -> None:
    *_, bios, tables, loader, rsdp = hmp(control, "info roms").splitlines()
    assert bios == 'addr=00000000fffc0000 size=0x040000 mem=rom name="bios.bin"'
    assert tables == '/rom@etc/acpi/tables size=0x200000 name="etc/acpi/tables"'
    assert loader == '/rom@etc/table-loader size=0x010000 name="etc/table-loader"'
    assert rsdp == '/rom@etc/acpi/rsdp size=0x001000 name="etc/acpi/rsdp"'
    assert "pc.ram" in hmp(control, "info ramblock")
    assert "(prio 0, ram): alias ram-below-4g @pc.ram" in hmp(control, "info mtree")
    assert hmp(control, "info mtree -f -o").startswith("FlatView #0")


def test_chardevs_and_ring_buffers(tmp_path: Path) -> None:
    null = CharBackend(CharBackendKind.NULL, id="nothing")
    with controlled_pc(tmp_path, [ringbuf("ring"), null]) as control:
        assert hmp(control, "info chardev") == "ring: filename=ringbuf\nnothing: filename=null\n"
        assert hmp(control, "ringbuf_write ring some bytes\x01", "ringbuf_read ring 6") == "some b\n"
        assert hmp(control, "ringbuf_read ring 100") == "ytes\\u0001\n"
        assert hmp(control, "ringbuf_read nothing 1") == "Error: 'nothing' is not a ringbuf device\n"


def test_sent_keys_arrive_and_are_let_go(control: Control) -> None:
    machine = control.machine
    machine.port_write(0x64, 1, 0x60)
    machine.port_write(0x60, 1, 0x00)  # no translation: set 2 as it is
    assert hmp(control, "sendkey ctrl_r-a 0") == ""
    machine.loop.run_once(100_000_000)
    assert [machine.port_read(0x60, 1) for _ in range(8)] == [0xE0, 0x14, 0x1C, 0xF0, 0x1C, 0xE0, 0xF0, 0x14]


WORDS = st.sampled_from(
    [
        *(name for name in HMP_COMMANDS if name not in ("memsave", "pmemsave", "logfile", "log")),
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
        '"',
        "0xfffffffffffffff8",
    ]
)


@given(st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=5), st.sampled_from(["", " "]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_breaks_the_monitor(control: Control, words: list[str], separator: str) -> None:
    line = separator.join(words)
    answer = hmp(control, line)
    assert answer == "" or answer.endswith("\n")
