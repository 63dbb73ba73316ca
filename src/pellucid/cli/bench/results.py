"""From measurements to rows: medians, ratios to QEMU's, and the limits that the project sets itself."""

from collections.abc import Iterator, Sequence
from math import prod
from statistics import median
from typing import Any

from pellucid.cli.bench.disks import READ_SIZE, DiskTimes
from pellucid.cli.bench.loops import BY_NAME
from pellucid.cli.bench.runs import Boot, LoopTime, Measurements, Series
from pellucid.records import asdict, dataclass

COLD_BOOT_RATIO = 3.0
WARM_BOOT_RATIO = 1.5
FIRMWARE_RATIO = 1.5
"""For SeaBIOS from reset to its boot attempt, and for GRUB's ISO to the kernel."""
AHCI_RATE = 200e6
"""Bytes a second."""
LOOPS_MEAN_RATIO = 4.0
"""For the geometric mean over all loops."""
LOOP_RATIO = 8.0
FLOATING_RATIO = 1.0
START_SECONDS = 0.5
IMAGE_SECONDS = 60.0
OVERHEAD_BYTES = 300_000_000
"""Resident memory beyond the guest RAM touched."""

TWO_CPUS = 1.8
"""Least work per second of two guest CPUs over that of one, on a host with two idle cores."""

GUEST_CLOCK_SHARE = 0.25
GUEST_CLOCK_SECONDS = 0.02
"""How far a guest's clock may be from the host's over a loop before it is worth a note; both must be exceeded."""


@dataclass(frozen=True)
class Row:
    """One measured thing. Medians in `unit` (s, B for bytes, or x for times as much).

    `ratio` is ours to QEMU's, `limit` is for the ratio, or for our own value where `limit_is_ratio` is false; `met` is
    None where there is no limit or nothing to compare with. `at_least`: the limit is one from below.
    """

    group: str
    name: str
    qemu: float | None
    ours: float | None
    limit: float | None
    unit: str = "s"
    limit_is_ratio: bool = True
    given_ratio: float | None = None
    at_least: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours to QEMU's."""
        if self.given_ratio is not None:
            return self.given_ratio
        return self.ours / self.qemu if self.ours is not None and self.qemu else None

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept."""
        value = self.ratio if self.limit_is_ratio else self.ours
        if value is None or self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        fields = asdict(self)
        del fields["given_ratio"]
        return {**fields, "ratio": self.ratio, "met": self.met}


def rows(found: Measurements) -> list[Row]:
    """Every row of the table, in its order."""
    qemu, ours = found.qemu, found.ours
    qemu_boot = _median([boot.userspace for boot in qemu.warm]) if qemu else None
    result = [
        Row("boot to user space", "cold cache", qemu_boot, _median([boot.userspace for boot in ours.cold]),
            COLD_BOOT_RATIO),
        Row("boot to user space", "warm cache", qemu_boot, _median([boot.userspace for boot in ours.warm]),
            WARM_BOOT_RATIO),
        Row("start", "first guest instruction", _median(qemu.starts) if qemu else None, _median(ours.starts),
            START_SECONDS, limit_is_ratio=False),
    ]  # fmt: skip
    if found.image is not None:
        result.append(Row("start", "compiling the processor", None, found.image, IMAGE_SECONDS, limit_is_ratio=False))
    result += _disk_rows(qemu, ours)
    loops = list(_loop_rows(qemu, ours))
    ratios = [row.ratio for row in loops if row.ratio is not None]
    result += loops
    if ratios:
        mean = prod(ratios) ** (1 / len(ratios))
        result.append(Row("guest loops", "geometric mean", None, None, LOOPS_MEAN_RATIO, given_ratio=mean))
    if ours.pairs:
        limit = TWO_CPUS if found.two_idle_cores else None
        result.append(Row("two guest CPUs", "two CPUs against one", None, _median(ours.pairs), limit, "x",
                          limit_is_ratio=False, at_least=True))  # fmt: skip
    return result + list(_memory_rows(qemu, ours))


def notes(found: Measurements) -> list[str]:
    """What a reader must know beside the table."""
    hangs = [f"{name}: hung at boot {count} times and was started again" for name, count in found.hangs.items()]
    clocks = [note for series in (found.qemu, found.ours) if series for note in _clock_notes(series)]
    return found.notes + hangs + clocks


def wrong_results(found: Measurements) -> list[str]:
    """The loops that computed different things, on different machines or in different runs: one line each."""
    lines = []
    for name in found.ours.warm[0].loops if found.ours.warm else ():
        values = {
            series.name: sorted({time.result for time in series.loop_times(name)})
            for series in (found.qemu, found.ours)
            if series
        }
        if len({value for results in values.values() for value in results}) > 1:
            said = ", ".join(f"{', '.join(map(str, results))} on {machine}" for machine, results in values.items())
            lines.append(f"{name} computed {said}")
    return lines


def _loop_rows(qemu: Series | None, ours: Series) -> Iterator[Row]:
    for name in ours.warm[0].loops if ours.warm else ():
        limit = FLOATING_RATIO if BY_NAME[name].floating else LOOP_RATIO
        theirs = _seconds(qemu.loop_times(name)) if qemu else None
        yield Row("guest loops", name, theirs, _seconds(ours.loop_times(name)), limit)


def _disk_rows(qemu: Series | None, ours: Series) -> Iterator[Row]:
    group, theirs, disks = "firmware and disks", qemu.disks if qemu else DiskTimes(), ours.disks
    for name, their_times, our_times in (
        ("SeaBIOS, reset to boot attempt", theirs.firmware, disks.firmware),
        ("GRUB's ISO to the kernel", theirs.grub, disks.grub),
    ):
        if our_times:
            yield Row(group, name, _median(their_times), _median(our_times), FIRMWARE_RATIO)
    if disks.ahci:
        name, limit = f"AHCI, read {READ_SIZE >> 20} MiB", READ_SIZE / AHCI_RATE
        yield Row(group, name, _median(theirs.ahci), _median(disks.ahci), limit, limit_is_ratio=False)


def _memory_rows(qemu: Series | None, ours: Series) -> Iterator[Row]:
    peaks = [boot.memory.peak for boot in qemu.warm if boot.memory] if qemu else []
    memories = [boot.memory for boot in _all_boots(ours) if boot.memory]
    if memories:
        yield Row("memory", "most resident", _median(peaks), max(memory.peak for memory in memories), None, "B")
        yield Row("memory", "without guest RAM", None,
                  max(memory.peak - memory.guest for memory in memories), OVERHEAD_BYTES, "B",
                  limit_is_ratio=False)  # fmt: skip


def _all_boots(series: Series) -> list[Boot]:
    return series.cold + series.warm


def _seconds(times: Sequence[LoopTime]) -> float | None:
    return _median([time.seconds for time in times])


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _clock_notes(series: Series) -> Iterator[str]:
    """One line where this machine's guests had another idea of how long their loops took."""
    off = []
    for name in series.warm[0].loops if series.warm else ():
        times = series.loop_times(name)
        host, own = median(time.seconds for time in times), median(time.guest_seconds for time in times)
        if abs(own - host) > max(GUEST_CLOCK_SECONDS, GUEST_CLOCK_SHARE * host):
            off.append(f"{name} {own:.2f} s for {host:.2f} s")
    if off:
        yield f"the clock of {series.name}'s guest was off, and the host's counts: {', '.join(off)}"
