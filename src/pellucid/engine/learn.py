"""Teaching the translator: iced-x86 decodes an instruction once, and its shape joins the trie.

The trie and the templates are plain arrays in memory, saved on disk as they are: the next run knows what this
one learned. They refer to handlers by number, so they belong to one handler image.
"""

from __future__ import annotations

import ctypes
import logging
from collections import Counter
from typing import Any

import iced_x86 as iced

from pellucid.cpu import lbr
from pellucid.cpu.flags import CC_SAME, CC_UNKNOWN
from pellucid.cpu.operands import Form
from pellucid.cpu.code_cache import (
    IS_BRANCH, IS_CONDITIONAL, MAX_TEMPLATES, MAX_TEMPLATE_OPS, OP_BRANCH, OP_HAS_DISP, OP_HAS_IMM, OP_NOTRACK,
    OP_OUTSIDE, OP_RIP_RELATIVE, OP_STACK, OP_STACK_TOO, OP_TAKES_CC, TRIE_EDGES, TRIE_TERMINAL, T_BRANCHES, T_ENDS,
    T_JCC, T_KIND, T_NOTHING, CodeCache, Op, Template, TrieEdge,
)
from pellucid.cpu.state import (
    CS, DS, ES, FS, GS, MODE_16, MODE_32, MODE_64, MODE_AVX_UD, MODE_CET, MODE_ENDBRANCH, MODE_FPU_TRAP, MODE_SEGMENTED,
    MODE_SHAPE, MODE_SIZE, MODE_SSE_UD, MODE_VEX_UD, SS, XMM_BYTES, slot_of,
)
from pellucid.engine import shapes
from pellucid.engine.image import table
from pellucid.isa import features, forms
from pellucid.isa.move import nop
from pellucid.isa.rtm import runs_inside
from pellucid.isa.table import BRANCH, PLAIN, Row

log = logging.getLogger("pellucid.translate")
_R, _F = iced.Register, iced.FlowControl
_ZERO = slot_of("zero")
_SEGMENTS = {_R.ES: ES, _R.CS: CS, _R.SS: SS, _R.DS: DS, _R.FS: FS, _R.GS: GS}
_VECTORS = range(_R.XMM0, _R.YMM0 + 32)
_BITS = {MODE_16: 16, MODE_32: 32, MODE_64: 64}
_LEGACY_PREFIXES = bytes.fromhex("262e363e64656667f0f2f3")
MAX_LENGTH = 15
_OLDER = iced.DecoderOptions.NO_MPFX_0FBC | iced.DecoderOptions.NO_MPFX_0FBD | iced.DecoderOptions.NO_WBNOINVD
"""TZCNT, LZCNT and WBNOINVD as a processor without them reads them: BSF, BSR and WBINVD, whose F3 means nothing."""


def _slots() -> dict[int, int]:
    """State offset of every register that an operand can name."""
    slots = {}
    for number in range(16):
        for base in (_R.AX, _R.EAX, _R.RAX):
            slots[base + number] = slot_of("gpr", number)
        slots[_R.XMM0 + number] = slots[_R.YMM0 + number] = slot_of("xmm") + number * XMM_BYTES
    for number in range(4):
        slots[_R.AL + number] = slot_of("gpr", number)
        slots[_R.AH + number] = slot_of("gpr", number) + 1
    for number in range(4, 16):
        slots[_R.SPL + number - 4] = slot_of("gpr", number)
    for number in range(8):
        slots[_R.MM0 + number] = slot_of("st") + number * 16
        slots[_R.ST0 + number] = number
        slots[_R.CR0 + number] = slots[_R.DR0 + number] = number
    slots[_R.CR8] = 8
    slots.update({int(register): number for register, number in _SEGMENTS.items()})
    return slots


SLOTS = _slots()


def _pause_or_exchange(raw: bytes) -> Any:
    """F3 41 90 exchanges R8 with RAX: F3 makes a pause only of the 90 that would be a no-operation."""
    if len(raw) < 2 or raw[-2] & 0xF1 != 0x41:
        return None
    return iced.Decoder(64, raw.replace(b"\xf3", b"\x3e"), ip=0).decode()


