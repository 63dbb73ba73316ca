"""qtest: devices driven from outside, on a clock that goes by hand; register reads compared with QEMU's."""

import base64
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.machine.chardev import MemoryChardev
from pellucid.monitor.control import Control
from pellucid.monitor.qtest import HANDLERS, MOST_LINE, QtestServer
from tests.monitor.qtest_client import QtestClient, qtest_process

QEMU = shutil.which("qemu-system-x86_64")
FIRMWARE = any(Path(folder, "bios-256k.bin").exists() for folder in ("/usr/share/seabios", "/usr/share/qemu"))
PELLUCID = [sys.executable, "-m", "pellucid.cli", "run", "-accel", "qtest"]
SECOND = 1_000_000_000


class Wired:
    """A server in this process; `ask` gives the answer's lines."""

    def __init__(self, control: Control) -> None:
        self.chardev = MemoryChardev()
        self.server = QtestServer(control, self.chardev)

    def ask(self, line: str | bytes) -> list[str]:
        self.chardev.feed((line.encode() if isinstance(line, str) else line) + b"\n")
        return self.chardev.take(1 << 24).decode().splitlines()

    def value(self, line: str) -> str:
        (answer,) = self.ask(line)
        assert answer.startswith("OK"), answer
        return answer.removeprefix("OK").strip()


@pytest.fixture
def qtest(control: Control) -> Wired:
    return Wired(control)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("endianness", "OK little"),
        ("foo", "FAIL Unknown command 'foo'"),
        ("INB 0x71", "FAIL Unknown command 'INB'"),
        ("", "FAIL Unknown command ''"),
        ("  inb 0x71", "FAIL Unknown command ''"),
        ("inb 0x21 3 ", "OK 0x0000"),
        ("inl 0xcf8", "OK 0x0000"),
        ("readb 0xfffc0010", "OK 0x0000000000000001"),
        ("readq 0xfffc0010", "OK 0x0000000100000001"),
        ("read 0xfffc0010 0x10", "OK 0x01000000010000000100000001000000"),
        ("b64read 0xfffc0010 4", "OK AQAAAA=="),
        ("write 0x1000 0x4 0x01020304", "OK"),
        ("writeb 0x1000 0x1ff", "OK"),
        ("memset 0x1000 0 0xaa", "OK"),
        ("clock_step", "OK 0"),
        ("clock_step 1000", "OK 1000"),
        ("clock_set 5000", "OK 5000"),
        ("irq_intercept_in ioapic", "OK"),
        ("inb", "FAIL an address is missing"),
        ("inb zz", "FAIL 'zz' is no number: an address is expected"),
        ("outb 0x80", "FAIL a value is missing"),
        ("inb 0x1ffffffffffffffff", "FAIL '0x1ffffffffffffffff' does not fit 64 bits"),
        ("read 0 0", "FAIL a size is 1 to 16777216, not 0"),
        ("read 0 0x80000000", "FAIL a size is 1 to 16777216, not 2147483648"),
        ("write 0 4 xx", "FAIL data is written 0x and two digits for each byte"),
        ("b64write 0 4 !!", "FAIL data is not valid base64"),
        ("clock_step abc", "FAIL 'abc' is no number: nanoseconds is expected"),
        ("irq_intercept_in /nope", "FAIL Unknown device"),
        ("irq_intercept_in /machine", "FAIL Unknown device"),
        ("set_irq_in ioapic unnamed-gpio-in 99 1", "FAIL ioapic has no input 99"),
        ("module_load qtest foo", "FAIL there are no modules to load"),
        ("rtas a 1 2 3 4", "FAIL Unknown command 'rtas'"),
    ],
)
def test_answers(qtest: Wired, line: str, answer: str) -> None:
    assert qtest.ask(line) == [answer]


