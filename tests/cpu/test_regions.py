"""The third executor: every instruction form of the table as a compiled region, against the host CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from . import test_avx, test_integer, test_sse, test_x87
from .oracle import Executor, HostCpu, Report, run_cases, unavailable
from .region_guest import RegionGuest
from .test_sse import ExceptForOverflow

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

FAMILIES: dict[str, Callable[[int], list[int]]] = {
    "integer": test_integer.codes, "sse": test_sse.codes, "avx": test_avx.codes, "x87": test_x87.codes}


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


@pytest.fixture(scope="module")
def guest() -> Iterator[RegionGuest]:
    made = RegionGuest()
    yield made
    made.close()


def decided(report: Report) -> Report:
    """The report without what the families' own tests leave out."""
    report = test_integer.accepted(report)
    report.failures = [failure for failure in report.failures if not test_x87.of_the_processor(failure)]
    return report


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_as_a_region(guest: RegionGuest, host: HostCpu, family: str, bits: int) -> None:
    """Forms that 64-bit code has in common with 32-bit code are compiled once, in 64-bit code."""
    seed = int(os.environ.get("PELLUCID_SEED", "14"))
    made = (case for case in guest.sample(FAMILIES[family](bits), seed, bits) if not test_avx.is_lax_sha(case))
    executor: Executor = ExceptForOverflow(guest, host)
    report = decided(run_cases(executor, host, made))
    assert report.ok, f"seed {seed}\n{report}"


def test_zz(guest):
    from pellucid.engine import handlers, dispatch
    roots = handlers.roots()
    ad=guest.processor.engine.image.address
    left=[n for n,(w,p) in roots.items() if w in (dispatch.plain,dispatch.plain_cc,dispatch.branch,dispatch.jump) and ad[n] not in guest.reached]
    print(guest.regions, len(guest.reached), len(left))
    with open('/tmp/w/exec.left','w') as f: f.write('\n'.join(left))
