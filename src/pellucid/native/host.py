"""What compiled code depends on besides its source, told without loading LLVM: a start with a warm cache needs none."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import llvmlite

_WORDS = {"vendor_id", "cpu family", "model", "stepping", "flags",
          "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"}


@functools.cache
def fingerprint() -> str:
    """The compiler's version and this host's processor."""
    return "\n".join((llvmlite.__version__, platform.machine(), *_processor()))


def _processor() -> list[str]:
    """The lines of /proc/cpuinfo that say which processor the first one is and what it can do."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    return [line for line in first.splitlines() if line.split("\t")[0].split(":")[0].strip() in _WORDS]


@functools.cache
def flags() -> frozenset[str]:
    """What this host's processor can do, by the names of /proc/cpuinfo."""
    words = next((line for line in _processor() if line.split(":")[0].strip() in ("flags", "Features")), "")
    return frozenset(words.partition(":")[2].split())
