"""The region compiler: hot blocks of one page become one native function, registers and branches included.

Nothing is written a second time: the function calls the very instances that the interpreter's handlers are made of,
with each `Op` as a constant. LLVM inlines them, folds the operands, forwards guest registers through the state,
drops flags that nobody reads and turns branches between the blocks into branches.

A region is entered where the interpreter would run its first block: that block's first op gets the region as its
handler. All blocks of a region lie in one guest page (chains never leave a page), so invalidation kills them together
(`memory.invalidate_range`).
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from collections.abc import Mapping
from typing import Any

from pellucid.cpu.code_cache import OP_CALL, Block, Op
from pellucid.cpu.flags import status_flags
from pellucid.cpu.physical import find_slot, page_info
from pellucid.cpu.state import EXIT_BUDGET, EXIT_PENDING, EXIT_SMC, MODE_TRACK, CpuState, slot_of
from pellucid.engine import dispatch
from pellucid.engine.image import roots as handler_roots
from pellucid.native import ptr, u64
from pellucid.native.aliasing import REGISTERS, tag
from pellucid.native.code import Code, Layout
from pellucid.native.image import Root
from pellucid.native.program import Instance, Program
from pellucid.records import dataclass

MAX_OPS = 400
INDIRECT = ("ret", "ret_cet", "jmp_through", "jmp_through_cet", "call_through", "call_through_cet")
NEAR, MAX_NEAR = 512, 12   # bytes from an indirect jump, and blocks there, that it may be expected to lead to
MAX_BLOCKS = 32
STATE_ALIGN = 64   # of a CpuState: it begins a page
_RIP, _PENDING, _REASON = slot_of("rip"), slot_of("pending"), slot_of("exit_reason")
_TARGET, _FALL = Op.fields["target"].offset, Op.fields["fall"].offset


@dataclass(frozen=True, slots=True)
class Step:
    """One op: its address, bytes, and the name of the root that its handler was compiled from."""

    address: int
    raw: bytes
    root: str
    handler: int
    target: int
    fall: int
    imm: int
    ip: int
    next_ip: int
    flags: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One block of a region: its first op, the host address of its code, its mode, and its ops."""

    ops: int
    host: int
    mode: int
    steps: tuple[Step, ...]

    def jumps(self) -> bool:
        """Whether it ends in a jump, call or return by a register or memory."""
        return self.steps[-1].root.partition(":")[0] in INDIRECT


class RegionSource:
    """Reads translated blocks back, of the processor whose CpuState is at `state`. `roots` names handlers by address;
    `original` undoes patched first ops.
    """

    def __init__(self, roots: Mapping[int, str], state: int) -> None:
        self.roots, self.state = roots, state
        self.original: dict[int, int] = {}

    def block(self, ops: int) -> Piece | None:
        """The block whose first op is at `ops`; None when it is dead or holds what a region cannot."""
        header = Block.view(ops - Block.size)
        if header.dead or header.ops != ops or header.host2:
            return None
        steps = []
        for i in range(header.count):
            address = ops + i * Op.size
            view = Op.view(address)
            handler = self.original.get(address, view.handler)
            root = self.roots.get(handler)
            if root is None:
                return None
            steps.append(Step(address, ctypes.string_at(address, Op.size), root, handler, view.target, view.fall,
                              view.imm, view.ip, view.next_ip, view.flags))
        return Piece(ops, header.host, header.mode, tuple(steps))

    def _page(self, ops: int) -> dict[int, int]:
        """The blocks of a block's page and mode: their first ops by the host addresses of their code."""
        header = Block.view(ops - Block.size)
        gpa, found = u64(header.gpa), {}
        at = int(page_info(find_slot(ptr[CpuState](self.state), gpa), gpa).blocks)
        while at:
            view = Block.view(at)
            if view.mode == header.mode and not view.dead and not view.host2:
                found[view.host] = view.ops
            at = view.next
        return found

    @staticmethod
    def _expected(piece: Piece, page: Mapping[int, int]) -> list[int]:
        """Where control may go from a block's end besides along its chains: behind a call, and near a jump."""
        last, expected = piece.steps[-1], []
        end = piece.host + last.next_ip
        if last.flags & OP_CALL or last.root.startswith("call_through"):
            expected.append(end)
        if last.root.startswith("jmp_through"):
            expected += sorted((h for h in page if abs(h - end) <= NEAR), key=lambda h: abs(h - end))[:MAX_NEAR]
        return [page[host] for host in expected if host in page]

    def region(self, start: int) -> list[Piece]:
        """The blocks reached from `start` by filled chains and where jumps are expected to lead, nearest first, within
        the bounds.

        Where another region begins this one ends: to go on there costs less than to compile the same blocks again for
        each way into them.
        """
        pieces: dict[int, Piece] = {}
        work, size, page = [start], 0, self._page(start)
        while work and len(pieces) < MAX_BLOCKS:
            ops = work.pop(0)
            if ops in pieces or (ops in self.original and ops != start):
                continue
            piece = self.block(ops)
            if piece is None or size + len(piece.steps) > MAX_OPS:
                continue
            pieces[ops] = piece
            size += len(piece.steps)
            last = piece.steps[-1]
            work += [successor for successor in (last.target, last.fall) if successor]
            work += self._expected(piece, page)
        return list(pieces.values()) if start in pieces else []


