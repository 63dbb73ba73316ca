"""Statements. A name bound to a compile-time value stays one as long as every way that leads to its use agrees."""

from __future__ import annotations

import ast
from typing import Any

from pellucid.native import arith
from pellucid.native.calls import Calls
from pellucid.native.emission import Catcher, Loop, Names, Return
from pellucid.native.errors import NativeException
from pellucid.native.types import NativeType, _ArrayType, u64, uint
from pellucid.native.values import Const, Place, Val, Variable, ir_type, is_int, is_struct, name_of


class Statements(Calls):
    """What a statement becomes."""

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

    # --- leaving ---------------------------------------------------------------------------------------

    def stmt_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self.give(None)
        elif isinstance(node.value, ast.Tuple):
            self.give(tuple(self.value(e) for e in node.value.elts))
        else:
            wanted = self.result if isinstance(self.result, type) else None
            value = self.typed(node.value, wanted)
            self.give(None if isinstance(value, Val) and value.type is None or value == Const(None) else value)

    def give(self, value: Any) -> None:
        """Return `value`; the first return of a function without annotation decides its type."""
        if self.instance.fn.tail and value is not None:
            self.fail("a handler returns nothing")
        kind = self._result_kind(value)
        if self.result is ... and kind is not ...:
            self.result = kind
        elif kind is not ... and kind != self.result:
            self.fail(f"this returns {_names(kind)} where {_names(self.result)} is the result; convert it")
        self.body.append(Return(value))
        self.terminated = True

    def _result_kind(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple):
            if not all(isinstance(v, Val) for v in value):
                self.fail("a literal in a result tuple has no type; write u64(0)")
            return tuple(v.type for v in value)
        if isinstance(self.single(value), Const):
            if isinstance(value.value, bool):
                return bool
            if isinstance(type(value.value), NativeType):
                return type(value.value)
            if self.result is ...:
                self.fail("the result's type is not known from a literal; annotate it: def f(...) -> u64")
            self.materialize(value, self.result)
            return ...
        return value.type

    def stmt_Raise(self, node: ast.Raise) -> None:
        if node.cause is not None:
            self.fail("raise ... from is not in the subset; raise alone")
        if node.exc is None:
            if not self.caught:
                self.fail("raise without a name stands in an except block; name the exception")
            kinds = self.caught[-1]
        else:
            kinds = self._exceptions(node.exc)
        self.jump(self.raise_target(kinds))

    def _exceptions(self, node: ast.expr | None) -> set[type]:
        """The exception classes that `raise` or `except` names."""
        if isinstance(node, ast.Call) and not node.args and not node.keywords:
            node = node.func
        value = self.evaluate(node) if node is not None else None
        named = value.value if isinstance(value, Const) else None
        kinds = named if isinstance(named, tuple) else (named,)
        if not all(isinstance(k, type) and issubclass(k, NativeException) for k in kinds):
            self.fail("an exception here is a class derived from NativeException, named without arguments")
        return set(kinds)

    def stmt_Try(self, node: ast.Try) -> None:
        if len(node.handlers) != 1 or node.orelse or node.finalbody or node.handlers[0].name:
            self.fail("try takes one except, without `as`, and nothing else")
        handler, after = node.handlers[0], self.new_label("after")
        kinds = self._exceptions(handler.type)
        catcher = Catcher(self.new_label("catch"))
        self.catchers.append(catcher)
        self.block(node.body)
        self.catchers.pop()
        ends = self._leave(after)
        stray = [k.__name__ for k in catcher.kinds if not issubclass(k, tuple(kinds))]
        if stray:
            self.node = handler
            self.fail(f"{', '.join(sorted(stray))} raised in this try is not caught by its except, and native code "
                      "has one kind of exception in flight; catch a common base")
        if catcher.states:
            self.names = self.variables_of(self.names, self.join(catcher.states))
            self.label(catcher.label)
            self.caught.append(catcher.kinds or kinds)
            self.block(handler.body)
            self.caught.pop()
            ends += self._leave(after)
        self._continue_at(after, ends)

    def _leave(self, label: str) -> list[Names]:
        """Go to `label` if this place is reached at all; the names as they leave."""
        if self.terminated:
            return []
        self.jump(label)
        return [self.names]

    def _continue_at(self, label: str, ways: list[Names]) -> None:
        """Go on where `ways` meet; where there is none, what follows is not reached."""
        if ways:
            self.names = self.join(ways)
            self.label(label)

    # --- choice and loops ------------------------------------------------------------------------------

    def stmt_If(self, node: ast.If) -> None:
        condition = self.condition(node.test)
        if isinstance(condition, Const):
            self.block(node.body if condition.value else node.orelse)
            return
        yes, no, after = self.new_label("then"), self.new_label("else"), self.new_label("endif")
        self.branch(condition, yes, no if node.orelse else after)
        before = self.names
        self.names = dict(before)
        self.label(yes)
        self.block(node.body)
        ends = self._leave(after)
        self.names = self.variables_of(self.names, before)
        if node.orelse:
            self.label(no)
            self.block(node.orelse)
            ends += self._leave(after)
        else:
            ends.append(self.names)
        self._continue_at(after, ends)

    def stmt_While(self, node: ast.While) -> None:
        if node.orelse:
            self.fail("while ... else is not in the subset; use a flag")
        test, body, after = self.new_label("while"), self.new_label("do"), self.new_label("done")
        loop = Loop(test, after, dict(self.names))
        self.loops.append(loop)
        self.jump(test)
        self.label(test)
        condition = self.condition(node.test)
        if isinstance(condition, Const) and not condition.value:
            self.loops.pop()
            return
        if isinstance(condition, Const):
            self.jump(body)
        else:
            self.branch(condition, body, after)
        self.label(body)
        self.block(node.body)
        turns = self._turn(loop, test, node)
        ends = loop.breaks if isinstance(condition, Const) else [*loop.breaks, loop.entry or {}, *turns]
        made = self.names
        self._continue_at(after, ends)
        self.names = self.variables_of(made, self.names)

    def _turn(self, loop: Loop, label: str, node: ast.stmt) -> list[Names]:
        """The end of a run-time loop's body: the names on every way to its next turn."""
        self.loops.pop()
        turns = [*loop.continues, *self._leave(label)]
        for state in turns:
            self.check_loop(loop, state, node)
        return turns

    def stmt_For(self, node: ast.For) -> None:
        if node.orelse:
            self.fail("for ... else is not in the subset; use a flag")
        call = node.iter
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range":
            self._for_range(node, call)
            return
        sequence = self.evaluate(call)
        if not isinstance(sequence, Const):
            self.fail("for runs over range(...) at run time, or over compile-time data: static(...)")
        self._unroll(node, self.static(list, sequence.value))

    def _unroll(self, node: ast.For, items: list[Any]) -> None:
        after = self.new_label("unrolled")
        ends: list[Names] = []
        for item in items:
            loop = Loop(self.new_label("next"), after, None)
            self._bind_static(node.target, item)
            self.loops.append(loop)
            self.block(node.body)
            self.loops.pop()
            ends += loop.breaks
            made = self.names
            self._continue_at(loop.again, [*loop.continues, *self._leave(loop.again)])
            self.names = self.variables_of(made, self.names)
            if self.terminated:
                break
        ends += self._leave(after)
        made = self.names
        self._continue_at(after, ends)
        self.names = self.variables_of(made, self.names)

    def _bind_static(self, target: ast.expr, item: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = Const(item)
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = self.static(list, item)
            if len(parts) != len(target.elts):
                self.fail(f"an item of this loop has {len(parts)} parts and {len(target.elts)} names")
            for name, part in zip(target.elts, parts, strict=True):
                self._bind_static(name, part)
        else:
            self.fail("for takes one name, or names over static data")

    def _range(self, call: ast.Call) -> tuple[Any, Val, Val, int]:
        """The counter's type, its first value, its bound and its step."""
        bounds: list[Any] = [self.operand(a) for a in call.args]
        if not 1 <= len(bounds) <= 3 or call.keywords:
            self.fail("range takes a bound, or first, bound and step")
        kind = next((b.type for b in bounds if isinstance(b, Val)), u64)
        if not is_int(kind):
            self.fail(f"range counts in integers, not {name_of(kind)}; convert the bound: u64(...)")
        start, stop, step = {1: [Const(0), *bounds, Const(1)], 2: [*bounds, Const(1)], 3: bounds}[len(bounds)]
        if not isinstance(step, Const) or not isinstance(step.value, int) or int(step.value) <= 0:
            self.fail("the step of range is a positive literal; count down with while")
        if int(step.value) >> (kind.bits - kind.signed):
            self.fail(f"the step {step.value} does not fit {name_of(kind)}; use a wider type")
        return kind, self.materialize(start, kind), self.materialize(stop, kind), int(step.value)

    def _for_range(self, node: ast.For, call: ast.Call) -> None:
        if not isinstance(node.target, ast.Name):
            self.fail("for over range takes one name")
        kind, first, last, step = self._range(call)
        test, body, again, after = (self.new_label(w) for w in ("range", "do", "step", "done"))
        counter, before = self.variable(kind), dict(self.names)
        self.effect(f"store {kind.ir} {first.ir}, ptr {counter.slot}")
        self.jump(test)
        self.label(test)
        now = self.emit(kind, f"load {kind.ir}, ptr {counter.slot}")
        self.branch(arith.compare(self, ast.Lt(), now, last), body, after)
        self.label(body)
        old = self.names.get(node.target.id)
        shown = old if isinstance(old, Variable) and old.type is kind else self.variable(kind)
        self.names[node.target.id] = shown
        self.effect(f"store {kind.ir} {now.ir}, ptr {shown.slot}")
        loop = Loop(again, after, dict(self.names))
        self.loops.append(loop)
        self.block(node.body)
        turns = self._turn(loop, again, node)
        self.label(again)
        self._count(kind, now, last, step, counter, after)
        self.jump(test)
        made = self.names
        self._continue_at(after, [*loop.breaks, before, *turns])
        self.names = self.variables_of(made, self.names)

    def _count(self, kind: Any, now: Val, last: Val, step: int, counter: Variable, after: str) -> None:
        """The next number; a step that would pass the type's end leaves the loop, as Python's range does."""
        if step > 1:
            left = self.emit(uint(kind.size), f"sub {kind.ir} {last.ir}, {now.ir}")
            more, enough = self.new_label("more"), Val(left.type, str(step))
            self.branch(arith.compare(self, ast.Gt(), left, enough), more, after)
            self.label(more)
        grown = self.emit(kind, f"add {kind.ir} {now.ir}, {step}")
        self.effect(f"store {kind.ir} {grown.ir}, ptr {counter.slot}")

    def stmt_Break(self, node: ast.Break) -> None:
        self.loops[-1].breaks.append(dict(self.names))
        self.jump(self.loops[-1].after)

    def stmt_Continue(self, node: ast.Continue) -> None:
        self.loops[-1].continues.append(dict(self.names))
        self.jump(self.loops[-1].again)

    # --- assignment ------------------------------------------------------------------------------------

    def stmt_AnnAssign(self, node: ast.AnnAssign) -> None:
        kind = self.evaluate(node.annotation)
        if not isinstance(kind, Const) or not isinstance(node.target, ast.Name) or node.value is None:
            self.fail("a declaration is: name: type = value")
        if kind.value is not bool and not isinstance(kind.value, NativeType):
            self.fail(f"{name_of(kind.value)} is not a native type; write u64, bool, ptr[T], ...")
        if is_struct(kind.value) or isinstance(kind.value, _ArrayType):
            self.fail(f"{name_of(kind.value)} lives in memory only; write p = local({name_of(kind.value)})")
        value = self.materialize(self.typed(node.value, kind.value), kind.value)
        variable = self.names.get(node.target.id)
        if not isinstance(variable, Variable) or variable.type is not kind.value:
            variable = self.names[node.target.id] = self.variable(kind.value)
        self.effect(f"store {ir_type(kind.value)} {value.ir}, ptr {variable.slot}")

    def stmt_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            values: Any = [self.value(e) for e in node.value.elts]
        else:
            known = self.names.get(target.id) if isinstance(target, ast.Name) else None
            values = self.typed(node.value, known.type if isinstance(known, Variable) else None)
        for target in node.targets:
            self.assign(target, values)

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            parts = value.value if isinstance(value, Const) else value
            if not isinstance(parts, (tuple, list)) or len(parts) != len(target.elts):
                self.fail(f"the value has another number of parts than the {len(target.elts)} names of the target")
            for name, part in zip(target.elts, parts, strict=True):
                self.assign(name, part if isinstance(part, (Val, Const)) else Const(part))
        elif isinstance(target, ast.Name):
            self._assign_name(target.id, value)
        else:
            self.store(self._place(target), value)

    def _place(self, target: ast.expr) -> Place:
        place = self.evaluate(target)
        if not isinstance(place, Place):
            self.node = target
            self.fail("this is not a place to store to; store through a pointer: p[i] = ..., p.field = ..., "
                      "or make a new vector: v = insert(v, lane, x)")
        return place

    def _assign_name(self, name: str, value: Any) -> None:
        value = self.single(value)
        old = self.names.get(name)
        if isinstance(old, Variable):
            kept = self.materialize(value, old.type) if isinstance(value, Const) else value
            if kept.type is not old.type:
                self.fail(f"{name!r} is {name_of(old.type)}, not {name_of(kept.type)}; convert the value")
            self.effect(f"store {ir_type(old.type)} {kept.ir}, ptr {old.slot}")
        elif isinstance(value, Const) or name in self.bound_once:
            self.names[name] = value
        else:
            variable = self.names[name] = self.variable(value.type)
            self.effect(f"store {ir_type(value.type)} {value.ir}, ptr {variable.slot}")

    def stmt_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            old = self.operand(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
            self.assign(node.target, self.binary(node.op, old, self.operand(node.value)))
            return
        place = self._place(node.target)
        self.store(place, self.binary(node.op, self.load(place), self.operand(node.value)))


def _names(kind: Any) -> str:
    if kind is ...:
        return "nothing yet"
    return "(" + ", ".join(name_of(k) for k in kind) + ")" if isinstance(kind, tuple) else name_of(kind)