def test_memory_forms(qtest: Wired) -> None:
    qtest.ask("write 0x1000 0x4 0x010203")
    assert qtest.value("read 0x1000 4") == "0x01020300"
    qtest.ask("b64write 0x1000 5 " + base64.b64encode(b"hello").decode())
    assert bytes.fromhex(qtest.value("read 0x1000 5")[2:]) == b"hello"
    qtest.ask("memset 0x1001 0x3 0x2a")
    assert base64.b64decode(qtest.value("b64read 0x1000 5")) == b"h***o"
    qtest.ask("writeq 0x2000 0x0123456789abcdef")
    assert qtest.value("readw 0x2002") == "0x00000000000089ab"


def test_lines_are_intercepted(control: Control, qtest: Wired) -> None:
    assert qtest.ask("set_irq_in ioapic unnamed-gpio-in 5 1") == ["OK"]
    assert "IRR      5" in str(control.machine.vm.get_irqchip(2)) or control.machine.vm.irq_statistics()[2, 5] == 1
    qtest.value("irq_intercept_in ioapic")
    assert qtest.ask("set_irq_in ioapic unnamed-gpio-in 3 1") == ["IRQ raise 3", "OK"]
    assert qtest.ask("set_irq_in ioapic unnamed-gpio-in 3 1") == ["OK"]
    assert qtest.ask("set_irq_in ioapic unnamed-gpio-in 3 0") == ["IRQ lower 3", "OK"]
    assert (2, 3) not in control.machine.vm.irq_statistics()


def test_a_device_s_own_lines(control: Control, qtest: Wired) -> None:
    devices = {device.kind: index for index, device in enumerate(control.machine.devices)}
    path = f"/machine/unattached/device[{len(control.machine.vcpus.threads) + devices['i8042']}]"
    assert qtest.ask(f"irq_intercept_out {path}") == ["OK"]
    assert qtest.ask("irq_intercept_in ioapic") == ["FAIL IRQ intercept already enabled"]
    for port, value in ((0x64, 0x60), (0x60, 0x03), (0x64, 0xD2)):
        assert qtest.ask(f"outb {port:#x} {value:#x}") == ["OK"]
    assert qtest.ask("outb 0x60 0x5a") == ["IRQ raise 0", "OK"]
    assert qtest.ask("inb 0x60") == ["IRQ lower 0", "OK 0x005a"]


def test_a_line_without_end(qtest: Wired) -> None:
    piece = b"x" * (1 << 20)
    for _ in range(MOST_LINE // len(piece) + 2):
        qtest.chardev.feed(piece)
    assert b"FAIL a line has at most" in qtest.chardev.take(1 << 20)


def test_fuzz(qtest: Wired) -> None:
    """Any line gets an answer; the machine goes on."""
    rng = random.Random(int(os.environ.get("PELLUCID_SEED", "5")))
    words = [*HANDLERS, "ioapic", "/machine", "0", "0x10", "-1", "0xfed00000", "0xffffffff", "zz", "\xff", "AAAA", " "]
    for _ in range(1500):
        name = rng.choice(words)
        sizes = ["0", "1", "0x20", "65", "zz"]
        line = " ".join([name, rng.choice(words), rng.choice(sizes), *rng.choices(words, k=rng.randrange(3))])
        if name.startswith("clock"):
            line = f"{name} {rng.randrange(1 << 20)}"
        assert qtest.ask(line.encode("latin-1"))[-1].startswith(("OK", "FAIL"))
    assert qtest.ask("endianness") == ["OK little"]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QtestClient]:
    """Our program, started as libqtest starts QEMU."""
    if not FIRMWARE:
        pytest.skip("the board pc wants a firmware: Debian's package seabios is not installed")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    with qtest_process(tmp_path_factory.mktemp("qtest"), [*PELLUCID, "-M", "pc", "-serial", "null"]) as client:
        client.command("irq_intercept_in ioapic")
        yield client


def test_rtc_alarm(process: QtestClient) -> None:
    """The update interrupt comes within the second that follows, and register C tells why."""
    process.irqs.clear()
    for index, value in ((0x0A, 0x26), (0x0B, 0x12)):
        process.out(0x70, index)
        process.out(0x71, value)
    process.step(SECOND)
    assert "raise 8" in process.irqs
    process.out(0x70, 0x0C)
    assert process.inp(0x71) & 0x90 == 0x90
    assert process.irqs[-1] == "lower 8"
    process.out(0x70, 0x0B)
    process.out(0x71, 0x02)