class RegionWriter:
    """LLVM text of one region: a function and its constants. `used` is what it calls."""

    def __init__(self, program: Program, roots: Mapping[str, Root], pieces: list[Piece], name: str) -> None:
        self.program, self.roots, self.pieces, self.name = program, roots, pieces, name
        self.labels = {piece.ops: f"b{n}" for n, piece in enumerate(pieces)}
        self.globals: list[str] = []
        self.body: list[str] = []
        self.used: dict[Instance, None] = {}
        self.n = 0

    def function(self) -> str:
        for piece in self.pieces:
            self._block(piece)
        chained = [self._instance(dispatch.chain_target, ()), self._instance(dispatch.chain_fall, ())]
        self.used.update(dict.fromkeys(chained))
        state = f"ptr noalias dereferenceable({CpuState.size}) align {STATE_ALIGN} %s"
        head = f'define tailcc void @"{self.name}"({state}, ptr %o) nounwind {{\nentry:\n  br label %b0\n'
        return "\n".join([*self.globals, head + "\n".join(self.body), "}", ""])

    def _instance(self, fn: Any, consts: tuple[Any, ...]) -> Instance:
        extra = (u64,) if fn in (dispatch.chain_target, dispatch.chain_fall) else ()
        return self.program.request(fn, (ptr[CpuState], ptr[Op], *consts, *extra))

    def _fresh(self, word: str) -> str:
        self.n += 1
        return f"{word}{self.n}"

    def _emit(self, text: str) -> None:
        self.body.append("  " + text)

    def _block(self, piece: Piece) -> None:
        self.body.append(f"{self.labels[piece.ops]}:")
        for step in piece.steps:
            wrapper, params = self.roots[step.root]
            if wrapper is dispatch.fused:  # the jump behind it is an op of its own here
                self._call(step, params[2].value, (*params[:2], params[3]))
            elif wrapper in (dispatch.plain, dispatch.plain_cc) and step is not piece.steps[-1]:
                self._call(step, params[2].value, (*params[:2], *params[3:]))
            elif wrapper is dispatch.within_limit:
                self._leave_if(step, dispatch.beyond_limit, EXIT_SMC)
            elif wrapper is dispatch.counted:
                self._leave_if(step, dispatch.beyond_budget, EXIT_BUDGET)
            elif wrapper is dispatch.branch:
                self._branch(step, params)
                return
            elif wrapper is dispatch.jump and piece.jumps() and not piece.mode & MODE_TRACK:
                self._jump(piece, step, params)
                return
            elif wrapper is dispatch.next_block:
                source = self._load_rip()
                bits = 64 if params[2].value else 32
                self._go(step, source, step.ip, bits, step.fall, dispatch.chain_fall, _FALL)
                return
            else:  # leaves by itself, as does what can only fault and so ends a block (UD2)
                self._emit(f"musttail call tailcc void inttoptr (i64 {step.handler} to ptr)"
                           f"(ptr %s, ptr inttoptr (i64 {step.address} to ptr))")
                self._emit("ret void")
                return

    def _constant(self, step: Step) -> str:
        """The op as a constant; its name."""
        name = self._fresh(f"@{self.name}.op")
        data = "".join(f"\\{byte:02X}" for byte in step.raw)
        self.globals.append(f'{name} = internal constant [{Op.size} x i8] c"{data}", align 64')
        return name

    def _leave_if(self, step: Step, condition: Any, reason: int) -> None:
        """The first ops of a block: leave for the run loop, RIP at the block, where `condition` holds."""
        instance = self._instance(condition, ())
        self.used[instance] = None
        beyond, out, on = self._fresh("%limit"), self._fresh("out"), self._fresh("on")
        self._emit(f'{beyond} = call {instance.returns} @"{instance.symbol}"(ptr %s, ptr {self._constant(step)})')
        self._emit(f"br i1 {beyond}, label %{out}, label %{on}, !prof !1")
        self.body.append(f"{out}:")
        self._emit(f"store i32 {reason}, ptr {self._state(_REASON)}")
        self._emit("ret void")
        self.body.append(f"{on}:")

    def _call(self, step: Step, fn: Any, params: tuple[Any, ...]) -> str:
        """Call a function with the op as a constant, which may raise; the name of the bool result, if there is one."""
        instance = self.program.request(fn, params)
        self.used[instance] = None
        constant = self._constant(step)
        call = f'call {instance.returns} @"{instance.symbol}"(ptr %s, ptr {constant})'
        if not instance.raises:
            if instance.result is None:
                self._emit(call)
                return ""
            result = self._fresh("%r")
            self._emit(f"{result} = {call}")
            return result
        outcome, fault, fine = self._fresh("%c"), self._fresh("fault"), self._fresh("ok")
        self._emit(f"{outcome} = {call}")
        flag = outcome
        if instance.result is not None:
            flag = self._fresh("%f")
            self._emit(f"{flag} = extractvalue {instance.returns} {outcome}, 1")
        self._emit(f"br i1 {flag}, label %{fault}, label %{fine}, !prof !1")
        self.body.append(f"{fault}:")
        leave = self._instance(dispatch.leave, ())
        self.used[leave] = None
        self._emit(f'call {leave.returns} @"{leave.symbol}"(ptr %s, ptr {constant})')
        self._emit("ret void")
        self.body.append(f"{fine}:")
        if instance.result is None:
            return ""
        result = self._fresh("%r")
        self._emit(f"{result} = extractvalue {instance.returns} {outcome}, 0")
        return result

    def _branch(self, step: Step, params: tuple[Any, ...]) -> None:
        source = self._load_rip()
        taken = self._call(step, dispatch.decide, params)
        yes, no = self._fresh("taken"), self._fresh("fall")
        self._emit(f"br i1 {taken or '1'}, label %{yes}, label %{no}")
        form = params[3].value
        self.body.append(f"{yes}:")
        bits = 64 if form.m64 else 16 if form.w == 2 else 32
        self._go(step, source, step.imm, bits, step.target, dispatch.chain_target, _TARGET)
        self.body.append(f"{no}:")
        self._go(step, source, step.next_ip, 64 if form.m64 else 32, step.fall, dispatch.chain_fall, _FALL)

    def _jump(self, piece: Piece, step: Step, params: tuple[Any, ...]) -> None:
        """A jump that sets RIP itself: to a block of the region, told by its distance from this one, or elsewhere.

        All blocks are of one page, so where distances of RIP and of host addresses agree no mapping parts them.
        """
        source = self._load_rip()
        self._call(step, params[2].value, (*params[:2], params[3]))
        self._leave_if_pending()
        distance, far = self._fresh("%d"), self._fresh("far")
        self._emit(f"{distance} = sub i64 {self._load_rip()}, {source}")
        cases = " ".join(f"i64 {to.host - piece.host}, label %{self.labels[to.ops]}" for to in self.pieces)
        self._emit(f"switch i64 {distance}, label %{far} [ {cases} ]")
        self.body.append(f"{far}:")
        onward = self._instance(dispatch.onward, ())
        self.used[onward] = None
        self._emit(f'musttail call tailcc void @"{onward.symbol}"(ptr %s, ptr %o)')
        self._emit("ret void")

    def _go(self, step: Step, source: str, offset: int, bits: int, successor: int, resolve: Any, field: int) -> None:
        """Leave a block: move RIP, `bits` wide, look at `pending`, go on inside the region or through the chain."""
        self._add_rip(source, offset, bits)
        self._leave_if_pending()
        if successor in self.labels:
            self._emit(f"br label %{self.labels[successor]}")
            return
        self._leave_by_chain(step, source, resolve, field)

    def _leave_if_pending(self) -> None:
        pending, idle = self._fresh("%p"), self._fresh("%i")
        on, out = self._fresh("on"), self._fresh("out")
        self._emit(f"{pending} = load volatile i64, ptr {self._state(_PENDING)}")
        self._emit(f"{idle} = icmp eq i64 {pending}, 0")
        self._emit(f"br i1 {idle}, label %{on}, label %{out}, !prof !2")
        self.body.append(f"{out}:")
        self._emit(f"store i32 {EXIT_PENDING}, ptr {self._state(_REASON)}")
        self._emit("ret void")
        self.body.append(f"{on}:")

    def _leave_by_chain(self, step: Step, source: str, resolve: Any, field: int) -> None:
        instance = self._instance(resolve, ())
        known, absent, join = self._fresh("%k"), self._fresh("absent"), self._fresh("join")
        zero, found, ops, handler = (self._fresh(w) for w in ("%z", "%g", "%t", "%h"))
        here, none, some = self._fresh("here"), self._fresh("none"), self._fresh("some")
        self._emit(f"br label %{here}")
        self.body.append(f"{here}:")
        self._emit(f"{known} = load i64, ptr inttoptr (i64 {step.address + field} to ptr)")
        self._emit(f"{zero} = icmp eq i64 {known}, 0")
        self._emit(f"br i1 {zero}, label %{absent}, label %{join}, !prof !1")
        self.body.append(f"{absent}:")
        self._emit(f'{found} = call i64 @"{instance.symbol}"(ptr %s, ptr inttoptr (i64 {step.address} to ptr), '
                   f"i64 {source})")
        self._emit(f"br label %{join}")
        self.body.append(f"{join}:")
        self._emit(f"{ops} = phi i64 [ {known}, %{here} ], [ {found}, %{absent} ]")
        missing = self._fresh("%m")
        self._emit(f"{missing} = icmp eq i64 {ops}, 0")
        self._emit(f"br i1 {missing}, label %{none}, label %{some}, !prof !1")
        self.body.append(f"{none}:")
        self._emit("ret void")
        self.body.append(f"{some}:")
        place = self._fresh("%a")
        self._emit(f"{place} = inttoptr i64 {ops} to ptr")
        self._emit(f"{handler} = load ptr, ptr {place}")
        self._emit(f"musttail call tailcc void {handler}(ptr %s, ptr {place})")
        self._emit("ret void")

    def _state(self, offset: int) -> str:
        name = self._fresh("%s")
        self._emit(f"{name} = getelementptr i8, ptr %s, i64 {offset}")
        return name

    def _load_rip(self) -> str:
        place, value = self._state(_RIP), self._fresh("%q")
        self._emit(f"{value} = load i64, ptr {place}{tag(REGISTERS)}")
        return value

    def _add_rip(self, source: str, offset: int, bits: int) -> None:
        total, place = self._fresh("%n"), self._state(_RIP)
        signed = offset - (1 << 64) if offset >> 63 else offset
        self._emit(f"{total} = add i64 {source}, {signed}")
        if bits < 64:
            whole, total = total, self._fresh("%n")
            self._emit(f"{total} = and i64 {whole}, {(1 << bits) - 1}")
        self._emit(f"store i64 {total}, ptr {place}{tag(REGISTERS)}")


