"""The declaration of devices: dispatch, reset, state, properties, trace."""

import pytest

from pellucid.errors import UserError
from pellucid.machine.device import Device, Property, Region, Register, State
from pellucid.machine.properties import UINT8
from pellucid.machine.state import BOOL, U8, Memory, Queue, StateError


class Sample(Device):
    kind = "sample"
    version = 3
    regions = (Region("one", 8), Region("two", 4))

    speed = Property(UINT8, 5)

    plain = Register(0, reset=0x11)
    masked = Register(1, reset=0xF0, writable=0x0F)
    low = Register(2, bank=lambda self: not self.switched)
    high = Register(2, bank=lambda self: self.switched)
    status = Register(3, access="ro", reset=0x80)
    command = Register(3, access="wo", stored=False)
    wide = Register(0, size=4, region=1, exact=True)

    switched = State(BOOL, False)
    queue = State(Queue(4), b"")
    ram = State(Memory(4), b"\1\2\3\4", survives_reset=True)

    def __init__(self, *, speed: int = 5) -> None:
        super().__init__()
        self.speed = speed
        self.seen: list[int] = []
        self.loaded = 0

    @command.on_write
    def _write_command(self, value: int) -> None:
        self.seen.append(value)

    @status.on_read
    def _read_status(self) -> int:
        return self.status | len(self.queue)

    @plain.after_write
    def _plain_written(self) -> None:
        self.seen.append(self.plain)

    def after_load(self) -> None:
        self.loaded += 1


def test_reads_and_writes_follow_the_declaration() -> None:
    device = Sample()
    assert device.read(0, 1) == 0x11
    device.write(0, 1, 0x1FF)
    assert device.plain == 0xFF and device.seen == [0xFF]
    device.write(1, 1, 0x33)
    assert device.read(1, 1) == 0xF3
    device.write(3, 1, 7)
    assert device.seen == [0xFF, 7]
    device.queue = b"ab"
    assert device.read(3, 1) == 0x82


def test_banks_and_regions_choose_the_register() -> None:
    device = Sample()
    device.write(2, 1, 1)
    device.switched = True
    device.write(2, 1, 2)
    assert (device.low, device.high) == (1, 2)
    assert device.read(2, 1) == 2
    device.ops(1).write(0, 4, 0xDEADBEEF)
    assert device.ops(1).read(0, 4) == 0xDEADBEEF
    assert device.plain == 0x11


def test_what_nothing_answers_reads_as_ones_and_is_dropped() -> None:
    device = Sample()
    before = device.save()
    assert device.read(7, 1) == 0xFF
    assert device.read(7, 4) == 0xFFFF_FFFF
    device.write(7, 1, 0)
    assert device.ops(1).read(0, 2) == 0xFFFF  # `wide` is exact
    assert device.save() == before


def test_reset_spares_what_survives() -> None:
    device = Sample()
    device.write(0, 1, 0x77)
    device.switched, device.queue = True, b"xyz"
    device.ram[0] = 9
    device.reset()
    assert (device.plain, device.switched, device.queue, device.ram[0]) == (0x11, False, b"", 9)


def test_two_devices_share_nothing() -> None:
    one, other = Sample(), Sample()
    one.ram[0] = 0xEE
    one.plain = 1
    assert (other.ram[0], other.plain) == (1, 0x11)


def test_save_and_load_round_trip() -> None:
    device, fresh = Sample(), Sample()
    device.write(1, 1, 5)
    device.queue, device.switched = b"\0\xff", True
    device.ram[3] = 0x5A
    fresh.load(device.save())
    assert fresh.save() == device.save()
    assert fresh.loaded == 1
    fresh.ram[3] = 0
    assert device.ram[3] == 0x5A
    assert "command" not in device.save()


@pytest.mark.parametrize(
    "change",
    [
        {"device": "other"},
        {"version": 2},
        {"version": None},
        {"plain": 256},
        {"plain": -1},
        {"plain": True},
        {"plain": "1"},
        {"queue": b"12345"},
        {"queue": "ab"},
        {"ram": b"123"},
        {"switched": 1},
        {"wide": 1 << 32},
        {"unknown": 1},
    ],
)
def test_a_bad_stream_changes_nothing(change: dict[str, object]) -> None:
    device = Sample()
    device.plain = 0x42
    before = device.save()
    with pytest.raises(StateError, match="sample"):
        device.load({**before, "masked": 0, **change})
    assert device.save() == before
    assert device.loaded == 0


def test_a_stream_that_lacks_a_value_is_refused() -> None:
    device = Sample()
    saved = dict(device.save())
    del saved["queue"]
    with pytest.raises(StateError, match="queue"):
        device.load(saved)


def test_properties_are_checked_and_described() -> None:
    assert dict(Sample(speed=9).describe()) == {"speed": "9 (0x9)"}
    with pytest.raises(UserError, match="sample: property speed: expected uint8, got 256"):
        Sample(speed=256)


def test_the_trace_names_each_access() -> None:
    device = Sample()
    lines: list[tuple[str, bool, int]] = []
    device.trace = lambda _, name, is_write, value: lines.append((name, is_write, value))
    device.read(0, 1)
    device.write(3, 1, 0xAB)
    device.read(7, 1)
    device.write(6, 1, 1)
    assert lines == [
        ("plain", False, 0x11),
        ("command", True, 0xAB),
        ("nothing at 0x7", False, 0xFF),
        ("nothing at 0x6", True, 1),
    ]


def test_kinds_say_what_they_want() -> None:
    with pytest.raises(StateError, match="0 to 255, got 'x'"):
        U8.load("x")