def _prefixes(code: bytes | bytearray) -> int:
    """How many legacy prefixes stand at the start."""
    return len(code) - len(bytes(code).lstrip(_LEGACY_PREFIXES))


def _cr8_by_lock(raw: bytes, bits: int) -> Any:
    """MOV to or from CR0 with LOCK as AMD's processors read it, None for any other bytes."""
    if 0xF0 not in raw[:_prefixes(raw)]:
        return None
    instr = iced.Decoder(bits, raw, iced.DecoderOptions.AMD, ip=0).decode()
    return instr if instr.code in features.CR8_BY_LOCK else None


def _immediate_at(instr: Any, constants: Any) -> int:
    """Where the immediate begins, 0 without one. The byte whose bits 7:4 name a fourth register (/is4) is one, too."""
    if constants.has_immediate:
        return int(constants.immediate_offset)
    return int(instr.len) - 1 if forms.has_fourth(instr.code) else 0


_BRANCHES = {
    _F.UNCONDITIONAL_BRANCH, _F.INDIRECT_BRANCH, _F.CONDITIONAL_BRANCH, _F.RETURN, _F.CALL, _F.INDIRECT_CALL,
    _F.INTERRUPT}
_OTHER_CALLS = {iced.Code.VMCALL, iced.Code.VMMCALL, iced.Code.RSM}


def branch_kind(instr: Any) -> int:
    """IS_BRANCH and IS_CONDITIONAL of a near or far transfer, a software interrupt or a fast call; 0 of all others."""
    if instr.flow_control not in _BRANCHES or instr.code in _OTHER_CALLS:
        return 0
    conditional = instr.flow_control == _F.CONDITIONAL_BRANCH or instr.code == iced.Code.INTO
    return IS_BRANCH | IS_CONDITIONAL * bool(conditional)


_KINDS = (
    (lbr.SELECT_JCC, "is_jcc_short_or_near is_jcx_short is_loop is_loopcc"), (lbr.SELECT_NEAR_REL_CALL, "is_call_near"),
    (lbr.SELECT_NEAR_IND_CALL, "is_call_near_indirect"), (lbr.SELECT_NEAR_IND_JMP, "is_jmp_near_indirect"),
    (lbr.SELECT_NEAR_REL_JMP, "is_jmp_short_or_near"))
"""What iced-x86 asks whether an instruction is; near returns stand apart, and every other branch is a far one."""


def filter_bit(instr: Any) -> int:
    """The number of the bit of MSR_LBR_SELECT that a branch instruction falls under; 0 of all others, and of INT3, INT1
    and INTO, which are recorded as the exceptions that they raise.
    """
    if not branch_kind(instr) or instr.flow_control == _F.INTERRUPT and instr.code != iced.Code.INT_IMM8:
        return 0
    bits = [bit for bit, words in _KINDS if any(getattr(instr, word) for word in words.split())]
    if instr.mnemonic == iced.Mnemonic.RET:
        bits = [lbr.SELECT_NEAR_RET]
    return int(bits[0] if bits else lbr.SELECT_FAR_BRANCH).bit_length() - 1


class NeedMoreBytes(Exception):
    """The instruction goes on in the next page."""


