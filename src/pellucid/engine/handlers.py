"""What the handler image holds: every instruction form wrapped."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.cpu.flags import CC_KINDS, CC_UNKNOWN
from pellucid.cpu.operands import Form
from pellucid.cpu.code_cache import Op
from pellucid.cpu.state import CpuState
from pellucid.engine import dispatch, entries
from pellucid.isa import forms, helpers
from pellucid.isa.all import TABLE
from pellucid.isa.table import BRANCH, COLD, JUMP, LEAVE, LEAVE_JUMP, Row
from pellucid.native import ptr
from pellucid.native.image import Root, constant

_OPS = (ptr[CpuState], ptr[Op])


def _row_roots(row: Row) -> dict[str, Root]:
    roots: dict[str, Root] = {}
    wrappers = {BRANCH: dispatch.branch, JUMP: dispatch.jump, LEAVE: dispatch.leaving,
                LEAVE_JUMP: dispatch.leaving_jump}
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
            exists = kind >> 2 in row.cc_families and (form.m64 or kind & 3 < 3)  # 8 bytes are of 64-bit mode
            known = kind if exists else CC_UNKNOWN
            roots[name if not kind else f"{name}:cc{kind}"] = (wrapper, (*params, constant(known)))
    return roots


# Which instructions are fused with a conditional jump behind them: operand kinds and widths by row.
FUSED = {"cmp": ("rr", "ri", "rm", "mi", "mr"), "test": ("rr", "ri", "mr", "mi"), "and": ("rr", "ri"),
         "sub": ("rr", "ri"), "add": ("ri", "rr"), "dec": ("r",), "inc": ("r",)}
FUSED_WIDTHS = (1, 4, 8)


def fusible(row: Row, form: Form) -> bool:
    """Whether this instruction has a handler that takes the conditional jump behind it along."""
    return form.kinds in FUSED.get(row.name, ()) and form.widths[0] in FUSED_WIDTHS and not form.lock and form.m64


def _fused_roots() -> dict[str, Root]:
    """`fused:ROOT:n` for condition n, sixteen in a row."""
    roots: dict[str, Root] = {}
    jcc = next(row for row in TABLE.rows if row.name == "jcc")
    jumps = {form.extra: form for form in forms.all_forms(jcc) if form.m64 and form.w == 8}
    for row in TABLE.rows:
        for form in forms.all_forms(row) if row.name in FUSED else ():
            if not fusible(row, form):
                continue
            kind = row.cc_out * 4 + form.widths[0].bit_length() - 1
            known = kind if row.cc_out in jcc.cc_families else CC_UNKNOWN
            for number, jump in sorted(jumps.items()):
                roots[f"fused:{forms.root_name(row, form)}:{number}"] = (
                    dispatch.fused, (*_OPS, constant(row.fn), constant(form), constant(jcc.fn), constant(jump),
                                     constant(known)))
    return roots


def _engine_roots() -> dict[str, Root]:
    roots: dict[str, Root] = {
        "next": (dispatch.next_block, (*_OPS, constant(True))),
        "next_legacy": (dispatch.next_block, (*_OPS, constant(False))),
        "stepped": (dispatch.stepped, _OPS),
        "dead": (dispatch.dead, _OPS),
        "onward": (dispatch.onward, _OPS),
        "within_limit": (dispatch.within_limit, _OPS),
        "counted": (dispatch.counted, _OPS),
        "recorded": (dispatch.recorded, _OPS)}
    for wide in (True, False):
        form = Form(m64=wide)
        roots[f"endbranch:{form.name}"] = (dispatch.jump, (*_OPS, constant(helpers.endbranch), constant(form)))
        roots[f"missing_endbranch:{form.name}"] = (
            dispatch.plain, (*_OPS, constant(helpers.missing_endbranch), constant(form)))
    helper_forms = [(helpers.undefined_op, Form()), (helpers.too_long, Form())]
    helper_forms += [(helpers.fpu_trap, Form(extra=e)) for e in range(3)]
    helper_forms += [(helpers.address_op, Form(asize=a, m64=wide, extra=e))
                     for a, wide, e in ((2, False, 0), (2, False, 1), (4, False, 0), (4, False, 1), (4, True, 0))]
    for fn, form in helper_forms:
        roots[f"{fn.__name__}:{form.name}"] = (dispatch.plain, (*_OPS, constant(fn), constant(form)))
    return roots


def roots() -> Mapping[str, Root]:
    """Everything that the image holds, in the order of handler numbers."""
    result = _engine_roots()
    for row in TABLE.rows:
        result.update(_row_roots(row))
    result.update(_fused_roots())
    result.update(entries.ROOTS)
    return result
