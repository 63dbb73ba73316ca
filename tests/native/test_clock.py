"""The host's monotonic clock as native code reads it."""

import time

from pellucid.native import monotonic_ns, native, u64
from tests.native.harness import Unit

unit = Unit()


@native
def now() -> u64:
    return monotonic_ns()


NOW = unit.add(now)


def test_compiled_code_and_python_read_one_clock() -> None:
    NOW()
    for _ in range(1000):
        before, compiled, plain, after = time.monotonic_ns(), NOW(), int(now()), time.monotonic_ns()
        assert before <= compiled <= plain <= after
