"""How long a vCPU spins with PAUSE: it learns from what its yields were good for."""

import pytest

from pellucid.kvm.backends.soft import spin
from pellucid.kvm.backends.soft.spin import LONGEST_NS, SHORTEST_NS, SpinWindow

HZ = 2_000_000_000


def window(monkeypatch: pytest.MonkeyPatch, took: list[int]) -> SpinWindow:
    """One whose yields take `took` nanoseconds, the last from then on."""
    now = 0

    def sched_yield() -> None:
        nonlocal now
        now += took.pop(0) if len(took) > 1 else took[0]

    monkeypatch.setattr(spin.os, "sched_yield", sched_yield)
    monkeypatch.setattr(spin.time, "perf_counter_ns", lambda: now)
    return SpinWindow(HZ)


def test_yields_to_nobody_make_it_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    w = window(monkeypatch, [500])
    seen = [w.ticks]
    for _ in range(6):
        w.yield_cpu()
        seen.append(w.ticks)
    assert seen == sorted(seen) and seen[0] == SHORTEST_NS * 2 and seen[-1] == LONGEST_NS * 2


def test_a_yield_that_let_another_run_makes_it_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    w = window(monkeypatch, [500, 500, 500, 90_000, 500])
    for _ in range(3):
        w.yield_cpu()
    assert w.ns == 8 * SHORTEST_NS
    w.yield_cpu()
    assert w.ns == SHORTEST_NS
    w.yield_cpu()
    assert w.ns == 2 * SHORTEST_NS
