"""Expressions: evaluation at compile time where everything is known, LLVM instructions where it is not."""

from __future__ import annotations

import ast
import operator
import struct as _struct
from typing import Any

from pellucid.native import arith
from pellucid.native.aliasing import REGISTERS, tag
from pellucid.native.emission import Emission
from pellucid.native.types import Vec, _ArrayType, _Float, _Int, f32, f80, is_literal, ptr, size_of, u32, u64, uint
from pellucid.native.values import (
    Const, Place, Unknown, Val, Variable, ir_type, is_float, is_int, is_ptr, is_struct, is_vec, name_of)

_STATIC: dict[type[ast.AST], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.Div: operator.truediv, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
_SHIFTS = (ast.LShift, ast.RShift)


class Expressions(Emission):
    """What an expression becomes; calls and statements build on it."""

    def value(self, node: ast.expr) -> Any:
        """Evaluate to a Const, a Val (a place is loaded), or a list or tuple of them."""
        result = self.evaluate(node)
        return self.load(result) if isinstance(result, Place) else result

    def evaluate(self, node: ast.expr) -> Any:
        """Evaluate to a Const, a Val, a Place, or a list or tuple of Vals."""
        outer, self.node = self.node, node
        method = getattr(self, f"expr_{type(node).__name__}", None)
        if method is None:
            self.fail(f"{type(node).__name__} is not in the subset; use names, literals, operators, fields, "
                      "indices and calls")
        result = method(node)
        self.node = outer
        return result

    def operand(self, node: ast.expr) -> Const | Val:
        """Evaluate to one value: a Const, or a Val that has a type."""
        return self.single(self.value(node))

    def single(self, value: Any) -> Const | Val:
        """A value that is one, not a sequence of run-time values and not nothing."""
        if isinstance(value, (list, tuple)):
            self.fail("a sequence of run-time values is not an operand; unpack it: a, b = ..., or make a vec of it")
        if isinstance(value, Val) and value.type is None:
            self.fail("this call returns nothing")
        assert isinstance(value, (Const, Val))
        return value

    def condition(self, node: ast.expr) -> Const | Val:
        """A Const of bool, or an i1 Val."""
        value = self.operand(node)
        if isinstance(value, Const):
            return Const(bool(self.static(bool, value.value)))
        outer, self.node = self.node, node
        result = arith.truth(self, value)
        self.node = outer
        return result

    def static(self, fn: Any, *args: Any) -> Any:
        """Plain Python's own answer at compile time."""
        try:
            return fn(*args)
        except Exception as error:
            self.fail(f"compile-time arithmetic: {error}")

    # --- literals and memory ---------------------------------------------------------------------------

    def materialize(self, value: Any, kind: Any) -> Val:
        """A run-time value of type `kind` from a literal; a value that already has a type must have this one."""
        value = self.single(value)
        if isinstance(value, Val):
            if value.type is not kind:
                self.fail(f"{name_of(value.type)} where {name_of(kind)} is needed; convert it: {name_of(kind)}(...)")
            return value
        raw = value.value
        if isinstance(raw, (_Int, _Float, f80, Vec)) and type(raw) is not kind:
            self.fail(f"{name_of(type(raw))} where {name_of(kind)} is needed; convert it: {name_of(kind)}(...)")
        if kind is bool and isinstance(raw, bool):
            return Val(bool, str(int(raw)))
        if is_int(kind) and isinstance(raw, int):
            if not -(1 << (kind.bits - 1)) <= int(raw) < 1 << kind.bits:
                self.fail(f"{int(raw)} does not fit {name_of(kind)}; use a wider type or mask it")
            return Val(kind, str(int(kind(raw))))
        if is_float(kind) and isinstance(raw, (int, float, f80)):
            return Val(kind, float_literal(kind, raw))
        if is_ptr(kind) and is_literal(raw) and raw == 0:
            return Val(kind, "null")
        if is_vec(kind) and (is_literal(raw) or isinstance(raw, (list, tuple, Vec))):
            return self._vector_literal(raw, kind)
        return self.fail(f"{raw!r} is not a {name_of(kind)}; write one, or convert: {name_of(kind)}(...)")

    def _vector_literal(self, raw: Any, kind: Any) -> Val:
        lanes = [raw] * kind.count if is_literal(raw) else list(getattr(raw, "lanes", raw))
        if len(lanes) != kind.count:
            self.fail(f"{name_of(kind)} is not made of {len(lanes)} parts; give one, or one for each lane")
        inner = [self.materialize(Const(x), kind.element) for x in lanes]
        return Val(kind, "<" + ", ".join(f"{ir_type(kind.element)} {x.ir}" for x in inner) + ">")

    def load(self, place: Place) -> Val:
        kind = place.type
        if isinstance(kind, _ArrayType):
            return Val(ptr[kind.element], place.ir, place.memory)
        if is_struct(kind):
            return Val(ptr[kind], place.ir, place.memory)
        if kind is bool:
            byte = self.emit(None, f"load i8, ptr {place.ir}{self.load_tag(place)}")
            return self.emit(bool, f"icmp ne i8 {byte.ir}, 0")
        if is_vec(kind) and kind.element is bool:
            self.fail("a vector of bools has no memory form; use movemask or select")
        return self.emit(kind, f"load {ir_type(kind)}, ptr {place.ir}, align 1{self.load_tag(place)}")

    def load_tag(self, place: Place) -> str:
        return tag(place.memory, steady=self.program.region)

    def store(self, place: Place, value: Any) -> None:
        if isinstance(place.type, _ArrayType) or is_struct(place.type):
            self.fail(f"{name_of(place.type)} is not assigned as a whole; assign its parts or memcpy")
        if is_vec(place.type) and place.type.element is bool:
            self.fail("a vector of bools has no memory form; use movemask or select")
        value = self.materialize(value, place.type)
        if place.type is bool:
            byte = self.emit(None, f"zext i1 {value.ir} to i8")
            self.effect(f"store i8 {byte.ir}, ptr {place.ir}{tag(place.memory)}")
        else:
            self.effect(f"store {ir_type(place.type)} {value.ir}, ptr {place.ir}, align 1{tag(place.memory)}")

    # --- compile-time sequences ------------------------------------------------------------------------

    def expr_Constant(self, node: ast.Constant) -> Any:
        return Const(node.value)

    def expr_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return Const("".join(self._format(part) for part in node.values))

    def _format(self, part: ast.expr) -> str:
        if not isinstance(part, ast.FormattedValue):
            return str(part.value) if isinstance(part, ast.Constant) else ""
        value = self.operand(part.value)
        spec = self.evaluate(part.format_spec) if part.format_spec is not None else Const("")
        if not isinstance(value, Const):
            self.fail("a format string is compile-time only; it gets a run-time value here")
        convert: Any = {115: str, 114: repr, 97: ascii}.get(part.conversion, lambda x: x)
        return str(self.static(format, convert(value.value), spec.value))

    def expr_Tuple(self, node: ast.Tuple) -> Any:
        parts = self._parts(node.elts)
        return Const(tuple(parts.value)) if isinstance(parts, Const) else tuple(parts)

    def expr_List(self, node: ast.List) -> Any:
        return self._parts(node.elts)

    def _parts(self, nodes: list[ast.expr]) -> Any:
        parts: list[Any] = []
        for e in nodes:
            spread = self.value(e.value) if isinstance(e, ast.Starred) else None
            if spread is None:
                parts.append(self.value(e))
            else:
                parts += [Const(v) for v in spread.value] if isinstance(spread, Const) else list(spread)
        return Const([p.value for p in parts]) if all(isinstance(p, Const) for p in parts) else parts

    def expr_ListComp(self, node: ast.ListComp | ast.GeneratorExp) -> Any:
        generator = node.generators[0]
        if len(node.generators) != 1 or not isinstance(generator.target, ast.Name):
            self.fail("a comprehension has one name and one compile-time sequence; write a loop")
        items = self.evaluate(generator.iter)
        if not isinstance(items, Const):
            self.fail("a comprehension runs over compile-time data; write a loop for run-time values")
        name, parts, kept = generator.target.id, [], self.names.get(generator.target.id)
        for item in self.static(list, items.value):
            self.names[name] = Const(item)
            tests = [self.condition(t) for t in generator.ifs]
            if not all(isinstance(t, Const) for t in tests):
                self.fail("a comprehension's test is compile-time only; write a loop with if")
            if all(isinstance(t, Const) and t.value for t in tests):
                parts.append(self.value(node.elt))
        self.names.pop(name, None)
        if kept is not None:
            self.names[name] = kept
        return Const([p.value for p in parts]) if all(isinstance(p, Const) for p in parts) else parts

    expr_GeneratorExp = expr_ListComp

    # --- names, fields, elements -----------------------------------------------------------------------

    def expr_Name(self, node: ast.Name) -> Any:
        local = self.names.get(node.id)
        if isinstance(local, Const):
            self.note_read(node.id, local)
            return local
        if isinstance(local, Val):
            return local
        if isinstance(local, Variable):
            return self.emit(local.type, f"load {ir_type(local.type)}, ptr {local.slot}")
        if isinstance(local, Unknown):
            self.fail(local.reason)
        if node.id in self.environment and node.id not in self.own_names:
            return Const(self.environment[node.id])
        return self.fail(f"{node.id!r} is not defined here; bind it before, and on every way that leads here")

    def expr_Attribute(self, node: ast.Attribute) -> Any:
        base = self.operand(node.value)
        if isinstance(base, Const):
            try:
                return Const(getattr(base.value, node.attr))
            except AttributeError:
                self.fail(f"{base.value!r} has no attribute {node.attr!r}")
        if not is_ptr(base.type) or not is_struct(base.type.target):
            self.fail(f"{name_of(base.type)} has no fields; only a pointer to a struct has")
        field = base.type.target.fields.get(node.attr)
        if field is None:
            self.fail(f"{name_of(base.type.target)} has no field {node.attr!r}; it has "
                      + ", ".join(base.type.target.fields))
        place = self.emit(None, f"getelementptr i8, ptr {base.ir}, i64 {field.offset}")
        return Place(field.type, place.ir, self.reached(field.memory or base.memory))

    def reached(self, memory: str) -> str:
        """The class of memory that a place has which this function makes."""
        self.instance.touches_registers |= memory == REGISTERS
        return memory

    def expr_Slice(self, node: ast.Slice) -> Any:
        bounds = [Const(None) if e is None else self.operand(e) for e in (node.lower, node.upper, node.step)]
        if not all(isinstance(b, Const) for b in bounds):
            self.fail("a slice is compile-time only; use ref(p, i) for the rest of an array")
        lower, upper, step = (b.value for b in bounds if isinstance(b, Const))
        return Const(slice(lower, upper, step))

    def expr_Subscript(self, node: ast.Subscript) -> Any:
        base, index = self.value(node.value), self.operand(node.slice)
        if isinstance(base, (list, tuple)):
            if not isinstance(index, Const):
                self.fail("a sequence of run-time values is indexed by a literal; put it into memory")
            return self.static(operator.getitem, base, index.value)
        base = self.single(base)
        if isinstance(base, Const):
            if not isinstance(index, Const):
                self.fail("a compile-time table is indexed by a compile-time value; put the table into memory")
            return self._static_item(base.value, index.value)
        if is_vec(base.type):
            lane = self.lane(base.type, index)
            return self.emit(base.type.element, f"extractelement {ir_type(base.type)} {base.ir}, i32 {lane}")
        if not is_ptr(base.type):
            self.fail(f"{name_of(base.type)} has no elements; a pointer, a vector or a table has")
        offset, size = self.index(index), self.size_of(base.type.target)
        place = self.emit(None, f"getelementptr [{size} x i8], ptr {base.ir}, i64 {offset}")
        return Place(base.type.target, place.ir, base.memory)

    def _static_item(self, table: Any, key: Any) -> Const:
        try:
            return Const(table[key])
        except (KeyError, IndexError, TypeError) as error:
            self.fail(f"{table!r}[{key!r}]: {error!r}")

    def size_of(self, kind: Any) -> int:
        """Bytes of a pointer's target."""
        if kind is not bool and not hasattr(kind, "size"):
            self.fail("a pointer without target has no elements; write ptr[T](p)")
        return size_of(kind)

    def lane(self, kind: Any, index: Const | Val) -> str:
        """A lane's number as LLVM's text; a run-time number counts modulo the lanes."""
        if isinstance(index, Const):
            if not isinstance(index.value, int) or not 0 <= int(index.value) < kind.count:
                self.fail(f"{name_of(kind)} has no lane {index.value!r}; it has 0 to {kind.count - 1}")
            return str(int(index.value))
        if not is_int(index.type):
            self.fail(f"{name_of(index.type)} is not a lane number; use an integer")
        n = Val(uint(index.type.size), index.ir)
        n = n if index.type.bits > 64 else arith.resize(self, n, u64)
        op, by = ("urem", kind.count) if kind.count & kind.count - 1 else ("and", kind.count - 1)
        return arith.resize(self, self.emit(n.type, f"{op} {ir_type(n.type)} {n.ir}, {by}"), u32).ir

    def index(self, index: Any) -> str:
        """An element's number as LLVM's text."""
        if isinstance(index, Const):
            if not isinstance(index.value, int):
                self.fail(f"{index.value!r} is not an index; use an integer")
            return str(int(index.value))
        if not is_int(index.type):
            self.fail(f"{name_of(index.type)} is not an index; use an integer")
        return arith.resize(self, index, u64).ir

    # --- operators -------------------------------------------------------------------------------------

    def expr_BinOp(self, node: ast.BinOp) -> Any:
        return self.binary(node.op, self.operand(node.left), self.operand(node.right))

    def binary(self, op: ast.operator, a: Const | Val, b: Const | Val) -> Const | Val:
        if isinstance(a, Const) and isinstance(b, Const):
            return Const(self.static(_STATIC[type(op)], a.value, b.value))
        if isinstance(op, _SHIFTS):
            return self._shift(op, a, b)
        a, b = self._both(a, b)
        return arith.binary(self, op, a, b)

    def _shift(self, op: ast.operator, a: Const | Val, b: Const | Val) -> Val:
        if isinstance(a, Const):
            if not isinstance(a.value, (_Int, Vec)):
                self.fail("a shifted literal has no type; write u64(1) << n")
            a = self.materialize(a, type(a.value))
        if isinstance(b, Const) and is_vec(a.type):
            b = self.materialize(b, a.type)
        elif isinstance(b, Const):
            if not isinstance(b.value, int):
                self.fail(f"a shift count is an integer, not {b.value!r}")
            b = Val(u64, str(int(b.value)))
        return arith.binary(self, op, a, b)

    def _both(self, a: Const | Val, b: Const | Val) -> tuple[Val, Val]:
        """Two operands, a literal with the type of the other."""
        if isinstance(a, Const):
            assert isinstance(b, Val)
            return self.materialize(a, b.type), b
        return a, self.materialize(b, a.type) if isinstance(b, Const) else b

    def expr_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            condition = self.condition(node.operand)
            if isinstance(condition, Const):
                return Const(not condition.value)
            return self.emit(bool, f"xor i1 {condition.ir}, 1")
        value = self.operand(node.operand)
        if isinstance(value, Const):
            return Const(self.static(_STATIC[type(node.op)], value.value))
        if isinstance(node.op, ast.Invert):
            return arith.invert(self, value)
        return value if isinstance(node.op, ast.UAdd) else arith.negate(self, value)

    def expr_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            self.fail("a chained comparison is not in the subset; join two with and")
        a, b, op = self.operand(node.left), self.operand(node.comparators[0]), node.ops[0]
        if isinstance(a, Const) and isinstance(b, Const):
            return Const(self.static(_STATIC[type(op)], a.value, b.value))
        if isinstance(op, (ast.Is, ast.IsNot)) and Const(None) in (a, b):
            return Const(isinstance(op, ast.IsNot))
        arith.check_comparison(self, op)
        a, b = self._both(a, b)
        return arith.compare(self, op, a, b)

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
        return self.choose(node, None)

    def typed(self, node: ast.expr, kind: Any) -> Any:
        """Evaluate where a `kind` is wanted: `1 if c else 2` takes it, having no type of its own."""
        if not isinstance(node, ast.IfExp):
            return self.value(node)
        outer, self.node = self.node, node
        result = self.choose(node, kind)
        self.node = outer
        return result

    def choose(self, node: ast.IfExp, kind: Any) -> Any:
        """`a if c else b`; the sides agree in type, or one is a literal, or `kind` is what both become."""
        condition = self.condition(node.test)
        if isinstance(condition, Const):
            return self.typed(node.body if condition.value else node.orelse, kind)
        yes, no, end = self.new_label("yes"), self.new_label("no"), self.new_label("chosen")
        self.branch(condition, yes, no)
        self.label(yes)
        first = self.single(self.typed(node.body, kind))
        yes_end = self.new_label("yes_end")
        self.jump(yes_end)
        self.label(no)
        second = self.single(self.typed(node.orelse, kind))
        kind = self._common(first, second, kind)
        slot = self.variable(kind).slot
        self.effect(f"store {ir_type(kind)} {self.materialize(second, kind).ir}, ptr {slot}")
        self.jump(end)
        self.label(yes_end)
        self.effect(f"store {ir_type(kind)} {self.materialize(first, kind).ir}, ptr {slot}")
        self.jump(end)
        self.label(end)
        return self.emit(kind, f"load {ir_type(kind)}, ptr {slot}")

    def _common(self, first: Const | Val, second: Const | Val, wanted: Any) -> Any:
        """The type of a choice."""
        for side in (first, second):
            if isinstance(side, Val):
                return side.type
        kinds = [type(s.value) for s in (first, second) if isinstance(s, Const)]
        for kind in (bool, wanted):
            if kind is not None and (kind is not bool or kinds == [bool, bool]):
                return kind
        return self.fail("neither side has a type; write u64(...) on one")


def float_literal(kind: Any, value: Any) -> str:
    """LLVM's hexadecimal spelling, exact for every width."""
    if kind is f80:
        raw = f80(value).raw
        return f"0xK{int.from_bytes(raw[8:], 'little'):04X}{int.from_bytes(raw[:8], 'little'):016X}"
    double = float(f32(value)) if kind is f32 else float(value)
    return f"0x{int.from_bytes(_struct.pack('<d', double), 'little'):016X}"
