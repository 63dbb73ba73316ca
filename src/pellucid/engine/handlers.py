"""The handler image: every instruction form wrapped, numbered and compiled."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pellucid
from pellucid.cpu.flags import CC_KINDS, CC_UNKNOWN
from pellucid.cpu.operands import Form
from pellucid.cpu.state import CpuState, Op
from pellucid.engine import dispatch, run
from pellucid.isa import forms, helpers
from pellucid.isa.all import TABLE
from pellucid.isa.table import BRANCH, COLD, JUMP, LEAVE, LEAVE_JUMP, Row
from pellucid.native import cache, ptr
from pellucid.native.image import Image, Progress, Root, constant, load_or_build, source_key

_OPS = (ptr[CpuState], ptr[Op])
ROOT = Path(pellucid.__file__).parent
PACKAGES = [ROOT / "native", ROOT / "cpu", ROOT / "isa", ROOT / "engine"]


def _row_roots(row: Row) -> dict[str, Root]:
    roots: dict[str, Root] = {}
    wrappers = {BRANCH: dispatch.branch, JUMP: dispatch.jump, LEAVE: dispatch.leaving, LEAVE_JUMP: dispatch.leaving_jump}
    for form in forms.all_forms(row):
        name = forms.root_name(row, form)
        wrapper = wrappers.get(row.ends, dispatch.plain)
        if row.ends == COLD:
            roots[name] = (dispatch.cold, _OPS)
            continue
        params = (*_OPS, constant(row.fn), constant(form))
        if not row.cc:
            roots[name] = (wrapper, (*params, constant(CC_UNKNOWN)) if row.ends == BRANCH else params)
            continue
        wrapper = dispatch.branch if row.ends == BRANCH else dispatch.plain_cc
        for kind in range(CC_KINDS):
            known = kind if kind >> 2 in row.cc_families else CC_UNKNOWN
            roots[name if not kind else f"{name}:cc{kind}"] = (wrapper, (*params, constant(known)))
    return roots


def _engine_roots() -> dict[str, Root]:
    roots: dict[str, Root] = {
        "next": (dispatch.next_block, (*_OPS, constant(True))),
        "next_legacy": (dispatch.next_block, (*_OPS, constant(False))),
        "stepped": (dispatch.stepped, _OPS),
        "dead": (dispatch.dead, _OPS)}
    helper_forms = [(helpers.undefined_op, Form()), (helpers.fpu_trap, Form(extra=0)), (helpers.fpu_trap, Form(extra=1)),
                    (helpers.fpu_trap, Form(extra=2))]
    helper_forms += [(helpers.address_op, Form(asize=a, m64=wide, extra=e))
                     for a in (2, 4) for wide in (False, True) for e in (0, 1)]
    for fn, form in helper_forms:
        roots[f"{fn.__name__}:{form.name}"] = (dispatch.plain, (*_OPS, constant(fn), constant(form)))
    return roots


def roots() -> Mapping[str, Root]:
    """Everything that the image holds, in the order of handler numbers."""
    result = _engine_roots()
    for row in TABLE.rows:
        result.update(_row_roots(row))
    result.update(run.ROOTS)
    return result


def load(progress: Progress | None = None) -> Image:
    """The handler image, compiled when the cache has none for these sources and this CPU."""
    return load_or_build("handlers", roots, PACKAGES, progress)


@functools.cache
def key() -> str:
    """What saved templates depend on."""
    return source_key(PACKAGES)


def numbers(image: Image) -> dict[str, int]:
    """Handler numbers by root name."""
    return {name: number for number, name in enumerate(image.address)}


def is_compiled() -> bool:
    """Whether a start would find the image in the cache."""
    return cache.get("images", f"handlers-{key()}") is not None


