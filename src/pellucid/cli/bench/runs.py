"""Taking the measurements: which machine is started when, and what is read off its console.

The machines take turns, so that a change of the host's speed meets all of them. One repetition is QEMU with all
loops, ours with a cold cache and no loops, ours with the cache warm and all loops, STARTS starts of each, and ours
with two CPUs.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pellucid.cli.bench import pair, workload
from pellucid.cli.bench.console import GuestError, GuestHung, Line, Memory, Session, session
from pellucid.cli.bench.disks import DiskTimes, Media, measure_disks, prepare
from pellucid.cli.bench.machines import Emulator, forget_translations, ours, private_cache
from pellucid.cli.bench.programs import GuestProgram
from pellucid.cli.guest.scripts import BANNER
from pellucid.records import dataclass, field

Progress = Callable[[str, float], None]
"""Called with (what is being done, percent done)."""

BUILD_SILENCE = 1800.0
"""Seconds that a first compile of the processor may take before the first line."""
STARTS = 3
"""Starts of each machine in one repetition; one takes well under a second."""
LOOP_SILENCE = 180.0
"""Seconds that one loop may take, on any machine."""


@dataclass(frozen=True)
class LoopTime:
    """One run of a loop: seconds by the host's clock and by the guest's, and what it computed."""

    seconds: float
    guest_seconds: float
    iterations: int
    result: int


@dataclass
class Boot:
    """One run of a machine: seconds from the start to the first line of user space, its loops, the memory it took."""

    userspace: float = 0.0
    loops: dict[str, LoopTime] = field(default_factory=dict)
    memory: Memory | None = None


@dataclass
class Series:
    """The runs of one machine. `starts`: seconds from the start to the first guest instruction.

    `pairs`: work per second of two CPUs over that of one.
    """

    name: str
    cold: list[Boot] = field(default_factory=list)
    warm: list[Boot] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    disks: DiskTimes = field(default_factory=DiskTimes)
    pairs: list[float] = field(default_factory=list)

    def loop_times(self, name: str) -> list[LoopTime]:
        """Every run of one loop."""
        return [boot.loops[name] for boot in self.warm if name in boot.loops]


@dataclass(frozen=True)
class Plan:
    """What to measure. `silence`: seconds without a line after which our machine counts as hung."""

    kernel: Path
    loops: Sequence[GuestProgram]
    repetitions: int
    qemu: Emulator | None
    silence: float
    scale: float = 1.0
    image: bool = False
    disks: bool = True
    logs: Path | None = None


@dataclass
class Measurements:
    """Everything measured. `qemu` is None where there is none.

    `image`: seconds to the first guest instruction with nothing compiled yet. `hangs`: boots that were tried again.
    `two_idle_cores`: the host had them when this began.
    """

    qemu: Series | None
    ours: Series
    image: float | None = None
    hangs: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    two_idle_cores: bool = False


def measure(plan: Plan, progress: Progress) -> Measurements:
    """Carry the plan out. Raises GuestError when a machine does not do its part."""
    return _Run(plan, progress).run()


class _Run:
    """One benchmark: the plan, the files it boots, and what is found."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress
        self.found = Measurements(Series("qemu") if plan.qemu else None, Series("pellucid"))
        self.found.two_idle_cores = pair.two_idle_cores()

    def run(self) -> Measurements:
        with tempfile.TemporaryDirectory(prefix="pellucid-bench-") as name:
            self.initrd, self.probe = Path(name) / "initrd", Path(name) / "probe"
            self.initrd.write_bytes(workload.initrd())
            self.probe.write_bytes(workload.probe_kernel())
            self.media = prepare(Path(name), self.plan.kernel) if self.plan.disks else Media()
            self.found.notes += self.media.notes
            self._build()
            with private_cache() as cache:
                mine = ours(cache, self.plan.silence)
                for repetition in range(1, self.plan.repetitions + 1):
                    self.label = f"{repetition} of {self.plan.repetitions}: "
                    self._repeat(mine, cache)
        return self.found

    def _build(self) -> None:
        """Have the processor compiled in the user's cache; with `image`, measure that with an empty one."""
        with tempfile.TemporaryDirectory(prefix="pellucid-bench-") as name:
            if self.plan.image:
                self.found.image = self._start(ours(Path(name), BUILD_SILENCE), "compiling the processor, measured")
        self._start(ours(None, BUILD_SILENCE), "compiling the processor, unless it is cached")

    def _repeat(self, mine: Emulator, cache: Path) -> None:
        plan, found = self.plan, self.found
        if plan.qemu is not None and found.qemu is not None:
            found.qemu.warm.append(self._boot(plan.qemu, "qemu", plan.loops))
            found.qemu.starts += self._starts(plan.qemu)
        forget_translations(cache)
        found.ours.cold.append(self._boot(mine, "pellucid, cold cache", ()))
        found.ours.warm.append(self._boot(mine, "pellucid, warm cache", plan.loops))
        found.ours.starts += self._starts(mine)
        if any(loop.name == pair.LOOP for loop in plan.loops):
            self.progress(f"{self.label}{mine.name}, two CPUs", 0)
            found.ours.pairs.append(pair.measure_pair(mine, plan.kernel, self.initrd, plan.scale, plan.logs))
        for emulator, series in ((plan.qemu, found.qemu), (mine, found.ours)):
            if emulator is not None and series is not None:
                self.progress(f"{self.label}{emulator.name}, firmware and disks", 0)
                measure_disks(emulator, self.media, plan.logs, series.disks)

    def _starts(self, emulator: Emulator) -> list[float]:
        return [self._start(emulator, f"{self.label}{emulator.name}, start") for _ in range(STARTS)]

    def _start(self, emulator: Emulator, label: str) -> float:
        """Seconds to the first guest instruction."""
        self.progress(label, 0)
        command = emulator.boots(self.probe)
        with session(f"{emulator.name} start", command, emulator.environment, emulator.silence, self.plan.logs) as run:
            for line in run.lines():
                if line.text == workload.FIRST:
                    self.progress(label, 100)
                    return line.at
            raise GuestError(run.complaint("ended before its guest's first instruction"))

    def _boot(self, emulator: Emulator, name: str, loops: Sequence[GuestProgram]) -> Boot:
        """One boot, again where it hangs and may."""
        for attempt in range(1, emulator.attempts):
            try:
                return self._boot_once(emulator, name, loops)
            except GuestHung:
                self.progress(f"{self.label}{name}, hung, attempt {attempt + 1}", 0)
                self.found.hangs[name] = self.found.hangs.get(name, 0) + 1
        return self._boot_once(emulator, name, loops)

    def _boot_once(self, emulator: Emulator, name: str, loops: Sequence[GuestProgram]) -> Boot:
        self.progress(self.label + name, 0)
        append = workload.command_line(loops, self.plan.scale)
        command = emulator.boots(self.plan.kernel, self.initrd, append)
        with session(name, command, emulator.environment, emulator.silence, self.plan.logs) as run:
            boot = self._listen(run, len(loops))
            missing = [loop.name for loop in loops if loop.name not in boot.loops]
            if not boot.userspace or missing:
                raise GuestError(run.complaint(f"ended without {missing[0] if boot.userspace else 'user space'}"))
            if status := run.wait():
                raise GuestError(run.complaint(f"ended with status {status}"))
        return boot

    def _listen(self, run: Session, loops: int) -> Boot:
        """Read the console to its end."""
        boot = Boot()
        begun: dict[str, Line] = {}
        for line in run.lines():
            if line.text == BANNER:
                boot.userspace = line.at
                run.silence = max(run.silence, LOOP_SILENCE)
            elif name := workload.started(line.text):
                begun[name] = line
            elif (result := workload.finished(line.text)) and result.name in begun:
                seconds = line.at - begun[result.name].at
                boot.loops[result.name] = LoopTime(seconds, result.nanoseconds / 1e9, result.iterations, result.result)
            elif line.text.startswith(workload.FAILED):
                raise GuestError(run.complaint("could not run a loop"))
            else:
                continue
            boot.memory = run.memory() or boot.memory
            self.progress(self.label + run.name, 100 * (1 + len(boot.loops)) / (1 + loops))
        return boot
