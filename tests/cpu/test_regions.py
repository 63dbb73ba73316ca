"""The third executor: every instruction form of the table as a compiled region, against the host CPU."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from pellucid.engine import dispatch, handlers

from . import test_avx, test_integer, test_sse, test_x87
from .oracle import Executor, HostCpu, Report, run_cases, unavailable
from .region_guest import RegionGuest
from .region_modes import Modes
from .test_sse import ExceptForOverflow

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

FAMILIES: dict[str, Callable[[int], list[int]]] = {
    "integer": test_integer.codes, "sse": test_sse.codes, "avx": test_avx.codes, "x87": test_x87.codes}


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


def compilable(guest: RegionGuest) -> dict[int, str]:
    """Handlers that regions hold as code of their own, by address: all but those that leave a block by themselves."""
    addresses = guest.processor.engine.image.address
    wrappers = (dispatch.plain, dispatch.plain_cc, dispatch.branch)
    return {addresses[name]: name for name, (wrapper, _) in handlers.roots().items() if wrapper in wrappers}


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_what_is_left_in_every_mode(guest: RegionGuest, bits: int) -> None:
    """Interpreted and compiled, at CPL 0: forms that the host could not be asked for."""
    rng = random.Random(os.environ.get("PELLUCID_SEED", "15"))
    modes = Modes(bits)
    wanted = compilable(guest).keys() - guest.reached
    differences = [text for batch in modes.programs(wanted, rng) for text in modes.differences(batch, rng)]
    guest.reached |= modes.reached
    assert not differences, "\n".join(differences[:20])


@pytest.mark.parametrize("bits", [32, 64])
def test_control_flow_enforced(guest: RegionGuest, bits: int) -> None:
    """Shadow stacks and branch tracking: their forms of CALL, RET, JMP and ENDBR, and CET's own instructions."""
    rng = random.Random(os.environ.get("PELLUCID_SEED", "16"))
    modes = Modes(bits)
    modes.enforce_control_flow()
    wanted = compilable(guest).keys() - guest.reached
    differences = [text for batch in modes.programs(wanted, rng) for text in modes.differences(batch, rng)]
    guest.reached |= modes.reached
    assert not differences, "\n".join(differences[:20])


def test_traps_of_the_fpu(guest: RegionGuest) -> None:
    """CR0.TS: x87, MMX and SSE have an op before them that raises #NM."""
    modes = Modes(64)
    modes.trap_fpu()
    batch = [modes.single(number, bytes.fromhex(code)) for number, code in enumerate(("d9e8", "0ffcc1", "0f58c1"))]
    assert not modes.differences(batch, random.Random(1))
    guest.reached |= modes.reached


NOT_REACHED = {
    "too_long": "ends its block by itself", "undefined_op": "likewise", "missing_endbranch": "likewise",
    "gather": "16-bit addresses have no index vector", "bt_register": "registers have no address size but the mode's",
    "lea": "64-bit operands have no 16-bit addresses", "nop": "has no op",
}


def test_no_form_is_left_out(guest: RegionGuest) -> None:
    if guest.regions < 4000:
        pytest.skip("only after all of this file's tests")
    left = [name for address, name in compilable(guest).items() if address not in guest.reached]
    assert not [name for name in left if name.split(":")[0] not in NOT_REACHED], left
    assert len([name for name in left if not name.startswith("nop:")]) < 32
