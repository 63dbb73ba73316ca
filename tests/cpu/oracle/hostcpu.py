"""Runs cases on the host CPU, in a child process that is restarted when a case destroys it.

`trampoline` explains the native part. `HostCpu` fills records in shared memory, wakes the child for a batch, and
reads the records back. Host requirements: Linux on x86-64 with AVX, XSAVE and FSGSBASE usable in user mode
(`unavailable()` says what is missing).
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType

from . import layout
from . import trampoline as t
from .outcome import PF, Fault, Outcome, check_placement, classify
from .state import RSP, UserState

Case = tuple[bytes, UserState, int]
"""Code, state, bits."""

BATCH = 64
"""Records per batch: 1.5 MiB of shared memory, so that a batch stays in the second-level cache."""

HANG_SECONDS = 2.0
"""A batch with no finished case for this long is taken for hung; a case needs microseconds."""

START_ATTEMPTS = 8

_PROT_RX = mmap.PROT_READ | mmap.PROT_EXEC
_PROT_RW = mmap.PROT_READ | mmap.PROT_WRITE
_SIGSYS = 31
_GPRS = struct.Struct("<16Q")
_FRAME = struct.Struct("<10Q")  # RIP, CS, RFLAGS, RSP, SS, FS base, GS base, code address, code length, signal
_RESULT = struct.Struct(f"<{t.GREG_COUNT}Q")
_HALF = 0xFFFF_FFFF


class HostCpuError(Exception):
    """The host cannot run cases, or the child could not be started; the text says why."""


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The CPU feature names that /proc/cpuinfo lists; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return frozenset(
        word for line in text.splitlines() if line.startswith("flags") for word in line.split(":", 1)[1].split()
    )


def unavailable() -> str | None:
    """Why this host cannot serve as the oracle, or None when it can."""
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        return "the host is not Linux on x86-64"
    missing = sorted({"xsave", "avx", "avx2", "fsgsbase"} - cpu_flags())
    return f"the host CPU lacks {', '.join(missing)}" if missing else None


class HostCpu:
    """An `Executor` on the host CPU. A context manager; `close()` ends the child."""

    interpreter: tuple[str, ...] = (sys.executable,)
    """The command that runs the child's script.

    A user-mode emulator in front of it makes another executor of this one.
    """

    def __init__(self, hang_seconds: float = HANG_SECONDS) -> None:
        reason = unavailable()
        if reason is not None:
            raise HostCpuError(reason)
        self.starts = 0
        self.hang_seconds = hang_seconds
        self.traps_system_calls = False
        self._child: subprocess.Popen[bytes] | None = None
        self._size = t.RECORDS + BATCH * t.RECORD_SIZE
        self._fd = os.memfd_create("oracle", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, self._size)
        self._shared = mmap.mmap(self._fd, self._size)
        self._native = t.assemble()
        self._background = b"".join(layout.BACKGROUND[page] for page in layout.WRITABLE_PAGES)
        self._fill_shared()

    def __enter__(self) -> HostCpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and free the shared memory."""
        self._stop()
        if self._fd >= 0:
            self._shared.close()
            os.close(self._fd)
            self._fd = -1

    def run(self, code: bytes, state: UserState, bits: int = 64) -> Outcome:
        """Run one case; see `outcome.Executor`."""
        return self.run_many([(code, state, bits)])[0]

    def run_many(self, cases: Iterable[Case]) -> list[Outcome]:
        """Run cases in batches, in order; several times faster per case than `run`."""
        outcomes: list[Outcome] = []
        iterator = iter(cases)
        while batch := list(islice(iterator, BATCH)):
            outcomes += self._run_batch(batch)
        return outcomes

    def _run_batch(self, batch: Sequence[Case]) -> list[Outcome]:
        for index, case in enumerate(batch):
            self._put(t.RECORDS + index * t.RECORD_SIZE, *case)
        lost: dict[int, str] = {}
        first = 0
        while first < len(batch):
            reason = self._go(first, len(batch))
            first = self._first_unfinished(first, len(batch))
            if first < len(batch):
                lost[first] = reason or "was passed over: an earlier case overwrote the runner's memory"
            first += 1
        return [
            Outcome(case[1].copy(), lost=lost[index])
            if index in lost
            else self._get(t.RECORDS + index * t.RECORD_SIZE, case)
            for index, case in enumerate(batch)
        ]

    def _go(self, first: int, count: int) -> str | None:
        """Let the child run records `first` to `count`; None when it says it did, else what became of it."""
        base = t.SHARED + t.RECORDS
        struct.pack_into("<QQQ", self._shared, t.CURRENT, base + first * t.RECORD_SIZE, base + count * t.RECORD_SIZE, 0)
        answers = self._wake()
        before = b""
        while not select.select([answers], [], [], self.hang_seconds)[0]:
            if before == (before := self._shared[t.CURRENT : t.CURRENT + 8]):
                self._stop()
                return f"did not end within {self.hang_seconds:g} s"
        return None if os.read(answers, 1) else f"killed the host process ({self._stop()})"

    def _wake(self) -> int:
        """Tell the child to go, a new one if it is gone; returns the descriptor on which it answers."""
        while True:
            child = self._child or self._start()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                os.write(child.stdin.fileno(), b"g")
            except BrokenPipeError:
                self._stop()
                continue
            return child.stdout.fileno()

    def _first_unfinished(self, first: int, count: int) -> int:
        """The first record from `first` on whose case did not end, or `count`.

        (CURRENT itself may have been overwritten.).
        """
        for index in range(first, count):
            if self._shared[t.RECORDS + index * t.RECORD_SIZE + t.SIGNAL] == 0:
                return index
        return count

    def _put(self, at: int, code: bytes, state: UserState, bits: int) -> None:
        check_placement(code, state)
        shared = self._shared
        _GPRS.pack_into(shared, at + t.GPR, *state.gpr)
        _FRAME.pack_into(
            shared,
            at + t.IRET,
            state.rip,
            layout.CS64 if bits == 64 else layout.CS32,
            state.rflags,
            state.gpr[RSP],
            layout.SS,
            state.fs_base,
            state.gs_base,
            t.SHARED + t.CODE_ALIAS + state.rip - layout.CODE,
            len(code),
            0,
        )
        shared[at + t.XSAVE : at + t.XSAVE + t.XSAVE_SIZE] = bytes(state.xsave)
        shared[at + t.CODE_BYTES : at + t.CODE_BYTES + len(code)] = code
        shared[at + t.MEMORY : at + t.RECORD_SIZE] = self._background
        for page, content in state.mem.items():
            place = at + t.MEMORY + layout.WRITABLE_PAGES.index(page) * layout.PAGE
            shared[place : place + layout.PAGE] = content

    def _get(self, at: int, case: Case) -> Outcome:
        code, before, bits = case
        shared = self._shared
        signal_number, ds, es, fs, gs = struct.unpack_from("<5Q", shared, at + t.SIGNAL)
        regs = _RESULT.unpack_from(shared, at + t.GREGS)
        fs_base, gs_base = struct.unpack_from("<QQ", shared, at + t.OUT_FS_BASE)
        state = UserState([regs[place] for place in t.GREG_ORDER], fs_base=fs_base, gs_base=gs_base)
        if bits == 32:
            state.gpr[:8] = [value & _HALF for value in state.gpr[:8]]
            state.gpr[8:] = before.gpr[8:]
        packed = regs[t.GREG_CSGSFS]
        state.selectors = (es, packed & 0xFFFF, packed >> 48, ds, fs, gs)
        state.rflags = regs[t.GREG_EFLAGS]
        state.load_xsave(shared[at + t.XSAVE : at + t.XSAVE + t.XSAVE_SIZE])
        state.mem = self._changed(at)
        vector, error_code, cr2 = regs[t.GREG_TRAPNO], regs[t.GREG_ERR], regs[t.GREG_CR2]
        state.rip, fault = classify(code, before.rip, regs[t.GREG_RIP], vector, error_code, cr2)
        if fault is not None and fault.vector == PF and fault.address is not None and fault.address >> 63:
            # Linux hides what is mapped in its half by always setting P; to the layout nothing is.
            fault = Fault(PF, fault.error_code & ~1, fault.address)
        if signal_number == _SIGSYS:
            return Outcome(state, lost="made a system call")
        return Outcome(state, fault)

    def _changed(self, at: int) -> dict[int, bytes]:
        """The pages of the record at `at` that differ from the background."""
        out: dict[int, bytes] = {}
        place = at + t.MEMORY
        for page in layout.WRITABLE_PAGES:
            content = self._shared[place : place + layout.PAGE]
            if content != layout.BACKGROUND[page]:
                out[page] = content
            place += layout.PAGE
        return out

    def _fill_shared(self) -> None:
        shared = self._shared
        shared[t.NATIVE_IMAGE : t.NATIVE_IMAGE + len(self._native.image)] = self._native.image
        shared[t.READONLY_ALIAS : t.READONLY_ALIAS + layout.READONLY_SIZE] = layout.BACKGROUND[layout.READONLY]

    def _config(self) -> str:
        return json.dumps(
            {
                "maps": [
                    (t.SHARED, self._size, _PROT_RW, self._fd, 0),
                    (t.NATIVE, layout.PAGE, _PROT_RX, self._fd, t.NATIVE_IMAGE),
                    (t.SIGNAL_STACK, t.SIGNAL_STACK_SIZE, _PROT_RW, -1, 0),
                    (layout.CODE, layout.CODE_SIZE, _PROT_RX, self._fd, t.CODE_ALIAS),
                    (layout.READONLY, layout.READONLY_SIZE, mmap.PROT_READ, self._fd, t.READONLY_ALIAS),
                    (layout.DATA, layout.DATA_SIZE, _PROT_RW, -1, 0),
                    (layout.STACK, layout.STACK_SIZE, _PROT_RW, -1, 0),
                ],
                "handler": self._native.handler,
                "enter": self._native.enter,
                "native": (t.NATIVE, layout.PAGE),
                "signal_stack": (t.SIGNAL_STACK, t.SIGNAL_STACK_SIZE),
                "dispatch": t.SHARED + t.DISPATCH,
            }
        )

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the child. Address randomization can put its heap or a library in the layout's way: then try again."""
        for _ in range(START_ATTEMPTS):
            self._shared[t.CODE_ALIAS : t.CODE_ALIAS + layout.CODE_SIZE] = bytes([layout.INT3]) * layout.CODE_SIZE
            self._shared[t.DISPATCH] = 0
            child = self._child = subprocess.Popen(
                [*self.interpreter, "-I", "-S", str(Path(__file__).with_name("hostchild.py")), self._config()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._fd],
                bufsize=0,
            )
            self.starts += 1
            assert child.stdout is not None
            answer = child.stdout.read(1)
            if answer:
                self.traps_system_calls = answer == b"T"
                return child
            status = self._stop()
        raise HostCpuError(f"the host runner's child does not start ({status})")

    def _stop(self) -> str:
        """End the child; returns how it ended."""
        child, self._child = self._child, None
        if child is None:
            return "not running"
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
        if child.poll() is None:
            try:
                child.wait(0.1)
            except subprocess.TimeoutExpired:
                child.kill()
        status = child.wait()
        return f"signal {-status}" if status < 0 else f"exit status {status}"
