"""Finding and compiling hot code without a counter on the hot path.

A sampler thread makes a running processor look up every `SAMPLE_SECONDS`; it leaves at the next block end and notes
which block comes. A block seen `HOT` times is read out with the blocks around it, compiled in a worker thread, and
installed by the processor's own thread at its next sample.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from pellucid.cpu.code_cache import Block, Op
from pellucid.engine.region import CompiledRegion, Piece, RegionSource
from pellucid.native.code import Layout

if TYPE_CHECKING:
    from pellucid.engine.processor import Engine, Processor

log = logging.getLogger("pellucid.region")
SAMPLE_SECONDS = 0.001
HOT = 4
SMALLEST = 3
QUIET_SAMPLES = 20
MAX_REGIONS = 4000


class RegionCompiler:
    """Compiles for every processor of the process, one region at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.roots = {address: name for name, address in engine.image.address.items()}
        self._jobs: queue.Queue[tuple[HotCode, int, list[Piece]]] = queue.Queue()
        self._count = 0
        self.asleep = False
        """No processor has run for a while: the sampler waits for `wake`, so that a halted guest costs nothing."""
        self._wake = threading.Event()
        self.idle = True
        """No job is under way: one is taken at a time, so that what is hot now comes before what was."""
        self._watched: list[weakref.ref[HotCode]] = []  # a processor that nobody holds is not kept alive
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="region-compiler", daemon=True).start()
        threading.Thread(target=self._sample, name="region-sampler", daemon=True).start()

    def wake(self) -> None:
        """A processor runs again: go on sampling."""
        self.asleep = False
        self._wake.set()

    def watch(self, hot: HotCode) -> None:
        """Sample this processor from now on."""
        with self._lock:
            self._watched = [*(ref for ref in self._watched if ref() is not None), weakref.ref(hot)]

    def forget(self, hot: HotCode) -> None:
        """The processor is gone."""
        with self._lock:
            self._watched = [ref for ref in self._watched if ref() is not hot]

    def submit(self, hot: HotCode, generation: int, pieces: list[Piece]) -> None:
        self.idle = False
        self._jobs.put((hot, generation, pieces))

    def _sample(self) -> None:
        quiet = 0
        while True:
            time.sleep(SAMPLE_SECONDS)
            quiet = 0 if self._ask() else quiet + 1
            if quiet > QUIET_SAMPLES:
                self.asleep = True
                if not self._ask():  # else one began to run before it could see that we sleep
                    self._wake.wait()
                self.asleep = False
                self._wake.clear()
                quiet = 0

    def _ask(self) -> bool:
        """Ask every running processor for a sample; whether there was one."""
        running = [hot for ref in self._watched if (hot := ref()) is not None and hot.running]
        for hot in running:
            hot.processor.ask_for_sample()
        return bool(running)

    def _work(self) -> None:
        worker: subprocess.Popen[bytes] | None = None
        while True:
            self.idle = self._count < MAX_REGIONS
            hot, generation, pieces = self._jobs.get()
            if generation != hot.generation:
                continue
            worker = worker or self._start()
            self._count += 1
            name = f"region{self._count}"
            start = time.perf_counter()
            try:
                layout = self._compile(worker, name, pieces)
            except (OSError, EOFError, pickle.UnpicklingError):
                log.warning("the region compiler ended; hot code stays interpreted from here on")
                return
            if layout is not None:
                hot.ready.append((generation, pieces, CompiledRegion(layout, name, self.engine.image.code)))
            ops = sum(len(piece.steps) for piece in pieces)
            log.debug("%s: %d blocks, %d ops, %.0f ms", name, len(pieces), ops, (time.perf_counter() - start) * 1e3)

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from pellucid.engine.region import serve; serve()"]
        paths = os.pathsep.join(p for p in sys.path if p)
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                                  env={**os.environ, "PYTHONPATH": paths})
        atexit.register(worker.kill)
        return worker

    @staticmethod
    def _compile(worker: subprocess.Popen[bytes], name: str, pieces: list[Piece]) -> Layout | None:
        """The region, None when it cannot be compiled. OSError, EOFError, UnpicklingError: the worker is gone."""
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(pickle.dumps((name, pieces)))
        worker.stdin.flush()
        layout: Layout | None = pickle.load(worker.stdout)
        return layout


class HotCode:
    """The hot blocks of one processor. All but `wanted` and `ready` belong to the processor's thread."""

    def __init__(self, processor: Processor, compiler: RegionCompiler) -> None:
        self.processor, self.compiler = processor, compiler
        self.source = RegionSource(compiler.roots, processor.address)
        self.counts: Counter[int] = Counter()
        self.asked: set[int] = set()
        self.ready: list[tuple[int, list[Piece], CompiledRegion]] = []
        self.installed: list[CompiledRegion] = []
        self.generation = 0
        self.running = False
        self.wanted = False
        compiler.watch(self)

    def sample(self) -> None:
        """Note where the processor is; install what has been compiled meanwhile."""
        self.wanted = False
        while self.ready:
            self._install(*self.ready.pop())
        ops = self.processor.current_block()
        if not ops or ops in self.asked:
            return
        self.counts[ops] += 1
        if self.counts[ops] >= HOT and self.compiler.idle:
            self.asked.add(ops)
            pieces = self.source.region(ops)
            if sum(len(piece.steps) for piece in pieces) >= SMALLEST:
                self.compiler.submit(self, self.generation, pieces)
        elif len(self.counts) > 10_000:
            self.counts.clear()

    def _install(self, generation: int, pieces: list[Piece], region: CompiledRegion) -> None:
        headers = [Block.view(piece.ops - Block.size) for piece in pieces]
        if generation != self.generation or any(header.dead for header in headers):
            return
        first = pieces[0]
        self.source.original[first.ops] = first.steps[0].handler
        for header in headers:
            header.region = 1
        Op.view(first.ops).handler = region.address
        self.installed.append(region)

    def flush(self) -> None:
        """Every translation goes: so do the regions."""
        self.generation += 1
        self.counts.clear()
        self.asked.clear()
        self.ready.clear()
        self.source.original.clear()
        self.installed.clear()

    def close(self) -> None:
        """Stop sampling."""
        self.compiler.forget(self)