def test_pit_ticks(process: QtestClient) -> None:
    process.irqs.clear()
    process.out(0x43, 0x34)
    process.out(0x40, 0xA9)
    process.out(0x40, 0x04)  # 1193 ticks: a millisecond
    start = process.step(0)
    process.step(10_500_000)
    assert process.step(0) == start + 10_500_000
    assert 9 <= process.irqs.count("raise 0") <= 11
    process.out(0x43, 0x30)


def test_serial_port(process: QtestClient) -> None:
    process.irqs.clear()
    process.out(0x3F9, 0x02)  # transmitter empty
    process.out(0x3FC, 0x08)
    assert "raise 4" in process.irqs
    assert process.inp(0x3FA) & 0x0F == 0x02
    process.out(0x3F9, 0x00)


def test_hpet(process: QtestClient) -> None:
    base = 0xFED0_0000
    assert process.read(base) >> 16 == 0x8086
    period = process.read(base + 4)
    process.write(base + 0x10, 1)
    before = process.read(base + 0xF0)
    process.step(1_000_000)
    ticks = process.read(base + 0xF0) - before
    assert abs(ticks - 1_000_000 * 1_000_000 // period) <= 1
    process.write(base + 0x10, 0)


SCRIPT = (
    *("outw 0x510 0x0000", "inb 0x511", "inb 0x511", "inb 0x511", "inb 0x511"),  # fw_cfg: signature
    *("outw 0x510 0x0001", "inb 0x511", "outw 0x510 0x0005", "inb 0x511"),  # fw_cfg: features, CPUs
    *("outl 0xcf8 0x80000000", "inl 0xcfc", "inw 0xcfe", "inl 0xcf8"),  # host bridge
    *("outl 0xcf8 0x80000008", "inl 0xcfc", "outl 0xcf8 0x80000800", "inl 0xcfc"),  # ISA bridge
    *("outl 0xcf8 0x80000b00", "inl 0xcfc", "outl 0xcf8 0x80000b08", "inl 0xcfc"),  # power management
    *("outb 0x70 0x0a", "inb 0x71", "outb 0x70 0x0b", "inb 0x71", "outb 0x70 0x0d", "inb 0x71"),  # RTC
    *("inb 0x3f8", "inb 0x3f9", "inb 0x3fa", "inb 0x3fb", "inb 0x3fc", "inb 0x3fd", "inb 0x3fe", "inb 0x3ff"),
    *("outb 0x3fb 0x83", "inb 0x3f8", "inb 0x3f9", "outb 0x3fb 0x03", "inb 0x3fb"),  # serial: divisor
    *("outb 0x21 0xaa", "inb 0x21", "inb 0xa1", "inb 0x64"),  # PIC, i8042
    *("readl 0xfed00000", "readl 0xfed00004", "readl 0xfed00010", "readl 0xfed00100"),  # HPET
    *("read 0xffff0 0x10", "write 0x5000 0x3 0x010203", "read 0x5000 0x4", "readl 0xf0000000", "inw 0x1234"),
)


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed: nothing to compare with")
@pytest.mark.skipif(not FIRMWARE, reason="no SeaBIOS: Debian's package seabios is not installed")
def test_the_same_script_on_qemu(tmp_path: Path) -> None:
    """Debian's QEMU has no -accel qtest; stopped before its first instruction it answers just as well."""
    assert QEMU is not None
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    board = ["-M", "pc", "-serial", "null"]
    with qtest_process(tmp_path, [QEMU, *board, "-S"]) as qemu:
        expected = [(line, qemu.command(line)) for line in SCRIPT]
    with qtest_process(tmp_path, [*PELLUCID, *board]) as ours:
        assert [(line, ours.command(line)) for line in SCRIPT] == expected
