"""Statements: from the syntax tree of one native function to LLVM text.

A name bound to a compile-time value stays one as long as the binding does not depend on run-time control
flow; an `if` over compile-time values compiles one side only. Every other local is a stack slot that LLVM
turns into registers. `raise` leaves a flag beside the return value which each caller tests.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from pellucid.native import arith
from pellucid.native.errors import NativeError
from pellucid.native.expr import Expressions
from pellucid.native.program import Instance, Program, result_ir
from pellucid.native.source import environment, syntax_tree
from pellucid.native.types import NativeType, u64
from pellucid.native.values import Const, Place, Val, ir_type, name_of


@dataclass(frozen=True, slots=True)
class Variable:
    """A local with a run-time value: its type and its stack slot."""

    type: Any
    slot: str


@dataclass(frozen=True, slots=True)
class Loop:
    again: str
    after: str


class Return:
    """A `ret` whose final text waits for the function's result type."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Raise:
    """A return with the raise flag set."""


def lower(program: Program, instance: Instance) -> None:
    """Compile `instance` to text; errors name file, line and column."""
    FunctionLowering(program, instance).run()


class FunctionLowering(Expressions):
    """One function being compiled."""

    def __init__(self, program: Program, instance: Instance) -> None:
        self.program, self.instance = program, instance
        self.file = instance.fn.fn.__code__.co_filename
        self.node: ast.AST = ast.Pass(lineno=instance.fn.fn.__code__.co_firstlineno, col_offset=0)
        self.tree = syntax_tree(instance.fn.fn)
        self.environment = environment(instance.fn.fn)
        self.names: dict[str, Const | Variable] = {}
        self.body: list[Any] = []
        self.slots: list[str] = []
        self.counter = 0
        self.terminated = False
        self.loops: list[Loop] = []
        self.catchers: list[str] = []
        self.result: Any = instance.fn.fn.__annotations__.get("return", ...)
        self.raise_label: str | None = None

    def run(self) -> None:
        if isinstance(self.result, str):
            self.fail("annotations are evaluated; do not use `from __future__ import annotations` here")
        if self.result is not ... and self.result is not None and not isinstance(self.result, (NativeType, type)):
            self.fail(f"the result annotation {self.result!r} is not a native type")
        if self.result is not ...:
            self.instance.result = self.result
        self._bind_parameters()
        self.block(self.tree.body)
        if not self.terminated:
            self._return(None)
        if self.raise_label is not None:
            self.label(self.raise_label)
            self.body.append(Raise())
        self._finish()

    def _bind_parameters(self) -> None:
        i = 0
        for name, param in zip((a.arg for a in self.tree.args.args), self.instance.params):
            if isinstance(param, Const):
                self.names[name] = param
                continue
            variable = self.variable(param)
            self.body.append(f"  store {ir_type(param)} %a{i}, ptr {variable.slot}")
            self.names[name] = variable
            i += 1

    def _finish(self) -> None:
        instance = self.instance
        instance.result = None if self.result is ... else self.result
        if instance.raises and instance.fn.tail:
            self.node = self.tree
            self.fail("an exception leaves this handler; catch it inside")
        lines = ["entry:", *self.slots]
        for item in self.body:
            if isinstance(item, Return):
                lines += self._return_text(item)
            elif isinstance(item, Raise):
                poison = result_ir(instance.result)
                lines.append("  ret i1 1" if poison == "void" else
                             f"  ret {instance.returns} {{ {poison} poison, i1 1 }}")
            else:
                lines.append(item)
        instance.lines = lines
        instance.done = True

    def _return_text(self, item: Return) -> list[str]:
        instance = self.instance
        plain = result_ir(instance.result)
        if plain == "void":
            return ["  ret i1 0" if instance.raises else "  ret void"]
        value, lines = item.value, []
        if isinstance(instance.result, tuple):
            whole = "poison"
            for i, (kind, part) in enumerate(zip(instance.result, value)):
                part = self.materialize(part, kind)
                lines.append(f"  %r{id(item)}.{i} = insertvalue {plain} {whole}, {ir_type(kind)} {part.ir}, {i}")
                whole = f"%r{id(item)}.{i}"
            text = whole
        else:
            text = self.materialize(value, instance.result).ir
        if not instance.raises:
            return [*lines, f"  ret {plain} {text}"]
        n = f"%q{self.fresh()}"
        return [*lines, f"  {n} = insertvalue {instance.returns} {{ {plain} poison, i1 0 }}, {plain} {text}, 0",
                f"  ret {instance.returns} {n}"]

    # --- what statements and expressions are made of ---------------------------------------------------

    def fail(self, message: str) -> Any:
        raise NativeError(message, self.file, getattr(self.node, "lineno", 0), getattr(self.node, "col_offset", 0) + 1)

    def fresh(self) -> int:
        self.counter += 1
        return self.counter

    def emit(self, kind: Any, text: str) -> Val:
        name = f"%v{self.fresh()}"
        self.body.append(f"  {name} = {text}")
        if " @llvm." in text:
            self._declare_intrinsic(text)
        return Val(kind, name)

    def effect(self, text: str) -> None:
        self.body.append(f"  {text}")
        if " @llvm." in text:
            self._declare_intrinsic(text)

    def _declare_intrinsic(self, text: str) -> None:
        head, _, rest = text.partition("call ")[2].partition("(")
        kinds = ", ".join(_argument_types(rest.rsplit(")", 1)[0]))
        self.instance.declares.add(f"declare {head}({kinds})")

    def new_label(self, word: str) -> str:
        return f"{word}{self.fresh()}"

    def label(self, name: str) -> None:
        self.body.append(f"{name}:")
        self.terminated = False

    def jump(self, label: str) -> None:
        if not self.terminated:
            self.body.append(f"  br label %{label}")
            self.terminated = True

    def branch(self, condition: Val, yes: str, no: str, *, unlikely: bool = False) -> None:
        weights = ""
        if unlikely:
            yes, no = no, yes
            condition = self.emit(bool, f"xor i1 {condition.ir}, 1")
            weights = ", !prof !0"
        self.body.append(f"  br i1 {condition.ir}, label %{yes}, label %{no}{weights}")
        self.terminated = True

    def variable(self, kind: Any) -> Variable:
        slot = f"%s{self.fresh()}"
        self.slots += [f"  {slot} = alloca {ir_type(kind)}", f"  store {ir_type(kind)} zeroinitializer, ptr {slot}"]
        return Variable(kind, slot)

    def raise_target(self) -> str:
        """Where a raise inside this point goes: the innermost `except`, or out of the function."""
        if self.catchers:
            return self.catchers[-1]
        self.instance.raises = True
        if self.raise_label is None:
            self.raise_label = self.new_label("raised")
        return self.raise_label

    # --- statements ------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.terminated:
                return
            self.node = statement
            method = getattr(self, f"stmt_{type(statement).__name__}", None)
            if method is None:
                self.fail(f"{type(statement).__name__} is not in the subset; use if, while, for-range, "
                          "assignment, return, raise, try/except or a call")
            method(statement)

    def stmt_Pass(self, node: ast.Pass) -> None:
        pass

    def stmt_Expr(self, node: ast.Expr) -> None:
        if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
            self.evaluate(node.value)

    def stmt_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._return(None)
        elif isinstance(node.value, ast.Tuple):
            self._return(tuple(self.value(e) for e in node.value.elts))
        else:
            value = self.value(node.value)
            self._return(None if isinstance(value, Val) and value.type is None else value)

    def _return(self, value: Any) -> None:
        if self.terminated:
            return
        kind = self._result_kind(value)
        if self.result is ... and kind is not ...:
            self.result = kind
        elif kind is not ... and kind != self.result:
            self.fail(f"this returns {_names(kind)} where {_names(self.result)} is the result; convert it")
        if self.instance.fn.tail and value is not None:
            self.fail("a handler returns nothing")
        self.body.append(Return(value))
        self.terminated = True

    def _result_kind(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple):
            if any(isinstance(v, Const) for v in value):
                self.fail("a literal in a result tuple has no type; write u64(0)")
            return tuple(v.type for v in value)
        if isinstance(value, Const):
            if isinstance(value.value, bool):
                return bool
            if self.result is ...:
                self.fail("the result's type is not known from a literal; annotate it: def f(...) -> u64")
            self.materialize(value, self.result)
            return ...
        return value.type

    def stmt_Raise(self, node: ast.Raise) -> None:
        self.jump(self.raise_target())

    def stmt_Try(self, node: ast.Try) -> None:
        if len(node.handlers) != 1 or node.orelse or node.finalbody:
            self.fail("try takes one except and nothing else")
        catch, after = self.new_label("catch"), self.new_label("after")
        before = dict(self.names)
        self.catchers.append(catch)
        self.block(node.body)
        self.catchers.pop()
        self.jump(after)
        self._merge(before)
        self.label(catch)
        self.block(node.handlers[0].body)
        self.jump(after)
        self._merge(before)
        self.label(after)

    def stmt_If(self, node: ast.If) -> None:
        condition = self.condition(node.test)
        if isinstance(condition, Const):
            self.block(node.body if condition.value else node.orelse)
            return
        yes, no, after = self.new_label("then"), self.new_label("else"), self.new_label("endif")
        self.branch(condition, yes, no if node.orelse else after)
        before, alive = dict(self.names), False
        self.label(yes)
        self.block(node.body)
        alive |= not self.terminated
        self.jump(after)
        self._merge(before)
        if node.orelse:
            self.label(no)
            self.block(node.orelse)
            alive |= not self.terminated
            self.jump(after)
            self._merge(before)
        if alive or not node.orelse:
            self.label(after)

    def _merge(self, before: dict[str, Const | Variable]) -> None:
        """Leave a run-time branch: its variables stay, its compile-time names go."""
        for name, value in list(self.names.items()):
            if isinstance(value, Const) and before.get(name) is not value:
                if name in before and before[name] != value:
                    self.fail(f"{name!r} is known at compile time and changes under a run-time condition; "
                              f"give it a type where it is first assigned: {name}: u64 = ...")
                if name not in before:
                    del self.names[name]
            elif isinstance(value, Variable) and isinstance(before.get(name), Const):
                self.fail(f"{name!r} is known at compile time and gets a run-time value under a run-time condition; "
                          f"give it a type where it is first assigned: {name}: u64 = ...")

    def stmt_While(self, node: ast.While) -> None:
        if node.orelse:
            self.fail("while ... else is not in the subset; use a flag")
        test, body, after = self.new_label("while"), self.new_label("do"), self.new_label("done")
        before = dict(self.names)
        self.jump(test)
        self.label(test)
        condition = self.condition(node.test)
        if isinstance(condition, Const):
            if not condition.value:
                return
            self.jump(body)
        else:
            self.branch(condition, body, after)
        self.loops.append(Loop(test, after))
        self.label(body)
        self.block(node.body)
        self.loops.pop()
        self.jump(test)
        self._merge(before)
        self.label(after)
        if isinstance(condition, Const) and not any(f"label %{after}" in x for x in self.body if isinstance(x, str)):
            self.body.append("  unreachable")
            self.terminated = True

    def stmt_For(self, node: ast.For) -> None:
        if node.orelse or not isinstance(node.target, (ast.Name, ast.Tuple)):
            self.fail("for takes one name (or names, over static data) and no else")
        call = node.iter
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range":
            self._for_range(node, call)
            return
        sequence = self.evaluate(call)
        if not isinstance(sequence, Const):
            self.fail("for runs over range(...) at run time, or over compile-time data: static(...)")
        self._unroll(node, list(sequence.value))

    def _unroll(self, node: ast.For, items: list[Any]) -> None:
        after = self.new_label("unrolled")
        for item in items:
            if self.terminated:
                break
            again = self.new_label("next")
            self._bind_static(node.target, item)
            self.loops.append(Loop(again, after))
            self.block(node.body)
            self.loops.pop()
            self.jump(again)
            self.label(again)
        self.jump(after)
        self.label(after)

    def _bind_static(self, target: ast.expr, item: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = Const(item)
        elif isinstance(target, ast.Tuple):
            for name, part in zip(target.elts, item, strict=True):
                self._bind_static(name, part)

    def _for_range(self, node: ast.For, call: ast.Call) -> None:
        if not isinstance(node.target, ast.Name):
            self.fail("for over range takes one name")
        bounds = [self.value(a) for a in call.args]
        kind = next((b.type for b in bounds if isinstance(b, Val)), u64)
        start, stop, step = {1: [Const(0), *bounds, Const(1)], 2: [*bounds, Const(1)], 3: bounds}[len(bounds)]
        if not isinstance(step, Const) or step.value <= 0:
            self.fail("the step of range is a positive literal; count down with while")
        first, last = self.materialize(start, kind), self.materialize(stop, kind)
        before = dict(self.names)
        counter = self.variable(kind)
        self.effect(f"store {kind.ir} {first.ir}, ptr {counter.slot}")
        test, body, again, after = (self.new_label(w) for w in ("range", "do", "step", "done"))
        self.jump(test)
        self.label(test)
        now = self.emit(kind, f"load {kind.ir}, ptr {counter.slot}")
        self.branch(arith.compare(self, ast.Lt(), now, last), body, after)
        self.label(body)
        shown = self.variable(kind)
        self.names[node.target.id] = shown
        self.effect(f"store {kind.ir} {now.ir}, ptr {shown.slot}")
        self.loops.append(Loop(again, after))
        self.block(node.body)
        self.loops.pop()
        self.jump(again)
        self.label(again)
        grown = self.emit(kind, f"add {kind.ir} {now.ir}, {int(step.value)}")
        self.effect(f"store {kind.ir} {grown.ir}, ptr {counter.slot}")
        self.jump(test)
        self._merge(before)
        self.label(after)

    def stmt_Break(self, node: ast.Break) -> None:
        self.jump(self.loops[-1].after)

    def stmt_Continue(self, node: ast.Continue) -> None:
        self.jump(self.loops[-1].again)

    def stmt_AnnAssign(self, node: ast.AnnAssign) -> None:
        kind = self.evaluate(node.annotation)
        if not isinstance(kind, Const) or not isinstance(node.target, ast.Name) or node.value is None:
            self.fail("a declaration is: name: type = value")
        value = self.materialize(self.value(node.value), kind.value)
        variable = self.names.get(node.target.id)
        if not isinstance(variable, Variable) or variable.type is not kind.value:
            variable = self.names[node.target.id] = self.variable(kind.value)
        self.effect(f"store {ir_type(kind.value)} {value.ir}, ptr {variable.slot}")

    def stmt_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            values: Any = [self.value(e) for e in node.value.elts]
        else:
            values = self.evaluate(node.value)
            if isinstance(values, Place):
                values = self.load(values)
        for target in node.targets:
            self.assign(target, values)

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            parts = value.value if isinstance(value, Const) else value
            if not isinstance(parts, (tuple, list)) or len(parts) != len(target.elts):
                self.fail("the value has another number of parts than the target")
            for name, part in zip(target.elts, parts):
                self.assign(name, part if isinstance(part, (Val, Const)) else Const(part))
        elif isinstance(target, ast.Name):
            self._assign_name(target.id, value)
        else:
            place = self.evaluate(target)
            if not isinstance(place, Place):
                self.fail("this is not a place to store to")
            self.store(place, value)

    def _assign_name(self, name: str, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            self.fail("unpack the tuple: a, b = ...")
        old = self.names.get(name)
        if isinstance(old, Variable):
            kept = self.materialize(value, old.type) if isinstance(value, Const) else value
            if kept.type is not old.type:
                self.fail(f"{name!r} is {name_of(old.type)}, not {name_of(kept.type)}; convert the value")
            self.effect(f"store {ir_type(old.type)} {kept.ir}, ptr {old.slot}")
        elif isinstance(value, Const):
            self.names[name] = value
        elif value.type is None:
            self.fail("this call returns nothing")
        else:
            variable = self.names[name] = self.variable(value.type)
            self.effect(f"store {ir_type(value.type)} {value.ir}, ptr {variable.slot}")

    def stmt_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.assign(node.target, self.binary(node.op, self.value(node.target), self.value(node.value)))
            return
        place = self.evaluate(node.target)
        if not isinstance(place, Place):
            self.fail("this is not a place to store to")
        self.store(place, self.binary(node.op, self.load(place), self.value(node.value)))


def _names(kind: Any) -> str:
    return "(" + ", ".join(name_of(k) for k in kind) + ")" if isinstance(kind, tuple) else name_of(kind)


def _argument_types(text: str) -> list[str]:
    """The types in `i64 %a, <4 x i32> %b, i1 0`: every argument less its last word."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "<{[(") - (c in ">}])")
        if c == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [_type_of_argument(p.strip()) for p in parts if p.strip()]


def _type_of_argument(text: str) -> str:
    if text.startswith(("<", "{")):
        close = text.index(">" if text[0] == "<" else "}")
        return text[: close + 1]
    return text.split()[0]
