"""Expressions: evaluation at compile time where everything is known, LLVM instructions where it is not."""

from __future__ import annotations

import ast
import operator
import struct as _struct
from typing import Any

from pellucid.native import arith
from pellucid.native.function import NativeFunction
from pellucid.native.intrinsics import Intrinsic
from pellucid.native.program import Instance, Program
from pellucid.native.types import NativeType, _ArrayType, f32, f80, ptr, u64
from pellucid.native.values import VOID, Const, Place, Val, ir_type, is_float, is_int, is_ptr, is_struct, is_vec, name_of

_STATIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.Div: operator.truediv, ast.Pow: operator.pow}
_STATIC_COMPARE = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}


class Expressions:
    """The expression half of a function's lowering; `lower.FunctionLowering` is the statement half."""

    program: Program
    instance: Instance
    environment: dict[str, Any]
    names: dict[str, Any]
    node: ast.AST
    terminated: bool

    # given by the statement half
    def fail(self, message: str) -> Any: ...
    def emit(self, kind: Any, text: str) -> Val: ...  # type: ignore[empty-body]
    def effect(self, text: str) -> None: ...
    def new_label(self, word: str) -> str: ...  # type: ignore[empty-body]
    def label(self, name: str) -> None: ...
    def jump(self, label: str) -> None: ...
    def branch(self, condition: Val, yes: str, no: str, *, unlikely: bool = False) -> None: ...
    def variable(self, kind: Any) -> Any: ...
    def raise_target(self) -> str: ...  # type: ignore[empty-body]

    def value(self, node: ast.expr) -> Any:
        """Evaluate to a Const or a Val (a place is loaded)."""
        result = self.evaluate(node)
        return self.load(result) if isinstance(result, Place) else result

    def evaluate(self, node: ast.expr) -> Any:
        """Evaluate to a Const, a Val, a Place, or a tuple of Vals."""
        outer, self.node = self.node, node
        method = getattr(self, f"expr_{type(node).__name__}", None)
        if method is None:
            self.fail(f"{type(node).__name__} is not in the subset; use names, literals, operators, fields, "
                      "indices and calls")
        result = method(node)
        self.node = outer
        return result

    def condition(self, node: ast.expr) -> Any:
        """A Const of bool, or an i1 Val."""
        value = self.value(node)
        if isinstance(value, Const):
            return Const(bool(value.value))
        return arith.truth(self, value)

    # --- literals and memory ---------------------------------------------------------------------------

    def materialize(self, value: Any, kind: Any) -> Val:
        """A run-time value of type `kind` from a literal; a value that already has a type must have this one."""
        if not isinstance(value, Const):
            if value.type is not kind:
                self.fail(f"{name_of(value.type)} where {name_of(kind)} is needed; convert it: {name_of(kind)}(...)")
            return value  # type: ignore[no-any-return]
        raw = value.value
        if kind is bool and isinstance(raw, bool):
            return Val(bool, str(int(raw)))
        if is_int(kind) and isinstance(raw, int):
            low = -(1 << (kind.bits - 1))
            if not low <= raw < 1 << kind.bits:
                self.fail(f"{raw} does not fit {name_of(kind)}")
            return Val(kind, str(int(kind(raw))))
        if is_float(kind) and isinstance(raw, (int, float)):
            return Val(kind, float_literal(kind, float(raw)))
        if is_ptr(kind) and raw == 0:
            return Val(kind, "null")
        if is_vec(kind) and isinstance(raw, (int, float, list, tuple)):
            lanes = list(raw) if isinstance(raw, (list, tuple)) else [raw] * kind.count
            inner = [self.materialize(Const(x), kind.element) for x in lanes]
            return Val(kind, "<" + ", ".join(f"{ir_type(kind.element)} {x.ir}" for x in inner) + ">")
        return self.fail(f"{raw!r} is not a {name_of(kind)}")  # type: ignore[no-any-return]

    def load(self, place: Place) -> Val:
        kind = place.type
        if isinstance(kind, _ArrayType):
            return Val(ptr[kind.element], place.ir)
        if is_struct(kind):
            return Val(ptr[kind], place.ir)
        if kind is bool:
            byte = self.emit(None, f"load i8, ptr {place.ir}")
            return self.emit(bool, f"icmp ne i8 {byte.ir}, 0")
        if is_vec(kind) and kind.element is bool:
            self.fail("a vector of bools has no memory form; use movemask or select")
        return self.emit(kind, f"load {ir_type(kind)}, ptr {place.ir}, align 1")

    def store(self, place: Place, value: Any) -> None:
        if isinstance(place.type, _ArrayType) or is_struct(place.type):
            self.fail(f"{name_of(place.type)} is not assigned as a whole; assign its parts or memcpy")
        value = self.materialize(value, place.type)
        if place.type is bool:
            byte = self.emit(None, f"zext i1 {value.ir} to i8")
            self.effect(f"store i8 {byte.ir}, ptr {place.ir}")
        else:
            self.effect(f"store {ir_type(place.type)} {value.ir}, ptr {place.ir}, align 1")

    # --- expressions -----------------------------------------------------------------------------------

    def expr_Constant(self, node: ast.Constant) -> Any:
        return Const(node.value)

    def expr_JoinedStr(self, node: ast.JoinedStr) -> Any:
        parts = []
        for part in node.values:
            value = self.evaluate(part.value) if isinstance(part, ast.FormattedValue) else Const(part.value)  # type: ignore[attr-defined]
            if not isinstance(value, Const):
                self.fail("a format string is compile-time only")
            parts.append(str(value.value))
        return Const("".join(parts))

    def expr_Tuple(self, node: ast.Tuple) -> Any:
        parts = [self.value(e) for e in node.elts]
        if all(isinstance(p, Const) for p in parts):
            return Const(tuple(p.value for p in parts))
        return tuple(parts)

    def expr_List(self, node: ast.List) -> Any:
        parts = self.expr_Tuple(node)  # type: ignore[arg-type]
        return Const(list(parts.value)) if isinstance(parts, Const) else list(parts)

    def expr_ListComp(self, node: ast.ListComp) -> Any:
        if len(node.generators) != 1 or not isinstance(node.generators[0].target, ast.Name):
            self.fail("a list comprehension has one name and one static sequence")
        generator = node.generators[0]
        items = self.evaluate(generator.iter)
        if not isinstance(items, Const):
            self.fail("a list comprehension runs over compile-time data")
        name, parts = generator.target.id, []  # type: ignore[attr-defined]
        kept = self.names.get(name)
        for item in items.value:
            self.names[name] = Const(item)
            tests = [self.condition(t) for t in generator.ifs]
            if all(isinstance(t, Const) and t.value for t in tests):
                parts.append(self.value(node.elt))
        self.names.pop(name, None)
        if kept is not None:
            self.names[name] = kept
        return Const([p.value for p in parts]) if all(isinstance(p, Const) for p in parts) else parts

    def expr_Name(self, node: ast.Name) -> Any:
        local = self.names.get(node.id)
        if isinstance(local, Const):
            return local
        if local is not None:
            return self.emit(local.type, f"load {ir_type(local.type)}, ptr {local.slot}")
        if node.id in self.environment:
            return Const(self.environment[node.id])
        return self.fail(f"{node.id!r} is not defined here; a name first bound in a branch on compile-time "
                         "values must be bound on every side")

    def expr_Attribute(self, node: ast.Attribute) -> Any:
        base = self.value(node.value)
        if isinstance(base, Const):
            try:
                return Const(getattr(base.value, node.attr))
            except AttributeError:
                return self.fail(f"{base.value!r} has no attribute {node.attr!r}")
        if not is_ptr(base.type) or not is_struct(base.type.target):
            self.fail(f"{name_of(base.type)} has no fields; only a pointer to a struct has")
        field = base.type.target.fields.get(node.attr)
        if field is None:
            self.fail(f"{name_of(base.type.target)} has no field {node.attr!r}")
        return Place(field.type, self.emit(None, f"getelementptr i8, ptr {base.ir}, i64 {field.offset}").ir)

    def expr_Subscript(self, node: ast.Subscript) -> Any:
        base = self.value(node.value)
        index = self.value(node.slice)
        if isinstance(base, (list, tuple)):
            if not isinstance(index, Const):
                self.fail("a list of run-time values is indexed by a literal")
            return base[index.value]
        if isinstance(base, Const) and isinstance(index, Const):
            try:
                return Const(base.value[index.value])
            except (KeyError, IndexError, TypeError) as error:
                return self.fail(f"{base.value!r}[{index.value!r}]: {error!r}")
        if isinstance(base, Const):
            self.fail("a compile-time table is indexed by a compile-time value; put the table into memory")
        if is_vec(base.type):
            return self.emit(base.type.element, f"extractelement {ir_type(base.type)} {base.ir}, i32 {self._lane(index)}")
        if not is_ptr(base.type):
            self.fail(f"{name_of(base.type)} has no elements")
        target = base.type.target
        offset = self._index(index)
        size = 1 if target is bool else target.size
        return Place(target, self.emit(None, f"getelementptr [{size} x i8], ptr {base.ir}, i64 {offset}").ir)

    def _lane(self, index: Any) -> str:
        if isinstance(index, Const):
            return str(int(index.value))
        return arith.resize(self, index, _u32()).ir

    def _index(self, index: Any) -> str:
        if isinstance(index, Const):
            return str(int(index.value))
        if not is_int(index.type):
            self.fail(f"{name_of(index.type)} is not an index")
        return arith.resize(self, index, u64).ir

    def expr_BinOp(self, node: ast.BinOp) -> Any:
        return self.binary(node.op, self.value(node.left), self.value(node.right))

    def binary(self, op: ast.operator, a: Any, b: Any) -> Any:
        if isinstance(a, Const) and isinstance(b, Const):
            try:
                return Const(_STATIC[type(op)](a.value, b.value))
            except Exception as error:
                return self.fail(f"compile-time arithmetic: {error}")
        if isinstance(a, Const):
            if isinstance(op, (ast.LShift, ast.RShift)):
                self.fail("a shifted literal has no type; write u64(1) << n")
            a = self.materialize(a, b.type)
        elif isinstance(b, Const):
            b = self._right_literal(op, a, b)
        return arith.binary(self, op, a, b)  # type: ignore[arg-type]

    def _right_literal(self, op: ast.operator, a: Val, b: Const) -> Val:
        lane = a.type.element if is_vec(a.type) else a.type
        if isinstance(op, (ast.LShift, ast.RShift)) and is_int(lane) and not is_vec(a.type):
            return Val(u64, str(int(b.value)))
        return self.materialize(b, a.type)

    def expr_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            condition = self.condition(node.operand)
            if isinstance(condition, Const):
                return Const(not condition.value)
            return self.emit(bool, f"xor i1 {condition.ir}, 1")
        value = self.value(node.operand)
        if isinstance(value, Const):
            table = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}
            return Const(table[type(node.op)](value.value))  # type: ignore[index]
        if isinstance(node.op, ast.Invert):
            return arith.invert(self, value)  # type: ignore[arg-type]
        return value if isinstance(node.op, ast.UAdd) else arith.negate(self, value)  # type: ignore[arg-type]

    def expr_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            self.fail("a chained comparison is not in the subset; join two with and")
        a, b, op = self.value(node.left), self.value(node.comparators[0]), node.ops[0]
        if isinstance(a, Const) and isinstance(b, Const):
            return Const(_STATIC_COMPARE[type(op)](a.value, b.value))
        if isinstance(a, Const):
            a = self.materialize(a, b.type)
        elif isinstance(b, Const):
            b = self.materialize(b, a.type)
        return arith.compare(self, op, a, b)  # type: ignore[arg-type]

    def expr_BoolOp(self, node: ast.BoolOp) -> Any:
        stop = isinstance(node.op, ast.Or)
        result, end = None, self.new_label("logic")
        for i, part in enumerate(node.values):
            value = self.condition(part)
            if isinstance(value, Const):
                if value.value != stop:
                    continue
                if result is None:
                    return Const(stop)
                self.effect(f"store i1 {int(stop)}, ptr {result.slot}")
                break
            if result is None:
                result = self.variable(bool)
            self.effect(f"store i1 {value.ir}, ptr {result.slot}")
            if i + 1 < len(node.values):
                more = self.new_label("and")
                self.branch(value, end if stop else more, more if stop else end)
                self.label(more)
        if result is None:
            return Const(not stop)
        self.jump(end)
        self.label(end)
        return self.emit(bool, f"load i1, ptr {result.slot}")

    def expr_IfExp(self, node: ast.IfExp) -> Any:
        condition = self.condition(node.test)
        if isinstance(condition, Const):
            return self.value(node.body if condition.value else node.orelse)
        yes, no, end = self.new_label("yes"), self.new_label("no"), self.new_label("chosen")
        self.branch(condition, yes, no)
        self.label(yes)
        first = self.value(node.body)
        self.jump(self.new_label("yes_end"))
        mark = len(self.body)  # type: ignore[attr-defined]
        self.label(no)
        second = self.value(node.orelse)
        kind = first.type if isinstance(first, Val) else second.type if isinstance(second, Val) else None
        if kind is None:
            self.fail("neither side has a type; write u64(...) on one")
        slot = self.variable(kind).slot
        self.effect(f"store {ir_type(kind)} {self.materialize(second, kind).ir}, ptr {slot}")
        self.jump(end)
        first = self.materialize(first, kind)
        jump = self.body[mark - 1]  # type: ignore[attr-defined]
        yes_end = jump.rsplit("%", 1)[1]
        self.label(yes_end)
        self.effect(f"store {ir_type(kind)} {first.ir}, ptr {slot}")
        self.jump(end)
        self.label(end)
        return self.emit(kind, f"load {ir_type(kind)}, ptr {slot}")

    # --- calls -----------------------------------------------------------------------------------------

    def expr_Call(self, node: ast.Call) -> Any:
        target = self.value(node.func)
        if not isinstance(target, Const):
            self.fail("a run-time value is not callable; use tail(...) or invoke(...) for a handler's address")
        callee = target.value
        args = []
        for a in node.args:
            if isinstance(a, ast.Starred):
                spread = self.evaluate(a.value)
                args += [Const(v) for v in spread.value] if isinstance(spread, Const) else list(spread)
            else:
                args.append(self.value(a))
        named = {str(k.arg): self.value(k.value) for k in node.keywords}
        self.node = node
        if isinstance(callee, NativeFunction):
            return self.call(callee, self._arguments(callee, args, named))
        if isinstance(callee, Intrinsic):
            return callee.lower(self, *args, **named)
        if isinstance(callee, NativeType) and args and not isinstance(args[0], Const):
            return self._construct(callee, args[0])
        if callee is bool and not isinstance(args[0], Const):
            return arith.truth(self, args[0])  # type: ignore[arg-type]
        if all(isinstance(a, Const) for a in [*args, *named.values()]):
            return self._static_call(callee, [a.value for a in args], {k: v.value for k, v in named.items()})
        return self.fail(f"{getattr(callee, '__name__', callee)!r} is plain Python and gets a run-time value; "
                         "decorate it with @native or use an intrinsic")

    def _static_call(self, callee: Any, args: list[Any], named: dict[str, Any]) -> Any:
        if isinstance(callee, NativeType) and not isinstance(callee, type(ptr)) or is_ptr(callee):
            return self.materialize(Const(args[0]), callee) if not is_ptr(callee) or args[0] == 0 else \
                arith.convert(self, Val(u64, str(args[0])), callee)  # type: ignore[arg-type]
        try:
            return Const(callee(*args, **named))
        except Exception as error:
            return self.fail(f"{getattr(callee, '__name__', callee)}(...) at compile time: {error}")

    def _construct(self, kind: Any, value: Any) -> Any:
        if not isinstance(value, list):
            return arith.convert(self, value, kind)  # type: ignore[arg-type]
        if not is_vec(kind) or len(value) != kind.count:
            self.fail(f"{name_of(kind)} is not made of {len(value)} parts")
        whole = "poison"
        for i, lane in enumerate(value):
            lane = self.materialize(lane, kind.element)
            text = f"insertelement {ir_type(kind)} {whole}, {ir_type(kind.element)} {lane.ir}, i32 {i}"
            whole = self.emit(kind, text).ir
        return Val(kind, whole)

    def _arguments(self, callee: NativeFunction, args: list[Any], named: dict[str, Any]) -> list[Any]:
        names = callee.fn.__code__.co_varnames[: callee.fn.__code__.co_argcount]
        defaults = dict(zip(names[::-1], (callee.fn.__defaults__ or ())[::-1]))
        result = list(args)
        for name in names[len(args):]:
            if name in named:
                result.append(named.pop(name))
            elif name in defaults:
                result.append(Const(defaults[name]))
            else:
                self.fail(f"{callee.__name__} misses its argument {name!r}")
        if named or len(result) > len(names):
            self.fail(f"{callee.__name__} takes {len(names)} arguments: {', '.join(names)}")
        for i, name in enumerate(names):
            wanted = callee.fn.__annotations__.get(name)
            if isinstance(wanted, NativeType) or wanted is bool:
                result[i] = self.materialize(result[i], wanted)
        return result

    def call(self, callee: NativeFunction, args: list[Any]) -> Any:
        """A call of another native function, its specialization chosen by the arguments."""
        node = self.node
        instance = self.program.request(callee, tuple(a if isinstance(a, Const) else a.type for a in args))
        if not instance.done and instance.result is None and "return" not in callee.fn.__annotations__:
            self.fail(f"{callee.__name__} is recursive; annotate its result")
        self.node = node
        self.instance.calls[instance] = None
        passed = ", ".join(f"{ir_type(a.type)} {a.ir}" for a in args if isinstance(a, Val))
        text = f'call {instance.convention}{instance.returns} @"{instance.symbol}"({passed})'
        result = instance.result
        if not instance.raises:
            if result is None:
                self.effect(text)
                return VOID
            return self._unpack(self.emit(result, text), result)
        outcome = self.emit(None, text)
        bare = "i1" == instance.returns and result is None
        flag = outcome if bare else self.emit(bool, f"extractvalue {instance.returns} {outcome.ir}, 1")
        fine = self.new_label("ok")
        self.branch(flag, self.raise_target(), fine, unlikely=True)
        self.label(fine)
        if result is None:
            return VOID
        return self._unpack(self.emit(result, f"extractvalue {instance.returns} {outcome.ir}, 0"), result)

    def _unpack(self, whole: Val, result: Any) -> Any:
        if not isinstance(result, tuple):
            return whole
        shape = "{ " + ", ".join(ir_type(t) for t in result) + " }"
        return tuple(self.emit(t, f"extractvalue {shape} {whole.ir}, {i}") for i, t in enumerate(result))


def float_literal(kind: Any, value: float) -> str:
    """LLVM's hexadecimal spelling, exact for every width."""
    if kind is f80:
        raw = f80(value).raw
        return f"0xK{int.from_bytes(raw[8:], 'little'):04X}{int.from_bytes(raw[:8], 'little'):016X}"
    double = float(f32(value)) if kind is f32 else value
    return f"0x{int.from_bytes(_struct.pack('<d', double), 'little'):016X}"


def _u32() -> Any:
    from pellucid.native.types import u32

    return u32
