"""The process that runs random cases: guards around native memory, and a line in shared memory that says where it is.

It prints one line for each case in which something that must hold did not; a crash or a hang is its parent's to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

from .guarded import guard_the_engine

PROGRESS = struct.Struct("<QQ16s")
"""What the parent reads: number of the case, cases done, kind of the case."""

KINDS = ("step", "events", "blocks", "plain", "regions")
# How often each kind comes round: a plain-Python case takes as long as ten others, a region to compile as fifty.
_ROUND = ("step", "events", "blocks", "step", "events", "events", "step", "blocks")
_SLOW = {"plain": 23, "regions": 211}


def kind_of(number: int) -> str:
    """What is done with case `number`."""
    for kind, every in _SLOW.items():
        if number % every == every - 1:
            return kind
    return _ROUND[number % len(_ROUND)]


def case_seed(seed: int, number: int) -> str:
    """The name that all of a case follows from."""
    return f"{seed}/{number}"


class Runner:
    """Runs cases by number, each in the way of its kind."""

    def __init__(self, seed: int) -> None:
        from . import compare
        from .guest import Guest

        self.seed, self.guest, self.plain = seed, Guest(), compare.plain_guest()
        self.counts: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[str], bool]] = {
            "step": lambda name: self._run(name, step=True), "events": lambda name: self._run(name, step=False),
            "blocks": lambda name: compare.blocks_and_steps(self.guest, name),
            "plain": lambda name: compare.native_and_plain(self.guest, self.plain, name),
            "regions": lambda name: compare.interpreter_and_regions(self.guest, name)}

    def run(self, number: int, kind: str) -> None:
        """Run one case; raises guest.Broken, or whatever the engine raised."""
        done = self._kinds[kind](case_seed(self.seed, number))
        self.counts[kind] += bool(done)

    def _run(self, name: str, *, step: bool) -> bool:
        from .situation import situation

        case = situation(name)
        self.guest.enter(case)
        trace = self.guest.run(case, step=step, events=True)
        for reason, *_ in trace.exits:
            self.counts[f"exit {reason}"] += 1
        return True


def main() -> int:
    """Run cases `--first` to `--last`, or until `--seconds` have passed; exit status 1 when any was broken."""
    parser = argparse.ArgumentParser()
    for name, default in (("seed", 0), ("first", 0), ("last", 1 << 62), ("progress", -1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    faulthandler.enable()
    logging.getLogger("pellucid").addHandler(logging.NullHandler())
    logging.getLogger("pellucid").propagate = False
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = mmap.mmap(options.progress if options.progress >= 0 else -1, 4096)
    guard_the_engine()
    runner = Runner(options.seed)
    broken = done = 0
    end = time.monotonic() + options.seconds
    for number in range(options.first, options.last + 1):
        kind = options.kind or kind_of(number)
        PROGRESS.pack_into(place, 0, number, done, kind.encode())
        if str(number) == os.environ.get("PELLUCID_FUZZ_CRASH_AT"):
            os.kill(os.getpid(), signal.SIGSEGV)  # what the parent makes of a crash is tested by one
        broken += not _one(runner, number, kind)
        done += 1
        if time.monotonic() > end or broken >= 20:
            break
    PROGRESS.pack_into(place, 0, number, done, b"")
    print(f"{done} cases, {broken} broken; " + ", ".join(f"{k}: {n}" for k, n in sorted(runner.counts.items())))
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.close(options.progress)
    os._exit(1 if broken else 0)  # threads of the engine may still be at work


def _one(runner: Runner, number: int, kind: str) -> bool:
    from .guest import Broken

    try:
        runner.run(number, kind)
    except Broken as error:
        print(f"case {number} ({kind}): {error}", flush=True)
    except Exception as error:  # whatever the engine may raise is a finding
        import traceback

        print(f"case {number} ({kind}): {type(error).__name__}: {error}", flush=True)
        print("".join(traceback.format_tb(error.__traceback__, -4)), flush=True)
    else:
        return True
    return False


if __name__ == "__main__":
    main()