_METADATA = '!1 = !{!"branch_weights", i32 1, i32 4000}\n!2 = !{!"branch_weights", i32 4000, i32 1}\n'


def module_text(program: Program, roots: Mapping[str, Root], regions: Mapping[str, list[Piece]]) -> str:
    """LLVM text of regions by name, with all that they call."""
    writers = [RegionWriter(program, roots, pieces, name) for name, pieces in regions.items()]
    functions = [writer.function() for writer in writers]
    holder = Instance("holder", dispatch.dead, ())
    holder.calls = {instance: None for writer in writers for instance in writer.used}
    return "\n".join([program.support(holder), *functions, _METADATA])


def region_program() -> Program:
    """A program for regions: what it inlines is small there, once LLVM knows what the block has done before."""
    return Program(inlined=(status_flags,), region=True)


class CompiledRegion:
    """A region in executable memory; `image` is what it calls out to. Keeps its code alive."""

    def __init__(self, layout: Layout, name: str, image: Code) -> None:
        self._code = Code(layout, [image])
        self.address = self._code[name]


def compile_region(program: Program, roots: Mapping[str, Root], pieces: list[Piece], name: str) -> Layout:
    """Translate and compile a region as the function `name`. Loads LLVM: not for a process that runs a guest."""
    from pellucid.native.linker import lay_out
    from pellucid.native.target import compile_object

    return lay_out([compile_object(module_text(program, roots, {name: pieces}))])


def serve() -> None:
    """The compile worker: (name, pieces) come pickled on standard input, layouts go out, None for a failure.

    A process of its own, since translating holds Python's lock for longer than a running guest can wait. Both ends
    are the same program; nothing else writes to the pipe.
    """
    program, roots = region_program(), handler_roots()
    output = sys.stdout.buffer
    while True:
        try:
            name, pieces = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        layout = None
        try:
            layout = compile_region(program, roots, pieces, name)
        except Exception as error:  # of whatever kind: this region stays interpreted, and the next one is compiled
            print(f"pellucid: {name} stays interpreted: {type(error).__name__}: {error}", file=sys.stderr)
        pickle.dump(layout, output)
        output.flush()