class Learner:
    """Adds shapes to one CodeCache. `handlers` maps root names to handler numbers."""

    def __init__(self, cache: int, handlers: dict[str, int]) -> None:
        self.cache = CodeCache.view(cache)
        self.handlers = handlers
        self.info = iced.InstructionInfoFactory()
        self.nodes = shapes.FIRST_NODE
        self.templates = 0
        self.ops = 0
        self.edges = 0
        self.unbuilt: Counter[str] = Counter()

    def learn(self, code: bytes, mode: int) -> int:
        """Learn the first instruction of `code` and those after it up to a block's end.

        Returns how many bytes belong to instructions now known; 0 when the first is no instruction.
        """
        decoder = iced.Decoder(_BITS[mode & MODE_SIZE], code, ip=0)
        done = 0
        while decoder.can_decode:
            instr = decoder.decode()
            if instr.code == iced.Code.PAUSE:
                instr = _pause_or_exchange(code[done:done + instr.len]) or instr
            elif instr.is_invalid:
                instr = _cr8_by_lock(code[done:done + MAX_LENGTH], _BITS[mode & MODE_SIZE]) or instr
            if instr.is_invalid:
                if not done and decoder.last_error == iced.DecoderError.NO_MORE_BYTES and len(code) < 15:
                    raise NeedMoreBytes
                return done
            self._add(instr, decoder.get_constant_offsets(instr), code[done:done + instr.len], mode)
            done += instr.len
            if instr.flow_control != iced.FlowControl.NEXT or done > 256 or mode & MODE_ENDBRANCH:
                break
        return done

    def too_long(self, code: bytes, mode: int) -> bool:
        """Whether what begins at `code`, which is no instruction, has more than fifteen bytes.

        The decoder only says that fifteen were not enough: without some of the repeated prefixes it sees the end.
        """
        head = bytearray(code[:MAX_LENGTH])
        dropped = 0
        while len(head) > 1 and head[0] in head[1:1 + _prefixes(head[1:])]:
            del head[0]
            dropped += 1
        rest = bytes(head) + code[MAX_LENGTH:2 * MAX_LENGTH]
        instr = iced.Decoder(_BITS[mode & MODE_SIZE], rest.ljust(MAX_LENGTH, b"\0"), ip=0).decode()
        return bool(dropped + instr.len > MAX_LENGTH)

    def _add(self, instr: Any, constants: Any, raw: bytes, mode: int) -> None:
        head = len(raw)
        if constants.has_displacement:
            head = constants.displacement_offset
        immediate = _immediate_at(instr, constants)
        if immediate:
            head = min(head, immediate)
        if self._known(raw[:head], mode):
            return
        if self.templates + 2 >= MAX_TEMPLATES or self.ops + 16 >= MAX_TEMPLATE_OPS or self.edges * 2 > TRIE_EDGES:
            self.reset()
        number = self._template(instr, constants, raw, mode, immediate)
        template = Template.view(self.cache.templates + number * Template.size)
        needs = features.needs(instr.code, mode & MODE_SIZE == MODE_64)
        if instr.code in features.CR8_BY_LOCK and 0xF0 in raw[:_prefixes(raw)]:
            needs |= features.bit_of("cr8legacy")
        template.needs[:], template.without = features.words(needs), 0
        other = iced.Decoder(_BITS[mode & MODE_SIZE], raw, _OLDER, ip=0).decode()
        if other.code != instr.code and not other.is_invalid:
            template.without = self._template(other, constants, raw, mode, immediate)
            Template.view(self.cache.templates + template.without * Template.size).needs[:] = features.words(0)
        self._insert(raw[:head], mode, number)

    def _template(self, instr: Any, constants: Any, raw: bytes, mode: int, immediate: int) -> int:
        """Write the next template, with its ops; its number."""
        ops, cc_out, ends = self._ops(instr, constants, mode)
        number = self.templates
        template = Template.view(self.cache.templates + number * Template.size)
        template.length, template.count, template.first = len(raw), len(ops), self.ops
        template.disp_at, template.disp_size = constants.displacement_offset, constants.displacement_size
        template.imm_at, template.imm_size = immediate, len(raw) - immediate
        if not constants.has_displacement:
            template.disp_at = template.disp_size = 0
        if not immediate:
            template.imm_at = template.imm_size = 0
        jcc = len(ops) == 1 and ops[0]["flags"] & OP_TAKES_CC and ends and mode & MODE_SIZE == MODE_64
        template.flags = (T_ENDS if ends else 0) | (T_JCC if jcc else 0) | branch_kind(instr) << T_BRANCHES
        template.flags |= filter_bit(instr) << T_KIND | T_NOTHING * self._does_nothing(ops)
        template.cc_out = cc_out
        for fields in ops:
            view = Op.view(self.cache.template_ops + self.ops * Op.size)
            ctypes.memset(ctypes.addressof(view), 0, Op.size)
            for name, value in fields.items():
                setattr(view, name, value)
            self.ops += 1
        self.templates += 1
        return number

    @staticmethod
    def _does_nothing(ops: list[dict[str, Any]]) -> bool:
        """Whether this is NOP or one of those that are as good."""
        return len(ops) == 1 and "row" in ops[0] and table().rows[ops[0]["row"]].fn is nop

    # --- ops -------------------------------------------------------------------------------------------

    def _ops(self, instr: Any, constants: Any, mode: int) -> tuple[list[dict[str, Any]], int, bool]:
        mnemonic, code = forms.MNEMONIC_NAMES[instr.mnemonic], forms.CODE_NAMES[instr.code]
        if mode & MODE_ENDBRANCH and instr.code not in (iced.Code.INT3, iced.Code.INT1):
            wanted = iced.Code.ENDBR64 if mode & MODE_SIZE == MODE_64 else iced.Code.ENDBR32
            name = "endbranch" if instr.code == wanted else "missing_endbranch"
            return [self._engine_op(name, instr, Form(m64=mode & MODE_SIZE == MODE_64))], CC_SAME, True
        found = table().find(mnemonic, code, bool(mode & MODE_CET))
        if found is None:
            self.unbuilt[code] += 1
            log.warning("not built: %s", code)
            return [self._engine_op("undefined_op", instr)], CC_UNKNOWN, True
        number, row = found
        bad_lock = instr.has_lock_prefix and not (row.lock and instr.op0_kind == iced.OpKind.MEMORY)
        if bad_lock or row.sse and mode & MODE_SSE_UD or self._is_disabled(instr, row, mode):
            return [self._engine_op("undefined_op", instr)], CC_UNKNOWN, True
        ops = []
        if row.fpu and mode & MODE_FPU_TRAP:
            ops.append(self._engine_op("fpu_trap", instr, Form(extra=1 if row.sse or row.avx else 2 * row.mmx)))
        chosen, op = self._operands(instr, constants, row, mode, ops)
        asize = self._address_size(instr, constants, mode) if row.asize else 8
        rep = "repne" if instr.has_repne_prefix else "rep" if instr.has_rep_prefix else ""
        form = forms.make_form(row, instr.code, chosen, lock=instr.has_lock_prefix,
                               rep=rep if rep in row.rep else "", asize=asize, m64=mode & MODE_SIZE == MODE_64)
        root = forms.root_name(row, form)
        if root not in self.handlers:
            self.unbuilt[code] += 1
            log.warning("not built: %s as %s", code, form.name)
            return [self._engine_op("undefined_op", instr)], CC_UNKNOWN, True
        op["handler"], op["row"], op["length"] = self.handlers[root], number, instr.len
        op["flags"] |= row.op_flags
        if not runs_inside(row):
            op["flags"] |= OP_OUTSIDE
        if row.cet and instr.segment_prefix == _R.DS:
            op["flags"] |= OP_NOTRACK
        if row.cc:
            op["flags"] |= OP_TAKES_CC
            if row.ends == BRANCH:
                op["src"] = form.extra
        if mode & MODE_SIZE == MODE_64:
            op["flags"] |= self._stack_flags(instr)
        ops.append(op)
        cc_out = row.cc_out
        if cc_out < CC_SAME:
            cc_out = cc_out * 4 + (form.widths[0] if form.widths else form.w).bit_length() - 1
        return ops, cc_out, row.ends not in (PLAIN,)

    @staticmethod
    def _is_disabled(instr: Any, row: Row, mode: int) -> bool:
        """Whether a VEX encoding raises #UD in this mode (SDM vol. 2, 2.4 and 2.5)."""
        return bool(row.avx and mode & MODE_AVX_UD or mode & MODE_VEX_UD and forms.is_vex(instr.code))

    def _engine_op(self, name: str, instr: Any, form: Form | None = None) -> dict[str, Any]:
        return {"handler": self.handlers[f"{name}:{(form or Form()).name}"], "length": instr.len, "flags": 0,
                "base": _ZERO, "index": _ZERO, "seg": _ZERO}

    def _operands(self, instr: Any, constants: Any, row: Row, mode: int,
                  before: list[dict[str, Any]]) -> tuple[tuple[tuple[str, int], ...], dict[str, Any]]:
        operands, memory, _ = forms.describe(instr.code)
        op: dict[str, Any] = {"flags": 0, "base": _ZERO, "index": _ZERO, "seg": _ZERO}
        if _immediate_at(instr, constants):
            op["flags"] |= OP_HAS_IMM
        chosen = []
        for i, (number, alternatives) in enumerate(zip(forms.order(instr.code), operands, strict=True)):
            kind = instr.op_kind(number)
            if kind == iced.OpKind.REGISTER:
                chosen.append(alternatives[0])
                if i < 3:
                    op[("dst", "src", "src2")[i]] = SLOTS.get(instr.op_register(number), 0)
            elif kind == iced.OpKind.MEMORY and alternatives[-1][0] == "m":
                chosen.append(("m", memory))
                self._memory(instr, constants, row, mode, op, before, max(memory, 1))
            else:
                chosen.append(alternatives[0])
                if alternatives[0][0] == "b" and row.ends == BRANCH:
                    op["flags"] |= OP_BRANCH | OP_HAS_IMM
                if alternatives[0][0] == "-":
                    op["seg"] = self._string_segment(instr, mode)
                if kind == iced.OpKind.IMMEDIATE8 and not constants.has_immediate:
                    op["imm"] = instr.immediate8
        if row.implicit:
            op["seg"] = self._string_segment(instr, mode)
        return tuple(chosen), op

    @staticmethod
    def _string_segment(instr: Any, mode: int) -> int:
        """The slot of the base of the segment of a string's source, or of other implicit memory."""
        segment = _SEGMENTS.get(instr.memory_segment, DS)
        if mode & MODE_SIZE == MODE_64 and segment not in (FS, GS):
            return _ZERO
        return slot_of("seg_base", segment)

    def _address_size(self, instr: Any, constants: Any, mode: int) -> int:
        sizes = {iced.OpKind.MEMORY_SEG_SI: 2, iced.OpKind.MEMORY_SEG_DI: 2, iced.OpKind.MEMORY_ESDI: 2,
                 iced.OpKind.MEMORY_SEG_ESI: 4, iced.OpKind.MEMORY_SEG_EDI: 4, iced.OpKind.MEMORY_ESEDI: 4,
                 iced.OpKind.MEMORY_SEG_RSI: 8, iced.OpKind.MEMORY_SEG_RDI: 8, iced.OpKind.MEMORY_ESRDI: 8}
        for i in range(instr.op_count):
            if instr.op_kind(i) in sizes:
                return sizes[instr.op_kind(i)]
        declared = iced.OpCodeInfo(instr.code).address_size // 8
        if declared:
            return int(declared)
        if iced.OpKind.MEMORY in [instr.op_kind(i) for i in range(instr.op_count)]:
            return self._memory_address_size(instr, constants, mode)
        return {MODE_16: 2, MODE_32: 4, MODE_64: 8}[mode & MODE_SIZE]

    def _memory(self, instr: Any, constants: Any, row: Row, mode: int, op: dict[str, Any],
                before: list[dict[str, Any]], size: int) -> None:
        base, index = instr.memory_base, instr.memory_index
        fields: dict[str, Any] = {"base": SLOTS.get(base, _ZERO), "index": SLOTS.get(index, _ZERO),
                                  "scale": instr.memory_index_scale.bit_length() - 1, "flags": 0}
        wide = mode & MODE_SIZE == MODE_64
        if row.address_after_pop and row.width and base in (_R.RSP, _R.ESP):
            fields["disp"] = row.width(forms.CODE_NAMES[instr.code])
        if base in (_R.RIP, _R.EIP):
            fields["base"] = slot_of("rip")
            fields["flags"] |= OP_RIP_RELATIVE
        if constants.has_displacement:
            fields["flags"] |= OP_HAS_DISP
        segment = _SEGMENTS[instr.memory_segment]
        fields["seg"] = slot_of("seg_base", segment) if not wide or segment in (FS, GS) else _ZERO
        if row.address_only and not wide:
            fields["seg"] = slot_of("seg_base", segment)
        asize = self._memory_address_size(instr, constants, mode)
        if asize == 8 or row.asize:
            op.update(fields, flags=op["flags"] | fields["flags"])
            return
        # FS and GS are not among the segments that MODE_SEGMENTED looks at, and a flat CS is not for writing.
        checked = not row.address_only and (bool(mode & MODE_SEGMENTED) or not wide and segment in (CS, FS, GS))
        form = Form(asize=asize, m64=wide, extra=int(checked))
        address = self._engine_op("address_op", instr, form)
        address.update(fields)
        written = self._writes(instr)
        address["imm"] = size | written << 16 | segment << 24
        before.append(address)
        op["base"] = slot_of("ea")

    def _memory_address_size(self, instr: Any, constants: Any, mode: int) -> int:
        for register in (instr.memory_base, instr.memory_index):
            if register in _VECTORS:
                continue
            if register == _R.RIP:
                return 8
            if register == _R.EIP:
                return 4
            if register != _R.NONE:
                return int(iced.RegisterExt.size(register))
        if instr.memory_displ_size in (2, 4, 8) and mode & MODE_SIZE != MODE_64:
            return 2 if constants.displacement_size == 2 else 4
        return 8 if instr.memory_displ_size == 8 else 4

    def _stack_flags(self, instr: Any) -> int:
        """Whether the instruction reaches memory through SS; in 64-bit mode only FS and GS prefixes change segments."""
        stack = (_R.RSP, _R.RBP, _R.ESP, _R.EBP)
        through = [m.base in stack and m.segment not in (_R.FS, _R.GS) for m in self.info.info(instr).used_memory()]
        return (OP_STACK if all(through) else OP_STACK_TOO) if any(through) else 0

    def _writes(self, instr: Any) -> int:
        """1 when the explicit memory operand is written, whatever happens on the stack."""
        write = (iced.OpAccess.WRITE, iced.OpAccess.COND_WRITE, iced.OpAccess.READ_WRITE, iced.OpAccess.READ_COND_WRITE)
        info = self.info.info(instr)
        return int(any(instr.op_kind(i) == iced.OpKind.MEMORY and info.op_access(i) in write
                       for i in range(instr.op_count)))

    # --- trie ------------------------------------------------------------------------------------------

    def _slot(self, node: int, byte: int) -> tuple[Any, int]:
        key = (node * 256 + byte + 1) & 0xFFFFFFFF
        h = ((key ^ (key >> 13)) * 0x9E3779B1) & 0xFFFFFFFF
        i = (h >> 7) & (TRIE_EDGES - 1)
        while True:
            edge = TrieEdge.view(self.cache.trie + i * TrieEdge.size)
            if edge.key in (key, 0):
                return edge, key
            i = (i + 1) & (TRIE_EDGES - 1)

    def _known(self, head: bytes, mode: int) -> bool:
        node = (mode & MODE_SHAPE) + 1
        for byte in head:
            edge, _ = self._slot(node, byte)
            if not edge.key:
                return False
            node = edge.value
        return bool(node & TRIE_TERMINAL)

    def _insert(self, head: bytes, mode: int, template: int) -> None:
        node = (mode & MODE_SHAPE) + 1
        for i, byte in enumerate(head):
            edge, key = self._slot(node, byte)
            if not edge.key:
                if i + 1 == len(head):
                    edge.value = TRIE_TERMINAL | template
                else:
                    edge.value = self.nodes
                    self.nodes += 1
                edge.key = key
                self.edges += 1
            node = edge.value

    def reset(self) -> None:
        """Forget every shape (the arrays are full)."""
        ctypes.memset(self.cache.trie, 0, TRIE_EDGES * TrieEdge.size)
        self.nodes, self.templates, self.ops, self.edges = shapes.FIRST_NODE, 0, 0, 0

    def save(self) -> bytes:
        """Everything learned, for the disk."""
        return shapes.pack(self.cache, shapes.Counts(self.nodes, self.templates, self.ops, self.edges))

    def restore(self, raw: bytes) -> bool:
        """Take over what `save` gave, for the same image; False, nothing changed, where it is not sound."""
        counts = shapes.unpack(self.cache, raw, len(self.handlers))
        if counts is None:
            return False
        self.nodes, self.templates, self.ops, self.edges = counts.nodes, counts.templates, counts.ops, counts.edges
        return True
