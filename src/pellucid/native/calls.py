"""Calls: of native functions (specialized by their arguments), intrinsics, types, and plain Python at compile time."""

from __future__ import annotations

import ast
from typing import Any

from pellucid.native import arith
from pellucid.native.aliasing import OTHERS, tag
from pellucid.native.errors import NativeError
from pellucid.native.expr import Expressions
from pellucid.native.function import NativeFunction
from pellucid.native.intrinsics import Intrinsic
from pellucid.native.program import Instance
from pellucid.native.types import NativeType, Vec, _Float, _Int, f80, is_literal, u64
from pellucid.native.values import VOID, Const, Val, ir_type, is_ptr, is_vec, name_of


class Calls(Expressions):
    """What a call becomes."""

    def expr_Call(self, node: ast.Call) -> Any:
        target = self.operand(node.func)
        if not isinstance(target, Const):
            self.fail("a run-time value is not callable; use tail(...) or invoke(...) for a handler's address")
        callee = target.value
        args, named = self._call_arguments(node)
        self.node = node
        if isinstance(callee, NativeFunction):
            return self.call(callee, self._arguments(callee, args, named))
        if isinstance(callee, Intrinsic):
            return self._intrinsic(callee, args, named)
        if isinstance(callee, NativeType) or callee is bool:
            return self._conversion(callee, args, named)
        if all(isinstance(a, Const) for a in [*args, *named.values()]):
            return self._static_call(callee, [a.value for a in args], {k: v.value for k, v in named.items()})
        return self.fail(f"{getattr(callee, '__name__', callee)!r} is plain Python and gets a run-time value; "
                         "decorate it with @native or use an intrinsic")

    def _call_arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        for a in node.args:
            if isinstance(a, ast.Starred):
                spread = self.value(a.value)
                args += [Const(v) for v in self.static(list, spread.value)] if isinstance(spread, Const) else \
                    self.static(list, spread)
            else:
                args.append(self.value(a))
        if any(k.arg is None for k in node.keywords):
            self.fail("** is not in the subset; name the arguments")
        named = {str(k.arg): self.value(k.value) for k in node.keywords}
        for a in [*args, *named.values()]:
            if isinstance(a, Val):
                self.single(a)
        return args, named

    def _static_call(self, callee: Any, args: list[Any], named: dict[str, Any]) -> Const:
        try:
            return Const(callee(*args, **named))
        except Exception as error:
            self.fail(f"{getattr(callee, '__name__', callee)}(...) at compile time: {error}")

    # --- conversions and intrinsics --------------------------------------------------------------------

    def _conversion(self, kind: Any, args: list[Any], named: dict[str, Any]) -> Any:
        """T(x)."""
        if len(args) != 1 or named:
            self.fail(f"{name_of(kind)}(...) converts one value")
        value = args[0]
        if isinstance(value, (list, tuple)):
            return self._gather(kind, value)
        if isinstance(value, Val):
            return arith.convert(self, value, kind)
        raw = value.value
        if kind is bool:
            return Const(bool(self.static(bool, raw)))
        if is_ptr(kind) and isinstance(raw, int):
            return arith.convert(self, self.materialize(Const(u64(raw)), u64), kind)
        if isinstance(raw, (_Int, _Float, f80, Vec)) and not is_literal(raw):
            return self.materialize(Const(self.static(kind, raw)), kind)
        return self.materialize(value, kind)

    def _gather(self, kind: Any, values: Any) -> Val:
        """A vector of run-time lanes."""
        if not is_vec(kind) or len(values) != kind.count:
            self.fail(f"{name_of(kind)} is not made of {len(values)} parts; give one, or one for each lane")
        whole = "poison"
        for i, lane in enumerate(values):
            lane = self.materialize(lane, kind.element)
            text = f"insertelement {ir_type(kind)} {whole}, {ir_type(kind.element)} {lane.ir}, i32 {i}"
            whole = self.emit(kind, text).ir
        return Val(kind, whole)

    def _intrinsic(self, callee: Intrinsic, args: list[Any], named: dict[str, Any]) -> Any:
        for a in [*args, *named.values()]:
            if isinstance(a, (list, tuple)) and callee.__name__ != "static":
                self.fail(f"{callee.__name__} does not take a sequence of run-time values")
        try:
            bound = callee.signature.bind(*args, **named)
        except TypeError as error:
            self.fail(f"{callee.__name__}{callee.signature}: {error}")
        bound.apply_defaults()
        return callee.lower(self, *bound.args, **bound.kwargs)

    # --- native functions ------------------------------------------------------------------------------

    def _arguments(self, callee: NativeFunction, args: list[Any], named: dict[str, Any]) -> list[Any]:
        names = callee.fn.__code__.co_varnames[: callee.fn.__code__.co_argcount]
        defaults = dict(zip(names[::-1], (callee.fn.__defaults__ or ())[::-1], strict=False))
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
            elif isinstance(result[i], (list, tuple)):
                self.fail(f"{callee.__name__} gets a sequence of run-time values as {name!r}; pass its parts")
        return result

    def _instance(self, callee: NativeFunction, args: list[Any]) -> Instance:
        node = self.node
        try:
            instance = self.program.request(callee, tuple(a if isinstance(a, Const) else a.type for a in args))
        except NativeError as error:
            error.add_note(f"compiled for the call at {self.file}:{getattr(node, 'lineno', 0)}")
            raise
        self.node = node
        if not instance.done:
            if instance.result is None and "return" not in callee.fn.__annotations__:
                self.fail(f"{callee.__name__} is recursive; annotate its result")
            instance.raises = not callee.tail  # whether it will is not known yet: every caller tests its flag
        return instance

    def call(self, callee: NativeFunction, args: list[Any]) -> Any:
        """A call of another native function, its specialization chosen by the arguments."""
        instance = self._instance(callee, args)
        self.instance.calls[instance] = None
        passed = ", ".join(f"{ir_type(a.type)} {a.ir}" for a in args if isinstance(a, Val))
        text = f'call {instance.convention}{instance.returns} @"{instance.symbol}"({passed})'
        text += tag(OTHERS) if callee.spares_registers else ""
        result = instance.result
        if not instance.raises:
            if result is None:
                self.effect(text)
                return VOID
            return self._unpack(self.emit(result, text), instance)
        outcome = self.emit(None, text)
        flag = outcome if result is None else self.emit(bool, f"extractvalue {instance.returns} {outcome.ir}, 1")
        fine = self.new_label("ok")
        self.branch(flag, self.raise_target(instance.kinds), fine, unlikely=True)
        self.label(fine)
        if result is None:
            return VOID
        return self._unpack(self.emit(result, f"extractvalue {instance.returns} {outcome.ir}, 0"), instance)

    def _unpack(self, whole: Val, instance: Instance) -> Any:
        result = instance.result
        if not isinstance(result, tuple):
            return Val(result, whole.ir, self.reached(instance.memory))
        shape = "{ " + ", ".join(ir_type(t) for t in result) + " }"
        return tuple(self.emit(t, f"extractvalue {shape} {whole.ir}, {i}") for i, t in enumerate(result))
